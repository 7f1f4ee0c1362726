"""What torch's own classes are asked in many files, asked of the zoo: hooks, scaled gradients, threads, forks, special
values, steps and loads that fail. Copies and resumed runs are test_zoo's.
"""

import copy
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import oxistep  # noqa: E402
from oxistep import _core  # noqa: E402
from oxistep.optim._definition import definition_of  # noqa: E402
from scenarios import CLOSE, FORCED, draw, params_of, set_gradients  # noqa: E402
from snapshots import bits, difference, outcome_of, snapshot  # noqa: E402
from test_all_or_nothing import OXISTEP, TORCH_OPTIM, InjectedError, Lines  # noqa: E402
from test_fork import in_child  # noqa: E402
from test_special_values import kind, special  # noqa: E402
from zoo_cases import CASES, NAMES, ONE_OF_EACH, Case, Judge  # noqa: E402

SHAPES = [(4, 3), (5,), (), (6,)]
each_class = pytest.mark.parametrize("case", ONE_OF_EACH.values(), ids=lambda case: case.name)

# Rules that look at a whole tensor, or at all; the flags of the others that do so are left out here.
WHOLE = ("LAMB", "LARS", "MARS", "NovoGrad", "Prodigy", "StableAdamW")
PLAIN = {case.name: case for case in reversed(CASES)}
each_elementwise_class = pytest.mark.parametrize(
    "case", [case for name, case in PLAIN.items() if name not in WHOLE], ids=lambda case: case.name
)


def two_groups(case, params):
    return case.ours([{"params": params[:2]}, {"params": params[2:]}])


def stepped(case, steps, shapes=SHAPES, dtype=torch.float32):
    """An optimizer of two groups after some steps, its parameters with the gradients of the next one."""
    params = draw(*shapes, dtype=dtype)
    optimizer = two_groups(case, params)
    for k in range(steps):
        set_gradients(params, k)
        case.take(optimizer, k)
    set_gradients(params, steps)
    return params, optimizer


def whole(optimizer):
    """Parameters, states and numbers of the groups to the bit."""
    groups = [{key: v for key, v in group.items() if key != "params"} for group in optimizer.param_groups]
    return outcome_of(params_of(optimizer), optimizer), repr(groups)


def test_the_table_has_all_classes():
    assert ONE_OF_EACH.keys() == PLAIN.keys() == set(NAMES)


# ---- hooks ----


@each_class
def test_hooks_are_called_once_around_the_step(case):
    params, optimizer = stepped(case, 6)  # RAdamScheduleFree moves nothing at first
    case.before(optimizer, 6)
    seen = []

    def hook(label):
        def called(given, args, kwargs):
            assert given is optimizer and args[0] is optimizer
            seen.append((label, [bits(p) for p in params]))

        return called

    handles = [
        optimizer.register_step_pre_hook(hook("pre")),
        optimizer.register_step_post_hook(hook("post")),
        register_optimizer_step_pre_hook(hook("pre of all")),
        register_optimizer_step_post_hook(hook("post of all")),
    ]
    before = [bits(p) for p in params]
    optimizer.step(**case.step)
    for handle in handles:
        handle.remove()
    after = [bits(p) for p in params]
    assert before != after
    assert [label for label, _ in seen] == ["pre of all", "pre", "post", "post of all"]
    assert [values for _, values in seen] == [before, before, after, after]

    _, expected = stepped(case, 6)
    case.take(expected, 6)
    assert whole(optimizer) == whole(expected)
    case.take(optimizer, 7)
    assert len(seen) == 4  # they are no longer called


@each_class
def test_a_hook_that_raises_before_the_step_leaves_everything(case):
    def refuses(*_):
        raise InjectedError("not now")

    params, optimizer = stepped(case, 2)
    case.before(optimizer, 2)
    handle = optimizer.register_step_pre_hook(refuses)
    more = {name: value + 1 for name, value in case.step.items()}
    before = snapshot(optimizer, params)
    with pytest.raises(InjectedError):
        optimizer.step(**more)
    assert not difference(before, snapshot(optimizer, params))
    handle.remove()


# ---- GradScaler ----


@each_class
def test_scaled_gradients_give_the_plain_step_and_an_infinity_gives_none(case):
    """A scale is a power of two, so the bits are those without one."""
    params, optimizer = stepped(case, 0)
    others, other = stepped(case, 0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # which makes the scale
    for k in range(6):
        set_gradients(params, k)
        for p in params:
            p.grad *= scaler.get_scale()
        if k == 3:
            params[-1].grad[1] = torch.inf
        if hasattr(optimizer, "update_hessian"):
            scaler.unscale_(optimizer)
        if k != 3:
            case.before(optimizer, k)
        before = snapshot(optimizer, params, gradients=False)
        scaler.step(optimizer, **case.step)
        scaler.update()
        if k == 3:
            assert not difference(before, snapshot(optimizer, params, gradients=False))
            assert scaler.get_scale() == 4.0
        else:
            set_gradients(others, k)
            case.take(other, k)
    assert whole(optimizer) == whole(other)


# ---- threads, levels, forks, modes ----


@pytest.fixture
def restored():
    level = oxistep.cpu_features()["simd"]
    yield
    _core.force_simd(level)
    oxistep.set_num_threads(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_class
def test_bits_do_not_depend_on_threads_or_level(case, dtype, restored):
    def run():
        params = [start.clone().requires_grad_() for start in LARGE_STARTS[dtype]]
        optimizer = two_groups(case, params)
        for k in range(3):
            for p, grad in zip(params, LARGE_GRADIENTS[dtype], strict=True):
                p.grad = grad * (k + 1)
            case.take(optimizer, k)
        tensors = [p.detach() for p in params]
        for p in params:
            tensors += [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
        groups = [{key: v for key, v in group.items() if key != "params"} for group in optimizer.param_groups]
        return tensors, repr(groups)

    def assert_same(one, other):
        assert one[1] == other[1]
        for a, b in zip(one[0], other[0], strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b) and torch.isfinite(a).all()

    oxistep.set_num_threads(1)
    expected = run()
    oxistep.set_num_threads(2)
    for level in oxistep.cpu_features()["available"]:
        _core.force_simd(level)
        assert_same(run(), expected)


LARGE_SHAPES = [(17, 33), (5,), (50_003, 3), ()]  # the third is shared among threads
LARGE_STARTS = {t: [p.detach() for p in draw(*LARGE_SHAPES, dtype=t)] for t in (torch.float32, torch.bfloat16)}
LARGE_GRADIENTS = {t: [p.detach() for p in draw(*LARGE_SHAPES, seed=1, dtype=t)] for t in LARGE_STARTS}


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.skipif(FORCED, reason="torch's threads do not survive a fork")
@each_class
def test_a_forked_child_takes_the_same_step(case, restored):
    def bytes_of(optimizer):
        """Without an operation of torch's that asks for threads."""
        values = []
        for p in params_of(optimizer):
            values.append(p.detach().numpy().tobytes())
            values += [np.asarray(value).tobytes() for value in optimizer.state[p].values()]
        return hash(tuple(values))

    def start():
        params = [start.clone().requires_grad_() for start in LARGE_STARTS[torch.float32]]
        optimizer = two_groups(case, params)
        for p, grad in zip(params, LARGE_GRADIENTS[torch.float32], strict=True):
            p.grad = grad
        for k in range(2):
            case.take(optimizer, k)
        case.before(optimizer, 2)
        return optimizer

    def step(optimizer):
        for _ in range(2):
            optimizer.step(**case.step)
        return bytes_of(optimizer)

    oxistep.set_num_threads(2)
    expected = step(start())
    optimizer = start()
    assert in_child(lambda: step(optimizer)) == repr(expected)
    assert step(optimizer) == expected


@pytest.mark.parametrize("first", [0, 2])
@each_class
def test_steps_in_inference_mode_are_steps(case, first):
    """States that were made there torch writes there alone, so the next step outside is refused whole."""
    _, expected = stepped(case, 4)
    params = draw(*SHAPES)
    optimizer = two_groups(case, params)
    for k in range(4):
        set_gradients(params, k)
        with torch.inference_mode(k >= first):
            case.take(optimizer, k)
    assert whole(optimizer) == whole(expected)
    if first:
        optimizer.step(**case.step)
        return
    before = snapshot(optimizer, params)
    with pytest.raises(RuntimeError, match=r"inference (tensor outside InferenceMode|mode, where)"):
        optimizer.step(**case.step)
    assert not difference(before, snapshot(optimizer, params))


# ---- special values ----


def small(dtype, n, generator):
    """Zeros of either sign, numbers near the smallest normal one and below, and ordinary ones."""
    tiny = torch.finfo(dtype).tiny
    sizes = [0.0, tiny / 4, tiny, tiny**0.5, 1e-3, 0.5, 1.0]
    values = torch.tensor([*sizes, *(-x for x in sizes)], dtype=dtype)
    return values[torch.randint(len(values), (n,), generator=generator)]


def assert_alike(ours, expected, close, told):
    bad = kind(ours) != kind(expected)
    assert not bad.any(), f"{told}: ours {ours[bad][:5]}, expected {expected[bad][:5]}"
    torch.testing.assert_close(ours, expected, equal_nan=True, **close, msg=lambda m: f"{told}: {m}")


def beside_the_judge(case, values):
    generator = torch.Generator().manual_seed(0)
    p = values(torch.float64, 300, generator).requires_grad_()
    optimizer, judge = case.ours([p]), Judge(case, [p])
    for k in range(5):
        grad = values(torch.float64, 300, generator)
        p.grad, judge.grads = grad, [grad.numpy()]
        case.take(optimizer, k)
        with np.errstate(all="ignore"):
            case.take(judge, k)
        assert_alike(p.detach(), torch.from_numpy(judge.params[0]), CLOSE[torch.float64], f"step {k}")
        for name, state in optimizer.state[p].items():
            if state.shape == p.shape:
                told = f"step {k}, {name}"
                assert_alike(state, torch.from_numpy(judge.states[0][name]), CLOSE[torch.float64], told)


def beside_torchs_operations(case, values):
    """In float32, whose small numbers have no squares where float64 has some."""
    generator = torch.Generator().manual_seed(0)
    start = values(torch.float32, 300, generator)
    p, q = start.clone().requires_grad_(), start.clone().requires_grad_()
    ours, other = case.ours([p]), case.ours([q])
    for k in range(5):
        p.grad = values(torch.float32, 300, generator)
        q.grad = p.grad.clone()
        case.take(ours, k)
        case.before(other, k)
        for group in other.param_groups:
            group.update(case.step)
        definition_of(type(other)).leave_everything(other)
        assert_alike(p.detach(), q.detach(), CLOSE[torch.float32], f"step {k}")
        for name, state in ours.state[p].items():
            assert_alike(state, other.state[q][name], CLOSE[torch.float32], f"step {k}, {name}")


@each_class
def test_zeros_and_denormals_give_what_the_rule_gives(case):
    beside_the_judge(case, small)


@each_class
def test_zeros_and_denormals_of_float32_give_what_torchs_operations_give(case):
    beside_torchs_operations(case, small)


@each_elementwise_class
def test_special_values_of_float32_give_what_torchs_operations_give(case):
    beside_torchs_operations(case, special)


@each_elementwise_class
def test_special_values_give_what_the_rule_gives(case):
    beside_the_judge(case, special)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_elementwise_class
def test_a_gradient_that_is_not_finite_spoils_no_other_element(case, dtype, bad):
    def run(spoiled):
        (p,) = draw((67,), dtype=dtype)
        optimizer = case.ours([p])
        for k in range(5):
            set_gradients([p], k)
            if spoiled and k == 1:
                p.grad[[0, 40, 66]] = bad
            case.take(optimizer, k)
        states = {name: state for name, state in optimizer.state[p].items() if state.shape == p.shape}
        return {"p": p.detach(), **states}

    others = torch.ones(67, dtype=torch.bool)
    others[[0, 40, 66]] = False
    clean, spoiled = run(False), run(True)
    assert clean.keys() == spoiled.keys()
    for name, value in clean.items():
        assert torch.equal(value[others], spoiled[name][others]), name
    assert any(not torch.equal(value, spoiled[name]) for name, value in clean.items())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", [name for name in WHOLE if name != "Prodigy"])  # whose d is of all parameters
def test_a_gradient_that_is_not_finite_spoils_no_other_parameter(name, bad):
    case = PLAIN[name]
    if name == "LAMB":
        case = Case(name, {**case.kwargs, "max_grad_norm": None})  # which is of all gradients

    def run(spoiled):
        params = draw(*SHAPES)
        optimizer = two_groups(case, params)
        for k in range(4):
            set_gradients(params, k)
            if spoiled and k == 1:
                params[0].grad[1, 1] = bad
            case.take(optimizer, k)
        return outcome_of(params, optimizer)

    clean, spoiled = run(False), run(True)
    assert clean[0] != spoiled[0]
    assert clean[1:] == spoiled[1:]


# ---- all or nothing ----


def with_gradient(p, grad):
    """Gives a parameter a gradient that torch refuses to assign: by way of values that it fits."""
    values = p.data
    p.grad = None
    p.data = torch.zeros_like(grad)
    p.grad = grad
    p.data = values


def ready(case, optimizer):
    """What must come before any step."""
    if hasattr(optimizer, "train"):
        case.before(optimizer, 0)


WRONG = {
    "shape": lambda p: with_gradient(p, torch.ones(7)),
    "complex": lambda p: with_gradient(p, torch.ones(6, dtype=torch.complex64)),
    "sparse": lambda p: setattr(p, "grad", torch.ones(6).to_sparse()),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("wrong", WRONG)
@each_class
def test_a_wrong_gradient_of_the_last_parameter_leaves_everything(case, wrong, steps):
    params, optimizer = stepped(case, steps)
    ready(case, optimizer)
    right = params[-1].grad
    WRONG[wrong](params[-1])
    before = snapshot(optimizer, params)
    with pytest.raises((RuntimeError, TypeError)) as caught:
        optimizer.step(**case.step)
    assert not difference(before, snapshot(optimizer, params)), caught.value
    params[-1].grad = right
    _, expected = stepped(case, steps)
    ready(case, expected)
    optimizer.step(**case.step)
    expected.step(**case.step)
    assert whole(optimizer) == whole(expected)


@each_class
@pytest.mark.parametrize("what", ["gradient", "state"])
def test_a_complex_parameter_takes_no_real_numbers(case, what):
    """They would be spread over real and imaginary parts."""
    params = [*draw((3,)), torch.ones(2, dtype=torch.complex64).requires_grad_()]
    optimizer = case.ours(params)
    for k in range(2):
        params[0].grad, params[1].grad = torch.ones(3), torch.ones(2, dtype=torch.complex64)
        case.take(optimizer, k)
    if what == "gradient":
        with_gradient(params[1], torch.ones(2))
    else:
        shaped = [name for name, state in optimizer.state[params[1]].items() if state.shape == (2,)]
        optimizer.state[params[1]][shaped[-1]] = torch.ones(2)
    before = snapshot(optimizer, params)
    with pytest.raises(RuntimeError, match=rf"params'\]\[1\] has a {what}.* torch.float32.* its own dtype; nothing"):
        optimizer.step(**case.step)
    assert not difference(before, snapshot(optimizer, params))


@each_class
def test_a_gradient_of_float64_counts_as_its_numbers(case):
    """torch's SGD takes one for a parameter of float32, and so do rules; the parameter and its states stay float32."""
    params, optimizer = stepped(case, 3)
    others, other = stepped(case, 3)
    with_gradient(params[-1], params[-1].grad.double())
    case.take(optimizer, 3)
    case.take(other, 3)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, **CLOSE[torch.float32])
        for name, state in optimizer.state[p].items():
            torch.testing.assert_close(state, other.state[q][name], **CLOSE[torch.float32])


@each_class
def test_a_state_of_another_shape_is_refused_by_the_load_or_by_the_step(case):
    """torch's classes load one, and their step refuses it; whichever does, nothing else has changed."""
    params, optimizer = stepped(case, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    last = saved["state"][len(params) - 1]
    shaped = [name for name, state in last.items() if isinstance(state, torch.Tensor) and state.shape == (6,)]
    assert shaped
    for name in shaped:
        damaged = copy.deepcopy(saved)
        damaged["state"][len(params) - 1][name] = torch.ones(7)
        optimizer.load_state_dict(copy.deepcopy(saved))
        before = snapshot(optimizer, params)
        try:
            optimizer.load_state_dict(damaged)
        except (RuntimeError, ValueError):
            assert not difference(before, snapshot(optimizer, params))
            optimizer.step(**case.step)
            continue
        before = snapshot(optimizer, params)
        with pytest.raises(RuntimeError, match=rf"param_groups\[1\]\['params'\]\[1\] has a state '{name}'.*\(7,\)"):
            optimizer.step(**case.step)
        assert not difference(before, snapshot(optimizer, params))


@pytest.mark.skipif(FORCED, reason="torch's own operations break off half-way")
@each_class
def test_lines_of_a_step_may_raise(case):
    """Of all lines that a step runs some raise in turn: it has changed nothing, or all was written."""

    def taken(n):
        params, optimizer = stepped(case, 2)
        ready(case, optimizer)
        before = snapshot(optimizer, params)
        lines = Lines([OXISTEP, TORCH_OPTIM], n)
        try:
            with lines.active():
                optimizer.step(**case.step)
        except Exception as error:
            assert isinstance(error, InjectedError) or isinstance(error.__cause__, InjectedError), error
            return lines, optimizer, difference(before, snapshot(optimizer, params))
        return lines, optimizer, None

    lines, optimizer, changed = taken(0)
    assert changed is None
    expected, unchanged = whole(optimizer), 0
    for n in range(1, lines.count + 1, max(lines.count // 12, 1)):
        lines, optimizer, changed = taken(n)
        if changed is None or whole(optimizer) == expected:
            continue
        assert not changed, f"{lines.at} raised, and changed {changed}"
        unchanged += 1
        optimizer.step(**case.step)
        assert whole(optimizer) == expected, f"after {lines.at} had raised"
    assert unchanged > 5
