"""The zoo's classes with norms, totals and numbers of groups, beside the packages they come from."""

import copy
import inspect
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch")

from oxistep import zoo  # noqa: E402
from zoo_cases_b import CASES, CLASSES  # noqa: E402

SHAPES = [(), (5,), (4, 6), (3, 2, 3, 3), (7, 3)]
STEPS = 11
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_class = pytest.mark.parametrize("name", CLASSES)

FIRST = {name: next(case for case in CASES if case.name == name) for name in CLASSES}


def start(dtype=torch.float64, seed=0):
    """Parameters, the last but one zero."""
    made = torch.Generator().manual_seed(seed)
    params = [(torch.randn(shape, generator=made, dtype=torch.float64) * 0.5).to(dtype) for shape in SHAPES]
    params[-2] = params[-2] * 0
    return [p.requires_grad_() for p in params]


def gradient(p, i, k):
    made = torch.Generator().manual_seed(1000 * i + k)
    g = torch.randn(p.shape, generator=made, dtype=torch.float64) * (0.3 + 0.2 * k)
    return (g + 0.5 * p.detach().double()).to(p.dtype)


def grouped(params, two=True, **more):
    return [{"params": params[:2]}, {"params": params[2:], **more}] if two else params


def modes(optimizer, train):
    if hasattr(optimizer, "train"):
        (optimizer.train if train else optimizer.eval)()


def steps(optimizer, params, of, *, ever=False):
    """Steps; the last parameter has its first gradient in the fourth, the second none in the sixth, the second group
    none in the eighth.
    """
    modes(optimizer, True)
    for k in of:
        for i, p in enumerate(params):
            absent = (i == len(params) - 1 and k < 3) or (i == 1 and k == 5) or (i >= 2 and k == 7)
            p.grad = None if absent and not ever else gradient(p, i, k)
        optimizer.step()
        if k == 4:
            modes(optimizer, False)
            modes(optimizer, True)
    modes(optimizer, False)


def values(params):
    return [p.detach().double() for p in params]


def apart(one, other):
    return max(((a - b).abs() / (1 + b.abs())).max().item() for a, b in zip(one, other, strict=True))


def ours_and_theirs(case, dtype, *, two=True, schedule=None):
    pytest.importorskip(case.package)
    results = []
    for make in (lambda ps: getattr(zoo, case.name)(ps, **case.ours), case.make):
        params = start(dtype)
        more = {} if case.same_rates else {"lr": 0.01}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = make(grouped(params, two, **more))
            steps(optimizer, params, range(STEPS), ever=not case.late)
        results.append(values(params))
    return results


@each_case
def test_float64_is_the_packages(case):
    ours, theirs = ours_and_theirs(case, torch.float64)
    assert apart(ours, theirs) <= case.float64


@each_case
def test_float32_is_the_packages_and_as_near_to_float64(case):
    ours, theirs = ours_and_theirs(case, torch.float32)
    exact, _ = ours_and_theirs(case, torch.float64)
    assert apart(ours, theirs) <= 5e-5
    assert apart(ours, exact) <= 1.5 * apart(theirs, exact) + 1e-6
