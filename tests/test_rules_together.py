"""Rules by kernels that look at more than one parameter, at numbers of the group, or at elements before they decide."""

import copy
import gc
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oxistep  # noqa: E402
from oxistep import _core, rules  # noqa: E402
from oxistep.numpy._rules import RuleOptimizer  # noqa: E402
from oxistep.optim._definition import definition_of  # noqa: E402
from rules_by_kernels import SHAPES, draw, everything, params, same_bits, train  # noqa: E402
from scenarios import CLOSE, FORCED  # noqa: E402

pytestmark = pytest.mark.skipif(FORCED, reason="about kernels")


@oxistep.rule
def bounded(p, g, s, lr=0.1, largest=1.0):
    """A sum over all parameters."""
    s.m = 0.9 * s.m + g
    length = rules.sqrt(rules.total(g * g))
    return p - lr * rules.minimum(1, largest / length) * s.m


@oxistep.rule
def twice_bounded(p, g, s, lr=0.1):
    """A sum over all parameters of what is computed with another one, which matrices do not add to."""
    if p.ndim < 2:
        g = g / (1 + rules.total(rules.max_abs(g)))
    of_all = rules.total(rules.dot(g, g)) / rules.total(p.numel())
    return p - lr * g / rules.sqrt(of_all)


@oxistep.rule
def warmed_up(p, g, s, lr=0.1, warmup=5):
    """A number of the group."""
    k = s.group.get("k", 0)
    s.group.k = k + 1
    s.group.get("idle", 7)
    return p - lr * rules.minimum(1, (k + 1) / warmup) * g


@oxistep.rule
def distance(p, g, s, lr=0.1):
    """A number of the group that comes of all parameters, as Prodigy's."""
    d = s.group.get("d", 1e-3)
    start = s.get("start", p)
    s.sum = s.sum + d * g
    found = rules.total(d * rules.dot(g, start - p)) / rules.total(rules.norm(s.sum))
    s.group.d = rules.maximum(d, found)
    return p - lr * s.group.d * g


@oxistep.rule
def careful(p, g, s, lr=0.1, largest=6.0):
    """Two questions about elements, the second of which not all come to, and a number of the parameter."""
    s.asked = s.get("asked", 0.0) + 1
    if rules.norm(g) > largest:
        s.skipped = s.get("skipped", 0.0) + 1
        return p
    if rules.max_abs(p) > 2 * rules.rms(p):
        s.m = 0.9 * s.m + g
        return p - lr * s.m
    return p - lr * g / (1 + s.asked)


ALL = [bounded, twice_bounded, warmed_up, distance, careful]
each_rule = pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.__name__)


def in_groups(tensors):
    return [{"params": tensors[:2], "lr": 0.05}, {"params": tensors[2:]}]


def numbers_of(optimizer):
    return [{key: group[key] for key in ("k", "idle", "d") if key in group} for group in optimizer.param_groups]


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every second"])
def test_as_by_torchs_operations(rule, dtype, layout):
    close = CLOSE[torch.float32 if dtype.is_complex else dtype]
    one = train(rule(in_groups(params(SHAPES, dtype, layout))), 8, layout)
    other = train(rule(in_groups(params(SHAPES, dtype, layout))), 8, layout, by_torch=True)
    ours, theirs = everything(one), everything(other)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], **close)
    for mine, its in zip(numbers_of(one), numbers_of(other), strict=True):
        assert mine == pytest.approx(its, rel=1e-5) and mine.keys() == its.keys()


@each_rule
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_arrays_get_what_tensors_get(rule, dtype):
    tensors = params(SHAPES, torch.from_numpy(np.zeros(0, dtype)).dtype)
    arrays = [p.detach().numpy().copy() for p in tensors]
    on_tensors, on_arrays = rule(tensors), rule(arrays)
    for k in range(6):
        grads = draw(SHAPES, tensors[0].dtype, seed=100 + k)
        for p, g in zip(tensors, grads, strict=True):
            p.grad = g
        on_tensors.step()
        on_arrays.step([g.numpy() for g in grads])
    for p, array in zip(tensors, arrays, strict=True):
        assert np.array_equal(p.detach().numpy(), array)
    assert numbers_of(on_tensors) == numbers_of(on_arrays)


@each_rule
def test_arrays_are_stepped_on_by_kernels(rule, monkeypatch):
    stepped, natively = RuleOptimizer._oxistep_stepped_natively, []
    monkeypatch.setattr(
        RuleOptimizer, "_oxistep_stepped_natively", lambda *args: natively.append(stepped(*args)) or natively[-1]
    )
    again = RuleOptimizer._oxistep_stepped_again

    def stepped_again(*args):
        if (left := again(*args)) is None:
            natively.append(True)
        return left

    monkeypatch.setattr(RuleOptimizer, "_oxistep_stepped_again", stepped_again)
    optimizer = rule([np.arange(6.0), np.ones((2, 2))])
    for k in range(4):
        optimizer.step([np.full(6, k - 1.5), np.full((2, 2), 3.0 * k)])
    assert natively == [True] * 4


@each_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_threads_or_level(rule, dtype):
    def results(threads, level):
        oxistep.set_num_threads(threads)
        _core.force_simd(level)
        return everything(train(rule(params([(150_003,), (300, 70), (64,)], dtype), lr=0.01), 3))

    before = oxistep.get_num_threads()
    try:
        first = results(1, None)
        for threads in (2, 3):
            same_bits(results(threads, None), first)
        for level in _core.simd_levels():
            same_bits(results(1, level), first)
    finally:
        oxistep.set_num_threads(before)
        _core.force_simd(None)


@each_rule
def test_a_steady_step_asks_python_nothing(rule, monkeypatch):
    optimizer = train(rule(in_groups(params(SHAPES)), lr=0.0), 4)
    definition = definition_of(type(optimizer))
    monkeypatch.setattr(type(definition), "make_state", None)
    asked = []
    monkeypatch.setattr("oxistep.rules._native.Tracer.at", lambda *args: asked.append(args))
    for _ in range(4):
        optimizer.step()
    assert asked == []


@each_rule
def test_a_copy_and_a_checkpoint_go_on_to_the_bit(rule):
    optimizer = train(rule(in_groups(params(SHAPES))), 5)
    other = copy.deepcopy(optimizer)
    loaded = rule(in_groups([p.detach().clone().requires_grad_() for p in everything_p(optimizer)]))
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    first = everything(train(optimizer, 4, late=False))
    for again in (other, loaded):
        same_bits(everything(train(again, 4, late=False)), first)
        assert numbers_of(again) == numbers_of(optimizer)


def everything_p(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@each_rule
def test_gradients_that_are_clipped_or_unscaled_first(rule):
    def trained(by_torch, **settings):
        optimizer = rule(in_groups(params(SHAPES, torch.float64)), max_grad_norm=4.0, **settings)
        return everything(train(optimizer, 6, by_torch=by_torch))

    one, other = trained(False), trained(True)
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], **CLOSE[torch.float64])


def test_what_two_parameters_disagree_on_changes_nothing():
    @oxistep.rule
    def torn(p, g, s, lr=0.1):
        k = s.group.get("k", 1)
        if p.ndim == 2:
            s.group.k = k * 2
        else:
            s.group.k = k * 3
        return p - lr * g

    tensors = params([(3,), (2, 2)])
    optimizer = torn(tensors)
    for p in tensors:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in tensors]
    arrays = [np.ones(3), np.ones((2, 2))]
    for step in (optimizer.step, lambda: torn(arrays).step([np.ones(3), np.ones((2, 2))])):
        with pytest.raises(TypeError, match=r"rule torn: s\.group\.k of param_groups\[0\] becomes .* by another; set"):
            step()
    assert all((array == 1).all() for array in arrays)
    assert all(map(torch.equal, before, tensors)) and not optimizer.state and optimizer.param_groups[0]["k"] == 1


def test_sums_that_wait_for_each_other_change_nothing():
    @oxistep.rule
    def circular(p, g, s, lr=0.1):
        if p.ndim == 1:
            return p - lr * both(rules.sum(p), 2.0)
        return p - lr * both(2.0, rules.sum(p))

    def both(first, second):
        a, b = (lambda x: rules.total(x + 0)), (lambda x: rules.total(x + 0))
        return b(second * a(first)) if isinstance(second, float) else a(first * b(second))

    tensors = params([(3,), (2, 2)])
    optimizer = circular(tensors)
    for p in tensors:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in tensors]
    with pytest.raises(TypeError, match="rule circular: its totals wait for each other"):
        optimizer.step()
    assert all(map(torch.equal, before, tensors)) and not optimizer.state


@pytest.mark.parametrize("rule", [bounded, warmed_up], ids=lambda rule: rule.__name__)
def test_one_parameter_that_is_torchs_takes_all_along(rule):
    tensors = params([(3,), (2, 2)])
    shared = torch.ones(6)
    overlapping = [torch.nn.Parameter(shared[:4]), torch.nn.Parameter(shared[2:])]
    optimizer = rule([*tensors, *overlapping])
    for p in everything_p(optimizer):
        p.grad = torch.ones_like(p)
    optimizer.step()
    rows = definition_of(type(optimizer)).explain(optimizer)
    assert {path for *_, path, _ in rows} == {"torch"}
    assert sum("looks at other parameters too, and one of them is torch's" in reason for *_, reason in rows) == 2
    rest = rule(tensors)
    rest.step()
    assert {path for *_, path, _ in definition_of(type(rest)).explain(rest)} == {"native"}


def test_a_number_of_the_group_that_is_a_tensor_is_read_by_torchs_operations():
    optimizer = train(warmed_up(params(SHAPES)), 3)
    optimizer.param_groups[0]["k"] = torch.tensor(7.0)
    optimizer.step()
    assert optimizer.param_groups[0]["k"] == 8.0
    optimizer.step()
    assert optimizer.param_groups[0]["k"] == 9.0


def test_numbers_of_a_group_are_read_afresh():
    optimizer = train(warmed_up(params([(2,)]), lr=1.0, warmup=10), 4, late=False)
    (p,) = everything_p(optimizer)
    for k, share in ((0, 0.1), (4, 0.5), (90, 1.0)):
        optimizer.param_groups[0]["k"] = k
        p.grad = torch.ones(2)
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.full((2,), -share))
        assert optimizer.param_groups[0]["k"] == k + 1


def test_a_question_that_comes_out_otherwise_is_asked_before_anything_is_written():
    ran = []

    @oxistep.rule
    def diverges(p, g, s, lr=0.1):
        ran.append(1)
        if rules.norm(g) > 10:
            raise OverflowError("diverged")
        return p - lr * g

    (p,) = params([(3,)])
    optimizer = diverges([p])
    for _ in range(4):
        p.grad = torch.ones(3)
        optimizer.step()
    assert len(ran) == 2
    before = p.detach().clone()
    p.grad = torch.full((3,), 100.0)
    with pytest.raises(OverflowError, match="diverged"):
        optimizer.step()
    assert torch.equal(p, before) and optimizer.state[p]["step"] == 4
    p.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[p]["step"] == 5


def test_the_order_of_parameters_does_not_matter_to_sums():
    tensors = [(10.0**k) * p for k, p in zip((8, -8, 0, 3, 5), draw(SHAPES, torch.float64), strict=True)]

    @oxistep.rule
    def summed(p, g, s):
        return p * 0 + rules.total(rules.sum(g))

    results = set()
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)):
        ps = [tensors[i].clone().requires_grad_() for i in order]
        for p in ps:
            p.grad = p.detach().clone()
        summed(ps).step()
        results.add(ps[0].detach().flatten()[0].item())
    assert len(results) == 1


def test_what_tracing_does_before_a_question_is_answered_is_seen():
    """The rule's function is the user's: here it gives a parameter other memory, after that one was described."""
    first, second = torch.nn.Parameter(torch.ones(300_000)), torch.nn.Parameter(torch.ones(2, 2))
    traced = []

    @oxistep.rule
    def meddling(p, g, s, lr=0.5):
        if p.ndim == 2 and not traced:
            traced.append(1)
            first.data = torch.zeros(300_000)
        if rules.max_abs(p) > 0.5:
            return p - lr * g
        return p + lr * g

    optimizer = meddling([first, second])
    first.grad, second.grad = torch.ones(300_000), torch.ones(2, 2)
    optimizer.step()
    assert (first == 0.5).all() and (second == 0.5).all() and traced


def test_an_optimizer_whose_groups_have_numbers_is_let_go_of():
    optimizer = train(warmed_up(params(SHAPES)), 5)
    (p, *_) = everything_p(optimizer)
    p.register_hook(lambda grad, keeps=optimizer: grad)  # a cycle: parameter, hook, optimizer, group, parameter
    gone = weakref.ref(optimizer)
    del optimizer, p
    gc.collect()
    assert gone() is None
