"""`max_grad_norm` and `skip_nonfinite`: torch's clipping followed by its step, without writing gradients."""

import copy
import inspect
import math
import os
import pickle

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

import fresh
import oxistep
import oxistep.optim
from oxistep import _core
from oxistep.optim._definition import definition_of
from scenarios import (
    CLOSE,
    assert_same,
    draw,
    each_class,
    each_class_that_makes_states,
    make,
    params_of,
    result,
    set_gradients,
    torch_updates_raise,
    train,
)
from seeing import Seeing

SHAPES = [(3, 4), (), (1000,), (5, 1)]
NAN, INF = math.nan, math.inf


def step_clipped_by_torch(optimizer, max_norm):
    norm = clip_grad_norm_(params_of(optimizer), max_norm, foreach=False)
    optimizer.step()
    return norm


def in_two_groups(optim, name, params, **kwargs):
    optimizer = make(optim, name, params[:2], **kwargs)
    optimizer.add_param_group({"params": params[2:], "lr": 0.03})
    return optimizer


# ---- clipping ----


@each_class_that_makes_states
@pytest.mark.parametrize("max_norm", [0.5, 30.0, 1e9, INF])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_a_step_equals_torchs_clipping_and_step(name, max_norm, maximize, dtype):
    if dtype.is_complex and name in ("Rprop", "Adamax", "Adafactor"):
        pytest.skip("not for complex parameters in torch")
    kwargs = {"maximize": True} if maximize else {}
    if name == "RMSprop":
        kwargs["eps"] = 0.1  # keeps a centred variance that cancels from enlarging torch's last digits
    theirs = in_two_groups(torch.optim, name, draw(*SHAPES, dtype=dtype), foreach=False, **kwargs)
    ours = in_two_groups(oxistep.optim, name, draw(*SHAPES, dtype=dtype), max_grad_norm=max_norm, **kwargs)
    assert ours.last_grad_norm is None
    for step in range(4):
        set_gradients(params_of(ours), step)
        set_gradients(params_of(theirs), step)
        before = [p.grad.clone() for p in params_of(ours)]
        versions = [p.grad._version for p in params_of(ours)]
        norm = step_clipped_by_torch(theirs, max_norm)
        with torch_updates_raise():
            ours.step()
        assert_same(ours.last_grad_norm, norm)
        assert ours.last_grad_norm.shape == ()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(params_of(ours), before, strict=True))
        assert [p.grad._version for p in params_of(ours)] == versions
    assert_same(result(ours), result(theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_factor_multiplies_every_gradient(dtype):
    """SGD shows what it was given: the very bits of gradient * factor, rounded once."""
    params = [p.requires_grad_() for p in (torch.zeros(40, 30), torch.zeros(7), torch.zeros(30, 40).t())]
    for seed, p in enumerate(params):
        p.grad_dtype = dtype
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    optimizer = oxistep.optim.SGD(params, lr=1.0, max_grad_norm=0.25)
    optimizer.step()
    norm = oxistep.get_total_norm([p.grad for p in params])
    assert torch.equal(optimizer.last_grad_norm, norm)
    exact = torch.linalg.vector_norm(torch.cat([p.grad.double().flatten() for p in params])).float()
    factor = 0.25 / (exact + 1e-6)
    for p in params:
        assert torch.equal(p.detach(), -(p.grad.float() * factor))


def test_a_norm_beyond_float16_still_clips():
    p = torch.zeros(10_000, dtype=torch.float16, requires_grad=True)
    p.grad = torch.full_like(p, 1000.0)  # norm 100,000: no float16
    optimizer = oxistep.optim.SGD([p], lr=1.0, max_grad_norm=10.0, skip_nonfinite=True)
    optimizer.step()
    assert optimizer.last_grad_norm.isinf()
    assert optimizer.last_grad_norm.dtype == torch.float16
    torch.testing.assert_close(p.detach(), torch.full_like(p, -0.1), rtol=1e-3, atol=0)


def everything(name):
    """Parameters of every path: native ones, strided, of another dtype, one whose gradient is a subclass."""

    class Mine(Seeing, torch.Tensor):
        pass

    params = [*draw(*SHAPES), torch.zeros(20, 30)[::2, ::3].requires_grad_(), *draw((6,), dtype=torch.float64)]
    params += [torch.nn.Parameter(torch.ones(4).as_subclass(Mine))]
    return params


@each_class
def test_native_and_torchs_path_share_one_norm_and_one_factor(name):
    ours = make(oxistep.optim, name, everything(name), max_grad_norm=0.5)
    theirs = make(torch.optim, name, everything(name), foreach=False)
    for step in range(3):
        set_gradients(params_of(ours), step)
        set_gradients(params_of(theirs), step)
        before = [p.grad.clone() for p in params_of(ours)]
        assert {row.path for row in oxistep.explain(ours)} == {"native", "torch"}
        norm = step_clipped_by_torch(theirs, 0.5)
        ours.step()
        # float64, of norms that torch has rounded to float32
        torch.testing.assert_close(ours.last_grad_norm, norm.as_subclass(torch.Tensor), **CLOSE[torch.float32])
        for row, p, grad in zip(oxistep.explain(ours), params_of(ours), before, strict=True):
            assert torch.equal(p.grad, grad) == (row.path == "native"), row
        last = [params_of(optimizer)[-1].grad.as_subclass(torch.Tensor) for optimizer in (ours, theirs)]
        torch.testing.assert_close(*last)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        p, q = p.detach().as_subclass(torch.Tensor), q.detach().as_subclass(torch.Tensor)
        torch.testing.assert_close(p, q, **CLOSE[torch.float32])


def torch_measures_sparse_gradients():
    try:
        torch.nn.utils.get_total_norm([torch.ones(2).to_sparse()], foreach=False)
    except NotImplementedError:
        return False
    return True


@pytest.mark.skipif(not torch_measures_sparse_gradients(), reason="this torch has no norm of sparse tensors")
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
@pytest.mark.parametrize("state_makes_it_torchs", [False, True])
def test_sparse_gradients(name, state_makes_it_torchs):
    """The norm is that of the coalesced values; torch's own is the same."""

    def embedding():
        table = torch.nn.Embedding(10, 3, sparse=True)
        table.weight.data.copy_(torch.arange(30.0).view(10, 3) / 30)
        return table

    runs = []
    for optim in (torch.optim, oxistep.optim):
        table = embedding()
        kwargs = {"max_grad_norm": 0.5} if optim is oxistep.optim else {}
        if state_makes_it_torchs and name == "SGD":
            kwargs["momentum"] = 0.5
        optimizer = getattr(optim, name)(table.parameters(), lr=0.1, **kwargs)
        for _ in range(3):
            optimizer.zero_grad()
            (table(torch.tensor([1, 4, 1, 7])) ** 2).sum().backward()
            expected = table.weight.grad.to_dense()
            norm = clip_grad_norm_(table.parameters(), 0.5, foreach=False) if optim is torch.optim else optimizer.step()
            norm = optimizer.step() or norm if optim is torch.optim else optimizer.last_grad_norm
            torch.testing.assert_close(norm, expected.norm())
        runs.append((table.weight.detach(), norm))
    assert_same(runs[1], runs[0])


def test_no_gradient_at_all():
    optimizer = oxistep.optim.Adam(draw((3,)), max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.last_grad_norm == 0
    assert not optimizer.state


def test_gradients_of_a_copied_layout():
    """A transposed gradient of a contiguous parameter; an expanded one."""
    for grad in (torch.randn(5, 7).t(), torch.randn(1, 5).expand(7, 5)):
        p = torch.zeros(7, 5, requires_grad=True)
        p.grad = grad
        optimizer = oxistep.optim.SGD([p], lr=1.0, max_grad_norm=0.1)
        optimizer.step()
        torch.testing.assert_close(optimizer.last_grad_norm, grad.norm())
        assert torch.equal(optimizer.last_grad_norm, oxistep.get_total_norm([grad]))
        torch.testing.assert_close(p.detach(), -grad * 0.1 / grad.norm())


@pytest.fixture
def restored():
    level, threads = oxistep.cpu_features()["simd"], torch.get_num_threads()
    yield
    _core.force_simd(level)
    oxistep.set_num_threads(None)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_same_bits_for_any_threads_level_and_order(dtype):
    def run(order=1):
        params = draw((300_000,), (7,), (63, 9), (131_073,), dtype=dtype)
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(dtype)
        optimizer = oxistep.optim.AdamW(params[::order], lr=0.1, max_grad_norm=0.7)
        optimizer.step()
        return [optimizer.last_grad_norm, *(p.detach() for p in params)]

    expected = run()
    for level in oxistep.cpu_features()["available"]:
        _core.force_simd(level)
        for threads in (1, 2, 3):
            oxistep.set_num_threads(threads)
            assert all(map(torch.equal, run(), expected))
            assert all(map(torch.equal, run(-1), expected))


# ---- skipping ----


@each_class
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [0, -1])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_step_with_a_nonfinite_gradient_is_skipped_whole(name, bad, where, max_norm):
    ours = in_two_groups(oxistep.optim, name, draw(*SHAPES), skip_nonfinite=True, max_grad_norm=max_norm)
    twin = in_two_groups(oxistep.optim, name, draw(*SHAPES), max_grad_norm=max_norm)
    for step in range(4):
        set_gradients(params_of(ours), step)
        set_gradients(params_of(twin), step)
        if step in (0, 2):
            params_of(ours)[where].grad.view(-1)[-1] = bad
            before = result(ours)
            ours.step()
            assert_same(result(ours), before, exact=True)
            assert not ours.last_grad_norm.isfinite()
        else:
            ours.step()
            twin.step()
            assert ours.last_grad_norm.isfinite()
    assert_same(result(ours), result(twin), exact=True)


@each_class
def test_without_the_option_nan_poisons_as_in_torch(name):
    runs = []
    for optim in (torch.optim, oxistep.optim):
        kwargs = {"max_grad_norm": 1.0} if optim is oxistep.optim else {"foreach": False}
        optimizer = make(optim, name, draw(*SHAPES), **kwargs)
        set_gradients(params_of(optimizer), 0)
        params_of(optimizer)[0].grad[0, 0] = NAN
        optimizer.step() if optim is oxistep.optim else step_clipped_by_torch(optimizer, 1.0)
        runs.append(result(optimizer))
    assert_same(runs[1], runs[0])


def test_a_skipped_step_runs_closure_and_hooks():
    seen = []
    params = draw((3,))
    optimizer = oxistep.optim.Adam(params, skip_nonfinite=True)
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))

    def closure():
        seen.append("closure")
        params[0].grad = torch.full((3,), NAN)
        return 3.5

    assert optimizer.step(closure) == 3.5
    assert seen == ["pre", "closure", "post"]
    assert not optimizer.state


@each_class
def test_torchs_part_is_skipped_too(name):
    optimizer = make(oxistep.optim, name, everything(name), skip_nonfinite=True)
    train(optimizer, 1)
    set_gradients(params_of(optimizer), 1)
    params_of(optimizer)[0].grad[0, 0] = NAN
    before, grads = result(optimizer), [p.grad.clone() for p in params_of(optimizer)]
    optimizer.step()
    assert_same(result(optimizer), before, exact=True)
    assert_same([p.grad for p in params_of(optimizer)], grads, exact=True)
    set_gradients(params_of(optimizer), 1)
    params_of(optimizer)[-1].grad[0] = INF  # a gradient of torch's path
    optimizer.step()
    assert_same(result(optimizer), before, exact=True)


# ---- all or nothing ----


@pytest.mark.parametrize("skip", [False, True])
def test_a_step_that_raises_has_changed_nothing(skip, monkeypatch):
    params = draw((3,), (4,))
    optimizer = oxistep.optim.AdamW(params, max_grad_norm=0.1, skip_nonfinite=skip)
    train(optimizer, 2)
    set_gradients(params, 5)
    norm = optimizer.last_grad_norm
    before, grads = result(optimizer), [p.grad.clone() for p in params]
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    late = optimizer.param_groups[1]["params"][0]
    late.grad = torch.ones(2)
    monkeypatch.setattr(definition_of(type(optimizer)), "new_state", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert late not in optimizer.state
    del optimizer.param_groups[1]
    assert_same(result(optimizer), before, exact=True)
    assert_same([p.grad for p in params], grads, exact=True)
    assert optimizer.last_grad_norm is norm


# ---- GradScaler ----


def scaled(optim, name, max_norm=None, infinite=False, **kwargs):
    """Three steps through a GradScaler; with torch's class the user unscales and clips by hand."""
    params = draw(*SHAPES)
    optimizer = make(optim, name, params, **kwargs)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    for step in range(3):
        set_gradients(params, step)
        for p in params:
            p.grad.mul_(scaler.get_scale())
        if infinite and step == 1:
            params[0].grad[0, 0] = INF
        scaler.scale(torch.ones(()))
        if max_norm is not None:
            scaler.unscale_(optimizer)
            clip_grad_norm_(params, max_norm, foreach=False)
        scaler.step(optimizer)
        scaler.update()
    return result(optimizer), [p.grad for p in params], optimizer


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_norm_inside_a_grad_scaler_is_of_the_unscaled_gradients(name, infinite, fused):
    try:
        expected, _, _ = scaled(torch.optim, name, 0.5, infinite, foreach=False)
        came, grads, optimizer = scaled(oxistep.optim, name, None, infinite, max_grad_norm=0.5, fused=fused)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert_same(came, expected)
    unscaled = draw(*SHAPES)
    set_gradients(unscaled, 2)
    assert_same(grads, [p.grad for p in unscaled])
    torch.testing.assert_close(optimizer.last_grad_norm, oxistep.get_total_norm(grads))


def test_sparse_gradients_inside_a_grad_scaler():
    """The values looked up first are a copy: unscaling must reach what is read."""
    weights = []
    for kwargs in ({"max_grad_norm": 1e9}, {}):
        p = torch.ones(4, 2, requires_grad=True)
        optimizer = oxistep.optim.SGD([p], lr=1.0, **kwargs)
        p.grad = torch.sparse_coo_tensor([[1, 3, 1]], torch.full((3, 2), 8.0), (4, 2))
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        optimizer.step()
        weights.append(p.detach())
    assert torch.equal(weights[0], torch.tensor([[1.0, 1], [-1, -1], [1, 1], [0, 0]]))
    assert torch.equal(weights[1], weights[0])


def test_gradients_are_unscaled_only_when_all_has_been_checked(monkeypatch):
    params = draw((3,), (4,))
    optimizer = oxistep.optim.Adam(params, fused=True)
    train(optimizer, 1)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    set_gradients(params, 1)
    grads, before = [p.grad.clone() for p in params], result(optimizer)
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    optimizer.param_groups[1]["params"][0].grad = torch.ones(2)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(definition_of(type(optimizer)), "new_state", lambda *_: 1 / 0)
        optimizer.step()
    assert_same([p.grad for p in params], grads, exact=True)
    assert "grad_scale" in optimizer.__dict__
    with torch.inference_mode():
        made = torch.ones(2)
    optimizer.param_groups[1]["params"] = [made]
    made.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        optimizer.step()
    assert_same([p.grad for p in params], grads, exact=True)
    del optimizer.param_groups[1]
    assert_same(result(optimizer), before, exact=True)
    optimizer.step()
    assert_same([p.grad for p in params], [grad / 8 for grad in grads], exact=True)


# ---- the settings ----


@each_class
def test_settings_are_no_part_of_groups_or_checkpoints(name):
    plain = make(oxistep.optim, name, draw((3,)))
    ours = make(oxistep.optim, name, draw((3,)), max_grad_norm=2, skip_nonfinite=True)
    assert (ours.max_grad_norm, ours.skip_nonfinite) == (2.0, True)
    assert (plain.max_grad_norm, plain.skip_nonfinite, plain.last_grad_norm) == (None, False, None)
    assert ours.defaults == plain.defaults
    assert ours.param_groups[0].keys() == plain.param_groups[0].keys()
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert repr(ours) == repr(plain)
    theirs = make(torch.optim, name, draw((3,)))
    train(theirs, 1)
    ours.load_state_dict(theirs.state_dict())
    assert ours.max_grad_norm == 2.0
    last = list(inspect.signature(getattr(oxistep.optim, name)).parameters)[-3:]
    assert last == ["max_grad_norm", "skip_nonfinite", "grad_norm_group"]


@each_class
@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_keep_the_settings(name, way):
    first = make(oxistep.optim, name, draw(*SHAPES), max_grad_norm=0.5, skip_nonfinite=True, state_dtype=torch.float32)
    train(first, 1)
    second = way(first)
    assert (second.max_grad_norm, second.skip_nonfinite) == (0.5, True)
    for optimizer in (first, second):
        train(optimizer, 2)
    assert_same(result(second), result(first), exact=True)
    assert torch.equal(second.last_grad_norm, first.last_grad_norm)
    plain = make(oxistep.optim, name, draw((3,)))
    train(plain, 1)
    assert plain.__getstate__().keys() == {"defaults", "state", "param_groups"}


def test_settings_may_change_between_steps():
    (p,) = draw((3,))
    start = p.detach().clone()
    optimizer = oxistep.optim.SGD([p], lr=1.0, max_grad_norm=INF, skip_nonfinite=True)
    optimizer.skip_nonfinite = False
    p.grad = torch.tensor([3.0, 0.0, 4.0])
    for max_norm, length in ((INF, 5.0), (None, 5.0), (1.0, 1.0), (None, 5.0)):
        optimizer.max_grad_norm = max_norm
        optimizer.step()
        torch.testing.assert_close((p.detach() - start).norm(), torch.tensor(length), rtol=1e-5, atol=0)
        start = p.detach().clone()
    optimizer.skip_nonfinite = True
    p.grad[0] = NAN
    optimizer.step()
    assert torch.equal(p.detach(), start)
    optimizer.skip_nonfinite = False
    optimizer.step()
    assert p.isnan().any()


@pytest.mark.parametrize("wrong", [0, -1, -0.5, NAN, -INF])
def test_numbers_that_are_no_norm_are_refused(wrong):
    with pytest.raises(ValueError, match="max_grad_norm: expected a positive number or None, got "):
        oxistep.optim.SGD(draw((3,)), max_grad_norm=wrong)


@pytest.mark.parametrize("wrong", [True, "1", torch.ones(()), [1.0], 1j])
def test_other_things_are_refused(wrong):
    with pytest.raises(TypeError, match="max_grad_norm: expected a positive number or None, got "):
        oxistep.optim.SGD(draw((3,)), max_grad_norm=wrong)
    with pytest.raises(TypeError, match="skip_nonfinite: expected True or False, got "):
        oxistep.optim.SGD(draw((3,)), skip_nonfinite=1 if wrong is True else wrong)


# ---- torch's way throughout ----


@each_class
@pytest.mark.parametrize("bad", [False, True])
def test_when_everything_is_torchs(name, bad, monkeypatch):
    native, forced = (make(oxistep.optim, name, draw(*SHAPES), max_grad_norm=0.5, skip_nonfinite=True) for _ in "ab")
    for optimizer in (native, forced):
        monkeypatch.setattr("oxistep.optim._modes.FORCED", optimizer is forced)
        for step in range(3):
            set_gradients(params_of(optimizer), step)
            if bad and step == 1:
                params_of(optimizer)[0].grad[0, 0] = INF
            optimizer.step()
    torch.testing.assert_close(forced.last_grad_norm, native.last_grad_norm)
    assert_same(result(forced), result(native))


def test_the_environment_variable_forces_torchs_path():
    code = """
import torch, oxistep.optim
p = torch.zeros(2, requires_grad=True)
p.grad = torch.tensor([3.0, 4.0])
optimizer = oxistep.optim.SGD([p], lr=1.0, max_grad_norm=1.0)
optimizer.step()
print(optimizer.last_grad_norm.item(), [round(x, 4) for x in p.tolist()])
p.grad = torch.tensor([3.0, 4.0])
print(oxistep.clip_grad_norm_(p, 1.0).item(), oxistep.explain(optimizer)[0].reason)
"""
    done = fresh.python(code, env={**os.environ, "OXISTEP_BACKEND": "torch"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["5.0 [-0.6, -0.8]", "5.0 OXISTEP_BACKEND=torch"]


def test_accuracy_of_the_norm_is_that_of_float64():
    params = draw((200_001,), (77,))
    set_gradients(params, 1)
    optimizer = oxistep.optim.SGD(params, lr=0.1, max_grad_norm=1.0)
    optimizer.step()
    exact = torch.linalg.vector_norm(torch.cat([p.grad.double() for p in params]))
    assert torch.equal(optimizer.last_grad_norm, exact.float())
