"""The benchmark of gradient release: it times what is right, refuses what is wrong, and measures peaks by itself."""

import json

import pytest
import torch

pytest.importorskip("rich")

from oxistep.bench import release


@pytest.mark.parametrize(("peak", "verdict"), [(0, "met"), (150_000, "missed")])
def test_the_whole_command(tmp_path, capsys, monkeypatch, peak, verdict):
    file = tmp_path / "results.json"
    peaks = dict.fromkeys(release.LOOPS, 12 * (32 * 32 + 32) * 4) | {release.RELEASE: peak}
    monkeypatch.setattr(release, "peaks", lambda width: peaks)
    monkeypatch.setattr(release, "_RESET", tmp_path)
    code = release.main(["--seconds", "0.05", "--width", "32", "--into", str(file)], "bench release")
    found = json.loads(file.read_text())["release"]
    assert [(row["workload"], row["loop"]) for row in found["rows"]] == [
        (workload, loop) for workload in ("MLP", "LoRA") for loop in release.LOOPS
    ]
    assert all(row["ns"] > 0 and row["q1"] <= row["median"] <= row["q3"] for row in found["rows"])
    assert (found["gradient_bytes"], found["peaks"]) == (12 * (32 * 32 + 32) * 4, peaks)
    printed = capsys.readouterr().out
    assert f"{verdict}: MLP, peak lower by 0.8 of the gradients" in printed
    assert code == int("missed" in printed)


@pytest.mark.whole
@pytest.mark.skipif(not release._RESET.exists(), reason="this system keeps no account of the largest resident size")
def test_the_peak_lies_lower_by_most_of_the_gradients():
    width = 700  # a gradient is 2 MB then, large beside what the interpreter takes
    peaks = release.peaks(width)
    gradients = 12 * (width * width + width) * 4
    assert peaks[release.ORDINARY] - peaks[release.RELEASE] > 0.6 * gradients


def test_other_bits_are_not_timed(monkeypatch):
    def wrong(task):
        parameters, _ = task
        return lambda: torch.no_grad()(parameters[0].add_)(1.0)

    monkeypatch.setattr(release, "released", wrong)
    with pytest.raises(SystemExit, match="other parameters than the ordinary loop"):
        release.check(lambda: release.mlp(8))
