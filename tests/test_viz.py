"""The pictures: what is drawn is what happened, whoever made the optimizer, and however it went astray."""

import doctest
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import brief
import oxistep.numpy
import oxistep.optim
from oxistep import viz
from oxistep._functions import FUNCTIONS
from oxistep.bench import figures
from oxistep.viz import _style, bowl, compare, eight, schedule, trajectories
from oxistep.viz._descent import track_of
from oxistep.viz._surface import Surface

ENDS = [  # docs/images/bowl.png, examples/expected.py
    (0.0, 3.0),
    (0.53048, 0.0),
    (0.01691, -0.00855),
    (0.00722, 0.0),
    (2.32355, 1.39497),
    (0.0, 0.0),
    (-0.02143, 0.01934),
    (-0.01616, 0.01787),
]


def rosenbrock(x, y):
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def lines(axes, name="one dot per step"):
    return [line.get_xydata() for line in axes.lines if line.get_label() == name]


def texts(figure):
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return legends + [axes.get_title() for axes in figure.axes]


def texts_drawn(figure):
    """Every text that is drawn, with its box; ticks out of sight are held by the axes, and not drawn."""
    found = []
    draw = Text.draw

    def noting(self, renderer):
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_window_extent(renderer)))
        draw(self, renderer)

    canvas = FigureCanvasAgg(figure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", noting)
        canvas.draw()
    return found


def overlaps(figure):
    """Pairs of texts whose boxes meet."""
    boxes = texts_drawn(figure)
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)]


def outside(figure):
    """Texts that stick out of the picture."""
    width, height = figure.bbox.size
    boxes = texts_drawn(figure)
    return [text for text, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]


@pytest.mark.parametrize("name", viz.__all__)
def test_examples_of_the_docstrings(name):
    found = doctest.DocTestFinder(recurse=False).find(getattr(viz, name), name, globs={})
    for example in found:
        assert doctest.DocTestRunner().run(example).failed == 0


# ---- trajectories ----


@pytest.mark.parametrize("library", [torch.optim, oxistep.optim, oxistep.numpy, None])
def test_the_eight_panels_end_where_they_should(library):
    figure = trajectories(eight(library))
    assert isinstance(figure, Figure)
    for axes, expected in zip(figure.axes, ENDS, strict=True):
        [path] = lines(axes)
        assert path.shape == (101, 2)
        assert path[0].tolist() == [4, 3]
        np.testing.assert_allclose(path[-1], expected, atol=6e-6)


@pytest.mark.parametrize("library", [torch.optim, oxistep.numpy])
def test_paths_follow_the_gradient_that_was_given(library):
    made = {"one": lambda p: library.SGD(p, lr=1.0)}
    figure = trajectories(made, bowl, gradient=lambda x, y: (1.0, -0.5), steps=2)
    assert lines(figure.axes[0])[0].tolist() == [[4, 3], [3, 3.5], [2, 4]]


@pytest.mark.parametrize(
    "function", [lambda x, y: np.sin(x) * np.exp(y), lambda x, y: max(float(x), 0) + float(y) ** 2]
)
def test_functions_without_torch_are_differentiated(function):
    surface = Surface(function)
    assert not surface.takes_tensors
    exact = {True: (np.cos(0.7) * np.exp(0.2), np.sin(0.7) * np.exp(0.2)), False: (1.0, 0.4)}
    expected = exact["sin" in function.__code__.co_names]
    np.testing.assert_allclose(surface.gradient(np.array([0.7, 0.2])), expected, rtol=1e-8)
    assert surface.values(np.zeros((3, 2)), np.ones((3, 2))).shape == (3, 2)
    figure = trajectories({"t": lambda p: torch.optim.SGD(p, lr=0.1)}, function, start=(1, 1), steps=3)
    assert len(lines(figure.axes[0])[0]) == 4


def test_torch_and_numpy_take_one_path():
    tracks = [
        track_of("", make["Adam, lr 0.1"], Surface(rosenbrock), np.array([-1.5, 2.0]), 30)
        for make in map(eight, (torch.optim, oxistep.numpy))
    ]
    np.testing.assert_allclose(*(track.points for track in tracks), rtol=1e-4)


def test_rules_of_ones_own():
    @oxistep.rule
    def momentum(p, g, s, lr=0.01, beta=0.9):
        s.v = beta * s.v + g
        return p - lr * s.v

    surface, start = Surface(bowl), np.array([4.0, 3.0])
    plain = track_of("theirs", eight(oxistep.numpy)["Momentum 0.9, lr 0.01"], surface, start, 20)
    own = {"a rule": momentum, "for tensors": momentum.torch, "set": lambda p: momentum(p, lr=0.01)}
    for name, make in own.items():
        track = track_of(name, make, surface, start, 20)
        np.testing.assert_allclose(track.points, plain.points, rtol=1e-5, atol=1e-6)
    assert [axes.get_title().splitlines()[0] for axes in trajectories(own, steps=5).axes] == list(own)


def test_an_optimizer_that_wants_a_closure():
    made = {"LBFGS": lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe")}
    figure = trajectories(made, rosenbrock, start=(-1.5, 2), steps=5)
    np.testing.assert_allclose(lines(figure.axes[0])[0][-1], (1, 1), atol=1e-3)


def test_who_diverges_does_not_spoil_the_picture_for_the_others():
    made = {
        "astray": lambda p: oxistep.optim.SGD(p, lr=3.0),
        "fast": lambda p: oxistep.optim.SGD(p, lr=0.11),
        "well": lambda p: oxistep.optim.Adam(p, lr=0.1),
    }
    figure = trajectories(made)
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert -10 < left < -0.02 and 4 < right < 10 and -10 < bottom < 0 and 3 < top < 10
    astray, fast, well = (axes.get_title().splitlines()[1] for axes in figure.axes)
    assert astray.startswith("diverges: not finite in step ")
    assert fast.startswith("leaves the picture in step ")
    assert well.startswith("ends at ")
    assert np.isfinite(lines(figure.axes[0])[0]).all()


def test_when_all_diverge_the_beginning_is_shown():
    figure = trajectories({"astray": lambda p: oxistep.optim.SGD(p, lr=30.0)})
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert left < 4 < right and bottom < 3 < top and right - left < 20 and top - bottom < 20


def test_a_path_off_an_unbounded_function_is_cut_to_a_picture():
    figure = trajectories({"down": lambda p: oxistep.optim.SGD(p, lr=1.0)}, lambda x, y: x**2 - y**2, start=(1, 1))
    assert np.abs(figure.axes[0].get_ylim()).max() < 50


def test_recorded_paths_are_drawn_as_they_are():
    path = [[4, 3], [1, 1], [0.5, 0.25], [np.nan, 0]]
    figure = trajectories({"noted": path, "shorter": path[:2]})
    assert lines(figure.axes[0])[0].tolist() == path[:3]
    assert figure.axes[0].get_title().endswith("diverges: not finite in step 3")
    assert figure.axes[1].get_title().endswith("ends at (1.00000, 1.00000)")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pictures_of_known_functions_show_start_and_minima(name):
    one = FUNCTIONS[name]
    for x, y in one.minima:
        gradient = Surface(one.function).gradient(np.array([x, y]))
        np.testing.assert_allclose(gradient, 0, atol=1e-3)
    runaway = {"away": lambda p: oxistep.optim.SGD(p, lr=3.0), "Adam": lambda p: oxistep.optim.Adam(p, lr=0.1)}
    figure = trajectories(runaway, one.function, start=one.start, steps=50)
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    for x, y in [one.start, *one.minima]:
        assert left < x < right and bottom < y < top
    assert right - left < 12 and top - bottom < 12  # whoever runs away does not set the scale
    assert "contour lines at " in figure.get_suptitle()
    stars = [line.get_xydata() for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert [points.tolist() for points in stars] == ([[list(map(float, m)) for m in one.minima]] if one.minima else [])


def test_a_start_beyond_the_usual_limits_is_in_the_picture():
    one = FUNCTIONS["himmelblau"]
    figure = trajectories({"a": lambda p: oxistep.optim.Adam(p, lr=0.1)}, one.function, start=(9, 9), steps=5)
    assert figure.axes[0].get_xlim()[1] > 9 and figure.axes[0].get_ylim()[1] > 9


def test_other_functions_have_their_heights_on_the_lines():
    def heights(figure):
        return [text.get_text() for text in figure.axes[0].texts]

    made = {"a": lambda p: oxistep.optim.Adam(p, lr=0.1)}
    assert heights(trajectories(made, steps=5)) == []  # in the title
    figure = trajectories(made, lambda x, y: x**2 + y**2, levels=[1, 4, 9], steps=5, minima=[(0, 0)])
    assert {"4", "9"} <= set(heights(figure))
    assert figure.axes[0].get_xlim()[0] < 0 and figure.axes[0].get_ylim()[0] < 0
    for wrong in ([1, 2], [(1, 2, 3)], [(0, float("nan"))]):
        with pytest.raises(ValueError, match="minima must be finite points"):
            trajectories(made, minima=wrong)


def test_no_path_hides_another():
    figure = trajectories({str(k): [[4, 3], [1, 1], [0.5, 0.25]] for k in range(10)}, together=True)
    paths = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    widths = [line.get_linewidth() for line in paths]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 10  # of those on one another all edges show
    assert len({line.get_color() for line in paths}) == len({line.get_marker() for line in paths}) == 10


def test_zero_has_no_sign():
    assert _style.number(-1e-9) == _style.number(0.0) == "0.00000"
    assert _style.number(-0.5) == "\N{MINUS SIGN}0.50000"


def test_together_all_are_told_apart():
    figure = trajectories(together=True)
    [axes] = figure.axes
    looks = {
        (line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines if len(line.get_xdata()) > 1
    }
    assert len(looks) == 8
    assert sum(name.split(":")[0] in text for name in eight() for text in texts(figure)) >= 8


@pytest.mark.parametrize(("wrong", "message"), [
    ({"start": (1, 2, 3)}, "start must be two finite numbers"),
    ({"start": (1, float("nan"))}, "start must be two finite numbers"),
    ({"steps": 0}, "steps must be positive"),
    ({"limits": ((1, 0), (0, 1))}, "limits must grow"),
    ({"limits": 3}, "limits must be"),
    ({"output": "picture.txt"}, "must end in one of"),
    ({"optimizers": {}}, "no optimizer"),
    ({"optimizers": {"x": [1, 2, 3]}}, "must have shape"),
    ({"output": "a.gif", "frames_per_second": 0}, "frames_per_second"),
])  # fmt: skip
def test_nonsense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        trajectories(**wrong)


def test_what_makes_no_optimizer_is_refused():
    with pytest.raises(TypeError, match="must make an optimizer"):
        trajectories({"x": lambda p: 3})
    with pytest.raises(TypeError, match="callable with two variables"):
        trajectories(function=3)
    with pytest.raises(TypeError, match=r"two variables, such as lambda x1, x2: \.\.\., got <lambda>\(x\)"):
        trajectories(function=lambda x: x[0])
    optimizer = oxistep.optim.SGD([torch.ones(2)], lr=0.1)
    with pytest.raises(TypeError, match=r"'a' is an optimizer; .* give lambda params: SGD\(params, \.\.\.\)"):
        trajectories({"a": optimizer})
    with pytest.raises(TypeError, match=r"'a' must be a function that makes an optimizer .*, got str"):
        trajectories({"a": "Adam"})
    with pytest.raises(TypeError, match=r"must be a dict from name to a function .*, got list"):
        trajectories([lambda p: optimizer])
    with pytest.raises(TypeError, match="momentun"):
        trajectories({"x": lambda p: torch.optim.SGD(p, lr=0.1, momentun=0.9)})


def test_animation(tmp_path):
    image = pytest.importorskip("PIL.Image")
    seen, steps = [], brief.number(whole=8, brief=2)
    trajectories(
        {"Adam": lambda p: oxistep.optim.Adam(p, lr=0.1)},
        steps=steps,
        output=tmp_path / "made" / "paths.gif",
        progress=lambda *at: seen.append(at),
    )
    with image.open(tmp_path / "made" / "paths.gif") as gif:
        assert gif.is_animated and gif.n_frames >= steps + 1
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_mp4_without_ffmpeg_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs the program ffmpeg"):
        trajectories(steps=1, output="x.mp4")


# ---- compare ----


def regression():
    torch.manual_seed(0)
    x = torch.randn(32, 3)
    w = torch.nn.Parameter(torch.zeros(3))
    return [w], lambda: ((x @ w - x.sum(1)) ** 2).mean()


def test_losses_are_those_of_training():
    figure = compare({"SGD": lambda p: oxistep.optim.SGD(p, lr=0.1)}, regression, steps=7)
    [drawn] = (line.get_ydata() for line in figure.axes[0].lines)
    [w], loss = regression()
    optimizer, expected = torch.optim.SGD([w], lr=0.1), []
    for _ in range(7):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        expected.append(value.item())
    np.testing.assert_allclose(drawn, [*expected, loss().item()], rtol=1e-6)


def test_losses_of_the_bowl_are_the_same_for_all_libraries():
    drawn = []
    for library in (torch.optim, oxistep.optim, oxistep.numpy):
        figure = compare({"Adam": eight(library)["Adam, lr 0.1"]}, steps=20)
        drawn.append(figure.axes[0].lines[0].get_ydata())
    assert drawn[0][0] == 106.0
    np.testing.assert_allclose(drawn[1], drawn[0], rtol=1e-6)
    np.testing.assert_allclose(drawn[2], drawn[0], rtol=1e-4)


def test_a_loss_that_explodes_does_not_set_the_limits():
    figure = compare(
        {"good": lambda p: torch.optim.SGD(p, lr=0.1), "bad": lambda p: torch.optim.SGD(p, lr=1e3)}, regression
    )
    assert figure.axes[0].get_ylim()[1] < 100
    assert any(text.startswith("bad: diverges in step") for text in texts(figure))
    assert texts(figure)[0].startswith("good")  # the lowest first


def test_recorded_losses():
    figure = compare({"a": [3.0, 2.0, 1.0], "b": np.array([3.0, float("inf")])})
    assert [len(line.get_ydata()) for line in figure.axes[0].lines] == [3, 2]
    with pytest.raises(ValueError, match="sequence of numbers"):
        compare({"a": [[1.0]]})
    with pytest.raises(ValueError, match="no optimizer"):
        compare({})
    with pytest.raises(TypeError, match="must make an optimizer"):
        compare({"a": lambda p: None}, regression)


# ---- what all have in common ----


def astray():
    return trajectories({f"SGD, lr {lr}": (lambda p, lr=lr: oxistep.optim.SGD(p, lr=lr)) for lr in (0.05, 0.11, 3.0)})


def adam(lr):
    return lambda p: oxistep.optim.Adam(p, lr=lr)


PICTURES = {
    "eight": trajectories,
    "one": lambda: trajectories({"Adam": lambda p: oxistep.optim.Adam(p, lr=0.1)}),
    "two": lambda: trajectories(dict(list(eight().items())[:2])),
    "astray": astray,
    "together": lambda: trajectories(together=True),
    "compare": compare,
    "long names": lambda: trajectories(
        {
            f"Adam with a long name and many arguments, lr {lr}, betas (0.9, 0.999), eps 1e-8": adam(lr)
            for lr in (0.1, 0.2)
        },
        steps=1,
    ),
    "compare twelve": lambda: compare(
        {f"Adam with a rather long name, lr {k / 20}": adam(k / 20) for k in range(1, 13)}
    ),
    "compare noted": lambda: compare({"a": [3.0, 2.0], "b": [float("nan")]}),
    "one step": lambda: schedule({"constant": lambda k: 0.1}, steps=1),
    "schedule": lambda: schedule({"half": lambda k: 0.5**k, "a long name of a schedule": lambda k: 0.1}, title="Rates"),
}


# What the brief run draws shows as many names, and longer ones.
DRAWN_IN_THE_WHOLE_RUN = ("two", "together", "compare")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.whole] * (name in DRAWN_IN_THE_WHOLE_RUN)) for name in PICTURES],
)
def test_labels_do_not_overlap_and_stay_inside(name):
    figure = PICTURES[name]()
    assert overlaps(figure) == []
    assert outside(figure) == []


def test_long_labels_leave_room_for_the_plot():
    for name in ("compare twelve", "compare", "schedule"):
        figure = PICTURES[name]()
        figure.canvas.draw()
        box = figure.axes[0].get_position()
        assert box.width > 0.5 and box.height > 0.5, name


def test_losses_that_were_noted_are_not_called_the_bowls():
    assert PICTURES["compare noted"]().axes[0].get_title() == ""
    assert "from (4, 3)" in compare(steps=1).axes[0].get_title()


def test_a_schedule_of_one_step_is_seen():
    [line] = PICTURES["one step"]().axes[0].lines
    assert line.get_marker() == "o"


def test_overlaps_are_seen():
    figure = Figure()
    for _ in range(2):
        figure.text(0.5, 0.5, "here")
    assert overlaps(figure) == [("here", "here")]
    figure.text(0.99, 0.1, "beyond the edge")
    assert outside(figure) == ["beyond the edge"]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_are_written(tmp_path, kind):
    for draw in (trajectories, compare, lambda **more: schedule(lambda k: 0.1, **more)):
        draw(output=tmp_path / f"deep/er.{kind}", steps=2)
        assert (tmp_path / f"deep/er.{kind}").stat().st_size > 3000
    with pytest.raises(ValueError, match="must end in one of"):
        compare(output="losses.gif")


def test_pyplot_is_not_touched_and_matplotlib_not_imported_by_oxistep():
    code = (
        "import sys; sys.modules['torch'] = None\n"  # which takes seconds to import
        "import oxistep; assert 'matplotlib' not in sys.modules\n"
        "from oxistep.viz import trajectories; trajectories(steps=2)\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_without_matplotlib_the_extra_is_named():
    code = "import sys; sys.modules['matplotlib'] = None; import oxistep.viz"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "ModuleNotFoundError: oxistep.viz needs matplotlib: pip install matplotlib" in done.stderr


def test_without_torch_the_default_is_of_numpy():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from oxistep.viz import trajectories, compare\n"
        "figure = trajectories(); print(figure.axes[6].get_title()); compare(steps=3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "0.0214" in done.stdout


def test_lines_are_told_apart_in_more_than_colour():
    looks = [_style.line(k) for k in range(55)]
    assert len({(look.color, str(look.linestyle)) for look in looks}) == 55
    assert len({look.color for look in looks[:11]}) == len({look.marker for look in looks[:11]}) == 11
    assert set(figures.COLORS.values()) <= {
        getattr(_style, name) for name in dir(_style) if name.isupper() and isinstance(getattr(_style, name), str)
    }


def test_benchmark_charts(tmp_path):
    rows = {"oxistep": {"rest_ns": 9e6, "step_ns": 1e6, "iteration_ns": 1e7, "step_share": 0.1}}
    content = {"end_to_end": [{"model": "a model", "rows": rows}]}
    viz.benchmark(content, "end_to_end", output=tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 3000
    with pytest.raises(ValueError, match="nothing for the chart 'ratios'"):
        viz.benchmark(content)
    with pytest.raises(ValueError, match="chart must be one of"):
        viz.benchmark(content, "pie")
