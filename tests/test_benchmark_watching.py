"""The benchmark of the monitors: it times what is right, and refuses what is wrong."""

import pytest

pytest.importorskip("rich")

from oxistep.bench import watching


def test_contestants_are_timed():
    shapes = [(64,)] * 3 + [(5, 7)]
    paired = watching.gradients(shapes, seconds=0.05)
    assert set(paired.nanoseconds) == {watching.MONITOR, watching.CLIP, watching.OWN_CLIP}
    row = watching.row("small", watching.MONITOR, watching.CLIP, paired)
    assert row["ours_ns"] > 0
    assert row["q1"] <= row["median"] <= row["q3"]
    assert set(watching.updates(shapes, seconds=0.05).nanoseconds) == {watching.PLAIN, watching.WATCHED}


def test_wrong_statistics_are_not_timed(monkeypatch):
    made = watching.parameters([(64,)])
    monitor = watching.GradientMonitor(made)
    right = monitor.rows
    monkeypatch.setattr(monitor, "rows", lambda: [{**row, "variance": row["variance"] * 1.001} for row in right()])
    with pytest.raises(SystemExit, match="variance is"):
        watching.check_statistics(monitor, made)
