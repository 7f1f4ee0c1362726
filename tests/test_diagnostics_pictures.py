"""Pictures of the monitors and the range test; the guide's snippets; the page's pictures are made by its script."""

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import oxistep
from oxistep.diagnostics import GradientMonitor, UpdateMonitor, lr_range_test

pytest.importorskip("matplotlib")

from oxistep.viz._style import short

DOCS = Path(__file__).resolve().parents[1] / "docs"


def watched(names, updates, seed=0):
    rng = np.random.default_rng(seed)
    monitor = GradientMonitor({name: np.zeros(1) for name in names}, history=50)
    for _ in range(updates):
        monitor.update({name: rng.normal(size=5) * 10.0 ** rng.integers(-3, 3) for name in names})
    return monitor


def drawn(figure, tmp_path):
    """Lays the figure out and writes it; what it is."""
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    return figure.axes


@pytest.mark.parametrize("field", ["norm", "mean", "zeros", "nan", "variance", "elements"])
@pytest.mark.parametrize("count", [1, 7, 8, 90])
def test_any_field_and_number_of_parameters(field, count, tmp_path):
    monitor = watched([f"layers.{k}.a_rather_long_name.weight" for k in range(count)], 12)
    heat, lines, *_ = drawn(monitor.plot(field), tmp_path)
    assert lines.get_xlabel() == "step"
    assert len(heat.get_yticks()) <= 45
    assert len(lines.get_lines()) == (count if count <= 7 else 1)


def test_one_update_missing_and_infinite_values(tmp_path):
    monitor = GradientMonitor({"a": np.zeros(1), "b": np.zeros(1)})
    with pytest.raises(ValueError, match="nothing was recorded yet"):
        monitor.plot()
    monitor.update({"a": np.array([math.nan]), "b": None})
    drawn(monitor.plot(), tmp_path)
    monitor.update({"a": np.zeros(3), "b": np.array([1e300, 1e300])})
    drawn(monitor.plot(), tmp_path)
    drawn(monitor.plot("largest"), tmp_path)


def test_anomalies_are_marked_where_they_were(tmp_path):
    monitor = GradientMonitor({"a": np.zeros(1), "b": np.zeros(1)}, history=4)
    for k in range(7):
        monitor.update({"a": np.ones(2), "b": np.array([math.inf if k == 5 else 1.0])})
    heat, *_ = drawn(monitor.plot(), tmp_path)
    assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in heat.get_lines()} == {(5, 1)}
    assert "× = anomaly" in heat.get_title(loc="left")


def test_names_that_differ_are_told_apart():
    inner = "self_attention.query_key_value_projection.weight"
    monitor = watched([f"model.transformer.encoder.layers.{k}.{inner}" for k in range(12)], 2)
    heat, *_ = monitor.plot().axes
    labels = [label.get_text() for label in heat.get_yticklabels()]
    assert len(set(labels)) == 12 and all(len(label) <= 32 for label in labels)
    assert labels[3].startswith("…3.self") and labels[3].endswith("weight")
    assert short(["a.weight", "a.bias"]) == ["a.weight", "a.bias"]
    assert short(["only.one." + "x" * 40]) == ["only.one.xxxxxx…" + "x" * 16]


def test_where_there_is_nothing_to_show_the_picture_says_so():
    monitor = GradientMonitor({"a": np.zeros(1)})
    for _ in range(3):
        monitor.update({"a": np.full(2, math.nan)})
    heat, lines = monitor.plot().axes  # no bar of colours
    assert [text.get_text() for text in lines.texts] == ["nothing to show: all is zero, NaN, infinite or missing"]
    assert list(heat.get_lines()[-1].get_xdata()) == [0, 1, 2]  # the anomalies


def test_rounding_does_not_fill_the_picture():
    monitor = GradientMonitor({"a": np.zeros(1)})
    for k in range(5):
        monitor.update({"a": np.array([1.0 + 1e-15 * k])})
    heat, lines, *_ = monitor.plot().axes
    bottom, top = lines.get_ylim()
    assert top > 3 * bottom
    assert heat.collections[0].norm.vmax > 3 * heat.collections[0].norm.vmin


def test_crosses_do_not_hide_small_cells():
    def size(count):
        monitor = GradientMonitor({f"p{k}": np.zeros(1) for k in range(count)})
        monitor.update({f"p{k}": np.array([math.inf if k == 0 else 1.0]) for k in range(count)})
        return monitor.plot().axes[0].get_lines()[-1].get_markersize()

    assert size(3) == 5.0 and size(200) < 2.5


def test_pictures_are_written_where_output_says(tmp_path):
    monitor = watched(["a"], 2)
    monitor.plot(output=tmp_path / "deep" / "g.png")
    lr_range_test(lambda lr: 1.0 / (1 + 100 * lr)).plot(output=tmp_path / "l.svg")
    assert (tmp_path / "deep" / "g.png").stat().st_size > 5000 and (tmp_path / "l.svg").stat().st_size > 5000
    with pytest.raises(ValueError, match="must end in one of"):
        monitor.plot(output=tmp_path / "g.txt")


@pytest.mark.parametrize("field", ["ratio", "effective_lr", "update", "parameter", "gradient"])
def test_updates(field, tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = oxistep.SGD(model.parameters(), lr=0.1)
    monitor = UpdateMonitor(optimizer, names=model)
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    drawn(monitor.plot(field), tmp_path)


def test_a_range_test_says_what_it_did_not_find():
    figure = lr_range_test(lambda lr: math.inf).plot()
    assert [text.get_text() for text in figure.axes[0].texts] == ["the loss was never finite"]
    figure = lr_range_test(lambda lr: 1.0).plot()
    assert any(text.get_text().startswith("no suggestion") for text in figure.legends[0].get_texts())


def test_range_tests(tmp_path):
    for loss in (lambda lr: 1.0 / (1 + 100 * lr), lambda lr: 1.0, lambda lr: math.inf, lambda lr: 1.0 + 1e6 * lr):
        (axes,) = drawn(lr_range_test(loss).plot(), tmp_path)
        assert axes.get_xscale() == "log"


def test_without_matplotlib_the_error_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = None
import numpy as np
from oxistep.diagnostics import GradientMonitor
monitor = GradientMonitor({"w": np.zeros(1)})
monitor.update([np.ones(1)])
try:
    monitor.plot()
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "matplotlib oxistep.viz needs matplotlib: pip install matplotlib", done.stderr


def test_the_guides_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(snippets) > 8
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/diagnostics.md", "exec"), names)
    output = capsys.readouterr().out
    assert "step 20, 0.weight: not finite (256 NaN, 0 inf of 256)" in output
    assert "Gradient WRONG: 3 of 3 derivatives differ" in output
    assert {path.name for path in tmp_path.iterdir()} == {"gradients.png", "lr_range.png"}
    for link in re.findall(r"\]\((images/.*?)\)", text):
        assert (DOCS / link).stat().st_size > 5000


def test_the_guides_pictures_are_made(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("diagnostics_pictures", DOCS / "diagnostics_pictures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["diagnostics_pictures.py", str(tmp_path)])
    script.main()
    assert {path.stem for path in tmp_path.iterdir()} == {"gradients", "updates", "lr_range"}
