"""Rules drawn at random: by kernels and by torch's operations they give what NumPy gives in float64."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oxistep  # noqa: E402
from oxistep import rules  # noqa: E402
from oxistep.numpy._rules import RuleOptimizer  # noqa: E402
from oxistep.optim._definition import definition_of  # noqa: E402

ONE = [
    abs,
    lambda x: -x,
    rules.tanh,
    rules.cos,
    rules.sign,
    lambda x: rules.sqrt(abs(x)),
    rules.cbrt,
    lambda x: rules.exp(-abs(x)),
    lambda x: rules.log(1 + abs(x)),
    lambda x: x**2,
    lambda x: rules.clip(x, -1, 0.5),
]
TWO = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / (1 + abs(b)),
    rules.minimum,
    rules.maximum,
    rules.atan2,
    lambda a, b: abs(a) ** rules.tanh(b),
    lambda a, b: rules.where(a < b, a, 2 * b),
    lambda a, b: (a > 0) * b,
    lambda a, b: rules.where((a > 0) & ~(b > 0) | (a != b), b, a),
]
THREE = [
    rules.fma,
    lambda a, b, c: rules.lerp(a, b, 1 / (1 + abs(c))),
    lambda a, b, c: rules.addcmul(a, b, c, value=0.3),
    lambda a, b, c: rules.addcdiv(a, b, 1 + abs(c), value=-0.2),
    lambda a, b, c: rules.where(a <= b, c, 0.7),
]
WHOLE = [
    rules.norm,
    rules.rms,
    rules.mean,
    rules.max_abs,
    lambda x: rules.dot(x, x) / x.numel(),
    lambda x: rules.total(rules.mean(x)),
]


def drawn(seed):
    """A rule of some twenty operations on elements, numbers and states."""

    def function(p, g, s, lr=0.1, betas=(0.9, 0.99)):
        random = np.random.default_rng(seed)
        pool = [p, g, s.a, s.get("b", p), s.get("c", rules.full_like(p, 0.5)), s.get("d", 0.25), lr, *betas]
        pool += [rules.minimum(s.step, 3), s.group.get("k", 1)]
        for _ in range(20):
            arity = random.integers(4)
            if arity == 3:
                which = WHOLE[random.integers(len(WHOLE))]
                x = pool[random.integers(5)]
            else:
                table = (ONE, TWO, THREE)[arity]
                which = table[random.integers(len(table))]
            operands = [pool[i] for i in random.integers(len(pool), size=arity + 1)]
            pool.append(which(x) if arity == 3 else which(*operands))
        numbers = [x for x in pool if not x._kind.has_elements]
        elements = [x for x in pool if x._kind.has_elements]
        if numbers[-1] > 0.5:
            elements.reverse()
        s.a, s.b = rules.tanh(elements[-1]), rules.lerp(s.b, elements[-2], 0.25)
        s.d = rules.tanh(numbers[-2])
        s.group.k = s.group.k / 2 + 0.5
        return rules.tanh(p - lr * elements[-1] + numbers[-1] * 0.01)

    function.__name__ = f"drawn{seed}"
    return oxistep.rule(function)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("by_torch", [False, True], ids=["kernels", "torch"])
def test_all_ways_of_running_agree(seed, by_torch, monkeypatch):
    monkeypatch.setattr(RuleOptimizer, "_oxistep_stepped_natively", lambda *args: False)  # NumPy's operations
    rule = drawn(seed)
    random = np.random.default_rng(seed + 1000)
    shapes = [(3, 4), (5,), ()]
    start = [random.standard_normal(shape) for shape in shapes]
    judge = [np.array(x) for x in start]
    tensors = [torch.tensor(x, requires_grad=True) for x in start]
    by_numpy, stepped = rule(judge), rule(tensors)
    for k in range(4):
        grads = [None if i == k else random.standard_normal(shape) for i, shape in enumerate(shapes)]
        by_numpy.step([None if g is None else np.asarray(g) for g in grads])
        for p, g in zip(tensors, grads, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        if by_torch:
            definition_of(rule.torch).leave_everything(stepped)
        else:
            stepped.step()
        for one, other, p in zip(judge, tensors, range(3), strict=True):
            np.testing.assert_allclose(other.detach().numpy(), one, rtol=1e-6, atol=1e-6, err_msg=f"{seed} {k} {p}")
        # from the same values again, numbers of a parameter in float32 as torch keeps them
        for i, (one, other) in enumerate(zip(judge, tensors, strict=True)):
            with torch.no_grad():
                other.copy_(torch.tensor(one))
            for key, value in stepped.state.get(other, {}).items():
                value.copy_(torch.tensor(by_numpy.state[0][i][key]))
        assert stepped.param_groups[0]["k"] == by_numpy.param_groups[0]["k"]
