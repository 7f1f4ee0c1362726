"""LBFGS: what is special to it. (torch's own table of inputs: test_optim_db.)"""

import copy
import io
import math
from unittest import mock

import pytest
import torch

import oxistep
import oxistep.optim
from oxistep import _core
from seeing import Seeing

CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}
CLOSE |= {torch.complex64: CLOSE[torch.float32], torch.complex128: CLOSE[torch.float64]}
SHAPES = [(), (5,), (3, 4), (0,), (1,), (2, 1, 3)]
each_class = pytest.mark.parametrize("optim", [torch.optim, oxistep.optim], ids=["torch", "oxistep"])


def problem(optim, dtype=torch.float64, shapes=SHAPES, sign=1.0, **settings):
    """A bowl, steeper in some directions, with a bit of a fourth power; upside down with sign -1."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]
    slopes = [
        1 + 2 * torch.rand(s, generator=generator, dtype=p.real.dtype) for s, p in zip(shapes, params, strict=True)
    ]
    optimizer = optim.LBFGS(params, **settings)
    calls = []

    def closure():
        optimizer.zero_grad()
        squares = [(p * p.conj()).real for p in params]
        loss = sum((c * (s - 0.3) + 0.1 * s**2).sum() for s, c in zip(squares, slopes, strict=True)) * sign
        loss.backward()
        calls.append(loss.item())
        return loss

    return params, optimizer, closure, calls


def flat(values):
    """All numbers of a state, flat, with what else there is."""
    for key, value in values.items():
        for element in value if isinstance(value, list) else [value]:
            yield key, element


def assert_same_state(mine, theirs, tolerance):
    assert list(mine) == list(theirs)
    for (key, a), (_, b) in zip(flat(mine), flat(theirs), strict=True):
        assert type(a) is type(b), key
        if torch.is_tensor(a):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), key
            torch.testing.assert_close(a, b, **tolerance)
        elif isinstance(a, float):
            assert math.isclose(a, b, rel_tol=tolerance["rtol"], abs_tol=tolerance["atol"]), key
        else:
            assert a == b, key


SETTINGS = {
    "default": {"lr": 0.3},
    "short-history": {"lr": 0.3, "history_size": 2},
    "tensor-lr": {"lr": torch.tensor(0.25)},
    "few-evaluations": {"lr": 0.3, "max_eval": 3},
    "one-iteration": {"lr": 0.3, "max_iter": 1},
    "tolerances": {"lr": 0.3, "tolerance_grad": 1e-2, "tolerance_change": 1e-3},
    "line-search": {"line_search_fn": "strong_wolfe"},
    "line-search-short": {"line_search_fn": "strong_wolfe", "max_iter": 4, "history_size": 3},
}


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("label", SETTINGS)
def test_steps_and_states_are_torchs(label, dtype):
    settings = {"max_iter": 5, **SETTINGS[label]}
    (params, a, closure, calls), (others, b, their_closure, their_calls) = (
        problem(optim, dtype, **copy.deepcopy(settings)) for optim in (oxistep.optim, torch.optim)
    )
    for _ in range(8 if dtype.to_real() == torch.float64 else 3):
        loss, their_loss = a.step(closure), b.step(their_closure)
        torch.testing.assert_close(loss, their_loss, **CLOSE[dtype])
        if a.state[params[0]]["func_evals"] != b.state[others[0]]["func_evals"]:
            break  # converged: which of the last steps is too small is decided by rounding
        assert len(calls) == len(their_calls)
        assert_same_state(
            a.state[params[0]],
            b.state[others[0]],
            {"rtol": 1e-3, "atol": 1e-3 if dtype.to_real() == torch.float32 else 1e-6},
        )
    assert [row.path for row in oxistep.explain(a)] == ["native"] * len(params)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, **CLOSE[dtype])


def native_calls():
    """Counts the native directions while it is active."""
    return mock.patch.object(_core, "lbfgs_direction", side_effect=_core.lbfgs_direction)


def test_the_step_is_native():
    _, optimizer, closure, _ = problem(oxistep.optim, max_iter=4, lr=0.1)
    with native_calls() as calls, mock.patch.object(torch.Tensor, "dot", side_effect=AssertionError):
        optimizer.step(closure)
    assert calls.call_count == 3


def test_maximize():
    for settings in ({"lr": 0.1}, {"line_search_fn": "strong_wolfe"}):
        results = []
        for optim in (oxistep.optim, torch.optim):
            try:
                params, optimizer, closure, _ = problem(optim, sign=-1.0, maximize=True, **settings)
            except TypeError:
                pytest.skip("this torch's LBFGS does not maximize")
            optimizer.step(closure)
            results.append(params)
        for p, q in zip(*results, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def bits(threads, level, dtype):
    """Four iterations on 150,000 elements."""
    _core.force_simd(level)
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(n, generator=generator, dtype=dtype).requires_grad_() for n in (140_000, 7, 9_993)]
    curves = [torch.rand(p.shape, generator=generator, dtype=dtype) * 3 + 0.1 for p in params]
    optimizer = oxistep.optim.LBFGS(params, lr=0.1, max_iter=5)

    def closure():
        for p, c in zip(params, curves, strict=True):
            p.grad = c * p.detach()
        return 0.0 if optimizer.state[params[0]].get("n_iter", 0) == 0 else float(optimizer.state[params[0]]["n_iter"])

    optimizer.step(closure)
    assert optimizer.state[params[0]]["n_iter"] == 5
    return [p.detach().clone() for p in params] + optimizer.state[params[0]]["old_dirs"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bits_depend_neither_on_threads_nor_on_the_level(dtype):
    before = torch.get_num_threads(), oxistep.cpu_features()["simd"]
    try:
        expected = bits(1, "baseline", dtype)
        for level in oxistep.cpu_features()["available"]:
            for threads in (1, 2, 3):
                assert all(map(torch.equal, bits(threads, level, dtype), expected)), (level, threads)
    finally:
        torch.set_num_threads(before[0])
        _core.force_simd(before[1])


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize(("first", "second"), [(torch.optim, oxistep.optim), (oxistep.optim, torch.optim)])
def test_checkpoints_move_both_ways(first, second, search):
    settings = {"lr": 0.5, "max_iter": 4, "history_size": 3, "line_search_fn": search}
    params, a, closure, _ = problem(first, **settings)
    for _ in range(2):
        a.step(closure)
    file = io.BytesIO()
    torch.save({"optimizer": a.state_dict(), "params": params}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    moved, b, moved_closure, _ = problem(second, **settings)
    with torch.no_grad():
        for p, q in zip(moved, saved["params"], strict=True):
            p.copy_(q)
    b.load_state_dict(saved["optimizer"])
    for _ in range(2):
        a.step(closure)
        b.step(moved_closure)
    for p, q in zip(params, moved, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)
    if second is oxistep.optim:
        assert oxistep.explain(b)[0].path == "native"
    assert_same_state(a.state[params[0]], b.state[moved[0]], {"rtol": 1e-6, "atol": 1e-6})


def test_switching_between_steps():
    """Torch's step and ours in turn, on one optimizer."""
    params, a, closure, _ = problem(oxistep.optim, max_iter=3, lr=0.3)
    others, b, their_closure, _ = problem(torch.optim, max_iter=3, lr=0.3)
    for turn in range(6):
        b.step(their_closure)
        if turn % 2:
            a.step(closure)
        else:
            with mock.patch("oxistep.optim._modes.FORCED", True):
                assert oxistep.explain(a)[0].path == "torch"
                a.step(closure)
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def make_params(kind):
    generator = torch.Generator().manual_seed(4)
    base = torch.randn(4, 6, generator=generator)
    return {
        "transposed": lambda: [base.t().requires_grad_()],
        "strided": lambda: [base[:, ::2].requires_grad_()],
        "half": lambda: [base.to(torch.bfloat16).requires_grad_()],
        "mixed": lambda: [base.double().requires_grad_(), base.requires_grad_()],
        "overlapping": lambda: [base[:2].requires_grad_(), base[1:].requires_grad_()],
        "twice": lambda: [base[0].requires_grad_()] * 1 + [base.view(-1)[:6].requires_grad_()],
        "subclass": lambda: [base.as_subclass(Subclass).requires_grad_()],
    }[kind]()


class Subclass(Seeing, torch.Tensor):
    pass


def attempt(optim, kind, **settings):
    params = make_params(kind)
    optimizer = optim.LBFGS(params, max_iter=4, **settings)

    def closure():
        optimizer.zero_grad()
        loss = sum(((p.double() - 0.2) ** 2).sum() + (p.double() ** 4).sum() for p in params)
        loss.backward()
        return loss

    try:
        for _ in range(2):
            optimizer.step(closure)
    except Exception as error:  # the kind and the words are compared
        return (type(error), str(error)), optimizer
    return [p.detach().as_subclass(torch.Tensor).clone() for p in params], optimizer


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("kind", ["transposed", "strided", "half", "mixed", "overlapping", "twice", "subclass"])
def test_what_is_not_served_is_torchs_to_the_last_bit(kind, search):
    ours, optimizer = attempt(oxistep.optim, kind, lr=0.1, line_search_fn=search)
    theirs, _ = attempt(torch.optim, kind, lr=0.1, line_search_fn=search)
    assert oxistep.explain(optimizer)[0].path == "torch"
    if isinstance(theirs, tuple):
        assert ours == theirs
    else:
        assert all(map(torch.equal, ours, theirs))


def test_parameters_change_their_kind_in_the_closure():
    """What the first call of the closure makes unfit is torch's; it is not called once more for that."""
    results = []
    for optim in (oxistep.optim, torch.optim):
        p = torch.ones(4, 3, requires_grad=True)
        optimizer = optim.LBFGS([p], lr=0.1, max_iter=3)
        calls = []

        def closure(p=p, optimizer=optimizer, calls=calls):
            calls.append(None)
            p.data = p.detach().t().contiguous().t()
            optimizer.zero_grad()
            loss = (p**2).sum()
            loss.backward()
            p.grad = p.grad.contiguous()
            return loss

        results.append((optimizer.step(closure), p.detach(), len(calls)))
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize("kind", ["missing", "sparse", "all-missing"])
def test_gradients_that_are_missing_or_sparse(kind):
    results = []
    for optim in (oxistep.optim, torch.optim):
        params, optimizer, closure, _ = problem(optim, shapes=[(4, 2), (3,)], lr=0.2, max_iter=4)

        def changed(params=params, closure=closure):
            loss = closure()
            params[0].grad = params[0].grad.to_sparse() if kind == "sparse" else None
            if kind == "all-missing":
                params[1].grad = None
            return loss

        optimizer.step(changed)
        results.append((params, optimizer.state[params[0]]))
    assert_same_state(results[0][1], results[1][1], {"rtol": 1e-10, "atol": 1e-10})
    for p, q in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def test_a_gradient_that_cannot_be_flattened_raises_as_in_torch():
    errors = []
    for optim in (oxistep.optim, torch.optim):
        p = torch.ones(4, 3, requires_grad=True)
        optimizer = optim.LBFGS([p])

        def closure(p=p):
            p.grad = torch.ones(3, 4).t()
            return p.sum()

        with pytest.raises(RuntimeError) as error:
            optimizer.step(closure)
        assert torch.equal(p.detach(), torch.ones(4, 3))
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_not_a_number_ends_as_in_torch():
    for value in (math.nan, math.inf):
        results = []
        for optim in (oxistep.optim, torch.optim):
            p = torch.ones(3, requires_grad=True)
            optimizer = optim.LBFGS([p], max_iter=4)

            def closure(p=p, value=value):
                p.grad = torch.tensor([1.0, value, 2.0])
                return torch.tensor(value)

            optimizer.step(closure)
            results.append((p.detach().clone(), optimizer.state[p]["func_evals"]))
        torch.testing.assert_close(results[0][0], results[1][0], equal_nan=True, rtol=0, atol=0)
        assert results[0][1] == results[1][1]


def test_version_counters_move():
    params, optimizer, closure, _ = problem(oxistep.optim, max_iter=2, lr=0.1)
    before = [p._version for p in params]
    kept = (params[1] * params[1]).sum()
    optimizer.step(closure)
    assert all(p._version > version for p, version in zip(params, before, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


@each_class
def test_hooks_and_the_profiler_run_once(optim):
    _, optimizer, closure, _ = problem(optim, max_iter=2, lr=0.1)
    torch.optim.LBFGS([torch.ones(1)])  # torch wraps its own step now
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    for forced in (False, True):
        profiling = torch.profiler.profile(acc_events=True)
        with mock.patch("oxistep.optim._modes.FORCED", forced), profiling as profile:
            optimizer.step(closure)
        assert seen == ["before", "after"]
        seen.clear()
        names = [event.key for event in profile.key_averages() if event.key.startswith("Optimizer.step")]
        assert names == ["Optimizer.step#LBFGS.step"]


@each_class
def test_a_subclass_may_gather_in_its_own_way(optim):
    class Mine(optim.LBFGS):
        def _gather_flat_grad(self):
            return super()._gather_flat_grad() * 2

    p = torch.tensor([3.0], requires_grad=True)
    optimizer = Mine([p], lr=0.25, max_iter=1)

    def closure():
        p.grad = torch.tensor([0.1])
        return 0.0

    optimizer.step(closure)
    assert p.item() == pytest.approx(3 - 0.25 * 0.2)


@each_class
def test_a_raising_closure(optim):
    params, optimizer, _, _ = problem(optim)
    before = [p.detach().clone() for p in params]

    def closure():
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        optimizer.step(closure)
    assert all(map(torch.equal, params, before))
    with pytest.raises(TypeError):
        optimizer.step()
    with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported"):
        _, optimizer, closure, _ = problem(optim, line_search_fn="golden section")
        optimizer.step(closure)


@each_class
def test_one_group_only(optim):
    with pytest.raises(ValueError, match="doesn't support per-parameter options"):
        optim.LBFGS([{"params": [torch.ones(1)]}, {"params": [torch.ones(1)]}])
    optimizer = optim.LBFGS([torch.ones(1, requires_grad=True)])
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)]})
    with pytest.raises(AssertionError):
        optimizer.step(lambda: 0.0)


def test_states_that_no_step_left_behind_are_torchs():
    for spoil in (
        lambda s: s["old_dirs"].pop(),
        lambda s: s.pop("d"),
        lambda s: s.update(prev_flat_grad=torch.ones(3)),
        lambda s: s.update(H_diag=None),
    ):
        params, optimizer, closure, _ = problem(oxistep.optim, max_iter=4, lr=0.1)
        optimizer.step(closure)
        spoil(optimizer.state[params[0]])
        assert oxistep.explain(optimizer)[0].path == "torch"


def test_under_dynamo_the_step_stays_outside_the_graph():
    params, optimizer, closure, _ = problem(oxistep.optim, max_iter=3, lr=0.1)
    others, twin, twin_closure, _ = problem(oxistep.optim, max_iter=3, lr=0.1)
    torch.compile(lambda: optimizer.step(lambda: closure().detach()), backend="eager")()
    twin.step(twin_closure)
    assert all(map(torch.equal, params, others))


def test_native_functions_refuse_what_does_not_fit():
    x = torch.ones(4)
    with pytest.raises(RuntimeError, match="one length"):
        _core.lbfgs_dot(x, torch.ones(3))
    with pytest.raises(RuntimeError, match="one dtype"):
        _core.lbfgs_dot(x, x.double())
    with pytest.raises(RuntimeError, match="contiguous"):
        _core.lbfgs_max_abs(torch.ones(8)[::2], 1.0)
    with pytest.raises(RuntimeError, match="overlap"):
        _core.lbfgs_direction(x, [], [], [], 1.0, [], x)
    with pytest.raises(RuntimeError, match="overlap"):
        one = torch.ones(())
        _core.lbfgs_differences(x, x, x, 1.0, torch.ones(4), torch.ones(4), one, one)
    with pytest.raises(RuntimeError, match="equally long"):
        _core.lbfgs_direction(x, [x], [], [], 1.0, [], torch.ones(4))
    assert not _core.lbfgs_move([x], x, 1.0)
    assert not _core.lbfgs_gather([x], torch.ones(3), False)
    assert torch.equal(x, torch.ones(4))


def test_overlaps_are_told_before_wrong_scalars_and_vectors_before_both():
    x, wrong = torch.ones(4), torch.ones(2)
    for out, old_stp, because in [
        (torch.ones(4), x, "one element"),
        (x, x, "overlap"),
        (x, torch.ones(3), "one length"),
    ]:
        with pytest.raises(RuntimeError, match=because):
            _core.lbfgs_direction(x, [x], [old_stp], [wrong], 1.0, [None], out)


def test_what_is_only_read_may_overlap():
    x, out, flat = torch.ones(4), torch.zeros(4), torch.zeros(6)
    assert _core.lbfgs_direction(x, [x], [x], [torch.ones(())], 1.0, [None], out) == -52
    p, q = torch.zeros(3), torch.zeros(3)
    p.grad = q.grad = torch.arange(3.0)
    assert _core.lbfgs_gather([p, q], flat, True)
    assert flat.tolist() == [0, -1, -2] * 2
    p.grad = flat[:3]
    assert not _core.lbfgs_gather([p, q], flat, True)
    assert not _core.lbfgs_move([flat[:3], flat[2:5]], torch.ones(6), 1.0)


def test_vectors_of_no_elements_overlap_nothing():
    nothing, one, coefficients = torch.ones(0), torch.ones(()), [None]
    nothing.grad = torch.ones(0)
    assert _core.lbfgs_unfit([nothing, nothing], [nothing], [one]) is None
    assert _core.lbfgs_gather([nothing, nothing], nothing, False)
    assert _core.lbfgs_move([nothing, nothing], nothing, 1.0)
    assert not _core.lbfgs_differences(nothing, nothing, nothing, 1.0, nothing, nothing, one, one)
    assert _core.lbfgs_direction(nothing, [nothing], [nothing], [one], 1.0, coefficients, nothing) == 0
    assert coefficients == [torch.zeros(())]
