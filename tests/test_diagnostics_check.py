"""`check_gradients`: right ones pass, wrong ones are found and pointed at; NumPy and torch."""

import math

import numpy as np
import pytest
import torch

from oxistep.diagnostics import GradientCheck, WrongGradientError, check_gradients


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def rosenbrock_gradient(x):
    return np.array([-400 * x[0] * (x[1] - x[0] ** 2) - 2 * (1 - x[0]), 200 * (x[1] - x[0] ** 2)])


@pytest.mark.parametrize("x", [[1.0, 1.0], [-1.2, 1.0], [0.0, 0.0], [1e3, -2e3], [1e-8, 3.0]])
def test_a_right_gradient(x):
    report = check_gradients(rosenbrock, np.array(x), rosenbrock_gradient)
    assert report, report
    assert (report.checked, report.wrong, report.message) == (2, 0, "")
    report.raise_if_wrong()


@pytest.mark.parametrize("scale", [1 + 1e-4, 0.5, -1.0, 0.0, math.nan, math.inf])
def test_a_wrong_gradient_is_found_and_pointed_at(scale):
    x = np.array([[-1.2, 1.0], [0.3, 2.0]])
    gradient = np.exp(x)
    gradient[1, 0] *= scale
    report = check_gradients(lambda x: np.exp(x).sum(), x, gradient)
    assert not report
    assert report.wrong == 1
    worst = report.entries[0]
    assert (worst.name, worst.index, worst.output, worst.wrong) == ("x", (1, 0), None, True)
    assert worst.numeric == pytest.approx(math.exp(0.3), rel=1e-9)
    assert not any(entry.wrong for entry in report.entries[1:])
    if 0 < scale < 1:
        assert worst.relative == pytest.approx(0.5, rel=1e-6)
    with pytest.raises(WrongGradientError, match=r"1 of 4 derivatives differ") as raised:
        report.raise_if_wrong()
    assert isinstance(raised.value, AssertionError)
    assert "x[1, 0]" in str(raised.value)


@pytest.mark.parametrize("exponent", range(-6, 7, 3))
def test_steps_suit_numbers_of_all_sizes(exponent):
    x = np.array([0.7, -1.3]) * 10.0**exponent
    scale = 10.0**exponent
    # the function varies over a distance of max(|x|, 1), as the step assumes
    width = max(scale, 1.0)
    report = check_gradients(lambda x: float(np.sin(x / width).sum()), x, np.cos(x / width) / width, rtol=1e-7)
    assert report, report


def test_a_gradient_of_zero_is_right():
    assert check_gradients(lambda x: 1e6 + 0 * x.sum(), np.ones(5), np.zeros(5))
    assert check_gradients(lambda x: float((x**2).sum() + 1e6), np.zeros(3), np.zeros(3))
    assert not check_gradients(lambda x: float((x**2).sum()), np.zeros(3), np.full(3, 1e-6))


def test_tolerances():
    x = np.array([2.0])
    off = np.array([4.0 * (1 + 1e-3)])
    assert not check_gradients(lambda x: float(x[0] ** 2), x, off)
    assert check_gradients(lambda x: float(x[0] ** 2), x, off, rtol=1.1e-3)
    assert check_gradients(lambda x: float(x[0] ** 2), x, off, atol=0.005, rtol=0)
    assert not check_gradients(lambda x: float(x[0] ** 2), x, off, atol=0.003, rtol=0)
    # a coarse step shows that of |x|^3, which is bent
    assert not check_gradients(lambda x: float(x[0] ** 3), x, np.array([12.0]), step=0.1)


def test_dicts_tuples_and_types():
    params = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.array(3)}
    report = check_gradients(
        lambda p: float((p["w"] ** 2).sum() * p["b"]),
        params,
        lambda p: {"b": (p["w"] ** 2).sum(), "w": 2 * p["w"] * p["b"]},
    )
    assert report, report
    assert {(entry.name, entry.index) for entry in report.entries} == {("w", (0, 0)), ("w", (0, 1)), ("b", ())}
    assert params["w"].dtype == np.float32
    for kind in (tuple, list):  # optimizers take lists
        x, gradient = kind([np.ones(2), np.arange(2.0)]), kind([np.arange(2.0), np.ones(2)])
        assert check_gradients(lambda a, b: float(a @ b), x, gradient)
        assert check_gradients(lambda a, b: a @ b, kind([torch.ones(2), torch.arange(2.0)]))
    assert check_gradients(lambda x: float(x @ x), [1.0, 2.0], [2.0, 4.0])  # one array, of numbers


def test_the_input_is_left_alone():
    x = np.array([1.0, 2.0])
    before = x.copy()
    seen = []
    check_gradients(lambda x: seen.append(x.copy()) or float(x.sum()), x, np.ones(2))
    assert np.array_equal(x, before)
    assert all(np.count_nonzero(copy != before) == 1 for copy in seen)


def test_some_elements_only():
    calls = []

    def function(x):
        calls.append(1)
        return float((x**2).sum())

    x = np.random.default_rng(0).normal(size=(40, 50))
    report = check_gradients(function, x, 2 * x, elements=30, seed=1)
    assert (report.checked, len(calls)) == (30, 60)
    other = check_gradients(function, x, 2 * x, elements=30, seed=2)
    assert {entry.index for entry in report.entries} != {entry.index for entry in other.entries}
    assert check_gradients(function, x[:1, :1], 2 * x[:1, :1], elements=30).checked == 1


class WrongSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        factor = torch.tensor([2.0, 2.0, 1.0], dtype=grad.dtype)
        return grad * factor * ctx.saved_tensors[0]


def test_torch_functions():
    a, b = torch.rand(3), torch.rand(2, 3)
    assert check_gradients(lambda a, b: torch.sin(a * b).sum(), (a, b))
    report = check_gradients(lambda a, b: (a * b, a.sum()), (a, b))
    assert report, report
    assert report.checked == 9 * 7
    assert {entry.output for entry in check_gradients(torch.exp, a, worst=9).entries} == {(0,), (1,), (2,)}
    assert not a.requires_grad


def test_a_wrong_torch_function():
    report = check_gradients(WrongSquare.apply, torch.tensor([1.0, 2.0, 3.0]))
    assert not report
    assert report.wrong == 1
    worst = report.entries[0]
    assert (worst.name, worst.index, worst.output) == ("x", (2,), (2,))
    assert (worst.analytic, worst.numeric) == (3.0, pytest.approx(6.0))
    assert "Jacobian mismatch" in report.message
    text = str(report)
    assert "WRONG" in text
    assert "d output[2] / d x[2]" in text


def test_gradcheck_finds_what_differences_do_not():
    class Unsteady(torch.autograd.Function):
        calls = 0

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            Unsteady.calls += 1
            return grad * (1 + 1e-9 * Unsteady.calls)

    report = check_gradients(Unsteady.apply, torch.ones(2), rtol=1e-3)
    assert report.wrong == 0
    assert not report
    assert "not reentrant" in report.message


def test_a_hand_written_gradient_of_torch_tensors():
    x, y = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), 4.0
    w = torch.tensor([0.5, 1.5, -1.0], dtype=torch.float32)
    right = 2 * (x @ w.double() - y) * x
    assert check_gradients(lambda w: (x @ w - y) ** 2, w, right)
    report = check_gradients(lambda w: (x @ w - y) ** 2, {"w": w}["w"], right / 2)
    assert report.wrong == 3


def test_unused_inputs_and_constants():
    assert check_gradients(lambda a, b: a * 2, (torch.ones(2), torch.ones(3)))
    report = check_gradients(lambda a: (a.detach() * 3) + 0 * a, torch.ones(1))
    assert report.wrong == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((3, np.ones(2), np.ones(2)), TypeError, "function: expected a function, got int"),
        ((rosenbrock, np.ones(2)), TypeError, "gradient: expected arrays or a function"),
        ((rosenbrock, np.ones(2), np.ones(3)), ValueError, r"the gradient of x has shape \(3,\), expected \(2,\)"),
        ((lambda x: x, np.ones(2), np.ones(2)), TypeError, "must give a single number"),
        ((rosenbrock, np.ones(2, complex), np.ones(2)), TypeError, "expected an array of real numbers, got complex128"),
        ((rosenbrock, np.ones(0), np.ones(0)), ValueError, "x has no elements"),
        ((rosenbrock, "x", np.ones(2)), TypeError, "x: "),
        ((lambda a, b: 0.0, (np.ones(1), torch.ones(1)), (1, 1)), TypeError, "cannot be mixed"),
        ((lambda p: 0.0, {"a": np.ones(1)}, {"b": np.ones(1)}), TypeError, "a dict with the keys of x, a"),
        ((lambda a: 0.0, (np.ones(1),), np.ones(1)), TypeError, "expected a list or tuple of 1"),
        ((torch.abs, torch.ones(2, dtype=torch.int64)), TypeError, "expected tensors of real floating-point numbers"),
        ((lambda x: 3.0, torch.ones(2)), TypeError, "function must give tensors"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        check_gradients(*arguments)


@pytest.mark.parametrize("keywords", [{"rtol": -1}, {"atol": math.nan}, {"step": 0}, {"elements": 0}, {"worst": -1}])
def test_numbers_out_of_range(keywords):
    with pytest.raises(ValueError, match=next(iter(keywords))):
        check_gradients(rosenbrock, np.ones(2), rosenbrock_gradient, **keywords)


def test_worst_entries_come_first_and_are_as_many_as_asked_for():
    x = np.arange(1.0, 7.0)
    errors = np.array([0, 1e-3, 0, 1e-1, 1e-2, 0])
    report = check_gradients(lambda x: float((x**2).sum()), x, 2 * x * (1 + errors), worst=2)
    assert isinstance(report, GradientCheck)
    assert [entry.index for entry in report.entries] == [(3,), (4,)]
    assert (report.wrong, report.checked) == (3, 6)


def test_arrays_in_containers():
    params = {"layers": [{"W": np.array([1.0, 2.0])}, (np.array(3.0),)]}

    def loss(p):
        return (p["layers"][0]["W"] ** 2).sum() * p["layers"][1][0]

    def gradient(p):
        w, b = p["layers"][0]["W"], p["layers"][1][0]
        return {"layers": [{"W": 2 * w * b}, ((w**2).sum(),)]}

    for grads in (gradient, gradient(params)):
        assert check_gradients(loss, params, grads)
    wrong = check_gradients(loss, params, {"layers": [{"W": np.array([6.0, 12.0])}, (np.array(4.0),)]})
    assert not wrong
    assert wrong.entries[0].name == "layers.1.0"
    with pytest.raises(ValueError, match="gradient lacks 'layers'"):
        check_gradients(loss, params, {})
