"""`oxistep bench compact`: fewer bytes beside float32, and beside packages that have 8-bit states."""

import json

import pytest

pytest.importorskip("rich")
torch = pytest.importorskip("torch")

from oxistep.bench import compact, compact_accuracy, packages  # noqa: E402

MISSING = {name: package.missing() for name, package in packages.PACKAGES.items()}


@pytest.mark.parametrize("name", compact.SETTINGS)
@pytest.mark.filterwarnings("ignore")  # what the packages say
def test_every_setting_is_compared(name):
    compact.check(name)
    rows = compact.speed(name, 5000, 0.01)
    setting = compact.SETTINGS[name]
    installed = {package for package in setting.beside if MISSING[package] is None}
    assert {row["against"] for row in rows} == {compact.FLOAT32, *compact.TORCH, *installed}
    assert all(row["median"] > 0 for row in rows)
    assert {row["against"] for row in rows if row["floor"] is not None} == installed, "5,000 elements are not large"


def test_floors_are_those_of_the_level_in_use(monkeypatch):
    setting = compact.SETTINGS['weights="residual16", state_dtype="8bit"']
    for level, floor in (("avx512", 0.95), ("avx2", 0.7)):
        monkeypatch.setattr(compact.oxistep, "cpu_features", lambda level=level: {"simd": level})
        assert compact.floor(setting, compact.FLOAT32, large=True) == floor
        assert compact.floor(setting, compact.FLOAT32, large=False) is None
        assert compact.floor(setting, "pytorch_optimizer", large=False) == 4.0
        assert compact.floor(setting, "torch, fused", large=True) is None


def test_results_are_added_and_what_is_missing_is_named(tmp_path, capsys, monkeypatch):
    nowhere = packages.Package("not_installed_anywhere", "AdamW8bit", "not-installed")
    monkeypatch.setattr(compact, "PACKAGES", {"bitsandbytes": nowhere, "pytorch_optimizer": nowhere})
    file = tmp_path / "r.json"
    arguments = ["--setting", 'state_dtype="8bit"', "--elements", "5000", "--seconds", "0.01", "--steps", "120"]
    assert compact.main([*arguments, "--into", str(file)]) == 0
    found = json.loads(file.read_text())["compact"]
    assert {row["against"] for row in found["speed"]} == {compact.FLOAT32, *compact.TORCH}
    assert {row["gradients"] for row in found["accuracy"]} == set(compact_accuracy.GRADIENTS)
    output = capsys.readouterr()
    assert "left out: not-installed is not installed" in output.err and "PEERS=1" in output.err
    assert "torch fused" in output.out and "beside those of Adam in float64" in output.out


def test_a_package_that_does_not_import_is_left_out_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise OSError('libsomething.so: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    reason = packages.Package("broken_package", "AdamW8bit", "broken").missing()
    assert reason == "broken does not import: OSError: libsomething.so: cannot open"


def test_one_that_moves_otherwise_is_not_timed(monkeypatch):
    class Still(torch.optim.AdamW):
        def step(self, closure=None):
            return None

    monkeypatch.setattr(compact.oxistep.optim, "AdamW", Still)
    with pytest.raises(SystemExit, match="moves parameters otherwise than float32 does"):
        compact.check("all bfloat16")


def test_errors_are_those_that_were_made():
    """torch's Adam in float32 has none; one whose rate is wrong by a tenth is wrong by a tenth."""
    formats = {"right": lambda ps: torch.optim.Adam(ps, lr=1e-3), "wrong": lambda ps: torch.optim.Adam(ps, lr=1.1e-3)}
    found = compact_accuracy.errors(formats, "normal", 120, 1e-3)
    assert found["right"] == (pytest.approx(0, abs=1e-5), pytest.approx(1, rel=1e-5))
    assert found["wrong"] == (pytest.approx(0.1, rel=1e-3), pytest.approx(1.1, rel=1e-3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("package", packages.PACKAGES)
@pytest.mark.parametrize(
    "gradients", ["heavy tails (Student's t, 2 degrees)", "any, one in 100, is 100,000 times as large"]
)
def test_ours_are_nearer_to_float64_than_the_packages(package, gradients):
    if MISSING[package]:
        pytest.skip(MISSING[package])
    cls = packages.PACKAGES[package].load()
    formats = {
        "ours": lambda ps: compact.oxistep.optim.Adam(ps, lr=1e-3, state_dtype="8bit"),
        "theirs": lambda ps: cls(ps, lr=1e-3, weight_decay=0.0),
    }
    found = compact_accuracy.errors(formats, gradients, 300, 1e-3)
    print(gradients, package, found)
    assert found["ours"][0] < 0.5 * found["theirs"][0]
    assert found["ours"][1] < 1.3
