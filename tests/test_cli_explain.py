"""`oxistep explain`: whose states a checkpoint holds, found from the states alone."""

import inspect
import json
import re

import pytest
import torch

import oxistep.optim
from oxistep import zoo
from oxistep.cli import main
from oxistep.cli._checkpoint import STATES, ZOO_STATES, recognized, report_of, state_dicts

pytest.importorskip("rich")

SHAPES = [(3, 4), (4,)]


def stepped(name, dtype=torch.float32, steps=3, **arguments):
    """The state_dict of one of torch's classes after a few steps."""
    shapes = [(3, 4), (4, 2)] if name == "Muon" else SHAPES
    parameters = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    optimizer = getattr(torch.optim, name)(parameters, **arguments)
    for _ in range(steps):
        for parameter in parameters:
            gradient = torch.full_like(parameter, 0.5)
            parameter.grad = gradient.to_sparse(1) if name == "SparseAdam" else gradient
        optimizer.step(*([lambda: torch.tensor(1.0)] if name == "LBFGS" else []))
    return optimizer.state_dict()


def run(capsys, *arguments):
    code = main(["explain", *map(str, arguments)])
    output, errors = capsys.readouterr()
    return code, output, errors


VARIANTS = [
    *((name, {}) for name in STATES if name not in ("SGD",)),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {}),
    ("Adam", {"amsgrad": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
]


@pytest.mark.parametrize(("name", "arguments"), VARIANTS, ids=[f"{n}{'-'.join(a)}" for n, a in VARIANTS])
def test_every_class_is_recognized(name, arguments):
    saved = stepped(name, **arguments)
    assert recognized(saved) == [name]
    report = report_of("", saved)
    without = name == "LBFGS" or (name == "SGD" and not arguments)
    for row, shape in zip(report.parameters, [(3, 4), (4, 2)] if name == "Muon" else SHAPES, strict=True):
        assert row.shape == (None if without else list(shape))
        assert row.path == ("unknown" if without else "native"), row.reason
        assert without or name in ("SGD", "Muon") or row.step == 3
    state_bytes = sum(t.numel() * t.element_size() for s in saved["state"].values() for t in _tensors(s))
    assert sum(row.bytes for row in report.parameters) == state_bytes


def _tensors(state):
    for value in state.values() if isinstance(state, dict) else state:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list):
            yield from _tensors(value)


@pytest.mark.parametrize("name", ZOO_STATES)
def test_every_class_of_the_zoo_is_recognized(name, capsys, tmp_path):
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    optimizer = getattr(zoo, name)(parameters, lr=0.01, **({"momentum": 0.9} if name in ("LARS", "SGDW") else {}))
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "c.pt")
    code, output, _ = run(capsys, tmp_path / "c.pt", "--json")
    [found] = json.loads(output)["optimizers"]
    assert (code, found["optimizers"]) == (0, [f"zoo.{name}"])
    assert [row["shape"] for row in found["parameters"]] == [list(shape) for shape in SHAPES]
    for row in found["parameters"]:
        assert row["path"] == oxistep.explain(optimizer)[0].path != "unknown", row["reason"]


BF16 = torch.bfloat16
FEWER = [  # of float32 parameters
    {"state_dtype": "8bit"},
    {"ema": 0.9},
    {"state_dtype": "8bit", "ema": 0.9},
    # of bfloat16 parameters
    *(
        {"weights": weights, "state_dtype": state_dtype}
        for weights in ("kahan", "residual8", "residual16", "master")
        for state_dtype in (None, torch.float32, BF16, "8bit")
    ),
    {"weights": "residual16", "state_dtype": "8bit", "ema": 0.9},
]
COMPRESSED = {
    "AdamW": {},
    "Adam": {"amsgrad": True},
    "Adadelta": {},
    "SGD": {"momentum": 0.9},
    "zoo.Lion": {},
    "zoo.LAMB": {},
    "zoo.AdamWScheduleFree": {},
    "zoo.StableAdamW": {},
}


def stepped_in_fewer_bytes(name, settings, dtype=None, **arguments):
    """An optimizer after two steps: one parameter whose states are in codes, if any are, and one that is too small."""
    dtype = dtype or (BF16 if "weights" in settings else torch.float32)
    parameters = [torch.ones(shape).to(dtype).requires_grad_() for shape in ((80, 64), (40,))]
    library = zoo if name.startswith("zoo.") else oxistep.optim
    optimizer = getattr(library, name.removeprefix("zoo."))(parameters, lr=1e-3, **arguments, **settings)
    getattr(optimizer, "train", lambda: None)()
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("settings", FEWER, ids=str)
@pytest.mark.parametrize("name", COMPRESSED)
def test_states_in_fewer_bytes_are_recognized(name, settings, capsys, tmp_path):
    optimizer = stepped_in_fewer_bytes(name, settings, **COMPRESSED[name])
    memory = oxistep.memory(optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "c.pt")
    code, output, _ = run(capsys, tmp_path / "c.pt", "--json")
    [found] = json.loads(output)["optimizers"]
    assert (code, found["optimizers"]) == (0, [name])
    assert found["setting"].get("weights") == settings.get("weights")
    assert found["setting"].get("ema", False) == ("ema" in settings)
    state_dtype = settings.get("state_dtype")
    if state_dtype == "8bit":
        assert found["setting"]["state_dtype"] == "8bit"
        assert [row["states"] for row in found["parameters"]] == ["8bit", "float32"]
    elif state_dtype == torch.float32:
        assert found["setting"]["state_dtype"] == "float32"
    wanted = [[80, 64], [40]], "bfloat16" if "weights" in settings else "float32"
    assert ([row["shape"] for row in found["parameters"]], found["parameters"][0]["dtype"]) == wanted
    # the bytes are those of the optimizer itself
    assert found["memory"]["total"] == memory.total
    assert found["bytes_a_parameter"] == round(memory.total / (80 * 64 + 40), 2)
    for row, real in zip(found["parameters"], oxistep.explain(optimizer), strict=True):
        assert (row["path"], row["reason"]) == ("native", real.reason)


def test_settings_are_told_in_words(capsys, tmp_path):
    for settings, told in (
        ({"weights": "residual16", "state_dtype": "8bit"}, "settings: weights='residual16', state_dtype='8bit'\n"),
        ({"weights": "kahan", "state_dtype": torch.float32}, "settings: weights='kahan', state_dtype=torch.float32\n"),
        ({"state_dtype": "8bit"}, "settings: state_dtype='8bit' (if the parameters are float32: the states do not"),
        ({"weights": "master", "ema": 0.9}, "settings: weights='master', ema=..."),
    ):
        torch.save(stepped_in_fewer_bytes("AdamW", settings).state_dict(), tmp_path / "c.pt")
        output = run(capsys, tmp_path / "c.pt")[1]
        assert told in output and "states of AdamW" in output
    torch.save(stepped_in_fewer_bytes("AdamW", {"state_dtype": "8bit"}).state_dict(), tmp_path / "c.pt")
    output = run(capsys, tmp_path / "c.pt", "--all")[1]
    assert "states: 1 of 8bit, 1 of float32" in output and "; 10.08 bytes a parameter" in output
    assert "6.03 bytes an" in output


def test_what_leaves_no_trace():
    """Drawn weights keep nothing; SGD counts steps for them, and a state in full otherwise tells a dtype alone."""
    optimizer = stepped_in_fewer_bytes("SGD", {"weights": "stochastic"})
    report = report_of("", optimizer.state_dict())
    assert (report.optimizers, report.setting) == (["SGD"], {"weights": "stochastic"})
    assert [row.shape for row in report.parameters] == [None, None]
    optimizer = stepped_in_fewer_bytes("AdamW", {"weights": "stochastic"})
    report = report_of("", optimizer.state_dict())
    assert (report.optimizers, report.setting) == (["AdamW"], {})
    for weights in ("kahan", "residual8", "residual16", "master"):
        optimizer = stepped_in_fewer_bytes("SGD", {"weights": weights})  # without any other state
        report = report_of("", optimizer.state_dict())
        assert (report.optimizers, report.setting) == (["SGD"], {"weights": weights})
        assert [(row.shape, row.dtype, row.states) for row in report.parameters] == [
            ([80, 64], "bfloat16", None),
            ([40], "bfloat16", None),
        ]
        assert report.memory.total == oxistep.memory(optimizer).total


def test_float16_is_told_by_what_stands_beside_it():
    report = report_of("", stepped_in_fewer_bytes("AdamW", {"weights": "kahan"}, torch.float16).state_dict())
    assert [(row.dtype, row.path) for row in report.parameters] == [("float16", "native")] * 2


def test_names_that_end_as_codes_are_no_codes():
    state = {0: {"exp_avg_codes": torch.ones(2), "exp_avg": torch.ones(2)}}
    report = report_of("", {"state": state, "param_groups": [{"params": [0]}]})
    assert report.title == "no class of torch.optim or oxistep.zoo" and report.setting == {}


def test_all_states_of_the_zoo_are_known():
    assert set(ZOO_STATES) == set(zoo.__all__) - {"Grokfast", "Lookahead", "SAM"}
    for name, keys in ZOO_STATES.items():
        text = inspect.getsource(getattr(zoo, name).update)
        assert set(re.findall(r"\bs\.(\w+)", text)) - {"group", "get", "step"} <= keys
        assert set(re.findall(r's\.get\("(\w+)"', text)) <= keys


def test_what_nothing_decides_is_said():
    saved = stepped("Adam")
    for group in saved["param_groups"]:
        del group["decoupled_weight_decay"]  # as older torch wrote it
    assert recognized(saved) == ["Adam", "AdamW"]
    assert report_of("", saved).title == "Adam or AdamW"


def test_settings_of_schedulers_and_users_do_not_disturb():
    saved = stepped("AdamW")
    saved["param_groups"][0] |= {"initial_lr": 0.1, "max_lr": 1.0, "my own": "words"}
    assert recognized(saved) == ["AdamW"]


def test_states_that_nobody_keeps():
    report = report_of("", {"state": {0: {"exp_avg": torch.ones(2), "surprise": 1}}, "param_groups": [{"params": [0]}]})
    assert report.title == "no class of torch.optim or oxistep.zoo"
    assert report.parameters[0].path == "unknown"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_dtypes(dtype):
    row = report_of("", stepped("Adam", dtype)).parameters[0]
    assert (row.dtype, row.path) == (str(dtype).removeprefix("torch."), "native")


def test_the_reason_is_the_one_that_explain_gives(monkeypatch):
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.ones(2, 3)
    optimizer = oxistep.optim.Adam([parameter], differentiable=True)
    [row] = oxistep.explain(optimizer)
    saved = stepped("Adam")
    saved["param_groups"][0]["differentiable"] = True
    found = report_of("", saved).parameters[0]
    assert (found.path, found.reason) == (row.path, row.reason) and row.path == "torch"


def test_checkpoints_are_found_where_they_are(capsys, tmp_path):
    content = {
        "epoch": 3,
        "model": {"weight": torch.ones(2)},
        "optimizers": [stepped("Adam"), stepped("SGD", torch.bfloat16, momentum=0.9)],
    }
    assert [where for where, _ in state_dicts(content)] == ["['optimizers'][0]", "['optimizers'][1]"]
    torch.save(content, tmp_path / "c.pt")
    code, output, errors = run(capsys, tmp_path / "c.pt")
    assert code == 0 and errors == "" and "\x1b" not in output
    for text in ("['optimizers'][0]: states of Adam", "steps: 3", "states of SGD", "2 of bfloat16", "2 native"):
        assert text in output
    assert "3 × 4" not in output and "3 × 4" in run(capsys, tmp_path / "c.pt", "--all")[1]
    code, output, _ = run(capsys, tmp_path / "c.pt", "--json")
    found = json.loads(output)["optimizers"]
    assert [one["optimizers"] for one in found] == [["Adam"], ["SGD"]]
    assert found[0]["parameters"][0]["shape"] == [3, 4]
    assert found[0]["state_bytes"] == 2 * (12 + 4) * 4 + 2 * 4


def test_the_old_format_is_read(capsys, tmp_path):
    torch.save(stepped("Adam"), tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    assert "states of Adam" in run(capsys, tmp_path / "c.pt")[1]


def test_the_file_is_not_changed(capsys, tmp_path):
    path = tmp_path / "c.pt"
    torch.save(stepped("Adam"), path)
    before = path.read_bytes()
    run(capsys, path)
    assert path.read_bytes() == before


class Trap:
    """What runs code when it is loaded carelessly."""

    def __reduce__(self):
        return print, ("trapped",)


def test_nothing_in_a_file_is_run(capsys, tmp_path):
    torch.save({"state": {}, "param_groups": [], "more": Trap()}, tmp_path / "c.pt")
    code, output, errors = run(capsys, tmp_path / "c.pt")
    assert code == 1 and output == ""
    assert "trapped" not in output + errors
    assert "it holds a " in errors and "save state_dicts" in errors and "\x1b" not in errors


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04 and no more"])
def test_damaged_files(capsys, tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    code, output, errors = run(capsys, tmp_path / "c.pt")
    assert code == 1 and output == "" and len(errors.splitlines()) == 1
    assert "is damaged, or torch.save did not write it" in errors


def test_a_model_is_no_optimizer(capsys, tmp_path):
    torch.save({"weight": torch.ones(2), "layers": [torch.ones(1)]}, tmp_path / "c.pt")
    code, _, errors = run(capsys, tmp_path / "c.pt")
    assert code == 1 and "holds no optimizer's state_dict" in errors


SGD_GROUP = {key: value for key, value in stepped("SGD")["param_groups"][0].items() if key != "params"}


@pytest.mark.parametrize("state", [
    {"state": {0: {"step": "three", "exp_avg": torch.ones(2), "exp_avg_sq": 3}}, "param_groups": [{"params": [0]}]},
    {"state": {0: 3}, "param_groups": [{"params": [0]}]},
    {"state": {0: {1: torch.ones(2), "exp_avg": 2}}, "param_groups": [{"params": [0]}]},
    {"state": {0: {"residual": 3, "compensation": "2", "exp_avg": 2}}, "param_groups": [{"params": [0]}]},
    {"state": {0: {"residual": torch.ones(2)}}, "param_groups": [{"params": [0], **SGD_GROUP}]},
    {"state": {0: {"momentum_buffer_codes": torch.ones(2), "momentum_buffer_headers": "no"}},
     "param_groups": [{"params": [0], **SGD_GROUP}]},
    {"state": {}, "param_groups": [{"lr": 0.1}]},
    {"state": {}, "param_groups": []},
])  # fmt: skip
def test_strange_content_is_refused_or_reported_without_a_traceback(capsys, tmp_path, state):
    torch.save(state, tmp_path / "c.pt")
    code, output, errors = run(capsys, tmp_path / "c.pt", "--json")
    assert code in (0, 1) and "Traceback" not in output + errors
