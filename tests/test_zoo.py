"""The zoo by itself: against the rules in float64, on every path and layout, and what is true of all its classes."""

import copy
import functools
import inspect
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oxistep  # noqa: E402
from oxistep import zoo  # noqa: E402
from oxistep.optim._definition import definition_of  # noqa: E402
from rules_by_kernels import everything  # noqa: E402
from scenarios import CLOSE, FORCED  # noqa: E402
from zoo_cases import (  # noqa: E402
    CASES,
    NAMES,
    ONE_OF_EACH,
    SETTINGS,
    SIGNATURES,
    Case,
    Judge,
    each_case,
    each_case_or_class,
    each_class,
    signature_of,
)

SHAPES = [(), (7,), (33, 5), (2, 3, 4, 5), (6,)]
STEPS = 9
NOT_YET = ("numbers of the group", "a sum over all parameters")
"""Why a rule may be torch's still."""


def lie(tensor, layout):
    """The same values, laid out in memory in another way."""
    if layout == "channels last" and tensor.dim() == 4:
        return tensor.clone(memory_format=torch.channels_last)
    if layout == "transposed" and tensor.dim():
        axes = list(reversed(range(tensor.dim())))
        return tensor.permute(axes).contiguous().permute(axes)
    if layout == "strided" and tensor.dim():
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    return tensor.clone()


def draw(seed, dtype=torch.float64, layout="contiguous", scale=1.0):
    made = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=made, dtype=torch.float64) * scale for shape in SHAPES]
    return [lie(tensor.to(dtype), layout) for tensor in tensors]


def params(dtype=torch.float64, layout="contiguous"):
    return [tensor.requires_grad_() for tensor in draw(0, dtype, layout, 0.5)]


def gradients(k, dtype=torch.float64, layout="contiguous", late=True):
    """Gradients of the k-th step: some are zero, the last parameter's come later."""
    grads = draw(100 + k, dtype, layout, 0.3 + 0.2 * k)
    grads[2][0, 0] = 0
    if late and k < 3:
        grads[-1] = None
    return grads


def train(case, optimizer, steps=range(STEPS), dtype=torch.float64, layout="contiguous", by_torch=False):
    own = [p for group in optimizer.param_groups for p in group["params"]]
    for k in steps:
        for p, g in zip(own, gradients(k, dtype, layout, case.late), strict=True):
            p.grad = g
        if by_torch:
            case.before(optimizer, k)
            for group in optimizer.param_groups:
                group.update(case.step)
            definition_of(type(optimizer)).leave_everything(optimizer)
        else:
            case.take(optimizer, k)
    return optimizer


@functools.cache
def judged(place, dtype):
    """What the rule of a case does to the same numbers in float64."""
    case = CASES[place]
    judge = Judge(case, params(dtype))
    for k in range(STEPS):
        judge.grads = [None if g is None else g.double().numpy() for g in gradients(k, dtype, late=case.late)]
        case.take(judge, k)
    return judge.params


def same(one, other, **close):
    """Equal to the bit, or close."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype, key
        torch.testing.assert_close(value, other[key], **close or {"rtol": 0, "atol": 0}, equal_nan=True)


# ---- results ----


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("by_torch", [False, True], ids=["native", "torch"])
def test_as_the_rule_in_float64(case, dtype, by_torch):
    if dtype is torch.float16 and case.no_float16:
        pytest.skip(case.no_float16)
    optimizer = train(case, case.ours(params(dtype)), dtype=dtype, by_torch=by_torch)
    turns = case.turns and dtype in (torch.bfloat16, torch.float16)
    ours = np.concatenate([p.detach().double().numpy().ravel() for p in optimizer.param_groups[0]["params"]])
    judge = np.concatenate([p.ravel() for p in judged(CASES.index(case), dtype)])
    close = np.isclose(ours, judge, **CLOSE[dtype])
    assert close.mean() > (0.9 if turns else 1 - 1e-9), np.abs(ours - judge).max()


@pytest.mark.skipif(FORCED, reason="about kernels")
@each_case_or_class
def test_plain_tensors_take_kernels(case):
    optimizer = train(case, case.ours(params(torch.float32)), range(4), torch.float32)
    for row in oxistep.explain(optimizer):
        assert row.path == "native" or any(reason in row.reason for reason in NOT_YET), row


@each_case_or_class
@pytest.mark.parametrize("layout", ["transposed", "strided", "channels last"])
def test_layouts(case, layout):
    one = train(case, case.ours(params()))
    other = train(case, case.ours(params(layout=layout)), layout=layout)
    same(everything(one), everything(other), rtol=1e-12, atol=1e-14)
    for p in other.param_groups[0]["params"]:
        for name, state in other.state[p].items():
            if isinstance(state, torch.Tensor) and state.shape == p.shape and layout != "strided":
                assert state.stride() == p.stride(), name


@each_class
def test_a_schedule(case):
    optimizer = case.ours(params())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0 / (1 + k))
    judge = Judge(case, params())
    for k in range(STEPS):
        train(case, optimizer, [k])
        judge.grads = [None if g is None else g.numpy() for g in gradients(k, late=case.late)]
        case.take(judge, k)
        schedule.step()
        judge.group["lr"] = optimizer.param_groups[0]["lr"]
    for p, expected in zip(optimizer.param_groups[0]["params"], judge.params, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


# ---- checkpoints ----


@each_case_or_class
def test_a_resumed_run_is_the_same_to_the_bit(case):
    whole = train(case, case.ours(params(torch.float32)), dtype=torch.float32)
    first = train(case, case.ours(params(torch.float32)), range(5), torch.float32)
    saved = copy.deepcopy(first.state_dict())
    weights = [p.detach().clone().requires_grad_() for p in first.param_groups[0]["params"]]
    second = case.ours(weights)
    second.load_state_dict(saved)
    same(everything(first), everything(second))
    same(everything(whole), everything(train(case, second, range(5, STEPS), torch.float32)))
    again = second.state_dict()
    assert again["param_groups"][0].keys() == saved["param_groups"][0].keys()


@each_class
@pytest.mark.parametrize("how", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_go_on(case, how):
    first = train(case, case.ours(params(torch.float32)), range(5), torch.float32)
    second = how(first)
    assert type(second) is type(first)
    assert [{**group, "params": 0} for group in second.param_groups] == [
        {**group, "params": 0} for group in first.param_groups
    ]
    train(case, first, range(5, STEPS), torch.float32)
    same(everything(first), everything(train(case, second, range(5, STEPS), torch.float32)))


# ---- what is true of all ----


@each_case_or_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_moves_under_a_rate_of_zero_and_zero_gradients(case, dtype):
    if case.moves_anyway:
        pytest.skip(case.moves_anyway)
    zero = {**case.kwargs, "lr": 0.0}
    if zero.get("corrected_weight_decay"):  # refuses a largest rate of zero
        optimizer = case.ours(params(dtype))
        optimizer.param_groups[0]["lr"] = 0.0
    else:
        optimizer = Case(case.name, zero).ours(params(dtype))
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    for k in range(4):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        case.take(optimizer, k)
    for p, value in zip(optimizer.param_groups[0]["params"], before, strict=True):
        assert torch.equal(p, value)
        for name, state in optimizer.state[p].items():
            assert torch.isfinite(torch.as_tensor(state)).all(), name


@each_case_or_class
def test_gradients_stay_as_they_are(case):
    optimizer = case.ours(params(torch.float32))
    for k in range(4):
        grads = gradients(k, torch.float32)
        own = optimizer.param_groups[0]["params"]
        for p, g in zip(own, grads, strict=True):
            p.grad = None if g is None else g.clone()
        case.take(optimizer, k)
        for p, g in zip(own, grads, strict=True):
            assert g is None if p.grad is None else torch.equal(p.grad, g)


@each_case_or_class
def test_one_group_or_two(case):
    weights = params()
    one = train(case, case.ours(params()), range(3, STEPS))
    two = train(case, case.ours([{"params": weights[:2]}, {"params": weights[2:]}]), range(3, STEPS))
    same(everything(one), everything(two))


@each_class
def test_maximize_is_descent_with_other_signs(case):
    up = case.ours(params(), maximize=True)
    down = case.ours(params(), maximize=False)
    for k in range(STEPS):
        for p, q, g in zip(up.param_groups[0]["params"], down.param_groups[0]["params"], gradients(k), strict=True):
            p.grad, q.grad = g, None if g is None else -g
        case.take(up, k)
        case.take(down, k)
    same(everything(up), everything(down))


@each_class
@pytest.mark.parametrize("foreach", [True, False])
def test_foreach_chooses_nothing(case, foreach):
    optimizer = train(case, case.ours(params(), foreach=foreach))
    assert optimizer.param_groups[0]["foreach"] is foreach
    same(everything(optimizer), everything(train(case, case.ours(params()))))


@each_class
def test_states_of_half_types_in_float32(case):
    optimizer = train(case, case.ours(params(torch.bfloat16), state_dtype=torch.float32), dtype=torch.bfloat16)
    for p in optimizer.param_groups[0]["params"]:
        states = [state for state in optimizer.state[p].values() if state.shape == p.shape]
        assert all(state.dtype in (torch.float32, torch.float64) for state in states)


@each_class
def test_clipping_and_skipping(case):
    if "max_grad_norm=" in SIGNATURES[case.name]:
        pytest.skip("max_grad_norm is the package's")
    optimizer = train(case, case.ours(params(), max_grad_norm=1e9, skip_nonfinite=True), range(4))
    before = everything(optimizer)
    before = {key: value.clone() for key, value in before.items()}
    same(before, everything(train(case, case.ours(params()), range(4))))
    optimizer.param_groups[0]["params"][0].grad = torch.tensor(np.nan, dtype=torch.float64)
    optimizer.step(**case.step)
    same(before, everything(optimizer))


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    cls = getattr(zoo, name)
    separator = ", " if "*, " in SIGNATURES[name] else ", *, "
    ours = ", ".join(one for one in SETTINGS if one.partition("=")[0] + "=" not in SIGNATURES[name])
    assert signature_of(cls) == SIGNATURES[name] + separator + ours
    assert next(iter(inspect.signature(cls).parameters)) == "params"


def test_all_classes_have_cases():
    assert {case.name for case in CASES} == set(NAMES) == set(ONE_OF_EACH)
    assert sorted(zoo.__all__) == zoo.__all__


# ---- what is refused ----

W = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize("name", NAMES)
def test_negative_rates_are_refused(name):
    with pytest.raises(ValueError, match="-1"):
        getattr(zoo, name)([W], lr=-1.0)


@pytest.mark.parametrize("name", NAMES)
def test_rates_of_zero_are_taken(name):
    assert getattr(zoo, name)([W], lr=0.0).param_groups[0]["lr"] == 0.0


REFUSED = [
    ("ADOPT", {"capturable": True}, "capturable=True: .* CUDA graphs"),
    ("ADOPT", {"differentiable": True}, "differentiable=True: .* autograd"),
    ("ADOPT", {"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ("AdaBelief", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
    ("AdaBound", {"gamma": 1.0}, "Invalid gamma parameter: 1.0"),
    ("AdaBound", {"final_lr": -1.0}, "Invalid final learning rate: -1.0"),
    ("AdamAtan2", {"weight_decay": 0.1, "regen_reg_rate": 0.1}, "exclude each other"),
    ("AdamAtan2", {"cautious_factor": 2.0}, "Invalid cautious_factor: 2.0"),
    ("AdamW", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ("AdamW", {"capturable": True}, "capturable=True"),
    ("Adan", {"betas": (0.9, 0.9, -1.0)}, "Invalid beta parameter at index 2: -1.0"),
    ("LaProp", {"eps": -1.0}, "Invalid epsilon: -1.0"),
    ("Lion", {"lr": 0.0, "corrected_weight_decay": True}, "requires a positive max lr, got 0.0"),
    ("MADGRAD", {"momentum": 1.0}, "Momentum 1.0 must be in the range"),
    ("NAdamW", {"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ("RMSpropTF", {"momentum": -1.0}, "Invalid momentum: -1.0"),
    ("SGDW", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
    ("SignSGD", {"momentum": 1.0}, r"beta must be in the range \[0.0, 1.0\)"),
    ("SophiaG", {"rho": -1.0}, "Invalid rho parameter"),
    ("SophiaG", {"capturable": True}, "capturable=True"),
    ("Tiger", {"weight_decay": -1.0}, "weight_decay must be non-negative"),
]


@pytest.mark.parametrize(("name", "kwargs", "words"), REFUSED)
def test_what_is_refused(name, kwargs, words):
    with pytest.raises(ValueError, match=words):
        getattr(zoo, name)([W], **kwargs)


# ---- single classes ----


def test_adabounds_bounds_follow_the_rate_of_each_group():
    a, b = params()[:2]
    optimizer = zoo.AdaBound([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.1)
    optimizer.add_param_group({"params": [params()[2]], "lr": 0.2})
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.5, 0.1, 0.2]
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["base_lr"]  # as adabound saves
    optimizer.load_state_dict(saved)
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.5, 0.1, 0.2]


def test_adabelief_keeps_float32_for_half_types():
    w = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    optimizer = zoo.AdaBelief([w])
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert {state.dtype for state in optimizer.state[w].values()} == {torch.float32}


def test_adopts_first_gradient_moves_nothing():
    w = torch.ones(3, requires_grad=True)
    optimizer = zoo.ADOPT([w], lr=0.1, weight_decay=0.1, decoupled=True)
    w.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(w, torch.ones(3))
    assert list(optimizer.state[w]) == ["step", "exp_avg", "exp_avg_sq"]


def test_a_hessian_is_all_or_nothing():
    a, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = zoo.SophiaG([a, b])
    a.grad, b.grad = torch.ones(3), torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=r"SophiaG.*sparse"):
        optimizer.update_hessian()
    assert not optimizer.state
    b.grad = None
    optimizer.update_hessian()
    assert float(optimizer.state[a]["step"]) == 0
    torch.testing.assert_close(optimizer.state[a]["hessian"], torch.full((3,), 0.01))
    assert b not in optimizer.state


def test_sophia_takes_a_closure():
    w = torch.ones(3, requires_grad=True)
    optimizer = zoo.SophiaG([w])

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert optimizer.step(closure, bs=1).item() < 3.0
    assert optimizer.param_groups[0]["bs"] == 1
