"""`clip_grad_norm_`, `clip_grad_value_` and `get_total_norm`: torch's results, signatures and errors."""

import inspect
import math
import warnings

import pytest
import torch
from torch.nn import utils
from torch.overrides import TorchFunctionMode

import oxistep
from oxistep import _core
from scenarios import CLOSE, outcome
from seeing import Seeing

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_order = pytest.mark.parametrize("order", [1, 2.0, math.inf, "inf", 0, 3, -math.inf, 0.5])
each_max_norm = pytest.mark.parametrize("max_norm", [0.5, 1e9, 0, -1.0, math.inf])
INF, NAN = math.inf, math.nan


def values(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(
        dtype
    )


def with_gradients(grads):
    """Parameters that have these gradients, whatever their layout."""
    params = []
    for grad in grads:
        p = torch.zeros(grad.shape, dtype=grad.dtype, requires_grad=True)
        p.grad = grad
        params.append(p)
    return params


def layouts(dtype):
    """Gradients of one dtype in every layout that matters; no two share memory."""
    return [
        values((), 1, dtype),
        values((7,), 2, dtype),
        values((200, 30), 3, dtype),
        values((30, 20), 4, dtype).t(),
        values((40, 40), 5, dtype)[::2, 1::3],
        values((0, 3), 6, dtype),
        values((2, 3, 4, 5), 7, dtype).contiguous(memory_format=torch.channels_last),
        values((3001,), 8, dtype)[1:],
    ]


def both(play):
    """What `play(clip functions)` gives with ours and with torch's."""
    return outcome(play, oxistep), outcome(play, utils)


def assert_close(ours, theirs, dtype=None):
    if isinstance(theirs, tuple) and isinstance(theirs[0], type):
        assert ours == theirs
        return
    assert type(ours) is type(theirs)
    for a, b in zip(ours, theirs, strict=True) if isinstance(theirs, list) else [(ours, theirs)]:
        assert a.dtype == b.dtype
        assert a.device == b.device
        torch.testing.assert_close(a, b, equal_nan=True, **CLOSE[dtype or a.dtype])


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"])
def test_signatures_are_torchs(name):
    ours, theirs = (inspect.signature(getattr(m, name)).parameters.values() for m in (oxistep, utils))
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]


# ---- the norm ----


@pytest.mark.filterwarnings("ignore:Casting complex values")
@each_dtype
@each_order
def test_norm_of_every_layout(dtype, order):
    grads = layouts(dtype)
    if order == math.inf or order == "inf" or (not isinstance(order, str) and order < 0):
        del grads[5]  # of no elements
    ours, theirs = both(lambda m: m.get_total_norm(grads, order))
    assert isinstance(ours, torch.Tensor)
    assert_close(ours, theirs, {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype))


@pytest.mark.parametrize("order", [INF, -INF])
def test_an_empty_tensor_has_no_largest_element(order):
    ours, theirs = both(lambda m: m.get_total_norm([torch.ones(3), torch.ones(0)], order))
    assert ours == theirs
    assert ours[0] is RuntimeError


@pytest.mark.parametrize("order", [1, 2, INF, 3])
@pytest.mark.parametrize("first", DTYPES, ids=str)
@pytest.mark.parametrize("second", DTYPES, ids=str)
def test_norm_of_mixed_dtypes(first, second, order):
    grads = [values((50,), 1, first), values((60,), 2, second), values((3,), 3, first)]
    ours, theirs = both(lambda m: m.get_total_norm(grads, order))
    rank = [torch.float64, torch.complex128, torch.float32, torch.complex64, torch.float16, torch.bfloat16]
    narrowest = max(first, second, key=rank.index)  # torch rounds the norm of each tensor to its own dtype
    assert_close(ours, theirs, narrowest)
    assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("order", [1, 2, INF])
@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-30])
def test_norm_is_that_of_float64_rounded_once(order, scale):
    grads = [values((n,), n) * scale for n in (5, 1000, 200_001)]
    exact = torch.linalg.vector_norm(torch.cat(grads).double(), order)
    assert torch.equal(oxistep.get_total_norm(grads, order), exact.float())


def test_norm_of_float16_beyond_its_range_is_infinite_as_torchs():
    grads = [torch.full((10_000,), 1000.0, dtype=torch.float16)]
    ours, theirs = both(lambda m: m.get_total_norm(grads))
    assert torch.equal(ours, theirs)
    assert ours.isinf()


@pytest.mark.parametrize("order", [1, 2, INF])
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_nan_and_infinity_reach_the_norm(order, dtype):
    grads = [values((300,), 1, dtype), values((70_000,), 2, dtype)]
    grads[1][-1] = -INF
    assert oxistep.get_total_norm(grads, order) == INF
    grads[0][5] = NAN
    assert oxistep.get_total_norm(grads, order).isnan()


@pytest.fixture
def restored():
    level, threads = oxistep.cpu_features()["simd"], torch.get_num_threads()
    yield
    _core.force_simd(level)
    oxistep.set_num_threads(None)
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("order", [1, 2, INF])
def test_the_same_bits_for_any_threads_level_and_order(order):
    grads = [values((n,), n, torch.float64) for n in (1, 5, 300_000, 64, 77_777, 131_073, 12, 12, 90)]
    expected = oxistep.get_total_norm(grads, order)
    assert expected.dtype == torch.float64
    for level in oxistep.cpu_features()["available"]:
        _core.force_simd(level)
        for threads in (1, 2, 3):
            oxistep.set_num_threads(threads)
            for _ in grads:
                grads = grads[1:] + grads[:1]
                assert torch.equal(oxistep.get_total_norm(grads, order), expected)


def test_norm_where_elements_share_memory():
    row = values((5,), 1)
    for grads in ([row.expand(4, 5)], [row, row], [row, row[1:]], [values((9,), 2).as_strided((3, 4), (1, 1))]):
        ours, theirs = both(lambda m, grads=grads: m.get_total_norm(grads))
        assert_close(ours, theirs)


class Mine(Seeing, torch.Tensor):
    """A subclass, whose elements might be anywhere: torch's."""


def strange(kind):
    ordinary = values((4,), 3)
    sparse = torch.sparse_coo_tensor([[0, 2, 0]], [1.0, 2.0, 5.0], (3,))
    return {
        "subclass": lambda: [ordinary, values((5,), 4).as_subclass(Mine)],
        "subclass first": lambda: [values((5,), 4).as_subclass(Mine), ordinary],
        "only subclasses": lambda: [values((5,), 4).as_subclass(Mine)],
        "sparse": lambda: [ordinary, sparse],
        "only sparse": lambda: [sparse.coalesce(), sparse],
        "integers": lambda: [ordinary, torch.tensor([1, 2])],
        "lazily conjugated": lambda: [ordinary, values((5,), 4, torch.complex64).conj()],
        "lazily negated": lambda: [ordinary, values((5,), 4, torch.complex64).conj().imag],
        "no tensor": lambda: [ordinary, 3.0],
    }[kind]()


KINDS = ["subclass", "subclass first", "only subclasses", "sparse", "only sparse", "integers", "lazily conjugated"]
KINDS += ["lazily negated"]


@pytest.mark.parametrize("order", [1, 2, INF])
@pytest.mark.parametrize("kind", [*KINDS, "no tensor"])
def test_norm_of_what_is_torchs(kind, order):
    ours, theirs = both(lambda m: m.get_total_norm(strange(kind), order))
    if kind in ("integers", "no tensor"):
        assert isinstance(ours, tuple)
        assert ours[0] is theirs[0]
    elif isinstance(theirs, tuple):
        assert ours == theirs
    else:
        assert_close(ours.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor))


def test_norm_of_nothing_and_of_a_single_tensor():
    for tensors in ([], (), iter([]), values((6,), 1), iter([values((6,), 1)])):
        tensors = list(tensors) if not isinstance(tensors, torch.Tensor) else tensors
        ours, theirs = both(lambda m, tensors=tensors: m.get_total_norm(tensors))
        assert_close(ours, theirs)
    assert oxistep.get_total_norm(iter([torch.tensor([3.0, 4.0])])) == 5


# ---- clipping to a norm ----


def clipped(m, make, *args, **kwargs):
    """The norm and the gradients, after clipping."""
    params = with_gradients(make())
    norm = m.clip_grad_norm_(params, *args, **kwargs)
    assert not norm.requires_grad
    return [norm, *(p.grad.clone() for p in params)]


@pytest.mark.filterwarnings("ignore:Casting complex values")
@each_dtype
@each_max_norm
@pytest.mark.parametrize("order", [1, 2.0, math.inf, 3])
def test_clipping_every_layout(dtype, max_norm, order):
    def make():
        return [grad for grad in layouts(dtype) if grad.numel()]

    ours, theirs = both(lambda m: clipped(m, make, max_norm, order))
    assert_close(ours, theirs, dtype)


@each_dtype
@pytest.mark.parametrize("max_norm", [1e-3, 0.7, 3, 1e9])
def test_gradients_are_multiplied_as_torch_multiplies(dtype, max_norm):
    """Given the same norm, the same bits."""
    grads = [grad for grad in layouts(dtype) if grad.numel() > 1]
    grads += [values((9,), 9, torch.float64), values((9,), 9, torch.bfloat16)]
    expected = [grad.clone() for grad in grads]
    norm = oxistep.clip_grad_norm_(with_gradients(grads), max_norm)
    utils.clip_grads_with_norm_(with_gradients(expected), max_norm, norm)
    assert all(map(torch.equal, grads, expected))
    assert (max_norm > 1e6) == torch.equal(grads[0], layouts(dtype)[1])


@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_the_factor_is_torchs_to_the_bit(dtype):
    norms = [0.0, 1e-7, 1e-6, 1.0, 65504.0, INF, NAN, *(values((3000,), 1).exp() * 3).tolist()]
    for norm in torch.tensor(norms).to(dtype):
        for max_norm in (1.0, 0.1, 3, 0.0, -1.0, 1e-30, INF):
            expected = torch.clamp(max_norm / (norm + 1e-6), max=1.0).item()
            factor = _core.clip_factor(norm, max_norm)
            assert factor == expected or (math.isnan(factor) and math.isnan(expected)), (norm, max_norm)


def test_nothing_is_written_when_nothing_is_to_be_clipped():
    grads = layouts(torch.float32)
    versions = [grad._version for grad in grads]
    assert oxistep.clip_grad_norm_(with_gradients(grads), 1e9) > 0
    assert [grad._version for grad in grads] == versions
    oxistep.clip_grad_norm_(with_gradients(grads), 1.0)
    assert all(grad._version > version for grad, version in zip(grads, versions, strict=True))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@each_dtype
def test_without_an_error_the_norm_poisons_as_in_torch(bad, dtype):
    def make():
        grads = [values((5,), 1, dtype), values((6,), 2, dtype)]
        grads[1][3] = bad
        return grads

    ours, theirs = both(lambda m: clipped(m, make, 1.0))
    assert_close(ours, theirs, dtype)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("order", [2, INF, 3])
def test_error_if_nonfinite_is_raised_before_anything_is_written(bad, order):
    grads = [values((5,), 1), torch.tensor([1.0, bad])]
    before = [grad.clone() for grad in grads]
    for name in ("clip_grad_norm_", "get_total_norm"):
        arguments = (with_gradients(grads), 1.0, order) if name == "clip_grad_norm_" else (grads, order)
        ours, theirs = both(
            lambda m, name=name, arguments=arguments: getattr(m, name)(*arguments, error_if_nonfinite=True)
        )
        assert ours == theirs
        assert ours[0] is RuntimeError
    assert torch.equal(grads[0], before[0])
    assert oxistep.clip_grad_norm_(with_gradients(before[:1]), 1.0, error_if_nonfinite=True).isfinite()


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_clipping_what_is_torchs(kind, foreach):
    if kind.startswith("lazily") and foreach is not False:
        pytest.skip("torch's foreach multiplication lacks lazily conjugated tensors; ours need not")

    def play(m):
        grads = [grad for grad in strange(kind) if isinstance(grad, torch.Tensor)]
        params = [torch.zeros(3, requires_grad=True) for _ in grads]
        for p, grad in zip(params, grads, strict=True):
            p.grad_dtype = None
            p.data = torch.zeros(
                grad.shape, dtype=grad.dtype if grad.is_floating_point() or grad.is_complex() else None
            )
            p.grad = grad
        norm = m.clip_grad_norm_(params, 0.5, foreach=foreach)
        dense = [(p.grad.to_dense() if p.grad.is_sparse else p.grad).as_subclass(torch.Tensor) for p in params]
        return [norm.as_subclass(torch.Tensor), *(grad.resolve_conj().resolve_neg() for grad in dense)]

    ours, theirs = both(play)
    assert_close(ours, theirs)


def shared(kind):
    base = values((12,), 1)
    return {
        "the same twice": lambda: [base, values((3,), 2), base],
        "views that overlap": lambda: [base[:7], base[5:]],
        "views side by side": lambda: [base[::2], base[1::2]],
        "a row repeated": lambda: [values((2,), 2), base.expand(3, 12)],
    }[kind]()


@pytest.mark.parametrize("kind", ["the same twice", "views that overlap", "views side by side", "a row repeated"])
@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_gradients_that_share_memory(kind, name):
    def play(m):
        params = with_gradients(shared(kind))
        getattr(m, name)(params, 0.5)
        return [p.grad.clone() for p in params]

    ours, theirs = both(play)
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_gradients_made_in_inference_mode(name):
    def play(m):
        with torch.inference_mode():
            grad = values((5,), 1)
        p = torch.zeros(5, requires_grad=True)
        p.grad = grad
        getattr(m, name)([p], 0.1)

    ours, theirs = both(play)
    assert ours == theirs
    assert ours[0] is RuntimeError
    with torch.inference_mode():
        params = with_gradients([values((5,), 1)])
        getattr(oxistep, name)(params, 0.1)
        assert params[0].grad.abs().max() <= 0.1


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_"])
def test_ways_to_give_parameters(name):
    def grads_after(m, ways):
        params = with_gradients([values((5,), 1), values((6,), 2)])
        params.insert(1, torch.zeros(3, requires_grad=True))  # without a gradient
        getattr(m, name)(ways(params), 0.25)
        return [p.grad.clone() for p in params if p.grad is not None]

    every = [list, tuple, iter, dict.fromkeys, lambda ps: (p for p in ps), lambda ps: ps[0]]
    if name == "clip_grad_norm_":  # torch's clip_grad_value_ raises an internal error where there is no gradient
        every.append(lambda ps: ps[1:2])
    for ways in every:
        ours, theirs = both(lambda m, ways=ways: grads_after(m, ways))
        assert_close(ours, theirs)
    layer = torch.nn.Linear(3, 2)
    layer(torch.ones(3)).sum().backward()
    getattr(oxistep, name)(layer.parameters(), 1e-3)
    assert max(p.grad.abs().max() for p in layer.parameters()) <= 1e-3


def test_an_empty_generator_is_told_of():
    for m in (utils, oxistep):
        with pytest.warns(UserWarning, match="`parameters` is an empty generator"):
            assert m.clip_grad_norm_((p for p in []), 1.0) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert oxistep.clip_grad_norm_([], 1.0) == 0


@pytest.mark.parametrize("arguments", [("a",), (1.0, "b"), (None,), (1.0, None)])
def test_wrong_arguments(arguments):
    ours, theirs = both(lambda m: m.clip_grad_norm_(with_gradients([values((5,), 1)]), *arguments))
    assert ours[0] is theirs[0]
    ours, theirs = both(lambda m: m.clip_grad_norm_(3, 1.0))
    assert ours == theirs


def test_who_watches_torchs_operations_sees_them():
    class Watching(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.seen.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    params = with_gradients([values((5,), 1)])
    with Watching() as watching:
        oxistep.clip_grad_norm_(params, 0.1)
    assert {"_foreach_norm", "_foreach_mul_"} <= set(watching.seen)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_gradients_of_a_graph_notice_the_change():
    x = torch.ones(3, requires_grad=True)
    (x**3).sum().backward(create_graph=True)
    squared = (x.grad * x.grad).sum()
    oxistep.clip_grad_norm_([x], 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


# ---- clipping each value ----


@each_dtype
@pytest.mark.parametrize("clip_value", [0.5, 0.1, 0, -1, 1e9, INF, NAN])
@pytest.mark.parametrize("foreach", [None, False])
def test_values(dtype, clip_value, foreach):
    def play(m):
        params = with_gradients(layouts(dtype))
        params[1].grad[:3] = torch.tensor([NAN, INF, -INF]).to(dtype)
        m.clip_grad_value_(params, clip_value, foreach)
        return [p.grad for p in params]

    ours, theirs = both(play)
    beyond_range = dtype == torch.float16 and clip_value == 1e9
    assert isinstance(theirs, tuple) == (dtype.is_complex or beyond_range)
    assert_close(ours, theirs)
    if not isinstance(theirs, tuple):
        assert all(torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)) for a, b in zip(ours, theirs, strict=True))


def test_a_complex_gradient_is_refused_before_any_value_is_clipped():
    grads = [values((5,), 1), values((5,), 1, torch.complex64)]
    before = grads[0].clone()
    params = with_gradients(grads[::-1])
    with pytest.raises(NotImplementedError, match="clamp is not supported for complex types"):
        oxistep.clip_grad_value_(params, 0.1)
    assert torch.equal(grads[0], before)


def test_clipping_values_counts_as_a_change():
    (p,) = with_gradients([values((5,), 1)])
    version = p.grad._version
    oxistep.clip_grad_value_([p], 0.1)
    assert p.grad._version > version
