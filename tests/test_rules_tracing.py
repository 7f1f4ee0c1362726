"""Rules that users write: what is traced means what the function says; what cannot be traced is told with its line."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import traced  # noqa: E402
from oxistep import rules  # noqa: E402
from traced import CASES, SHAPE  # noqa: E402


@pytest.mark.parametrize(("name", "rule", "both", "ours"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_torchs_rules_as_a_user_writes_them(name, rule, both, ours):
    random = np.random.default_rng(0)
    start = random.standard_normal(SHAPE)
    p = torch.tensor(start, requires_grad=True)
    optimizer = getattr(torch.optim, name)([p], foreach=False, **both)
    stepper = traced.Stepper(rule, start, **both, **ours)
    # torch keeps mu_product and eta in float32
    rtol = 1e-7 if name in ("NAdam", "ASGD") else 1e-12
    for k in range(12):
        g = random.standard_normal(SHAPE)
        p.grad = torch.tensor(g)
        if k == 6:  # as a scheduler does
            optimizer.param_groups[0]["lr"] = stepper.hyperparameters["lr"] = 0.004
        optimizer.step()
        stepper.step(g)
        np.testing.assert_allclose(stepper.p, p.detach().numpy(), rtol=rtol, atol=rtol / 100, err_msg=f"step {k}")
    assert stepper.tree.runs <= 10, "numbers that change must not trace again"


# Each may be written in several ways.
SAME = {
    "a root": [
        lambda p, g, s: p - np.sqrt(abs(g)),
        lambda p, g, s: p - torch.sqrt(torch.abs(g)),
        lambda p, g, s: p - g.abs().sqrt(),
        lambda p, g, s: p - rules.sqrt(abs(g)),
        lambda p, g, s: p - abs(g) ** 0.5,
    ],
    "a choice": [
        lambda p, g, s: np.where(g > 0, p, g),
        lambda p, g, s: torch.where(g > 0, p, g),
        lambda p, g, s: rules.where(0 < g, p, g),
        lambda p, g, s: p.where(g > 0, g),
    ],
    "bounds": [
        lambda p, g, s: np.clip(g, -1, 1),
        lambda p, g, s: torch.clamp(g, min=-1, max=1),
        lambda p, g, s: g.clip(-1, 1),
        lambda p, g, s: rules.minimum(rules.maximum(g, -1), 1),
    ],
    "a norm": [
        lambda p, g, s: p * np.linalg.norm(g),
        lambda p, g, s: p * g.norm(),
        lambda p, g, s: p * rules.norm(g),
        lambda p, g, s: p * torch.linalg.vector_norm(g),
        lambda p, g, s: p * rules.sqrt(rules.dot(g, g)),
    ],
    "a mean": [
        lambda p, g, s: p - np.mean(g),
        lambda p, g, s: p - g.mean(),
        lambda p, g, s: p - rules.sum(g) / p.numel(),
    ],
    "a square": [lambda p, g, s: g * g, lambda p, g, s: g**2, lambda p, g, s: np.square(g), lambda p, g, s: g.square()],
    "a number of NumPy's": [
        lambda p, g, s: np.float64(2) * g,
        lambda p, g, s: g * np.float32(2),
        lambda p, g, s: np.multiply(np.array(2.0), g),
        lambda p, g, s: torch.tensor(2.0) * g,
    ],
}


@pytest.mark.parametrize(("first", "other"), [(ways[0], way) for ways in SAME.values() for way in ways[1:]])
def test_names_of_numpy_and_torch_mean_the_same(first, other):
    random = np.random.default_rng(1)
    p, g = random.standard_normal((2, *SHAPE))
    ends = []
    for rule in (first, other):
        stepper = traced.Stepper(rule, p)
        stepper.step(g)
        ends.append(stepper.p)
    np.testing.assert_allclose(*ends, rtol=1e-14)


def refused(rule, **hyperparameters):
    stepper = traced.Stepper(rule, np.ones(3), **hyperparameters)
    with pytest.raises(Exception) as error:
        stepper.step(np.ones(3))
    assert (stepper.p == 1).all()
    return error.value


def on_elements(p, g, s):
    if g > 0:
        return p
    return p - g


def a_word(p, g, s):
    s.v = "zero"
    return p


def in_place(p, g, s):
    s.v.mul_(0.9).add_(g)
    return p - s.v


def by_math(p, g, s):
    return p - math.sqrt(s.step) * g


def unknown(p, g, s):
    return p - np.fft.fft(g)


def no_such(p, g, s):
    return p - g.median()


def nothing(p, g, s):
    p - g


def a_number(p, g, s):
    return rules.norm(p)


def endless(p, g, s):
    while True:
        p = p - g


def an_element(p, g, s):
    return p - g[0]


def an_array(p, g, s):
    return p - np.ones(3) * g


def of_a_kind(p, g, s):
    s.get("d", 1.0)
    s.d = g
    return p


def an_initial(p, g, s):
    return p - s.get("v", 2 * g)


def of_one(p, g, s):
    k = s.group.get("k", 0)
    s.group.k = k + rules.norm(g)
    return p


REFUSALS = [
    (on_elements, TypeError, "if g > 0:", "where"),
    (a_word, TypeError, 's.v = "zero"', "str"),
    (in_place, TypeError, "mul_(0.9)", "x = x.mul(...)"),
    (by_math, TypeError, "math.sqrt", "rules.sqrt"),
    (unknown, TypeError, "np.fft", "oxistep.rules"),
    (no_such, TypeError, "g.median()", "oxistep.rules"),
    (nothing, TypeError, "rule nothing", "returns the new parameter"),
    (a_number, TypeError, "rule a_number", "full_like"),
    (endless, TypeError, "rule endless", "more than 2,000 operations"),
    (an_element, TypeError, "g[0]", "where"),
    (an_array, TypeError, "np.ones(3)", "shape (3,)"),
    (of_a_kind, TypeError, "s.d = g", "one number"),
    (an_initial, TypeError, 's.get("v", 2 * g)', "full_like"),
    (of_one, TypeError, "s.group.k = ", "rules.total"),
]


@pytest.mark.parametrize(("rule", "kind", "place", "remedy"), REFUSALS, ids=lambda x: getattr(x, "__name__", None))
def test_what_cannot_be_traced_says_where_and_what_to_do(rule, kind, place, remedy):
    error = refused(rule)
    assert type(error) is kind
    assert f"rule {rule.__name__}" in str(error) and place in str(error) and remedy in str(error), str(error)
    assert "traced.py" not in str(error) and __file__ in str(error)


def test_an_exception_of_the_users_own_keeps_its_type_and_gets_the_line():
    def rule(p, g, s):
        return p - {}["missing"]

    error = refused(rule)
    assert type(error) is KeyError
    assert 'return p - {}["missing"]' in error.__notes__[0] and "rule rule" in error.__notes__[0]


def test_conditions_on_numbers_are_looked_at_in_every_step():
    def rule(p, g, s, lr=1.0):
        if s.step <= 2:
            return p - lr
        return p + lr if rules.norm(g) > 1 else p

    stepper = traced.Stepper(rule, np.zeros(2))
    ends = []
    for size in (0.1, 0.1, 0.1, 5.0, 0.1, 5.0):
        stepper.step(np.full(2, size))
        ends.append(stepper.p[0])
    assert ends == [-1, -2, -2, -1, -1, 0]
    assert stepper.tree.runs == 5  # two questions, three programs


def test_a_loop_over_a_number_is_written_out_and_looked_at():
    def rule(p, g, s, times=2):
        for _ in range(times):
            p = p - g
        return p

    stepper = traced.Stepper(rule, np.zeros(2))
    stepper.step(np.ones(2))
    stepper.hyperparameters["times"] = 3
    stepper.step(np.ones(2))
    assert stepper.p.tolist() == [-5, -5]


def test_shapes_are_plain_knowledge():
    def rule(p, g, s):
        return p - g if p.ndim == 2 and p.shape[0] == 4 else p

    one, other = traced.Stepper(rule, np.zeros((4, 2))), traced.Stepper(rule, np.zeros((3, 2)))
    for stepper in (one, other):
        stepper.step(np.ones(stepper.p.shape))
    assert (one.p == -1).all() and (other.p == 0).all()
    assert one.tree.program(traced.Facts((4, 5)), None) is not one.tree.program(traced.Facts((3, 2)), None)


def test_states_begin_as_they_are_asked_for():
    def rule(p, g, s):
        s.z = s.get("z", p) + 1
        s.h = s.get("h", rules.full_like(p, 5.0)) * 2
        s.d = s.get("d", 0.5) * 2
        s.v = s.v + g
        return p + s.d

    stepper = traced.Stepper(rule, np.full(2, 7.0))
    stepper.step(np.ones(2))
    assert stepper.states["z"].tolist() == [8, 8] and stepper.states["h"].tolist() == [10, 10]
    assert stepper.numbers == {"d": 1.0} and stepper.states["v"].tolist() == [1, 1]
    assert stepper.p.tolist() == [8, 8]


def test_a_group_shares_its_numbers():
    def rule(p, g, s, lr=0.5):
        k = s.group.get("k", 0)
        s.group.k = k + 1
        return p - lr * (k + 1)

    stepper = traced.Stepper(rule, np.zeros(1))
    for _ in range(3):
        stepper.step(np.ones(1))
    assert stepper.of_group == {"k": 3.0} and stepper.p[0] == -3


def test_numbers_divide_as_ieee_does():
    def rule(p, g, s, lr=0.0):
        return p + 1 / lr

    stepper = traced.Stepper(rule, np.zeros(1))
    stepper.step(np.ones(1))
    assert stepper.p[0] == math.inf


def test_masks_are_numbers_too():
    def rule(p, g, s):
        caution = (g * p > 0) * 1.0
        return p - g * caution / rules.maximum(caution.mean(), 1e-3)

    stepper = traced.Stepper(rule, np.array([1.0, -1.0]))
    stepper.step(np.ones(2))
    assert stepper.p.tolist() == [-1, -1]


def test_the_listing_names_passes_streams_and_bytes():
    def lamb(p, g, s, lr=0.1):
        s.m = 0.9 * s.m + 0.1 * g
        return p - lr * rules.norm(p) / rules.norm(s.m) * s.m

    program = traced.Stepper(lamb, np.ones(2)).step(np.ones(2))
    first, *rest = str(program).splitlines()
    assert first == "rule lamb: 2 passes, 8 operations for each element, 32 bytes a float32 parameter"
    assert rest[0] == "pass 1: reads p, g, s.m" and "pass 2: reads p, g, s.m; writes p, s.m" in rest
    assert sum("dot(" in line for line in rest) == 2
