"""Lookahead, SAM and Grokfast around optimizers of oxistep and of torch."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

import oxistep.optim  # noqa: E402
from oxistep import zoo  # noqa: E402
from zoo_cases_b import module_of_timm  # noqa: E402

BASES = {
    "torch.AdamW": lambda params: torch.optim.AdamW(params, lr=0.05),
    "torch.SGD": lambda params: torch.optim.SGD(params, lr=0.05),
    "oxistep.AdamW": lambda params: oxistep.optim.AdamW(params, lr=0.05),
    "oxistep.SGD": lambda params: oxistep.optim.SGD(params, lr=0.05, momentum=0.9),
    "zoo.Lion": lambda params: zoo.Lion(params, lr=0.05),
    "zoo.LAMB": lambda params: zoo.LAMB(params, lr=0.05),
}
WRAPPERS = {
    "Lookahead": lambda base: zoo.Lookahead(base, k=3),
    "Grokfast": lambda base: zoo.Grokfast(base, alpha=0.9),
    "SAM": lambda base: zoo.SAM(base, rho=0.1),
    "SAM adaptive": lambda base: zoo.SAM(base, rho=0.5, adaptive=True),
    "two": lambda base: zoo.Grokfast(zoo.Lookahead(base, k=2)),
}
each_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
each_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def params_of(dtype=torch.float32):
    made = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=made).to(dtype).requires_grad_() for shape in ((3, 2), (4,), ())]


def loss_of(params, k):
    made = torch.Generator().manual_seed(k)
    return sum(((p - torch.randn(p.shape, generator=made)) ** 2).sum() for p in params)


def run(optimizer, params, of):
    for k in of:

        def closure(k=k):
            optimizer.zero_grad()
            loss = loss_of(params if k > 3 else params[:-1], k)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure if isinstance(optimizer, zoo.SAM) else None)


def same(one, other):
    assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


# ---- what they compute ----


@each_base
def test_lookahead_is_timms(base):
    found = []
    for wrap in (zoo.Lookahead, module_of_timm("lookahead").Lookahead):
        params = params_of(torch.float64)
        optimizer = wrap(base([{"params": params[:1]}, {"params": params[1:]}]), 0.3, 3)
        run(optimizer, params, range(10))
        found.append((params, optimizer))
    for p, q in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
    ours, theirs = (optimizer.state_dict() for _, optimizer in found)
    assert ours["state"].keys() == theirs["state"].keys()
    assert all(ours["state"][k].keys() == theirs["state"][k].keys() for k in ours["state"])
    names = ("lookahead_alpha", "lookahead_k", "lookahead_step")
    assert [[g[name] for name in names] for g in ours["param_groups"]] == [
        [g[name] for name in names] for g in theirs["param_groups"]
    ]
    for saved, (params, optimizer) in zip((theirs, ours), found, strict=True):  # each goes on from the other's
        optimizer.load_state_dict(copy.deepcopy(saved))
        run(optimizer, params, range(10, 16))
    for p, q in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@each_base
def test_grokfast_is_the_filter_of_pytorch_optimizer_and_leaves_gradients(base):
    pytest.importorskip("pytorch_optimizer")
    from pytorch_optimizer.optimizer.grokfast import gradfilter_ema

    ours, theirs = params_of(torch.float64), params_of(torch.float64)
    optimizer, plain = zoo.Grokfast(base(ours), alpha=0.9, lamb=3.0), base(theirs)
    module, kept = torch.nn.ParameterList(theirs), None
    theirs = list(module)
    for p, q in zip(theirs, plain.param_groups[0]["params"], strict=True):
        assert p is q or p.data_ptr() == q.data_ptr()
    plain = base(theirs)
    for k in range(8):
        for params in (ours, theirs):
            for p in params:
                p.grad = None
            loss_of(params if k > 3 else params[:-1], k).backward()
        before = [(p.grad, None if p.grad is None else p.grad.clone()) for p in ours]
        optimizer.step()
        assert all(p.grad is g and (g is None or torch.equal(g, was)) for p, (g, was) in zip(ours, before, strict=True))
        kept = gradfilter_ema(module, kept, alpha=0.9, lamb=3.0)
        plain.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("adaptive", [False, True])
@each_base
def test_sam_is_pytorch_optimizers(base, adaptive):
    po = pytest.importorskip("pytorch_optimizer")

    class Base(torch.optim.Optimizer):  # the package makes its base itself
        def __new__(cls, groups, **_):
            return base(groups)

    found = []
    for make in (
        lambda ps: zoo.SAM(base(ps), rho=0.1, adaptive=adaptive),
        lambda ps: po.SAM(ps, Base, rho=0.1, adaptive=adaptive),
    ):
        params = params_of(torch.float64)
        optimizer = make(params)
        for k in range(6):

            def closure(k=k, params=params, optimizer=optimizer):
                optimizer.zero_grad()
                loss_of(params, k).backward()

            closure()
            optimizer.step(closure)
        found.append(params)
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


def test_sam_comes_back_to_the_bit():
    for dtype in (torch.float32, torch.bfloat16):
        params = params_of(dtype)
        before = [p.detach().clone() for p in params]
        optimizer = zoo.SAM(torch.optim.SGD(params, lr=0.0), rho=1e3)
        seen = []

        def closure(params=params, seen=seen, optimizer=optimizer):
            optimizer.zero_grad()
            seen.append([p.detach().clone() for p in params])
            loss = sum((p.float() ** 2).sum() for p in params)
            loss.backward()
            return loss

        loss = optimizer.step(closure)  # there are no gradients yet: it is called twice
        assert len(seen) == 2 and loss.item() == pytest.approx(sum((p.float() ** 2).sum().item() for p in seen[1]))
        assert not torch.equal(seen[1][0], before[0])
        same(params, before)


def test_sam_comes_back_when_the_closure_raises():
    params = params_of()
    before = [p.detach().clone() for p in params]
    optimizer = zoo.SAM(torch.optim.SGD(params, lr=0.1))
    loss_of(params, 0).backward()

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    same(params, before)
    with pytest.raises(RuntimeError, match="requires closure"):
        optimizer.step()


def test_sam_in_two_steps_and_downwards_where_it_is_ascended():
    w = torch.tensor(2.0, requires_grad=True)
    optimizer = zoo.SAM(torch.optim.SGD([w], lr=0.1, maximize=True), rho=0.5)
    w.grad = torch.tensor(3.0)
    optimizer.first_step(zero_grad=True)
    assert w.item() == 1.5 and w.grad is None
    w.grad = torch.tensor(1.0)
    optimizer.second_step(zero_grad=True)
    assert w.item() == pytest.approx(2.1) and w.grad is None


def test_means_of_grokfast_survive_steps_that_fail_or_are_skipped():
    w = torch.ones(2, requires_grad=True)
    optimizer = zoo.Grokfast(zoo.Lion([w], lr=0.1, skip_nonfinite=True))
    w.grad = torch.ones(2)
    optimizer.step()
    mean = optimizer.state_dict()["state"][0]["grok_exp_avg"].clone()
    w.grad = torch.full((2,), float("nan"))
    optimizer.step()
    assert torch.equal(optimizer.state_dict()["state"][0]["grok_exp_avg"], mean)
    w.grad = grad = torch.ones(2)
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError):
        optimizer.step()
    assert torch.equal(optimizer.state_dict()["state"][0]["grok_exp_avg"], mean) and w.grad is grad


def test_lookahead_counts_no_skipped_steps():
    w = torch.ones(2, requires_grad=True)
    optimizer = zoo.Lookahead(oxistep.optim.SGD([w], lr=0.1, skip_nonfinite=True), k=1)
    w.grad = torch.full((2,), float("inf"))
    optimizer.step()
    assert optimizer.param_groups[0]["lookahead_step"] == 0 and not optimizer.state_dict()["state"]


# ---- what they are to others ----


@each_wrapper
@each_base
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_training_resumes_to_the_bit(base, wrap, how):
    params = params_of()
    optimizer = wrap(base([{"params": params[:1]}, {"params": params[1:]}]))
    run(optimizer, params, range(5))
    if how == "state_dict":
        others = [p.detach().clone().requires_grad_() for p in params]
        other = wrap(base([{"params": others[:1]}, {"params": others[1:]}]))
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer))
    elif how == "deepcopy":
        others, other = copy.deepcopy((params, optimizer))
    else:
        others, other = pickle.loads(pickle.dumps((params, optimizer)))
    assert type(other) is type(optimizer) and other.base_optimizer is not optimizer.base_optimizer
    run(optimizer, params, range(5, 11))
    run(other, others, range(5, 11))
    same(params, others)


@each_wrapper
@each_base
def test_schedulers_scaler_and_groups_take_them_for_optimizers(base, wrap):
    params = params_of()
    optimizer = wrap(base(params[:2]))
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.add_param_group({"params": params[2:], "lr": 0.3})
    assert {key for key in optimizer.param_groups[0] if key != "initial_lr"} == set(optimizer.param_groups[1])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    before = [p.detach().clone() for p in params]
    optimizer.zero_grad()
    scaler.scale(loss_of(params, 9)).backward()
    if isinstance(optimizer, zoo.SAM):
        optimizer.step(lambda: None)
    else:
        scaler.step(optimizer)
        scaler.update()
        assert not any(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert called == ["pre", "post"]
    optimizer.param_groups[1].setdefault("initial_lr", 0.3)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    assert "lr: 0.025" in repr(optimizer)


def test_a_state_dict_of_the_base_alone_loads():
    params = params_of()
    base = torch.optim.AdamW(params, lr=0.05)
    run(base, params, range(5))
    for wrap in WRAPPERS.values():
        optimizer = wrap(torch.optim.AdamW(params))
        optimizer.load_state_dict(base.state_dict())
        assert optimizer.param_groups[0]["lr"] == 0.05 and len(optimizer.state) == 3
        run(optimizer, params, range(2))


def test_hooks_of_state_dicts_are_called():
    params = params_of()
    optimizer = zoo.Lookahead(torch.optim.AdamW(params), k=1)
    run(optimizer, params, range(5))
    called = []
    optimizer.register_state_dict_pre_hook(lambda *_: called.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("before loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: called.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["more"] == 1
    optimizer.load_state_dict(saved)
    assert called == ["before saving", "before loading", "loaded"]


def test_what_the_base_has_is_there():
    params = params_of()
    optimizer = zoo.Grokfast(zoo.SGDScheduleFree(params, lr=0.1, max_grad_norm=1.0))
    optimizer.train()
    run(optimizer, params, range(5))
    optimizer.eval()
    assert optimizer.last_grad_norm > 0 and optimizer.param_groups[0]["train_mode"] is False
    with pytest.raises(AttributeError, match="Grokfast"):
        optimizer._nothing  # noqa: B018


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda base: zoo.Lookahead(base, alpha=1.5), ValueError, "Invalid slow update rate: 1.5"),
        (lambda base: zoo.Lookahead(base, k=0), ValueError, "Invalid lookahead steps: 0"),
        (lambda base: zoo.Grokfast(base, alpha=1.0), ValueError, "Invalid grokfast_alpha: 1.0"),
        (lambda base: zoo.SAM(base, rho=-1.0), ValueError, "Invalid rho, should be non-negative: -1.0"),
        (lambda base: zoo.SAM(base.param_groups), TypeError, "SAM goes around an optimizer, got list"),
    ],
)
def test_what_is_wrong_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make(torch.optim.SGD(params_of()))
