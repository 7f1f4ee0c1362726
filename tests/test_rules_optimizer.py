"""Rules as torch optimizers: the results of torch's classes, and what people do with optimizers."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oxistep  # noqa: E402
import oxistep.optim  # noqa: E402
from oxistep import rules  # noqa: E402
from scenarios import FORCED  # noqa: E402
from traced import CASES, SHAPE  # noqa: E402

each_case = pytest.mark.parametrize(
    ("name", "function", "both", "ours"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)


@oxistep.rule
def momentum(p, g, s, lr=0.01, beta=0.9):
    """Momentum, as textbooks write it."""
    s.v = beta * s.v - lr * g
    return p + s.v


@oxistep.rule
def nadam_like(p, g, s, lr=0.01, betas=(0.9, 0.99), nesterov=True):
    s.product = s.get("product", 1.0) * betas[0]
    s.m = rules.lerp(s.m, g, 1 - betas[0])
    m = rules.lerp(s.m, g, 1 - betas[0]) if nesterov else s.m
    return p - lr * m / (1 - s.product)


@oxistep.rule
def bounded(p, g, s, lr=0.1, largest=1.0):
    """A step whose length over all parameters is bounded, and counted by group."""
    k = s.group.get("k", 0)
    s.group.k = k + 1
    length = rules.sqrt(rules.total(rules.dot(g, g)))
    if length > largest:
        return p - lr * largest / length * g
    return p - lr * g


def leaf(values, dtype=None):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def draw(dtype=torch.float32, n=2, seed=0):
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=made, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(n)]


def train(optimizer, steps, start=0, late=None):
    """Steps with drawn gradients; `late`: the last parameter has none before this step."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for k in range(start, start + steps):
        made = torch.Generator().manual_seed(k + 100)
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=made, dtype=torch.float64).to(p.dtype)
            p.grad = None if late is not None and i == len(params) - 1 and k < late else g
        optimizer.step()
    return optimizer


def values(optimizer):
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def same(one, other):
    for a, b in zip(values(one), values(other), strict=True):
        assert torch.equal(a, b)
    assert pickle.dumps(numbers(one)) == pickle.dumps(numbers(other))


def numbers(optimizer):
    state = optimizer.state_dict()
    return [
        {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in entry.items()}
        for entry in (*state["state"].values(), *state["param_groups"])
    ]


# ---- results ----


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("optim", [torch.optim, oxistep.optim], ids=lambda module: module.__name__)
def test_torchs_rules_as_a_user_writes_them(name, function, both, ours, dtype, optim):
    theirs = getattr(optim, name)(draw(dtype), **both)
    mine = oxistep.rule(function)(draw(dtype), **both, **ours)
    for optimizer in (theirs, mine):
        train(optimizer, 6, late=3)
        optimizer.param_groups[0]["lr"] = 0.004
        train(optimizer, 6, start=6)
    # torch's eta and mu_product are in float32 from the first step on, and within the step
    rtol = 1e-6 if dtype == torch.float32 else 1e-7 if name in ("ASGD", "NAdam") else 1e-12
    for a, b in zip(values(theirs), values(mine), strict=True):
        torch.testing.assert_close(b, a, rtol=4 * rtol, atol=rtol)


@each_case
def test_maximize(name, function, both, ours):
    def ascend(optimizer):
        for p in draw():
            optimizer.add_param_group({"params": [p]})
        return values(train(optimizer, 4))

    theirs = getattr(oxistep.optim, name)([leaf(1.0)], maximize=True, **both)
    mine = oxistep.rule(function)([leaf(1.0)], maximize=True, **both, **ours)
    for a, b in zip(ascend(theirs), ascend(mine), strict=True):
        torch.testing.assert_close(b, a, rtol=4e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_rounded_once(dtype):
    p, g, v = 1.0, 2.0**-9, 0.0
    w = leaf([p], dtype)
    optimizer = momentum([w], lr=1.0)
    for _ in range(3):
        w.grad = torch.tensor([g], dtype=dtype)
        optimizer.step()
        new = np.float32(0.9) * np.float32(v) - np.float32(g)
        p = torch.tensor(p + new, dtype=torch.float32).to(dtype).item()
        v = torch.tensor(new).to(dtype).item()
        assert (w.item(), optimizer.state[w]["v"].item()) == (p, v)
    assert optimizer.state[w]["v"].dtype == dtype


def test_states_of_half_parameters_in_float32():
    optimizer = train(momentum(draw(torch.bfloat16), state_dtype=torch.float32), 2)
    assert all(entry["v"].dtype == torch.float32 for entry in optimizer.state.values())
    other = momentum(draw(torch.bfloat16), state_dtype=torch.float32)
    other.load_state_dict(optimizer.state_dict())
    assert all(entry["v"].dtype == torch.float32 for entry in other.state.values())


def test_complex_parameters_are_pairs_of_numbers():
    w, pairs = leaf([1 + 2j, 3 - 1j]), leaf([[1.0, 2.0], [3.0, -1.0]])
    for _ in range(2):
        w.grad, pairs.grad = torch.tensor([1 + 1j, -2j]), torch.tensor([[1.0, 1.0], [0.0, -2.0]])
        for one in (w, pairs):
            optimizer = momentum([one])
            optimizer.step()
    assert torch.equal(torch.view_as_real(w.detach()), pairs.detach())
    assert optimizer.state[pairs]["v"].shape == (2, 2)


def test_a_parameter_of_another_layout_keeps_it():
    w = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    w.grad = torch.ones(2, 3, 4, 4)
    optimizer = momentum([w])
    optimizer.step()
    assert optimizer.state[w]["v"].stride() == w.stride()


@pytest.mark.parametrize("of_gradient", ["plain", "transposed", "sliced"])
@pytest.mark.parametrize("of_parameter", ["plain", "transposed", "sliced"])
def test_any_layout_gives_the_same(of_parameter, of_gradient):
    def laid_out(values, how):
        if how == "transposed":
            return values.t().clone().t()
        return values.repeat_interleave(2, 1)[:, ::2] if how == "sliced" else values.clone()

    start, g = (torch.randn(4, 3, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    one, other = laid_out(start, of_parameter).requires_grad_(), start.clone().requires_grad_()
    for p, how in ((one, of_gradient), (other, "plain")):
        optimizer = bounded([p])
        for _ in range(2):
            p.grad = laid_out(g, how)
            optimizer.step()
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert one.stride() == laid_out(start, of_parameter).stride()


def test_hyperparameters_that_are_given_by_name_alone_and_functions_without_a_name():
    @oxistep.rule
    def keyed(p, g, s, /, lr: float = 0.1, *, sign: bool = False):
        return p - lr * (rules.sign(g) if sign else g)

    w = leaf([1.0])
    w.grad = torch.tensor([3.0])
    keyed([w], 0.5, sign=True).step()
    assert w.item() == 0.5
    with pytest.raises(TypeError, match="positional"):
        keyed([w], 0.5, True)
    oxistep.rule(lambda p, g, s, lr=0.1: p - lr * g)([w]).step()
    assert w.item() == pytest.approx(0.2)


def test_states_that_change_places():
    @oxistep.rule
    def swapped(p, g, s):
        a, b = s.get("a", p), s.b
        s.a, s.b = b, a
        return a

    w = leaf([5.0])
    optimizer = swapped([w])
    w.grad = torch.ones(1)
    seen = []
    for _ in range(3):
        optimizer.step()
        seen.append((w.item(), optimizer.state[w]["a"].item(), optimizer.state[w]["b"].item()))
    assert seen == [(5.0, 0.0, 5.0), (0.0, 5.0, 0.0), (5.0, 0.0, 5.0)]


def test_choices_between_numbers_are_of_the_parameters_type():
    @oxistep.rule
    def chosen(p, g, s):
        return rules.where(g > 0, 0.1, rules.where(g < 0, 0.3, 0.7))

    w = leaf([0.0, 0.0, 0.0], torch.float64)
    w.grad = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    chosen([w]).step()
    assert w.tolist() == [0.1, 0.3, 0.7]


def test_a_scalar_and_an_empty_parameter():
    w, empty = leaf(1.0), leaf([])
    optimizer = nadam_like([w, empty])
    w.grad, empty.grad = torch.tensor(1.0), torch.tensor([])
    optimizer.step()
    assert w.item() < 1
    assert optimizer.state[empty]["m"].shape == (0,)


# ---- groups and their numbers ----


def test_groups_have_their_own_hyperparameters():
    (a, b), (c, d) = draw(), draw()
    together = momentum([{"params": [a], "lr": 0.5}, {"params": [b], "beta": 0.1}], lr=0.2)
    train(together, 3)
    for w, p, settings in ((a, c, {"lr": 0.5}), (b, d, {"lr": 0.2, "beta": 0.1})):
        optimizer = momentum([p], **settings)
        for k in range(3):
            made = torch.Generator().manual_seed(k + 100)
            drawn = [torch.randn(SHAPE, generator=made, dtype=torch.float64).float() for _ in range(2)]
            p.grad = drawn[0 if w is a else 1]
            optimizer.step()
        assert torch.equal(w, p)


def test_words_reach_the_rule_as_themselves_and_are_looked_at_in_every_step():
    plain, other = nadam_like(draw()), nadam_like(draw(), nesterov=False)
    other.param_groups[0]["nesterov"] = True
    same_end = [values(train(one, 2)) for one in (plain, other)]
    assert all(torch.equal(a, b) for a, b in zip(*same_end, strict=True))
    other.param_groups[0]["nesterov"] = False
    train(plain, 1, start=2), train(other, 1, start=2)
    assert not torch.equal(values(plain)[0], values(other)[0])


def test_named_parameters_and_generators():
    model = torch.nn.Linear(2, 2)
    assert momentum(model.named_parameters()).param_groups[0]["param_names"] == ["weight", "bias"]
    assert len(momentum(model.parameters()).param_groups[0]["params"]) == 2
    optimizer = momentum([{"params": model.named_parameters()}])
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    with pytest.raises(TypeError, match=r"give its .parameters\(\)"):
        momentum(model)


def test_numbers_of_a_group_are_there_from_construction_and_written_once_a_step():
    optimizer = bounded([{"params": draw()}, {"params": draw(n=1)}])
    assert [group["k"] for group in optimizer.param_groups] == [0, 0]
    optimizer.add_param_group({"params": draw(n=1)})
    assert optimizer.param_groups[2]["k"] == 0
    train(optimizer, 3)
    assert [group["k"] for group in optimizer.param_groups] == [3, 3, 3]
    other = bounded([{"params": draw()}, {"params": draw(n=1)}, {"params": draw(n=1)}])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[1]["k"] == 3


@pytest.mark.parametrize("largest", [0.5, 100.0])
def test_totals_are_over_all_parameters_of_all_groups(largest):
    a, b, idle = leaf([3.0]), leaf([4.0]), leaf([1.0])
    optimizer = bounded([{"params": [a, idle]}, {"params": [b], "lr": 0.2}], largest=largest)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.step()
    factor = min(1.0, largest / 5.0)
    assert (a.item(), b.item()) == (pytest.approx(3 - 0.1 * factor * 3), pytest.approx(4 - 0.2 * factor * 4))
    assert idle.item() == 1


def test_a_branch_without_the_call_adds_nothing_and_totals_may_be_nested():
    @oxistep.rule
    def nested(p, g, s):
        share = 0.0
        if p.ndim == 1:
            first = rules.total(rules.sum(g))
            share = rules.total(rules.sum(g) / first) + rules.total(first)
        s.share = s.get("share", 0.0) + share
        return p + share

    a, b, c = leaf([0.0]), leaf([0.0]), leaf(0.0)
    optimizer = nested([a, b, c])
    a.grad, b.grad, c.grad = torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor(7.0)
    optimizer.step()
    assert (a.item(), b.item(), c.item()) == (9.0, 9.0, 0.0)  # 1/4 + 3/4, and 4 + 4


def test_conditions_on_totals_one_after_the_other():
    @oxistep.rule
    def staged(p, g, s):
        if rules.total(rules.sum(g)) > 3:
            if rules.total(rules.sum(p)) > 5:
                return p - 1
            return p - 2
        return p

    a, b = leaf([1.0]), leaf([6.0])
    optimizer = staged([a, b])
    for one, other, end in ((1.0, 1.0, (1, 6)), (2.0, 2.0, (0, 5)), (2.0, 2.0, (-2, 3))):
        a.grad, b.grad = torch.tensor([one]), torch.tensor([other])
        optimizer.step()
        assert (a.item(), b.item()) == end


# ---- training loops ----


def test_schedulers_and_a_tensor_as_learning_rate():
    plain, tensor = momentum(draw(), lr=0.5), momentum(draw(), lr=torch.tensor(0.5))
    for optimizer in (plain, tensor):
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for k in range(3):
            train(optimizer, 1, start=k)
            scheduler.step()
    assert plain.param_groups[0]["lr"] == 0.0625
    for a, b in zip(values(plain), values(tensor), strict=True):
        assert torch.equal(a, b)


def test_one_cycle_moves_a_hyperparameter_called_momentum():
    @oxistep.rule
    def heavy(p, g, s, lr=0.1, momentum=0.9):
        s.v = momentum * s.v + g
        return p - lr * s.v

    optimizer = heavy(draw())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=4)
    train(optimizer, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["momentum"] != 0.95


def test_a_closure_runs_with_gradients_and_its_loss_is_returned():
    w = leaf([2.0])
    optimizer = momentum([w], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert w.item() == pytest.approx(1.6)


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle", "file"])
@pytest.mark.parametrize("make", [momentum, nadam_like, bounded], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_checkpoints_go_on_as_if_nothing_had_been(way, make, dtype, tmp_path):
    one = train(make(draw(dtype)), 3, late=2)
    if way == "state_dict":
        other = make([p.detach().clone().requires_grad_() for p in one.param_groups[0]["params"]])
        other.load_state_dict(copy.deepcopy(one.state_dict()))
    elif way == "file":
        torch.save(one, tmp_path / "optimizer.pt")
        other = torch.load(tmp_path / "optimizer.pt", weights_only=False)
    else:
        other = copy.deepcopy(one) if way == "deepcopy" else pickle.loads(pickle.dumps(one))
    assert type(other) is type(one)
    same(train(one, 3, start=3), train(other, 3, start=3))
    dtypes = [[value.dtype for value in entry.values()] for entry in one.state.values()]
    assert [[value.dtype for value in entry.values()] for entry in other.state.values()] == dtypes


def test_numbers_of_a_parameter_are_kept_in_float64():
    optimizer = train(nadam_like(draw(torch.bfloat16)), 1)
    entry = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert list(entry) == ["step", "product", "m"]
    assert (entry["step"].dtype, entry["product"].dtype) == (torch.float32, torch.float64)
    assert entry["product"].item() == pytest.approx(0.9)


def test_numbers_that_were_saved_as_pythons_own_are_loaded():
    optimizer = nadam_like(draw())
    train(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["product"], state["step"] = float(state["product"]), int(state["step"])
    loaded = nadam_like([p.detach().clone().requires_grad_() for p in optimizer.param_groups[0]["params"]])
    loaded.load_state_dict(saved)
    train(optimizer, 3, start=3)
    train(loaded, 3, start=3)
    for p, q in zip(optimizer.param_groups[0]["params"], loaded.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q)
        assert loaded.state[q]["product"].dtype == torch.float64


def test_a_checkpoint_that_says_nothing_of_maximize_leaves_it():
    optimizer = momentum(draw(), maximize=True)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["maximize"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["maximize"] is True


def test_a_number_of_a_group_may_be_called_step():
    @oxistep.rule
    def counted(p, g, s, lr=0.1):
        s.group.step = s.group.get("step", 0) + 1
        return p - lr / s.group.step * g

    optimizer = counted(draw())
    train(optimizer, 2)
    assert optimizer.param_groups[0]["step"] == 2
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == 2


@pytest.mark.parametrize("infinite", [None, 0, 2])
def test_grad_scaler(infinite):
    def scaled(make):
        w = leaf([1.0, -2.0])
        optimizer = make([w])
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale((w * w).sum() * (math.inf if step == infinite else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        return w.tolist(), scaler.get_scale()

    ours = scaled(lambda params: momentum(params, lr=0.1))
    theirs = scaled(lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    assert ours[0] == pytest.approx(theirs[0]) and ours[1] == theirs[1]


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_gradients_that_are_unscaled_by_the_step(found):
    """What GradScaler does where it leaves this to the step: it sets two attributes."""
    w = leaf([1.0])
    optimizer = momentum([w], lr=0.5)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(found)
    w.grad = torch.tensor([8.0])
    optimizer.step()
    assert w.item() == (1.0 if found else 0.5) and w.grad.item() == (8.0 if found else 1.0)
    assert len(optimizer.state) == (0 if found else 1)


@pytest.mark.parametrize("bound", [0.5, 1e3])
def test_max_grad_norm_clips_as_gradients_are_read(bound):
    clipped, plain = momentum(draw(), max_grad_norm=bound), momentum(draw())
    for k in range(3):
        for optimizer in (clipped, plain):
            made = torch.Generator().manual_seed(k)
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.randn(p.shape, generator=made)
        before = [p.grad.clone() for p in clipped.param_groups[0]["params"]]
        norm = torch.nn.utils.clip_grad_norm_(plain.param_groups[0]["params"], bound)
        clipped.step(), plain.step()
        assert clipped.last_grad_norm.item() == pytest.approx(norm.item())
        for p, grad in zip(clipped.param_groups[0]["params"], before, strict=True):
            assert torch.equal(p.grad, grad)
    for a, b in zip(values(clipped), values(plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_skip_nonfinite(value):
    optimizer = bounded(draw(), skip_nonfinite=True)
    train(optimizer, 1)
    before, state = values(optimizer), numbers(optimizer)
    optimizer.param_groups[0]["params"][0].grad[0, 0] = value
    optimizer.step()
    assert numbers(optimizer) == state and all(map(torch.equal, before, values(optimizer)))


def test_hooks_and_the_profilers_record():
    optimizer = momentum(draw())
    events = []
    optimizer.register_step_pre_hook(lambda *_: events.append("before"))
    optimizer.register_step_post_hook(lambda *_: events.append("after"))
    with torch.profiler.profile() as profile:
        train(optimizer, 1)
    assert events == ["before", "after"]
    assert "Optimizer.step#momentum.step" in [event.key for event in profile.events()]


def test_states_begin_with_the_first_gradient_of_each():
    optimizer = train(momentum(draw()), 2, late=5)
    first, last = optimizer.param_groups[0]["params"]
    assert last not in optimizer.state
    train(optimizer, 5, start=2, late=5)
    assert (optimizer.state[first]["step"], optimizer.state[last]["step"]) == (7, 2)


# ---- classes ----


class Sign(rules.Optimizer):
    """A class as a library has it."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), *, maximize=False):
        super().__init__(params, {"lr": lr, "betas": betas}, maximize=maximize)

    @staticmethod
    def update(p, g, s, lr, betas):
        u = np.sign(rules.lerp(s.m, g, 1 - betas[0]))
        s.m = rules.lerp(s.m, g, 1 - betas[1])
        return p - lr * u


def test_the_class_form():
    optimizer = train(Sign(draw()), 3)
    assert optimizer.defaults == {"lr": 1e-3, "betas": (0.9, 0.99), "maximize": False}
    other = pickle.loads(pickle.dumps(optimizer))
    same(train(optimizer, 2, start=3), train(other, 2, start=3))
    assert "Sign" in oxistep.explain(optimizer)[0].reason
    with pytest.raises(TypeError, match="lr: expected a number, got str: 'fast'"):
        Sign(draw(), lr="fast")


def test_a_subclass_may_have_a_rule_of_its_own():
    class Slower(Sign):
        @staticmethod
        def update(p, g, s, lr, betas):
            return Sign.update(p, g, s, lr / 2, betas)

    (a,), (b,) = draw(n=1), draw(n=1)
    train(Slower([a], lr=0.5), 1), train(Sign([b], lr=0.25), 1)
    assert torch.equal(a, b)


HELPERS = [
    "_update", "_rule", "_source", "_plan", "_kept", "_definition", "_steps", "_trace", "_tree", "_program", "source",
    "program", "update", "rule", "plan", "rows", "take", "torch", "numpy", "max_grad_norm", "skip_nonfinite",
    "maximize", "state_dtype", "_group_numbers", "_begin", "_check", "checked", "kept", "definition", "native", "ema",
]  # fmt: skip


@pytest.mark.parametrize("where", ["methods", "attributes of the class", "attributes of the instance"])
def test_a_subclass_may_use_every_name(where):
    def refuse(*_, **__):
        raise AssertionError("a method of the user's was called in the place of ours")

    members = {"methods": dict.fromkeys(HELPERS, refuse), "attributes of the class": dict.fromkeys(HELPERS, 5)}
    cls = type("Mine", (momentum.torch,), members.get(where, {}))
    mine, plain = cls(draw()), momentum(draw())
    if where == "attributes of the instance":
        for name in HELPERS:
            setattr(mine, name, refuse)
    for one in (mine, plain):
        train(one, 2)
        one.load_state_dict(one.state_dict())
        train(one, 2, start=2)
    same(mine, plain)
    oxistep.explain(mine)


def test_an_instance_has_no_attribute_that_torchs_has_not():
    assert set(vars(momentum(draw()))) == set(vars(torch.optim.SGD(draw())))
    assert set(vars(train(momentum(draw()), 1))) - {"_oxistep"} == set(vars(torch.optim.SGD(draw())))
    extra = {name for name in set(dir(momentum.torch)) - set(dir(torch.optim.Optimizer)) if not name.startswith("__")}
    settings = {"max_grad_norm", "skip_nonfinite", "grad_norm_group", "last_grad_norm"}
    assert extra == {*settings, "master", "averaged", "ema_state_dict", "update"}


def test_every_way_of_asking_tells_the_constructors_parameters():
    names = ["lr", "beta", "maximize", "state_dtype", "weights", "seed", "ema", "ema_warmup"]
    names += ["max_grad_norm", "skip_nonfinite", "grad_norm_group"]
    cls = momentum.torch
    assert list(inspect.signature(cls).parameters) == ["params", *names]
    assert list(inspect.signature(momentum).parameters) == ["params", *names]
    spec = inspect.getfullargspec(cls.__init__)
    assert [*spec.args, *spec.kwonlyargs] == ["self", "params", *names]
    code = cls.__init__.__code__
    assert code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] == ("self", "params", *names)
    assert inspect.signature(cls).parameters["lr"].default == 0.01
    assert (cls.__name__, cls.__doc__) == ("momentum", "Momentum, as textbooks write it.")
    assert (cls.__module__, cls.__qualname__) == (__name__, "momentum.torch")
    assert repr(momentum) == f"<rule {__name__}.momentum>"
    assert copy.deepcopy(momentum) is momentum and pickle.loads(pickle.dumps(momentum)) is momentum


def test_a_name_of_ours_that_the_rule_has_is_the_rules():
    @oxistep.rule
    def own(p, g, s, lr=0.1, max_grad_norm=1.0, maximize=False):
        return p + lr * max_grad_norm * g if maximize else p - lr * max_grad_norm * g

    w = leaf([1.0])
    w.grad = torch.ones(1) * 10
    optimizer = own([w], max_grad_norm=2.0, maximize=True)
    optimizer.step()
    assert w.item() == 3.0
    assert optimizer.param_groups[0]["max_grad_norm"] == 2.0 and optimizer.last_grad_norm is None


def test_explain_names_the_rule():
    optimizer = momentum([("w", draw(n=1)[0])])
    (row,) = oxistep.explain(optimizer)
    assert row.path != "skipped" and row.reason.endswith("(after the first backward: it has no gradient yet)")
    train(optimizer, 1)
    (row,) = oxistep.explain(optimizer)
    assert row.name == "w" and row.reason.startswith("rule momentum")
    optimizer.zero_grad()
    if not FORCED:  # then nothing is remembered of a step
        assert "in the last step" in oxistep.explain(optimizer)[0].reason


def test_the_update_monitor_sees_what_a_rule_does():
    optimizer = momentum([leaf([3.0, 4.0])], lr=0.5)
    monitor = oxistep.diagnostics.UpdateMonitor(optimizer)
    optimizer.param_groups[0]["params"][0].grad = torch.tensor([0.0, 2.0])
    optimizer.step()
    (row,) = monitor.rows()
    assert (row["parameter"], row["update"]) == (5.0, 1.0)


# ---- listing ----


def test_the_listing_has_every_branch():
    listing = bounded.program()
    assert listing.conditions == ["largest < sqrt(total(dot(g, g)))", "not largest < sqrt(total(dot(g, g)))"]
    assert "number s.group.k" in str(listing)
    assert "if largest < sqrt(total(dot(g, g))):\nrule bounded: 2 passes" in str(listing)


def test_step_and_shape_choose_a_branch():
    @oxistep.rule
    def branching(p, g, s, lr=0.1, warm=5):
        if p.ndim < 2:
            return p - g
        return p - lr * g if s.step > warm else p

    assert len(branching.program()) == 2
    assert [str(branching.program(step=k)).count("  element") for k in (1, 6)] == [0, 2]
    assert len(branching.program(shape=(3,))) == 1
    assert str(branching.program(shape=3)).splitlines()[0].startswith("rule branching: 1 pass, 1 operation ")
    with pytest.raises(TypeError, match="rule branching has no rate; its hyperparameters are lr, warm"):
        branching.program(rate=1)


def test_the_listing_says_how_many_bytes():
    (program,) = momentum.program()
    assert program.bytes(4) == 20 and "20 bytes a float32 parameter" in str(program)
