"""The NumPy optimizers compute what torch.optim computes, in every memory layout."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpy_table import CLASSES, ROWS, SCALARS, assert_same_state, layouts, same_bits
from oxistep.numpy import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop
from reach import Reach

SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (4, 3, 2), (1031,)]

# The project's promise for 100 steps against torch's for-loop: rtol, atol.
TOLERANCE = {np.float32: (1e-5, 1e-6), np.float64: (1e-12, 1e-12)}

every_row = pytest.mark.parametrize(("cls", "hyper"), ROWS.values(), ids=ROWS)
every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)


@every_row
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_torch(cls, hyper, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    params = [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]
    tensors = [torch.tensor(array, requires_grad=True) for array in params]
    ours = cls(params, **hyper)
    theirs = getattr(torch.optim, cls.__name__)(tensors, foreach=False, **hyper)
    reach = Reach()

    for step in range(100):
        # The last parameter is frozen at first, another one now and then.
        grads = [
            None if (i == len(params) - 1 and step < 20) or (i == 3 and step % 7 == 0) else grad
            for i, grad in enumerate(np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES)
        ]
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = None if grad is None else torch.tensor(grad)
        ours.step(grads)
        theirs.step()
        for i, tensor in enumerate(tensors):
            reach.note(i, tensor.detach())
            for key, value in theirs.state.get(tensor, {}).items():
                if value is not None:
                    reach.note((i, key), value)

    rtol, atol = TOLERANCE[dtype]
    for i, (array, tensor, state) in enumerate(zip(params, tensors, ours.state[0], strict=True)):
        reach.assert_close(i, array, tensor.detach(), rtol, atol)
        # torch's SGD has an empty state where there is no momentum; a missing one is the same.
        expected = {key: value for key, value in theirs.state.get(tensor, {}).items() if value is not None}
        assert state.keys() == expected.keys()
        for key, value in state.items():
            assert value.dtype == expected[key].numpy().dtype
            assert value.shape == expected[key].shape
            reach.assert_close((i, key), value, expected[key], rtol, atol)


@pytest.mark.parametrize(
    ("cls", "hyper", "end"),
    [
        (SGD, {"lr": 0.1}, (0.00000, 3.00000)),
        (SGD, {"lr": 0.01}, (0.53048, 0.00000)),
        (SGD, {"lr": 0.01, "momentum": 0.9}, (0.01691, -0.00855)),
        (SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}, (0.00722, -0.00000)),
        (Adagrad, {"lr": 0.1, "eps": 1e-8}, (2.32355, 1.39497)),
        (RMSprop, {"lr": 0.1, "alpha": 0.9, "eps": 1e-8}, (-0.00000, -0.00000)),
        (Adam, {"lr": 0.1}, (-0.02143, 0.01934)),
        (AdamW, {"lr": 0.1}, (-0.01616, 0.01787)),
        (Adadelta, {"lr": 10.0}, (1.22258, 0.55101)),
        (Adamax, {"lr": 0.1}, (0.08632, -0.01231)),
        (NAdam, {"lr": 0.1}, (-0.00017, -0.00473)),
        (RAdam, {"lr": 0.1}, (0.14523, 0.95806)),
        (ASGD, {"lr": 0.05}, (0.00011, 0.00000)),
        (Rprop, {"lr": 0.1}, (0.00000, -0.00000)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends_on_the_bowl(cls, hyper, end, dtype):
    x = np.array([4.0, 3.0], dtype)
    optimizer = cls([x], **hyper)
    for _ in range(100):
        optimizer.step([np.array([2.0, 20.0], dtype) * x])
    np.testing.assert_allclose(x, end, rtol=0, atol=1e-5)


@every_row
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (1, 6), (4, 5), (3, 4, 5), (37, 41)], ids=str)
def test_layout_changes_no_bit(cls, hyper, dtype, shape):
    rng = np.random.default_rng(len(shape))
    start = np.asarray(rng.standard_normal(shape), dtype)
    grads = [np.asarray(rng.standard_normal(shape), dtype) for _ in range(3)]
    plain = start.copy()
    expected = cls([plain], **hyper)
    for grad in grads:
        expected.step([grad])

    for n, (buffer, array) in enumerate(layouts(start)):
        outside = np.ones(buffer.shape, bool)
        np.lib.stride_tricks.as_strided(
            outside.reshape(-1)[_offset(buffer, array) :] if outside.size else outside,
            array.shape,
            [stride // array.itemsize for stride in array.strides],
        )[...] = False
        untouched = buffer[outside].copy()
        optimizer = cls([array], **hyper)
        for step, grad in enumerate(grads):
            # Gradients come in layouts of their own.
            _, laid_out = list(layouts(grad))[(n + 3 * step) % 7]
            optimizer.step([laid_out])
            assert same_bits(laid_out, grad), "a gradient is only read"
        assert same_bits(array, plain)
        assert_same_state(optimizer, expected)
        assert same_bits(buffer[outside], untouched), "wrote outside its view"


def _offset(buffer, array):
    """Index in the buffer's memory of the array's first element."""
    return (array.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]) // array.itemsize


@st.composite
def views(draw):
    """A view without overlap: axes in any order, any step forward or backward, cut out of a larger buffer."""
    shape = draw(st.lists(st.integers(0, 6), max_size=4).map(tuple))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    axes = draw(st.permutations(range(len(shape))))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    buffer = np.full([abs(step) * n + 1 for n, step in zip(shape, steps, strict=True)], 77, dtype)
    order = draw(st.sampled_from("CF"))
    view = np.asarray(buffer, order=order)
    view = view[..., *(slice(None, None, step) for step in steps)]
    return view[..., *map(slice, shape)].transpose(axes)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), row=st.sampled_from(list(ROWS)), seed=st.integers(0, 2**32 - 1))
def test_any_strides(data, row, seed):
    cls, hyper = ROWS[row]
    rng = np.random.default_rng(seed)
    arrays = data.draw(st.lists(views(), min_size=1, max_size=3))
    for array in arrays:
        array[...] = rng.standard_normal(array.shape)
    copies = [array.copy() for array in arrays]
    strided, plain = cls(arrays, **hyper), cls(copies, **hyper)
    for _ in range(3):
        grads = [np.asarray(rng.standard_normal(array.shape), array.dtype) for array in arrays]
        given_layout = [np.asarray(grad, order=data.draw(st.sampled_from("CF"))) for grad in grads]
        strided.step([grad[::-1].copy()[::-1] if grad.ndim else grad for grad in given_layout])
        plain.step(grads)
    for array, copy in zip(arrays, copies, strict=True):
        assert same_bits(array, copy)
    assert_same_state(strided, plain)


@every_row
def test_float16_is_float32_arithmetic_rounded_once(cls, hyper):
    rng = np.random.default_rng(3)
    half = np.asarray(rng.standard_normal(100), np.float16)
    optimizer = cls([half], **hyper)
    if cls is Rprop:  # whose step sizes begin as lr rounded to float16
        optimizer.step([np.zeros(100, np.float16)])
    for _ in range(10):
        grad = np.asarray(rng.standard_normal(100), np.float16)
        wide = half.astype(np.float32)
        reference = cls([wide], **hyper)
        reference.load_state_dict(optimizer.state_dict())
        reference.step([grad.astype(np.float32)])
        optimizer.step([grad])
        assert same_bits(half, wide.astype(np.float16))
        for key, value in optimizer.state[0][0].items():
            expected = reference.state[0][0][key]
            assert same_bits(value, expected if key in SCALARS else expected.astype(np.float16)), key


@every_class
def test_late_start_and_skips(cls, hyper):
    rng = np.random.default_rng(5)
    early, late, never = (np.asarray(rng.standard_normal(6)) for _ in range(3))
    alone, untouched = late.copy(), never.copy()
    optimizer, reference = cls([early, late, never], **hyper), cls([alone], **hyper)
    for step in range(6):
        grad = rng.standard_normal(6)
        if step < 3:
            optimizer.step([grad, None, None])
            assert same_bits(late, alone)
        else:
            optimizer.step([None if step == 4 else grad, grad, None])
            reference.step([grad])
    assert same_bits(late, alone)
    assert same_bits(never, untouched)
    assert_same_state_of(optimizer.state[0][1], reference.state[0][0])
    if cls is Adagrad:
        assert optimizer.state[0][2]["step"] == 0
    else:
        assert optimizer.state[0][2] == {}


def assert_same_state_of(one, other):
    assert one.keys() == other.keys()
    assert all(same_bits(one[key], other[key]) for key in one)


@every_class
def test_mixed_dtypes_in_one_group(cls, hyper):
    rng = np.random.default_rng(6)
    dtypes = [np.float64, np.float16, np.float32, np.float64]
    params = [np.asarray(rng.standard_normal(9), dtype) for dtype in dtypes]
    alone = [array.copy() for array in params]
    together, apart = cls(params, **hyper), [cls([array], **hyper) for array in alone]
    for _ in range(3):
        grads = [np.asarray(rng.standard_normal(9), dtype) for dtype in dtypes]
        together.step(grads)
        for optimizer, grad in zip(apart, grads, strict=True):
            optimizer.step([grad])
    assert all(same_bits(one, other) for one, other in zip(params, alone, strict=True))
    for state, array in zip(together.state[0], params, strict=True):
        assert all(value.dtype == (np.float32 if key in SCALARS else array.dtype) for key, value in state.items())
