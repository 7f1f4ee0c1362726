"""Of what kind states are: those of the zoo and others; nothing is called a magnitude that can be negative."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import brief  # noqa: E402
import oxistep  # noqa: E402
import oxistep.numpy.zoo  # noqa: E402
import traced  # noqa: E402
from oxistep import rules, zoo  # noqa: E402
from oxistep.rules._kinds import RANGES, Range, kinds_of, kinds_of_rule  # noqa: E402
from oxistep.rules._operations import OPERATIONS  # noqa: E402
from oxistep.rules._optimizer import source_of  # noqa: E402
from oxistep.rules._source import Source  # noqa: E402
from oxistep.zoo.sophiag import HESSIAN  # noqa: E402


def rule_of(cls):
    """What the analysis takes: NumPy's classes know their rule."""
    return cls if hasattr(cls, "_oxistep_source") else source_of(cls)


def told(kinds):
    """Kinds as words: ``"relative v"``."""
    return {name: kind.name if kind.of is None else f"{kind.name} {kind.of}" for name, kind in kinds.items()}


def kinds(function, **hyperparameters):
    return told(kinds_of_rule(Source(function, "r"), hyperparameters))


# ---- rules that there are ----

ADAM = {"exp_avg": "relative exp_avg_sq", "exp_avg_sq": "magnitude"}
BELIEF = {"exp_avg": "relative exp_avg_var", "exp_avg_var": "magnitude"}
FREE = {"z": "exact", "exp_avg_sq": "magnitude"}
BUFFER = {"momentum_buffer": "signed"}
ADAN = {**ADAM, "exp_avg_diff": "relative exp_avg_sq", "neg_pre_grad": "signed"}
KAHAN = {**ADAM, "kahan_comp": "exact"}
PRODIGY = {**ADAM, "s": "signed", "p0": "exact"}
MEAN = {"exp_avg": "signed"}

ZOO = [
    ("ADOPT", {}, {**MEAN, "exp_avg_sq": "magnitude"}),
    ("ADOPT", {"caution": True, "clip_exp": None}, {**MEAN, "exp_avg_sq": "magnitude"}),
    ("AdEMAMix", {}, {**ADAM, "exp_avg_slow": "relative exp_avg_sq"}),
    ("AdEMAMix", {"t_alpha": 10, "t_beta3": 10}, {**ADAM, "exp_avg_slow": "relative exp_avg_sq"}),
    ("AdaBelief", {}, BELIEF),
    ("AdaBelief", {"rectify": False, "amsgrad": True}, {**BELIEF, "max_exp_avg_var": "magnitude"}),
    ("AdaBelief", {"decoupled_decay": False, "weight_decay": 0.1, "degenerated_to_sgd": False}, BELIEF),
    ("AdaBound", {}, ADAM),
    ("AdaBound", {"amsbound": True, "weight_decay": 0.1}, {**ADAM, "max_exp_avg_sq": "magnitude"}),
    ("AdamAtan2", {}, {**ADAM, "param_init": "exact"}),
    ("AdamAtan2", {"regen_reg_rate": 0.1, "cautious_wd": True}, {**ADAM, "param_init": "exact"}),
    ("AdamW", {}, ADAM),
    ("AdamW", {"amsgrad": True}, {**ADAM, "max_exp_avg_sq": "magnitude"}),
    ("AdamW", {"caution": True, "clipping_threshold": 1.0, "corrected_weight_decay": True}, ADAM),
    ("AdamWScheduleFree", {"weight_decay": 0.1}, FREE),
    ("Adan", {}, ADAN),
    ("Adan", {"no_prox": True, "caution": True}, ADAN),
    ("LAMB", {}, ADAM),
    ("LAMB", {"grad_averaging": False, "caution": True, "max_grad_norm": None}, ADAM),
    ("LARS", {}, BUFFER),
    ("LARS", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "trust_clip": True}, BUFFER),
    ("LaProp", {}, {**MEAN, "exp_avg_sq": "magnitude"}),
    ("LaProp", {"caution": True, "weight_decay": 0.1}, {**MEAN, "exp_avg_sq": "magnitude"}),
    ("Lion", {}, MEAN),
    ("Lion", {"caution": True, "weight_decay": 0.1}, MEAN),
    ("MADGRAD", {}, {"s": "relative grad_sum_sq", "grad_sum_sq": "magnitude", "x0": "exact"}),
    ("MADGRAD", {"momentum": 0.0}, {"s": "relative grad_sum_sq", "grad_sum_sq": "magnitude", "x0": "exact"}),
    ("MARS", {}, {**ADAM, "last_grad": "signed"}),
    ("MARS", {"caution": True, "optimize_1d": True}, {**ADAM, "last_grad": "signed"}),
    ("MARS", {"mars_type": "lion"}, {**MEAN, "last_grad": "signed"}),
    ("NAdamW", {}, ADAM),
    ("NAdamW", {"caution": True, "clipping_threshold": 1.0}, ADAM),
    ("NovoGrad", {}, MEAN),  # the second moment is one number
    ("NovoGrad", {"amsgrad": True, "grad_averaging": True, "weight_decay": 0.1}, MEAN),
    ("Prodigy", {}, PRODIGY),
    ("Prodigy", {"safeguard_warmup": True, "decouple": False, "weight_decay": 0.1}, PRODIGY),
    ("RAdamScheduleFree", {}, FREE),
    ("RAdamScheduleFree", {"silent_sgd_phase": False}, FREE),
    ("RMSpropTF", {"momentum": 0.9}, {**BUFFER, "square_avg": "magnitude"}),
    # the variance must not fall below zero
    ("RMSpropTF", {"centered": True}, {**BUFFER, "square_avg": "exact", "grad_avg": "exact"}),
    ("SGDScheduleFree", {}, {"z": "exact"}),
    ("SGDW", {}, BUFFER),
    ("SGDW", {"momentum": 0.9, "dampening": 0.1, "caution": True, "weight_decay": 0.1}, BUFFER),
    ("SignSGD", {"weight_decouple": False, "weight_decay": 0.1}, BUFFER),
    ("SophiaG", {}, {"exp_avg": "signed", "hessian": "magnitude"}),
    ("StableAdamW", {"lr": 0.1}, ADAM),
    ("StableAdamW", {"lr": 0.1, "kahan_sum": True, "decouple_lr": True, "weight_decay": 0}, KAHAN),
    ("Tiger", {}, MEAN),
    ("Tiger", {"weight_decouple": False}, MEAN),
]  # fmt: skip
IDS = ["-".join([name, *flags]) for name, flags, _ in ZOO]
each_of_zoo = pytest.mark.parametrize(("name", "flags", "expected"), ZOO, ids=IDS)


def made(name, flags):
    """An optimizer in train mode, with gradients that are no zeros."""
    dtype = torch.bfloat16 if "kahan_sum" in flags else torch.float32
    p = torch.ones(3, 4, dtype=dtype, requires_grad=True)
    p.grad = torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype)
    optimizer = getattr(zoo, name)([p], **flags)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer, p


def test_every_rule_of_the_zoo_is_here():
    assert {name for name, _, _ in ZOO} == {name for name in zoo.__all__ if hasattr(getattr(zoo, name), "update")}


@each_of_zoo
def test_the_zoo(name, flags, expected):
    optimizer, p = made(name, flags)
    cls, group = type(optimizer), optimizer.param_groups[0]
    first = kinds_of_rule(rule_of(cls), group)
    assert told(first) == expected
    for _ in range(3):
        optimizer.step()
        assert kinds_of_rule(rule_of(cls), group) == first
    kept = {key: x for key, x in optimizer.state[p].items() if x.shape == p.shape}
    assert kept.keys() <= first.keys()
    assert all(bool((kept[key] >= 0).all()) for key, kind in first.items() if kind.name == "magnitude" and key in kept)
    for lr in (0.0, 1e9):  # schedules may begin or end with zero
        assert kinds_of_rule(rule_of(cls), {**group, "lr": lr, "weight_decay": lr}) == first


def test_a_shape_that_the_rule_asks_for():
    group = made("MARS", {"mars_type": "lion"})[0].param_groups[0]
    assert told(kinds_of_rule(source_of(zoo.MARS), group, (64,))) == {**ADAM, "last_grad": "signed"}


def test_what_another_rule_writes():
    assert told(kinds_of_rule(HESSIAN)) == {"hessian": "magnitude"}


def test_arrays_have_the_same():
    optimizer = oxistep.numpy.zoo.AdamW([np.ones(3)])
    assert told(kinds_of_rule(rule_of(type(optimizer)), optimizer.param_groups[0])) == ADAM


OF_TORCH = {
    "SGD": BUFFER,
    "Adagrad": {"sum": "magnitude"},
    "RMSprop": {**BUFFER, "square_avg": "magnitude"},
    "RMSprop centered": {**BUFFER, "square_avg": "exact", "grad_avg": "exact"},
    "Adam": ADAM,
    "Adam amsgrad": {**ADAM, "max_exp_avg_sq": "magnitude"},
    "AdamW": ADAM,
    "Adamax": {"exp_avg": "signed", "exp_inf": "magnitude"},  # divided by itself, no root
    "Adadelta": {"square_avg": "fine", "acc_delta": "fine"},  # a mean of its own updates
    "NAdam": ADAM,
    "RAdam": ADAM,
    "ASGD": {"ax": "exact"},
    "Rprop": {"prev": "signed", "step_size": "magnitude"},
}


@pytest.mark.parametrize(("name", "function", "both", "ours"), traced.CASES)
def test_torchs_rules(name, function, both, ours):
    flags = [flag for flag in ("centered", "amsgrad") if flag in both]
    assert kinds(function, **both, **ours) == OF_TORCH[" ".join([name, *flags])]


# ---- rules of a tutorial ----


def gradient_descent(p, g, s, lr=0.01):
    return p - lr * g


def momentum(p, g, s, lr=0.01, beta=0.9):
    s.v = beta * s.v - lr * g
    return p + s.v


def nesterov(p, g, s, lr=0.01, beta=0.9):
    s.v = beta * s.v + g
    return p - lr * (g + beta * s.v)


def adagrad(p, g, s, lr=0.1, eps=1e-8):
    s.h = s.h + g**2
    return p - lr * g / (np.sqrt(s.h) + eps)


def rmsprop(p, g, s, lr=0.1, alpha=0.9, eps=1e-8):
    s.h = alpha * s.h + (1 - alpha) * g**2
    return p - lr * g / (np.sqrt(s.h) + eps)


def adam(p, g, s, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8):
    s.m = beta1 * s.m + (1 - beta1) * g
    s.h = beta2 * s.h + (1 - beta2) * g**2
    m = s.m / (1 - beta1**s.step)
    h = s.h / (1 - beta2**s.step)
    return p - lr * m / (np.sqrt(h) + eps)


TUTORIAL = [
    (gradient_descent, {}),
    (momentum, {"v": "signed"}),
    (nesterov, {"v": "signed"}),
    (adagrad, {"h": "magnitude"}),
    (rmsprop, {"h": "magnitude"}),
    (adam, {"m": "relative h", "h": "magnitude"}),
]


@pytest.mark.parametrize(("function", "expected"), TUTORIAL)
def test_a_tutorial(function, expected):
    rule = oxistep.rule(function)
    assert kinds(function) == expected
    assert told(kinds_of(rule.program())) == told(kinds_of_rule(rule)) == expected
    assert told(kinds_of_rule(source_of(rule.torch))) == told(kinds_of_rule(rule.numpy)) == expected


# ---- what one line makes of a state ----


def becomes(value, start=0.0):
    """The kind of ``v``, which becomes this of itself, the gradient and a mean ``m``; its update is v alone."""

    def rule(p, g, s, lr=0.1, beta=0.9, wd=0.01):
        v = s.get("v", p if start == "p" else rules.full_like(p, start))
        s.m = rules.lerp(s.m, g, 1 - beta)
        s.v = value(v=v, g=g, m=s.m, p=p, s=s, lr=lr, beta=beta, wd=wd)
        return p - lr * s.v

    return kinds(rule)["v"]


MAGNITUDES = [
    lambda v, g, **_: abs(g),
    lambda v, g, beta, **_: rules.maximum(beta * v, abs(g)),
    lambda v, g, **_: rules.maximum(v, g),
    lambda v, g, **_: rules.minimum(v, g * g),
    lambda v, g, beta, **_: beta * v + (1 - beta) * g * g,
    lambda v, g, beta, **_: beta * v + g * (1 - beta) * g,
    lambda v, g, beta, **_: beta * v - (1 - beta) * (g * -g),
    lambda v, g, m, **_: v + (g * m) * (m * g),
    lambda v, g, m, **_: v + (g / m) * (g / m),
    lambda v, g, **_: v + g * rules.sign(g) + g * rules.tanh(g) + g * rules.cbrt(g),
    lambda v, g, m, **_: v * v + m**4,
    lambda v, g, beta, **_: rules.lerp(v, g * g, 1 - beta),
    lambda v, g, beta, s, **_: rules.lerp(v, abs(g), (1 - beta) / (1 - beta**s.step)),
    lambda v, g, s, **_: rules.lerp(v, g * g, s.step**-0.8),
    lambda v, g, beta, s, **_: v + rules.lerp(v, g * g, 1 - beta * (1 - beta ** (s.step - 1)) / (1 - beta**s.step)),
    lambda v, g, beta, s, **_: rules.lerp(v, g * g, 1 - (beta**s.step - beta) / (beta**s.step - 1)),
    lambda v, g, **_: rules.where(g > 0, v, rules.sqrt(abs(g))),
    lambda v, g, **_: (g > 0) * v + rules.exp(g) + 1 + rules.cos(g),
    lambda v, g, **_: v * rules.norm(g) / rules.max_abs(g) + rules.mean(g * g) + rules.dot(g, g),
    lambda v, g, **_: v + rules.log(1 + abs(g)),
    lambda v, g, lr, wd, **_: v * (1 - lr * wd) + g * g,
    lambda v, **_: v,
    lambda v, p, s, **_: rules.norm(p) * v + s.get("x", 0.0) + p * p,
]  # fmt: skip

SIGNED = [
    lambda v, g, **_: v - g * g,
    lambda v, m, **_: v * m,
    lambda v, g, beta, **_: v.lerp(g, 1 - beta),
    lambda v, g, beta, **_: rules.lerp(v, g * g, 2 - 3 * beta),
    lambda v, g, wd, **_: (wd - 1) * v + g * g,
    lambda v, g, beta, s, **_: (beta**s.step - beta) * v + g * g,
    lambda v, g, beta, lr, **_: (beta - beta**lr) * v + g * g,
    lambda v, g, beta, s, **_: rules.lerp(v, g * g, 1 - (beta**s.step - 1) / (beta**s.step - beta)),
    lambda v, g, beta, s, **_: rules.lerp(v, g * g, 1 - (1 - beta**s.step) / (1 - beta ** (s.step - 1))),
    lambda v, g, beta, s, **_: v + (beta**s.step - beta ** (s.step - 1)) * g * g,
    lambda v, g, lr, **_: v + lr * -abs(g),
    lambda v, g, **_: -v,
    lambda v, g, **_: g * g * g,
    lambda v, g, **_: rules.where(g > 0, v, -v),
    lambda v, g, s, **_: rules.where(s.step == 7, -1, 1) * g * g,
    lambda v, g, **_: rules.minimum(v, g),
    lambda v, g, **_: v + rules.cos(g),
    lambda v, g, s, **_: v + (5 - s.step) * g * g,
    lambda v, g, **_: v + rules.mean(g),
    lambda v, g, **_: v + rules.dot(g, v),
    lambda v, g, **_: v * (1 - rules.norm(g)),
    lambda v, g, **_: v + rules.total(abs(g)),  # which may be another value where another parameter comes to it
    lambda v, g, s, **_: v * s.get("x", -1.0) + g * g,
    lambda v, g, s, **_: v * s.group.get("x", -1.0) + g * g,
    lambda v, g, p, wd, **_: v + g + wd * p,
    lambda v, g, p, wd, lr, **_: rules.fma(v, 0.9, lr * (wd * p + g)),
    lambda v, p, **_: v + p * p * p,
]  # fmt: skip

EXACT = [
    lambda p, **_: p,
    lambda p, g, lr, **_: p - lr * g,
    lambda v, p, beta, **_: rules.lerp(v, p, 1 - beta),
    lambda v, p, beta, **_: beta * v + (1 - beta) * p,
    lambda v, p, lr, wd, g, **_: p * (1 - lr * wd) - lr * g,
    lambda v, p, lr, wd, g, **_: (p - lr * g) / (1 + lr * wd),
    lambda v, p, g, **_: rules.where(g > 0, v, -p),
    lambda v, p, g, lr, **_: rules.addcdiv(p, g, 1 + abs(g), value=-lr),
    lambda v, p, **_: rules.maximum(v, p),
    lambda v, p, s, beta, **_: rules.lerp(v, s.get("start", p), 1 - beta),
    lambda v, p, s, **_: p - s.get("start", p),
    lambda v, g, **_: rules.log(v + g * g),  # NaN where v is a little below zero
]  # fmt: skip


@pytest.mark.parametrize("value", MAGNITUDES)
def test_magnitudes(value):
    assert becomes(value) == becomes(value, 0.5) == "magnitude"
    assert becomes(value, "p") == becomes(value, np.inf) == becomes(value, np.nan) == "exact"


@pytest.mark.parametrize("value", SIGNED)
def test_signed(value):
    assert becomes(value) == "signed"
    assert becomes(value, -1.0) == becomes(value, 1.0) == "exact", "what does not start at zero"


@pytest.mark.parametrize("value", EXACT)
def test_exact(value):
    assert becomes(value) == "exact"


# ---- branches ----


def test_negative_in_one_branch_alone():
    def rule(p, g, s, lr=0.1, late=0.0):
        s.v, s.w, s.x, s.u = s.v + g * g, s.w + g * g, s.x + g * g, s.u + g * g
        if s.step == 1000:
            s.v = -s.v
        if rules.norm(g) > 1e6:
            s.w = s.w - 1
        if late > 0.5:
            s.x = -s.x
        return p - lr * g

    assert kinds(rule) == {"v": "signed", "w": "signed", "x": "signed", "u": "magnitude"}


def test_divided_in_one_branch_alone():
    def rule(p, g, s, lr=0.1):
        s.m, s.v = 0.9 * s.m + g, s.v + g * g
        if s.step < 5:
            return p - lr * s.m
        return p - lr * s.m / rules.sqrt(s.v)

    assert kinds(rule) == {"m": "relative v", "v": "magnitude"}


def test_another_start_in_another_branch():
    def rule(p, g, s, lr=0.1):
        if s.step > 3:
            s.v = s.get("v", p) * 0.5
        else:
            s.v = s.v + g * g
        return p - lr * g

    assert kinds(rule) == {"v": "exact"}


def test_states_that_hang_together():
    def rule(p, g, s, lr=0.1, beta=0.9):
        s.a, s.b = s.a + s.b, s.b + g * g
        s.c, s.d = s.c + s.d, s.d + g
        s.e, s.f = s.f, s.e
        s.x = s.get("x", 2.0) * beta
        s.group.k = s.group.get("k", 0) + 1
        s.y = s.y + s.x * s.group.k * g * g
        s.z = s.get("z", 1.0) - 1
        s.w = s.w + s.z * g * g
        return p - lr * g

    expected = dict.fromkeys("abefy", "magnitude") | dict.fromkeys("cdw", "signed")
    assert kinds(rule) == expected


def test_the_magnitude_that_is_preferred():
    def rule(p, g, s, lr=0.1):
        s.m, s.n, s.a = 0.9 * s.m + g, 0.9 * s.n + g, s.a + g * g
        s.exp_avg_sq = s.exp_avg_sq + g * g
        return p - s.m / rules.sqrt(s.a * s.exp_avg_sq) - s.n * (1 / (1 + rules.sqrt(s.a)))

    assert kinds(rule) == {"m": "relative exp_avg_sq", "n": "relative a", "a": "magnitude", "exp_avg_sq": "magnitude"}


def test_what_is_no_division_of_a_mean():
    def rule(p, g, s, lr=0.1):
        s.v, last, s.last = s.v + g * g, s.last, g
        s.m, s.n, s.o, s.q = 0.9 * s.m + g, 0.9 * s.n + g, 0.9 * s.o + g, s.q * 0.5 + g
        by_elements = (g - last) / rules.sqrt(s.v)  # of gradients
        by_number = s.m / rules.norm(s.v)
        chosen = (rules.where(s.o, g, 0.0) + rules.where(s.o > 0, g, 0.0)) / rules.sqrt(s.v)
        below = g / (s.v + abs(s.q))
        return p - lr * (by_elements + by_number + chosen + below + s.n * rules.sqrt(s.v))

    expected = dict.fromkeys(("last", "m", "n", "o", "q"), "signed") | {"v": "magnitude"}
    assert kinds(rule) == expected


def test_what_multiplies_itself():
    """As Adadelta's mean of its own updates does; what divides it, or is multiplied by it, must be finer."""

    def rule(p, g, s, lr=0.1, beta=0.9, eps=1e-6):
        s.v, s.w = rules.lerp(s.v, g * g, 1 - beta), s.w + g * g
        update = rules.sqrt(s.u + eps) * (g / rules.sqrt(s.v + eps))
        s.u = rules.lerp(s.u, update * update, 1 - beta)
        # neither of these: by a number, by what was chosen, by no gradient, and what it goes into is another state
        s.a, s.b, s.c = s.a * rules.norm(g) + g * g, s.b * rules.where(g > 0, 1.2, 0.5) + g * g, s.c * s.c + abs(g)
        s.d = s.d + s.a * abs(g)
        return p - lr * update * rules.sqrt(s.w)

    assert kinds(rule) == {**dict.fromkeys("wabcd", "magnitude"), "v": "fine", "u": "fine"}


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, "8bit"])
def test_what_multiplies_itself_never_becomes_zero(state_dtype):
    """Signed codes make zero of what lies deep below a block's largest: of a divisor, infinity."""

    @oxistep.rule
    def damped(p, g, s, lr=0.1):
        s.h = rules.full_like(p, 1.0) if s.step == 1 else s.h * (1 + g * g)
        return p - lr * g / s.h

    grad = torch.full((4096,), 0.1)
    grad[0] = 10.0
    ends = []
    for kept in (torch.float32, state_dtype):
        p = torch.nn.Parameter(torch.zeros(4096))
        optimizer = damped([p], state_dtype=kept)
        for _ in range(8):
            p.grad = grad.clone()
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=0.05, atol=0)


@pytest.mark.parametrize("words", [("add", "mul"), ("mul", "add")])
def test_codes_are_what_they_were_when_a_word_changes(words):
    @oxistep.rule
    def of_words(p, g, s, lr=0.1, mode="add"):
        s.h = s.h * (1 + g * g) + g * g if mode == "mul" else s.h + g * g
        return p - lr * g / (rules.sqrt(s.h) + 1e-8)

    ends = []
    for kept in (torch.float32, "8bit"):
        p = torch.nn.Parameter(torch.zeros(4096))
        optimizer = of_words([p], state_dtype=kept, mode=words[0])
        for t in range(6):
            optimizer.param_groups[0]["mode"] = words[t > 2]
            p.grad = torch.full((4096,), 0.1) * (1 + torch.arange(4096) % 7)
            optimizer.step()
        ends.append(oxistep.plain_state_dict(optimizer)["state"][0]["h"])
    torch.testing.assert_close(ends[1], ends[0], rtol=0.1, atol=0)


def test_a_variance_under_a_root():
    def rule(p, g, s, lr=0.1, beta=0.9):
        s.m, s.v, s.w = rules.lerp(s.m, g, 1 - beta), rules.lerp(s.v, g * g, 1 - beta), s.w + g * g
        return p - lr * s.m * (s.v - s.m * s.m + 1e-8) ** -0.25 / rules.sqrt(s.w)

    assert kinds(rule) == {"m": "exact", "v": "exact", "w": "magnitude"}


# ---- what has no end ----


def test_branches_without_end():
    def whole(p, g, s, lr=0.1):
        s.v = s.v + g * g
        return p - lr * g if int(s.step) % 2 else p

    def many(p, g, s, lr=0.1):
        s.v = s.v + g * g
        for k in range(9):
            if s.step == k:
                p = p - lr * k * g
        return p

    def loop(p, g, s, lr=0.1):
        s.v, k = s.v + g * g, 0
        while k < s.step:
            k += 1
        return p - lr * k * g

    for rule in (whole, many, loop):
        assert kinds(rule) == {"v": "exact"}


def test_a_branch_that_raises():
    def rule(p, g, s, lr=0.1):
        if lr < 0:
            raise ValueError("no")
        if lr > 100:
            s.v = -g
            raise ValueError("no")
        s.v = s.v + g * g
        return p - lr * g

    assert kinds(rule) == {"v": "magnitude"}


def test_errors():
    def nothing(p, g, s, lr=0.1):
        s.v = g if lr > 0 else -g

    with pytest.raises(TypeError, match="has no rule"):
        kinds_of_rule(zoo.SAM)
    with pytest.raises(TypeError, match="max_lr_snapshot has no default"):
        kinds_of_rule(source_of(zoo.AdamW))
    with pytest.raises(TypeError, match="lr"):
        kinds(momentum, lr="fast")
    with pytest.raises(TypeError, match="returns nothing"):
        kinds(nothing)


# ---- nothing is called a magnitude that can be negative ----

ENDS = [-np.inf, -3.0, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0, np.inf]


def between(random, low, high):
    """Some numbers of a range, its finite ends among them."""
    low, high = max(low, -50.0), min(high, 50.0)
    return np.array([low, high, *random.uniform(low, high, 30), *(x for x in (-1.0, 0.0, 1.0) if low <= x <= high)])


@pytest.mark.parametrize("name", [name for name in RANGES if name != "fill"])
def test_ranges_hold(name):
    random, operation = np.random.default_rng(0), OPERATIONS[name]
    for _ in range(brief.number(whole=1000, brief=200)):
        sign = random.choice([-1, 1], 2)  # of the factors of unknown sign, of which operands may have the same
        known, numbers = [], []
        for _ in range(operation.arity):
            low, high = sorted(random.choice(ENDS, 2, replace=False))
            k = int(random.integers(2))
            one = Range(low, high, frozenset(() if low >= 0 or high <= 0 else [k]), low < 0 and high <= 0)
            x = random.choice(between(random, low, high), 200)
            known.append(one)
            numbers.append(np.clip(abs(x) * sign[k], low, high) if one.factors else x)
        result = RANGES[name](*known)
        with np.errstate(all="ignore"):
            values = np.asarray(operation.numpy(*numbers), float)
        values = values[np.isfinite(values)]  # what is divided by zero has the sign of the zero
        slack = 1e-9 * np.maximum(1, abs(values))
        assert ((values >= result.low - slack) & (values <= result.high + slack)).all(), (known, result)
        if result.factors is not None:
            expected = np.prod([sign[k] for k in result.factors]) * (-1 if result.flipped else 1)
            assert (values * expected >= -slack).all(), (known, result)


ONE = [abs, lambda x: -x, rules.tanh, rules.cbrt, rules.sign, lambda x: x * x, lambda x: x**3, lambda x: 1 - x,
       lambda x: rules.exp(-abs(x)), lambda x: rules.sqrt(abs(x)), lambda x: rules.clip(x, 0, 2)]  # fmt: skip
TWO = [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / (1 + abs(b)), rules.minimum,
       rules.maximum, lambda a, b: rules.where(a < b, a, b), lambda a, b: abs(a) ** rules.tanh(b),
       lambda a, b: a * b * a, lambda a, b: rules.lerp(a, b, 0.3)]  # fmt: skip
THREE = [rules.fma, rules.lerp, rules.addcmul, lambda a, b, c: rules.addcdiv(a, b, 1 + abs(c), value=0.5)]


def drawn(seed):
    """A rule whose states and numbers become what is drawn of each other."""

    def function(p, g, s, lr=0.1, beta=0.9, wd=0.3):
        random = np.random.default_rng(seed)
        pool = [p, g, g, s.a, s.b, s.get("c", rules.full_like(p, 0.5)), s.get("n", 0.25), s.group.get("k", 1.0)]
        pool += [lr, beta, wd, beta**s.step, s.step]
        for _ in range(12):
            arity = int(random.integers(3))
            table = (ONE, TWO, THREE)[arity]
            pool.append(
                table[random.integers(len(table))](*(pool[i] for i in random.integers(len(pool), size=arity + 1)))
            )
        elements = [x for x in pool[5:] if x._kind.has_elements]
        numbers = [x for x in pool[6:] if not x._kind.has_elements]
        if pool[-1]._kind.has_elements or pool[-1] > 0.5:
            elements.reverse()
        s.a, s.b, s.c = (rules.tanh(elements[i % len(elements)]) for i in (-1, -2, -3))
        s.n, s.group.k = rules.tanh(numbers[-1]), s.group.k * 0.5 + 0.1
        return rules.tanh(p - elements[-1])

    return function


def test_rules_drawn_at_random():
    found = 0
    for seed in range(brief.number(whole=400, brief=80)):
        function = drawn(seed)
        magnitudes = [name for name, kind in kinds(function).items() if kind in ("magnitude", "fine")]
        found += len(magnitudes)
        random = np.random.default_rng(seed)
        hyperparameters = dict(zip(("lr", "beta", "wd"), random.uniform(0, 1, 3).tolist(), strict=True))
        stepper = traced.Stepper(function, random.standard_normal(6), **hyperparameters)
        for _ in range(5):
            with np.errstate(all="ignore"):
                stepper.step(random.standard_normal(6))
            for name in magnitudes:
                assert not (stepper.states[name] < 0).any(), (seed, name)
    assert found > brief.number(whole=100, brief=20), "too few to tell"
