"""Bad input to rules: an error that names the rule, the line and the remedy, and nothing has been changed."""

import math

import pytest

torch = pytest.importorskip("torch")

import oxistep  # noqa: E402
from oxistep import rules  # noqa: E402


@oxistep.rule
def momentum(p, g, s, lr=0.01, beta=0.9, nesterov=False, mode="plain", decay=None, betas=(0.9, 0.99)):
    s.v = beta * s.v - lr * g
    return p + s.v


def leaf(*shape):
    return torch.ones(shape or (2,), requires_grad=True)


def with_gradients(*params):
    for p in params:
        p.grad = torch.ones_like(p)
    return list(params)


# ---- when the rule is made ----


def no_states(p, g):
    return p


def no_parameter():
    return None


def with_defaults(p, g, s=None):
    return p


def starred(p, g, s, *rates):
    return p


def named(p, g, s, lr=0.1, **others):
    return p


def without_default(p, g, s, lr):
    return p


def of_no_kind(p, g, s, schedule=print):
    return p


def reserved(p, g, s, params=1.0):
    return p


def private(p, g, s, _lr=1.0):
    return p


def generator(p, g, s):
    yield p


UNFIT = [
    (no_states, "write \\(p, g, s, lr=0.01, ...\\)"),
    (no_parameter, "a rule begins with the parameter, the gradient and the states"),
    (with_defaults, "a rule begins with"),
    (starred, "\\*rates names no hyperparameters"),
    (named, "\\*\\*others names no hyperparameters"),
    (without_default, "lr needs a default.*lr=0.01"),
    (of_no_kind, "schedule: a hyperparameter is a number.*a constant outside the rule"),
    (reserved, "cannot be called 'params'"),
    (private, "cannot be called '_lr'"),
    (generator, "expected a function"),
    (3, "expected a function"),
    (torch.nn.Linear, "expected a function"),
]


@pytest.mark.parametrize(("function", "text"), UNFIT, ids=lambda x: getattr(x, "__name__", None))
def test_what_cannot_be_a_rule_is_refused_at_once(function, text):
    with pytest.raises(TypeError, match=text) as caught:
        oxistep.rule(function)
    if hasattr(function, "__code__") and function is not generator:
        assert f"line {function.__code__.co_firstlineno}" in str(caught.value)
    if hasattr(function, "__name__"):
        assert f"rule {function.__name__}" in str(caught.value)


# ---- when the optimizer is made ----


BAD_HYPERPARAMETERS = [
    ({"lr": "fast"}, TypeError, "lr: expected a number, got str: 'fast'"),
    ({"lr": None}, TypeError, "lr: expected a number, got NoneType: None"),
    ({"lr": True}, TypeError, "lr: expected a number, got bool: True"),
    ({"lr": 1j}, TypeError, "lr: expected a number, got complex"),
    ({"lr": torch.ones(2)}, TypeError, "lr: expected a number, got Tensor"),
    ({"lr": [0.1]}, TypeError, "lr: expected a number, got list"),
    ({"lr": math.nan}, ValueError, "Invalid lr: nan"),
    ({"nesterov": 1}, TypeError, "nesterov: expected True or False, got int: 1"),
    ({"mode": 0}, TypeError, "mode: expected a str, got int: 0"),
    ({"betas": (0.9,)}, TypeError, "betas: expected a tuple of 2 numbers"),
    ({"betas": 0.9}, TypeError, "betas: expected a tuple of 2 numbers"),
    ({"betas": (0.9, "b")}, TypeError, "betas: expected a tuple of 2 numbers"),
    ({"decay": print}, TypeError, "decay: expected a number, a word, True, False or None"),
]
BAD_SETTINGS = [
    ({"maximize": "yes"}, TypeError, "maximize: expected True or False"),
    ({"max_grad_norm": 0}, ValueError, "max_grad_norm: expected a positive number"),
    ({"skip_nonfinite": 1}, TypeError, "skip_nonfinite: expected True or False"),
    ({"state_dtype": torch.int8}, ValueError, "state_dtype: expected torch.float32"),
    ({"foreach": True}, TypeError, "foreach"),
    ({"rate": 1}, TypeError, "rate"),
]


@pytest.mark.parametrize(("bad", "error", "text"), BAD_HYPERPARAMETERS + BAD_SETTINGS)
def test_bad_arguments(bad, error, text):
    with pytest.raises(error, match=text):
        momentum([leaf()], **bad)


@pytest.mark.parametrize(("bad", "error", "text"), BAD_HYPERPARAMETERS)
def test_bad_hyperparameters_of_a_group(bad, error, text):
    good, other = with_gradients(leaf(), leaf())
    optimizer = momentum([good])
    with pytest.raises(error, match=text) as caught:
        optimizer.add_param_group({"params": [leaf()], **bad})
    assert "param_groups[1]" in str(caught.value) and len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [other]})
    if error is TypeError:
        optimizer.param_groups[1].update(bad)
        with pytest.raises(error, match=text) as caught:
            optimizer.step()
        assert "param_groups[1]" in str(caught.value)
        assert not optimizer.state and (good == 1).all()


@pytest.mark.parametrize("value", [0.5, 1, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(1)])
def test_numbers_of_every_kind(value):
    (p,) = with_gradients(leaf())
    momentum([p], lr=value).step()
    assert p.tolist() == [1 - float(value)] * 2


def test_parameters_that_torch_refuses_too():
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        momentum([])
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        momentum(leaf())
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        momentum([leaf() * 2])
    with pytest.raises(TypeError, match="can only optimize Tensors"):
        momentum([leaf(), 1.0])


# ---- the class form ----


def test_a_class_without_a_rule():
    with pytest.raises(TypeError, match=r"Optimizer has no rule: .* static method update\(p, g, s, lr, ...\)"):
        rules.Optimizer([leaf()], {})

    class Method(rules.Optimizer):
        def update(self, p, g, s):
            return p

    with pytest.raises(TypeError, match="Method has no rule"):
        Method([leaf()], {})


def test_a_class_that_forgets_a_hyperparameter():
    class Forgetful(rules.Optimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})

        @staticmethod
        def update(p, g, s, lr, eps):
            return p - lr * g / eps

    with pytest.raises(TypeError, match="rule Forgetful: update takes 'eps', which is not among the hyperparameters"):
        Forgetful([leaf()])


# ---- when it steps ----


def fails(optimizer, error, text):
    """Stepping raises, and changes nothing."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    with pytest.raises(error, match=text) as caught:
        optimizer.step()
    assert all(map(torch.equal, before, params))
    return caught.value


def test_an_error_of_the_second_parameter_leaves_the_first_as_it_was():
    @oxistep.rule
    def picky(p, g, s):
        s.v = s.v + g
        if p.ndim == 2:
            raise LookupError("no matrices, please")
        return p - s.v

    optimizer = picky(with_gradients(leaf(2), leaf(2, 2)))
    error = fails(optimizer, LookupError, "no matrices, please")
    assert "rule picky" in error.__notes__[0] and 'raise LookupError("no matrices, please")' in error.__notes__[0]
    assert not optimizer.state
    optimizer.param_groups[0]["params"][1].grad = None
    optimizer.step()
    assert (optimizer.param_groups[0]["params"][0] == 0).all()


def test_a_condition_that_turns_out_late_may_fail_before_anything_is_written():
    @oxistep.rule
    def late(p, g, s):
        if rules.norm(g) > 5:
            return p - g.median()
        return p - g

    optimizer = late(with_gradients(leaf(2), leaf(2)))
    optimizer.param_groups[0]["params"][1].grad *= 10
    error = fails(optimizer, TypeError, "rule late .*g.median()")
    assert __file__ in str(error)


def test_sparse_gradients_raise_as_adams_do():
    p = leaf(3)
    p.grad = torch.sparse_coo_tensor([[1]], [1.0], (3,), check_invariants=True)
    fails(momentum([p]), RuntimeError, "momentum does not support sparse gradients")


def test_what_cannot_be_written():
    good = leaf()
    expanded = torch.ones(1).expand(3).requires_grad_()
    with_gradients(good, expanded)
    error = fails(momentum([good, expanded]), RuntimeError, "is expanded")
    assert "rule momentum: param_groups[0]['params'][1]" in str(error)
    integers = torch.ones(2, dtype=torch.int64)
    optimizer = momentum([("w", good), ("n", integers)])
    assert integers.grad is None
    optimizer.step()


def test_strides_of_zero_mean_nothing_where_there_is_no_element():
    """torch.tensor(numpy.empty((0, 3))) has them."""

    @oxistep.rule
    def five(p, g, s):  # more states than kernels take
        s.a, s.b, s.c, s.d, s.e = (s.a + g, s.b + g, s.c + g, s.d + g, s.e + g)
        return p - g

    five(with_gradients(leaf(), torch.empty_strided((0, 3), (0, 0)).requires_grad_())).step()


def test_states_of_a_checkpoint_that_do_not_fit():
    optimizer = momentum(with_gradients(leaf()))
    optimizer.step()
    w = optimizer.param_groups[0]["params"][0]
    optimizer.state[w]["v"] = torch.zeros(3)
    fails(optimizer, RuntimeError, r"state 'v' that is of shape \(3,\), expected a tensor of shape \(2,\)")
    optimizer.state[w] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}
    fails(optimizer, RuntimeError, "has the states exp_avg, and the rule's are v: was its state saved by another")
    optimizer.state[w] = {"step": torch.tensor(1.0)}
    optimizer.step()


def test_loads_are_whole_or_not_at_all():
    optimizer = momentum(with_gradients(leaf()))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    optimizer.step()


def test_numbers_of_a_group_that_differ_between_its_parameters():
    @oxistep.rule
    def differing(p, g, s):
        k = s.group.get("k", 0)
        s.group.k = k + 1 if p.ndim == 2 else k + 2
        return p - g

    optimizer = differing(with_gradients(leaf(2), leaf(2, 2)))
    fails(optimizer, TypeError, r"s.group.k of param_groups\[0\] becomes 2.0 by one parameter and 1.0 by another")
    assert optimizer.param_groups[0]["k"] == 0


def test_a_number_of_a_group_that_is_a_hyperparameter():
    @oxistep.rule
    def taken(p, g, s, lr=0.1):
        return p - s.group.get("lr", 0) * g

    fails(taken(with_gradients(leaf())), TypeError, "rule taken .*another entry of that name")


def test_totals_that_wait_for_each_other():
    @oxistep.rule
    def crossed(p, g, s):
        if p.ndim == 2:
            if rules.total(rules.sum(g)) > 0:
                return p - g
            return p
        if rules.total(rules.sum(p)) > 0:
            rules.total(rules.sum(g))
        return p - g

    optimizer = crossed(with_gradients(leaf(2), leaf(2, 2)))
    optimizer.step()  # two calls, each of its own parameters

    def common(g):
        return rules.total(rules.sum(g))

    @oxistep.rule
    def late(p, g, s):
        if p.ndim == 1 and rules.total(rules.sum(p)) > 0:
            return p - common(g)
        return p - g if common(g) > 0 else p

    fails(late(with_gradients(leaf(2), leaf(2, 2))), TypeError, "rule late .*compute it before the condition")


def test_a_step_that_broke_off_half_way(monkeypatch):
    from oxistep.optim import _modes
    from oxistep.rules import _torch_step

    monkeypatch.setattr(_modes, "FORCED", True)
    a, b = with_gradients(leaf(), leaf())
    optimizer = momentum([a, b])
    write = _torch_step.Row.write

    def broken(row, member):
        if row.p is b:
            raise MemoryError("no more")
        write(row, member)

    monkeypatch.setattr(_torch_step.Row, "write", broken)
    with pytest.raises(RuntimeError, match="a step of rule momentum broke off"):
        optimizer.step()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="this optimizer takes no step"):
        optimizer.step()
    optimizer.load_state_dict(momentum([leaf(), leaf()]).state_dict())
    optimizer.step()


def test_tracing_happens_once_for_each_set_of_conditions():
    calls = []

    @oxistep.rule
    def watched(p, g, s, lr=0.1):
        calls.append(1)
        if s.step == 1:
            return p - lr * g
        return p - 2 * lr * g

    optimizer = watched(with_gradients(*(leaf(n) for n in range(1, 20))))
    for k in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
        optimizer.step()
    assert len(calls) == 3


def test_a_rule_within_a_rule():
    @oxistep.rule
    def twice(p, g, s, lr=0.1):
        return momentum(p, g, s, lr=2 * lr, beta=0.5)

    a, b = with_gradients(leaf(), leaf())
    twice([a]).step()
    momentum([b], lr=0.2, beta=0.5).step()
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s, g: s.__setitem__("m", g), r"a state is an attribute: write s.m = ..."),
        (lambda s, g: s["m"], r"a state is an attribute: write s.m"),
        (lambda s, g: "m" in s, r"every state is there: s.m, or s.get\('m', what it starts as\)"),
        (lambda s, g: s.group["k"], r"a number of the group is an attribute: write s.group.k"),
        (lambda s, g: delattr(s, "m"), r"a state cannot be taken away: write s.m = ..."),
        (lambda s, g: f"{g:.3f}", r"has no number while the rule is traced: leave :.3f out"),
    ],
)
def test_states_are_attributes_and_values_have_no_digits(wrong, message):
    @oxistep.rule
    def mistaken(p, g, s, lr=0.1):
        wrong(s, g)
        return p - lr * g

    fails(mistaken(with_gradients(leaf())), TypeError, message)
