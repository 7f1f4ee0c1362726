"""The zoo beside the packages that people take its optimizers from, where those are installed: make test PEERS=1."""

import copy
import inspect
import warnings

import pytest

torch = pytest.importorskip("torch")

from oxistep import zoo  # noqa: E402
from test_zoo import STEPS, gradients, params, train  # noqa: E402
from zoo_cases import LEFT_OUT, LOADS, NAMES, OTHER_SIGNATURE, PACKAGE_CLASS, SETTINGS, each_case  # noqa: E402

# adabound calls torch by signatures of long ago.
pytestmark = pytest.mark.filterwarnings("ignore:This overload of add_ is deprecated")


def trained(case, make, dtype):
    """Parameters after some steps, and the optimizer."""
    optimizer = train(case, make(params(dtype)), dtype=dtype)
    return [p.detach().double() for p in optimizer.param_groups[0]["params"]], optimizer


def in_float64(case, dtype):
    """What the package does in float64 to the numbers of another type."""
    weights = [p.detach().double().requires_grad_() for p in params(dtype)]
    optimizer = case.theirs(weights)
    for k in range(STEPS):
        for p, g in zip(weights, gradients(k, dtype, late=case.late), strict=True):
            p.grad = None if g is None else g.double()
        case.take(optimizer, k)
    return [p.detach() for p in weights]


def apart(some, others):
    """The root of the mean square of all differences, and the largest."""
    differences = torch.cat([(one - other).reshape(-1) for one, other in zip(some, others, strict=True)])
    return differences.square().mean().sqrt().item(), differences.abs().max().item()


@each_case
def test_as_the_package_in_float64(case):
    ours, mine = trained(case, case.ours, torch.float64)
    theirs, other = trained(case, case.theirs, torch.float64)
    assert case.close == 1e-9 or case.because
    for one, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, expected, rtol=case.close, atol=case.close)
    for p, q in zip(mine.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        for name in (mine.state[p].keys() & other.state[q].keys()) - {"step"}:
            expected = torch.as_tensor(other.state[q][name], dtype=torch.float64)
            if mine.state[p][name].shape == expected.shape:  # prodigyopt flattens some of them
                torch.testing.assert_close(mine.state[p][name].double(), expected, rtol=case.close, atol=case.close)


@each_case
def test_as_the_package_in_float32(case):
    ours, _ = trained(case, case.ours, torch.float32)
    theirs, _ = trained(case, case.theirs, torch.float32)
    for one, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, expected, rtol=5e-5, atol=5e-5)
    exact = in_float64(case, torch.float32)
    assert apart(ours, exact)[0] <= 1.1 * apart(theirs, exact)[0] + 1e-7  # a unit in the last place of 1


@each_case
def test_no_worse_than_the_package_in_bfloat16(case):
    ours, _ = trained(case, case.ours, torch.bfloat16)
    theirs, _ = trained(case, case.theirs, torch.bfloat16)
    exact = in_float64(case, torch.bfloat16)
    assert apart(ours, exact)[0] <= case.half * apart(theirs, exact)[0]


@each_case
def test_no_worse_than_the_package_in_float16(case):
    """Many packages' eps, 1e-8, is zero in float16, and what they divide zero by it is NaN: ours is finite there."""
    ours, _ = trained(case, case.ours, torch.float16)
    theirs, _ = trained(case, case.theirs, torch.float16)
    exact = in_float64(case, torch.float16)
    assert all(torch.isfinite(one).all() for one in ours)
    finite = torch.cat([torch.isfinite(one).reshape(-1) for one in theirs])
    mine, other = (
        torch.cat([(one - e).reshape(-1) for one, e in zip(some, exact, strict=True)])[finite].abs()
        for some in (ours, theirs)
    )
    if case.no_float16 and not finite.all():  # Prodigy's: neither has much to compare
        return
    # With caution a sign that turns moves a whole small tensor: such cases are compared by what most elements do.
    measure = torch.median if case.kwargs.get("caution") else lambda errors: errors.square().mean().sqrt()
    assert measure(mine) <= case.half * measure(other)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_packages(name):
    theirs = list(inspect.signature(PACKAGE_CLASS[name]()).parameters.values())[1:]
    ours = list(inspect.signature(getattr(zoo, name)).parameters.values())[1:]
    if name in OTHER_SIGNATURE:
        pytest.skip(OTHER_SIGNATURE[name])
    theirs = [p for p in theirs if p.kind is not p.VAR_KEYWORD and p.name not in LEFT_OUT]
    for one, other in zip(ours, theirs, strict=False):
        assert (one.name, one.kind) == (other.name, other.kind)
        assert one.default == other.default
    extra = [p.name for p in ours[len(theirs) :]]
    settings = [p.name for p in ours if f"{p.name}={p.default}" in SETTINGS and p.name in extra]
    assert extra == [one for one in ("maximize", "foreach") if one in extra] + settings


@each_case
@pytest.mark.parametrize("to", ["ours", "theirs"])
def test_checkpoints_of_the_package(case, to):
    if (why := LOADS.get(case.name, {}).get(to)) is not None:
        pytest.skip(why)
    before, after = (case.theirs, case.ours) if to == "ours" else (case.ours, case.theirs)
    whole, _ = trained(case, case.theirs, torch.float64)
    first = train(case, before(params()), range(5))
    weights = [p.detach().clone().requires_grad_() for p in first.param_groups[0]["params"]]
    second = after(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(case, second, range(5, STEPS))
    # where packages count in Python's integers, our counters make their corrections float32
    close = case.close if to == "ours" else 1e-4
    for one, expected in zip(weights, whole, strict=True):
        torch.testing.assert_close(one.detach(), expected, rtol=close, atol=close)
