"""Rules by kernels: the bits of compiled rules, the results of torch's operations, the same bits everywhere."""

import sys
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import oxistep  # noqa: E402
import oxistep.numpy  # noqa: E402
import oxistep.optim  # noqa: E402
from oxistep import _core, rules  # noqa: E402
from oxistep.bench.rules import RULES  # noqa: E402
from oxistep.diagnostics import UpdateMonitor  # noqa: E402
from oxistep.optim._definition import definition_of  # noqa: E402
from oxistep.rules._optimizer import source_of  # noqa: E402
from rules_by_kernels import SHAPES, draw, everything, params, same_bits, train  # noqa: E402
from scenarios import CLOSE, FORCED  # noqa: E402
from traced import CASES  # noqa: E402

pytestmark = pytest.mark.skipif(FORCED, reason="about kernels")

IDS = [f"{case[0]}-{i}" for i, case in enumerate(CASES)]
each_case = pytest.mark.parametrize(("name", "function", "both", "ours"), CASES, ids=IDS)


@oxistep.rule
def lamb(p, g, s, lr=0.01, beta=0.9, weight_decay=0.1):
    """Two norms of a tensor, one of them of what is computed, and a number that is kept."""
    s.m = rules.lerp(s.m, g, 1 - beta)
    update = s.m + weight_decay * p
    of_param, of_update = rules.norm(p), rules.norm(update)
    ratio = rules.where(of_param * of_update > 0, of_param / of_update, 1.0)
    s.longest = rules.maximum(s.get("longest", 0.0), of_update)
    return p - lr * ratio * update


@oxistep.rule
def by_turns(p, g, s, lr=0.1, warm=2):
    """Other states in other steps, and another formula for matrices."""
    if s.step % 3 == 0:
        s.late = s.late + g
        return p - lr * s.late
    if p.ndim == 2:
        s.of_matrices = rules.maximum(s.of_matrices, abs(g))
        return p - lr * g / (s.of_matrices + 1)
    if s.step <= warm:
        return p - lr * s.step / warm * g
    return p - lr * g


# ---- results ----


# As torch computes them, operation by operation: `x.add(y, alpha=a)` is fma(y, a, x).
def sgd(p, g, s, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.1, nesterov=False):
    g = rules.fma(p, weight_decay, g)
    s.buffer = g if s.step == 1 else rules.fma(g, 1 - dampening, s.buffer * momentum)
    g = rules.fma(s.buffer, momentum, g) if nesterov else s.buffer
    return rules.fma(g, -lr, p)


def adam(p, g, s, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, decoupled=False):
    if decoupled:
        p = p * (1 - lr * weight_decay)
    else:
        g = rules.fma(p, weight_decay, g)
    s.m = s.m.lerp(g, 1 - betas[0])
    s.v = (s.v * betas[1]).addcmul(g, g, value=1 - betas[1])
    root = s.v.sqrt() / rules.sqrt(1 - betas[1] ** s.step) + eps
    return p.addcdiv(s.m, root, value=-(lr / (1 - betas[0] ** s.step)))


def rmsprop(p, g, s, lr=0.1, alpha=0.99, eps=1e-8, weight_decay=0.1):
    g = rules.fma(p, weight_decay, g)
    s.square_avg = (s.square_avg * alpha).addcmul(g, g, value=1 - alpha)
    return p.addcdiv(g, s.square_avg.sqrt() + eps, value=-lr)


def adagrad(p, g, s, lr=0.1, lr_decay=0.1, eps=1e-10, weight_decay=0.1):
    g = rules.fma(p, weight_decay, g)
    s.sum = s.sum.addcmul(g, g)
    return p.addcdiv(g, s.sum.sqrt() + eps, value=-(lr / (1 + (s.step - 1) * lr_decay)))


def adamax(p, g, s, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1):
    g = rules.fma(p, weight_decay, g)
    s.m = s.m.lerp(g, 1 - betas[0])
    s.largest = rules.maximum(s.largest * betas[1], g.abs() + eps)
    return p.addcdiv(s.m, s.largest, value=-(lr / (1 - betas[0] ** s.step)))


def adadelta(p, g, s, lr=0.1, rho=0.9, eps=1e-6, weight_decay=0.1):
    g = rules.fma(p, weight_decay, g)
    s.square_avg = (s.square_avg * rho).addcmul(g, g, value=1 - rho)
    delta = (s.acc_delta + eps).sqrt() / (s.square_avg + eps).sqrt() * g
    s.acc_delta = (s.acc_delta * rho).addcmul(delta, delta, value=1 - rho)
    return rules.fma(delta, -lr, p)


IN_TORCHS_ORDER = [
    ("SGD", sgd, {"momentum": 0.9, "dampening": 0.1}, {}),
    ("SGD", sgd, {"momentum": 0.9, "dampening": 0.0, "nesterov": True}, {}),
    ("Adam", adam, {}, {}),
    ("AdamW", adam, {}, {"decoupled": True}),
    ("RMSprop", rmsprop, {}, {}),
    ("Adagrad", adagrad, {"lr_decay": 0.1}, {}),
    ("Adamax", adamax, {}, {}),
    ("Adadelta", adadelta, {}, {}),
]


@pytest.mark.parametrize(
    ("name", "function", "both", "ours"),
    IN_TORCHS_ORDER,
    ids=[f"{case[0]}-{i}" for i, case in enumerate(IN_TORCHS_ORDER)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_bits_of_the_compiled_rule(name, function, both, ours, dtype):
    shared = {"lr": 0.1, "weight_decay": 0.1, **both}
    theirs = getattr(oxistep.optim, name)(params(SHAPES, dtype), **shared)
    mine = oxistep.rule(function)(params(SHAPES, dtype), **shared, **ours)
    train(theirs, 6)
    train(mine, 6)
    for a, b in zip(theirs.param_groups[0]["params"], mine.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every second", "columns"])
def test_as_by_torchs_operations(name, function, both, ours, dtype, layout):
    rule = oxistep.rule(function)
    kernels = train(rule(params(SHAPES, dtype, layout), **both, **ours), 5, layout)
    operations = train(rule(params(SHAPES, dtype, layout), **both, **ours), 5, layout, by_torch=True)
    one, other = everything(kernels), everything(operations)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype and value.shape == other[key].shape
        torch.testing.assert_close(value, other[key], **CLOSE[dtype], equal_nan=True)


@pytest.mark.parametrize("rule", [lamb, by_turns], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every second"])
def test_norms_conditions_and_numbers(rule, dtype, layout):
    one = everything(train(rule(params(SHAPES, dtype, layout)), 8, layout))
    other = everything(train(rule(params(SHAPES, dtype, layout)), 8, layout, by_torch=True))
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], **CLOSE[dtype])


@each_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_arrays_get_what_tensors_get(name, function, both, ours, dtype):
    rule = oxistep.rule(function)
    tensors = params(SHAPES, torch.from_numpy(np.zeros(0, dtype)).dtype)
    arrays = [p.detach().numpy().copy() for p in tensors]
    ours_on_tensors, on_arrays = rule(tensors, **both, **ours), rule(arrays, **both, **ours)
    for k in range(5):
        grads = draw(SHAPES, tensors[0].dtype, seed=100 + k)
        for p, g in zip(tensors, grads, strict=True):
            p.grad = g
        ours_on_tensors.step()
        on_arrays.step([g.numpy() for g in grads])
    for p, array, entry in zip(tensors, arrays, on_arrays.state[0], strict=True):
        assert np.array_equal(p.detach().numpy(), array)
        assert entry.keys() == ours_on_tensors.state[p].keys()


# ---- the same bits everywhere ----


@pytest.fixture
def put_back():
    threads = oxistep.get_num_threads()
    yield
    oxistep.set_num_threads(threads)
    _core.force_simd(None)


ANYWHERE = [*(oxistep.rule(case[1]) for case in CASES[::3]), lamb]


@pytest.mark.parametrize("rule", ANYWHERE, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_threads_or_level(rule, dtype, put_back):
    shapes = [(200_003,), (300, 70), (64,)]

    def results(threads, level):
        oxistep.set_num_threads(threads)
        _core.force_simd(level)
        return everything(train(rule(params(shapes, dtype), lr=0.01), 3))

    first = results(1, None)
    for threads in (2, 3):
        same_bits(results(threads, None), first)
    for level in _core.simd_levels():
        same_bits(results(1, level), first)


BEYOND = 2**20 + 70_003
"""Elements of a tensor of which chunks are longer, and are walked in tiles of other lengths with prefetching."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["Adam", "momentum", "Lion", "plain operations"])
@pytest.mark.parametrize("settings", [{}, {"maximize": True}], ids=["plain", "maximize"])
def test_tensors_beyond_the_caches_get_the_bits_of_small_ones(name, dtype, settings):
    rule = RULES[name].rule
    (start,) = draw([(BEYOND,)], dtype)
    whole, parts = start.clone(), [part.clone() for part in start.split(9_000)]
    steps = [rule([tensor.requires_grad_() for tensor in tensors], **settings) for tensors in ([whole], parts)]
    for k in range(3):
        (grad,) = draw([(BEYOND,)], dtype, seed=k + 1)
        whole.grad = grad
        for part, own in zip(parts, grad.split(9_000), strict=True):
            part.grad = own
        for optimizer in steps:
            optimizer.step()
    assert not torch.equal(whole, start)
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norms_beyond_the_caches_do_not_depend_on_threads_or_level(dtype, put_back):
    def results(threads, level):
        oxistep.set_num_threads(threads)
        _core.force_simd(level)
        return everything(train(lamb(params([(BEYOND,)], dtype), lr=0.01), 3, late=False))

    first = results(1, None)
    same_bits(results(2, None), first)
    for level in _core.simd_levels():
        same_bits(results(1, level), first)


# ---- what steps remember ----


def test_a_steady_step_asks_python_nothing():
    calls = []

    @oxistep.rule
    def counted(p, g, s, lr=0.1, betas=(0.9, 0.99)):
        calls.append(1)
        s.m = betas[0] * s.m + g
        return p - lr * s.m / (1 - betas[1] ** s.step)

    optimizer = train(counted(params(SHAPES)), 4)
    assert len(calls) == 1
    for k in range(5):
        optimizer.param_groups[0]["lr"] = 0.1 / (k + 1)
        optimizer.param_groups[0]["betas"] = (0.9 - k / 100, 0.99)
        optimizer.step()
    assert len(calls) == 1


def test_states_are_kept_under_the_very_names_that_steps_look_for():
    """Each lookup then compares addresses; of other strings it is a hash for each state."""

    @oxistep.rule
    def two(p, g, s, lr=0.1):
        s.first, s.second = g, s.get("second", 0.0) + 1
        return p - lr * g

    for parameters in (params(SHAPES), params(SHAPES, dtype=torch.bfloat16)):
        optimizer = train(two(parameters), 2)
        for entry in optimizer.state.values():
            assert [key is sys.intern(key) for key in entry] == [True] * 3


def test_neighbours_at_the_same_numbers_but_for_a_sign_take_their_own():
    """What the last parameter got is taken again only for the same bits."""

    @oxistep.rule
    def signed(p, g, s, lr=0.1, sign=1.0):
        s.a = s.get("a", 0.0) * 1.0
        return p - lr * g / s.a

    ws = [torch.zeros(3, requires_grad=True) for _ in range(4)]
    optimizer = signed(ws)
    for w in ws:
        w.grad = torch.ones(3)
    optimizer.step()
    optimizer.step()
    signs = [0.0, -0.0, 0.0, -0.0]
    with torch.no_grad():
        for w, sign in zip(ws, signs, strict=True):
            w.zero_()
            optimizer.state[w]["a"].fill_(sign)
    optimizer.step()
    assert [w[0].item() for w in ws] == [-np.inf, np.inf, -np.inf, np.inf]


@pytest.mark.parametrize("asks", [False, True])
def test_neighbours_of_other_shapes_get_what_they_get_alone(asks):
    """What the last parameter got is taken again only where nothing asked for its shape, or the shape is the same."""

    @oxistep.rule
    def shaped(p, g, s, lr=0.1):
        s.m = rules.lerp(s.m, g, 0.1)
        size = lr * rules.norm(p) / rules.norm(s.m)
        # those that are known to have the same program at the third step part at the fourth
        if asks and s.step >= 4:
            size = size / p.numel() if p.ndim == 2 else 2 * size
        return p - size * s.m

    shapes = [(64,), (64,), (8, 8), (8, 8), (4, 4), (4, 16), (64,), (), (1, 1), (3, 5, 7)]
    together, alone = params(shapes), params(shapes)
    for optimizer in [*(shaped([p]) for p in alone), shaped(together)]:
        for step in range(6):
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.cos(torch.arange(p.numel()) + step).reshape(p.shape)
            optimizer.step()
    for p, own in zip(together, alone, strict=True):
        assert torch.equal(p, own)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 12])
def test_rules_of_few_names_and_of_many_step_alike(count):
    """Room for what a parameter keeps comes in two sizes: parameters of one optimizer may need either."""

    @oxistep.rule
    def several(p, g, s, lr=0.1):
        for i in range(count if p.ndim else 1):
            setattr(s, f"v{i}", 0.5 * getattr(s, f"v{i}") + g)
            p = p - lr * getattr(s, f"v{i}")
        s.n = s.get("n", 0.0) + 1
        return p * (1 - 0.01 / s.n)

    ours = everything(train(several(params(SHAPES)), 7))
    theirs = everything(train(several(params(SHAPES)), 7, by_torch=True))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)


def test_numbers_of_hyperparameters_are_read_afresh_at_every_step():
    @oxistep.rule
    def descent(p, g, s, lr=0.1, factors=(1.0, 2.0), word="a"):
        return p - lr * factors[1] * g if word == "a" else p + g

    w = torch.zeros(3, requires_grad=True)
    optimizer = descent([w])
    w.grad = torch.ones(3)
    group = optimizer.param_groups[0]
    seen = []
    for change in ({}, {"lr": 0.5}, {"factors": (0.0, 4.0)}, {"word": "b"}, {"word": "a", "lr": torch.tensor(1.0)}):
        group.update(change)
        before = w.detach().clone()
        optimizer.step()
        seen.append(round((w.detach() - before)[0].item(), 6))
    assert seen == [-0.2, -1.0, -2.0, 1.0, -4.0]


def test_shared_memory_takes_turns_as_compiled_rules_do():
    def tied(make):
        base = torch.arange(6.0)
        one, other = (torch.nn.Parameter(base) for _ in range(2))
        optimizer = make([one, other])
        for p in (one, other):
            p.data = base
            p.grad = torch.ones(6)
        optimizer.step()
        return base

    rule = oxistep.rule(CASES[1][1])
    expected = tied(lambda p: oxistep.optim.SGD(p, lr=0.1, momentum=0.9))
    assert torch.equal(tied(lambda p: rule(p, lr=0.1, momentum=0.9)), expected)


def test_what_kernels_do_not_do_torchs_operations_do():
    @oxistep.rule
    def asks(p, g, s, lr=0.1):
        if rules.total(rules.dot(g, g)) > 1:
            return p
        return p - lr * g

    optimizer = asks(params(SHAPES))
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    ((*_, path, reason), *_) = definition_of(type(optimizer)).explain(optimizer)
    assert path == "torch" and "by torch's operations: its rule has an `if` on a sum over all parameters" in reason


def test_what_the_rule_does_while_it_is_traced_is_seen():
    """Its function is the user's, and may give a parameter other memory, of which another one was described before."""
    hooks, params_ = [], [torch.nn.Parameter(torch.ones(300_000)) for _ in range(2)]

    @oxistep.rule
    def hooked(p, g, s, lr=0.1):
        for hook in hooks:
            hook()
        s.v = s.v + g
        return p - lr * s.v * 2 if s.step == 3 else p - lr * s.v

    optimizer = hooked(params_)
    for p in params_:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
    optimizer.state[params_[0]]["step"].fill_(10)  # its branch is known, the other's is a new one

    def other_memory():
        hooks.clear()
        params_[0].data = torch.full((300_000,), 7.0)

    hooks.append(other_memory)
    optimizer.step()
    assert params_[0].data.unique().item() == pytest.approx(7 - 0.3)


def test_reading_a_hyperparameter_that_runs_code_makes_no_step_steady():
    class Number:
        def numel(self):
            return 1

        def is_complex(self):
            return False

        def item(self):
            w.data = torch.full((1000,), 5.0)
            return 0.0

        def __float__(self):
            return self.item()

    @oxistep.rule
    def descent(p, g, s, lr=0.1, x=0.0):
        return p - lr * g + x

    w, frozen = torch.nn.Parameter(torch.ones(1000)), torch.nn.Parameter(torch.ones(3))
    optimizer = descent([{"params": [w]}, {"params": [frozen], "x": Number()}])
    for _ in range(4):
        w.grad = torch.ones(1000)
        optimizer.step()
        assert w.data.unique().item() == pytest.approx(5 - 0.1)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_threads_that_meet_a_rule_together(kind):
    import sys
    import threading

    def one_round(k):
        def fresh(p, g, s, lr=0.1):
            if s.step > 2:
                g = 2 * g
            if p.ndim == 1 and s.step % 2 == 0:
                g = g + p.shape[0]
            return p - lr * g

        rule, together = oxistep.rule(fresh), threading.Barrier(4)
        ends = [None] * 4

        def work(i):
            w = np.ones(3 + i % 2) if kind == "numpy" else torch.ones(3 + i % 2, requires_grad=True)
            optimizer = rule([w])
            together.wait()
            for _ in range(4):
                if kind == "numpy":
                    optimizer.step([np.ones_like(w)])
                else:
                    w.grad = torch.ones_like(w)
                    optimizer.step()
            ends[i] = float(w[0] if kind == "numpy" else w.detach()[0])

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), f"round {k} hangs"
        assert ends == pytest.approx([ends[0], ends[1]] * 2) and ends[0] == pytest.approx(1 - 0.6 - 0.6)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for k in range(20):
            one_round(k)
    finally:
        sys.setswitchinterval(before)


def test_conditions_that_always_change_are_not_remembered_for_ever():
    from oxistep.rules import _tree

    @oxistep.rule
    def counting(p, g, s, lr=0.1):
        return p - lr * g if int(s.step) % 5 else p

    w = torch.ones(2, requires_grad=True)
    optimizer = counting([w])
    w.grad = torch.ones(2)
    for _ in range(2 * _tree.MOST):
        optimizer.step()
    (tree,) = source_of(type(optimizer))._trees.values()
    assert len(tree.programs) <= _tree.MOST
    assert w[0].item() == pytest.approx(1 - 0.1 * (2 * _tree.MOST - 2 * _tree.MOST // 5), rel=1e-4)


def test_an_optimizer_whose_rule_knows_it_is_let_go_of():
    import gc
    import weakref

    class Trainer:
        def __init__(self):
            self.scale = 2.0

            @oxistep.rule
            def scaled(p, g, s, lr=0.1):
                return p - lr * self.scale * g

            self.w = torch.ones(3, requires_grad=True)
            self.optimizer = scaled([self.w])
            self.w.grad = torch.ones(3)
            self.optimizer.step()

    trainer = Trainer()
    seen = [weakref.ref(trainer), weakref.ref(trainer.optimizer), weakref.ref(trainer.w)]
    del trainer
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3


def test_an_update_that_is_replaced_counts_from_the_next_step_on():
    class Descent(rules.Optimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})

        @staticmethod
        def update(p, g, s, lr):
            return p - lr * g

    w = torch.zeros(2, requires_grad=True)
    optimizer = Descent([w])
    w.grad = torch.ones(2)
    optimizer.step()
    Descent.update = staticmethod(lambda p, g, s, lr: p + 100 * lr * g)
    for expected in (9.9, 19.9):
        optimizer.step()
        assert w[0].item() == pytest.approx(expected)
    assert definition_of(Descent).explain(optimizer)[0][2] == "native"


def test_a_counter_of_integers_is_a_counter():
    @oxistep.rule
    def by_count(p, g, s, lr=0.1):
        return p - lr * g if s.step < 3 else p - 10 * lr * g

    w = torch.zeros(2, requires_grad=True)
    optimizer = by_count([w])
    w.grad = torch.ones(2)
    optimizer.step()
    optimizer.state[w]["step"] = torch.tensor(5)
    optimizer.step()
    assert w[0].item() == pytest.approx(-1.1) and optimizer.state[w]["step"].item() == 6


@pytest.mark.parametrize("lr", [None, 0.5, np.float32(0.5), np.array(0.5), np.int64(1)], ids=repr)
def test_a_learning_rate_that_may_be_none(lr):
    @oxistep.rule
    def perhaps(p, g, s, lr=None):
        return p - (0.1 if lr is None else lr) * g

    w = np.zeros(3)
    perhaps([w], lr=lr).step([np.ones(3)])
    assert np.allclose(w, -0.1 if lr is None else -float(lr))


def test_a_flag_of_numpys_is_a_flag():
    @oxistep.rule
    def flagged(p, g, s, lr=0.1, flag=False):
        return p - lr * g if flag is True else p

    w = torch.zeros(2, requires_grad=True)
    optimizer = flagged([w], flag=np.True_)
    w.grad = torch.ones(2)
    optimizer.step()
    assert w[0].item() == pytest.approx(-0.1)
    optimizer.param_groups[0]["flag"] = 1.0
    with pytest.raises(TypeError, match="flag: expected True or False, got float"):
        optimizer.step()


def test_what_is_too_large_for_kernels_torchs_operations_do():
    @oxistep.rule
    def large(p, g, s, lr=0.1):
        several = [g * k for k in range(2, 150)]
        product = p
        for one, other in zip(several, reversed(several), strict=True):
            product = product + rules.minimum(one, other)
        return p - lr * product

    w, v = (torch.ones(5, requires_grad=True) for _ in range(2))
    for p, by_torch in ((w, False), (v, True)):
        optimizer = large([p])
        p.grad = torch.ones(5)
        if by_torch:
            definition_of(type(optimizer)).leave_everything(optimizer)
        else:
            optimizer.step()
    torch.testing.assert_close(w, v)


def test_numbers_of_a_parameter_survive_loading_into_a_new_process_of_the_rule():
    def make():
        @oxistep.rule
        def numbered(p, g, s, lr=0.1):
            s.d = s.get("d", 1e-8) + 1e-8
            if s.step > 3:
                s.late = s.get("late", 0.0) + s.d
            return p - lr * g

        w = torch.ones(3, dtype=torch.float16, requires_grad=True)
        w.grad = torch.ones_like(w)
        return w, numbered([w])

    w, first = make()
    for _ in range(6):
        first.step()
    other_w, other = make()
    other.load_state_dict(first.state_dict())
    for name in ("d", "late"):
        one, two = first.state[w][name], other.state[other_w][name]
        assert one.dtype == two.dtype == torch.float64 and torch.equal(one, two)


def test_parameters_that_overlap_have_their_norms_before_either_is_written():
    @oxistep.rule
    def by_norm(p, g, s, lr=0.1):
        return p - lr * g / (1 + rules.norm(p))

    def trained(by_torch):
        base = torch.ones(6)
        one, other = torch.nn.Parameter(base[:4]), torch.nn.Parameter(base[2:])
        one.data, other.data = base[:4], base[2:]
        optimizer = by_norm([one, other])
        one.grad, other.grad = torch.ones(4), torch.ones(4)
        if by_torch:
            definition_of(type(optimizer)).leave_everything(optimizer)
        else:
            optimizer.step()
        return base

    torch.testing.assert_close(trained(False), trained(True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "every second"])
@pytest.mark.parametrize("states", [1, 5])
def test_updates_are_measured_as_they_are_stored(dtype, layout, states):
    @oxistep.rule
    def keeping(p, g, s, lr=0.003):
        for k in range(states):
            setattr(s, f"m{k}", s.get(f"m{k}") + g / (k + 1))
        return p - lr * s.m0

    optimizer = train(keeping(params([(70, 20)], dtype, layout)), 3, layout)
    (p,) = optimizer.param_groups[0]["params"]
    monitor = UpdateMonitor(optimizer)
    before = p.detach().double()
    optimizer.step()
    (row,) = monitor.rows()
    assert row["update"] == pytest.approx((p.detach().double() - before).norm().item(), rel=1e-9)


def test_words_that_run_code_when_they_are_forgotten():
    """Of too many words those before are forgotten, and what that runs may step by the same rule."""
    steps = []

    class Word(str):
        def __del__(self):
            steps.append(other.step())

    @oxistep.rule
    def modal(p, g, s, lr=0.1, mode="slow"):
        return p - lr * g

    tensors = params([(3,), (3,)])
    for p in tensors:
        p.grad = torch.ones(3)
    optimizer, other = modal(tensors[:1]), modal(tensors[1:])

    def train():
        for k in range(300):
            optimizer.param_groups[0]["mode"] = Word(f"word {k}")
            optimizer.step()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and len(steps) > 200
