"""Clipping of arrays: the functions, and the settings of an optimizer, beside torch's."""

import copy
import math
import pickle

import numpy as np
import pytest

import oxistep
from numpy_table import CLASSES, assert_same_state, same_bits, snapshot
from oxistep.diagnostics import UpdateMonitor
from oxistep.numpy import SGD, Adam, clip_grad_norm, clip_grad_value, zoo

every_class = pytest.mark.parametrize(("cls", "hyper"), CLASSES.values(), ids=CLASSES)
every_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])


def gradients(dtype=np.float64, scale=1.0, step=0):
    rng = np.random.default_rng(step)
    return {
        "layers": [np.asarray(rng.standard_normal((3, 4)) * scale, dtype), np.asarray(rng.standard_normal(5), dtype)],
        "b": np.asarray(rng.standard_normal(), dtype),
    }


def arrays(grads):
    return [*grads["layers"], grads["b"]]


@every_dtype
@pytest.mark.parametrize("norm_type", [2.0, 1.0, math.inf, 3.0])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_grad_norm_is_torchs(dtype, norm_type, max_norm):
    torch = pytest.importorskip("torch")
    grads = gradients(dtype)
    tensors = [torch.zeros(array.shape, dtype=torch.tensor(array).dtype, requires_grad=True) for array in arrays(grads)]
    for tensor, array in zip(tensors, arrays(grads), strict=True):
        tensor.grad = torch.tensor(array)
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm, norm_type)
    norm = clip_grad_norm(grads, max_norm, norm_type)
    tolerance = {np.float64: 1e-12, np.float32: 1e-6, np.float16: 2e-3}[dtype]
    assert type(norm) is float
    assert norm == pytest.approx(expected.item(), rel=tolerance)
    for tensor, array in zip(tensors, arrays(grads), strict=True):
        np.testing.assert_allclose(array, tensor.grad.numpy(), rtol=tolerance)


@every_dtype
def test_clip_grad_value_is_torchs(dtype):
    torch = pytest.importorskip("torch")
    grads = gradients(dtype)
    grads["layers"][1][2] = np.nan
    tensor = torch.zeros(17, requires_grad=True)
    before = [array.copy() for array in arrays(grads)]
    clip_grad_value(grads, 0.25)
    for array, old in zip(arrays(grads), before, strict=True):
        tensor = torch.zeros(old.shape, dtype=torch.tensor(old).dtype, requires_grad=True)
        tensor.grad = torch.tensor(old)
        torch.nn.utils.clip_grad_value_([tensor], 0.25)
        np.testing.assert_array_equal(array, tensor.grad.numpy())


@pytest.mark.parametrize("size", [1e300, 1e-300, 1e-320, 0.0])
def test_norms_neither_overflow_nor_vanish(size):
    assert clip_grad_norm([np.full(4, size), None, np.zeros(0)], math.inf if size > 1 else 1.0) == 2 * size
    assert clip_grad_norm([np.full(4, size)], 1e308, norm_type=1.0) == pytest.approx(4 * size)


def test_structures_and_views():
    assert clip_grad_norm(np.array([3.0, 4.0]), 100) == 5.0
    assert clip_grad_norm((g for g in [np.array([3.0]), None, np.array(4.0)]), 100) == 5.0
    assert clip_grad_norm({"a": np.array([3.0]), "b": [np.array([4.0])]}.values(), 100) == 5.0
    base = np.array([[3.0, 9.0], [4.0, 9.0]])
    assert clip_grad_norm([base[:, 0]], 0.5) == 5.0
    np.testing.assert_allclose(base, [[0.3, 9.0], [0.4, 9.0]], rtol=1e-6)
    twice = np.array([3.0])
    assert clip_grad_norm([twice, twice], 1.0) == pytest.approx(3 * 2**0.5)
    assert twice[0] == pytest.approx(0.5**0.5), "scaled once, though it counts twice"
    clip_grad_value([twice, twice[:0]], 0.5)
    assert twice[0] == 0.5


def read_only():
    array = np.array([3.0, 4.0])
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (3.0, TypeError, r"grads\[1\] is a float, which cannot be changed in place"),
        (np.float64(3.0), TypeError, r"grads\[1\] is a float64"),
        (np.ones(2, int), TypeError, "dtype int64"),
        (np.ma.masked_array([1.0]), TypeError, "MaskedArray"),
        (read_only(), ValueError, "read-only"),
        ("overlapping", ValueError, "shares memory with"),
    ],
)
@pytest.mark.parametrize("clip", [lambda grads: clip_grad_norm(grads, 0.1), lambda grads: clip_grad_value(grads, 0.1)])
def test_what_cannot_be_clipped_changes_nothing(bad, error, text, clip):
    first = np.full(4, 7.0)
    with pytest.raises(error, match=text):
        clip([first, first[1:] if isinstance(bad, str) else bad])
    assert (first == 7).all()


def test_bad_numbers():
    grads = [np.array([np.nan, 1.0])]
    with pytest.raises(RuntimeError, match=r"total norm of order 2.0 for gradients is non-finite"):
        clip_grad_norm(grads, 0.5, error_if_nonfinite=True)
    assert grads[0][1] == 1
    assert math.isnan(clip_grad_norm(grads, 0.5))
    assert np.isnan(grads[0]).all()
    assert clip_grad_norm([np.array([np.inf, 3.0])], 1.0) == math.inf
    with pytest.raises(ValueError, match="clip_value"):
        clip_grad_value(grads, -1)
    with pytest.raises(TypeError, match="max_norm must be a number"):
        clip_grad_norm(grads, "1")


# In a step


@every_class
@every_dtype
def test_a_step_clips_as_the_function_does(cls, hyper, dtype):
    one, other = gradients(dtype, step=99), gradients(dtype, step=99)
    clipping, plain = cls(one, **hyper, max_grad_norm=1.5), cls(other, **hyper)
    for step in range(4):
        grads = gradients(dtype, scale=0.1 if step == 2 else 1.0, step=step)
        before = copy.deepcopy(grads)
        clipping.step(grads)
        assert all(map(same_bits, arrays(grads), arrays(before))), "the gradients stay as they are"
        # summed in another order, and not rounded in between
        assert clipping.last_grad_norm == pytest.approx(clip_grad_norm(grads, 1.5), rel=1e-15)
        plain.step(grads)
    close = {np.float64: 1e-12, np.float32: 1e-5, np.float16: 1e-2}[dtype]
    for array, wanted in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_allclose(array, wanted, rtol=close, atol=close)


@every_dtype
def test_a_step_clips_as_that_over_tensors(dtype, fused_adds):
    torch = pytest.importorskip("torch")
    params = arrays(gradients(dtype, step=99))
    tensors = [torch.tensor(array, requires_grad=True) for array in params]
    ours, theirs = Adam(params, max_grad_norm=0.5), oxistep.optim.Adam(tensors, max_grad_norm=0.5)
    for step in range(4):
        grads = arrays(gradients(dtype, step=step))
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.grad = torch.tensor(grad)
        ours.step(grads)
        theirs.step()
        rough = {np.float64: 1e-12, np.float32: 1e-6, np.float16: 2e-3}[dtype]
        assert ours.last_grad_norm == pytest.approx(theirs.last_grad_norm.item(), rel=rough)
    for array, tensor in zip(params, tensors, strict=True):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=rough, atol=rough)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_class
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(cls, hyper, bad):
    optimizer = cls([np.ones(3), np.ones(2)], **hyper, skip_nonfinite=True)
    monitor = UpdateMonitor(optimizer)
    optimizer.step([np.ones(3), np.ones(2)])
    before = snapshot(optimizer)
    optimizer.step([np.ones(3), np.array([1.0, bad])])
    assert snapshot(optimizer) == before
    assert not math.isfinite(optimizer.last_grad_norm)
    assert len(monitor) == 1
    optimizer.step([np.ones(3), np.ones(2)])
    assert optimizer.step_count == 2


@pytest.mark.parametrize("name", zoo.__all__)
def test_the_zoo_and_rules_clip_and_skip(name):
    cls = getattr(zoo, name)
    hyper = {"lr": 1.0 if name == "Prodigy" else 0.1}
    one, other = np.ones(4), np.ones(4)
    clipping = cls([{"params": [one]}, {"params": [np.ones(1)]}], skip_nonfinite=True, **hyper)
    if name != "LAMB":  # whose max_grad_norm is the package's
        clipping.max_grad_norm = 0.5
    plain = cls([{"params": [other]}, {"params": [np.ones(1)]}], **hyper)
    for optimizer in (clipping, plain):
        if hasattr(optimizer, "train"):
            optimizer.train()
    for step in range(3):
        grad = np.arange(4.0) + step
        before = snapshot(clipping)
        clipping.step([[grad * np.nan], [None]])
        assert snapshot(clipping) == before
        clipping.step([[grad], [None]])
        if name != "LAMB":
            clip_grad_norm(grad, 0.5)
        plain.step([[grad], [None]])
    assert same_bits(one, other)
    assert_same_state(clipping, plain)


def test_settings_may_be_changed_and_are_kept_by_copies():
    w = np.zeros(2)
    optimizer = SGD([w], lr=1.0, max_grad_norm=1.0)
    assert (optimizer.max_grad_norm, optimizer.skip_nonfinite, optimizer.last_grad_norm) == (1.0, False, None)
    optimizer.skip_nonfinite = True
    optimizer.max_grad_norm = None
    optimizer.step([np.array([3.0, 4.0])])
    assert w.tolist() == [-3, -4]
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (other.max_grad_norm, other.skip_nonfinite, other.last_grad_norm) == (None, True, 5.0)
    assert "max_grad_norm" not in optimizer.param_groups[0]
    for bad, error in ((0, ValueError), (-1, ValueError), (math.nan, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="max_grad_norm"):
            optimizer.max_grad_norm = bad
        with pytest.raises(error, match="max_grad_norm"):
            SGD([w], max_grad_norm=bad)
    with pytest.raises(TypeError, match="skip_nonfinite must be True or False"):
        SGD([w], skip_nonfinite=1)
    with pytest.raises(TypeError, match="follow must be True or False"):
        SGD([w], follow="yes")


@pytest.mark.parametrize("bad", [[1.0, 2.0], np.array(["a"]), np.ma.masked_array([1.0, 2.0]), object()])
def test_gradients_that_cannot_be_measured(bad):
    optimizer = Adam({"w": np.ones(2)}, max_grad_norm=1.0)
    before = snapshot(optimizer)
    with pytest.raises(TypeError, match=r"gradient of params\['w'\]"):
        optimizer.step({"w": bad})
    assert snapshot(optimizer) == before


@every_class
def test_a_skipped_step_that_would_have_begun_the_states_leaves_nothing_behind(cls, hyper):
    used = [np.full(3, 7.0) for _ in range(50)]
    del used  # what is made next may lie where these were, and have their numbers
    w, expected = np.ones(3), np.ones(3)
    optimizer, other = cls([w], **hyper, skip_nonfinite=True), cls([expected], **hyper, skip_nonfinite=True)
    optimizer.step([np.full(3, np.nan)])
    optimizer.step([np.full(3, np.inf)])
    for step in range(3):
        for one in (optimizer, other):
            one.step([np.full(3, 1.0 + step)])
    assert same_bits(w, expected)
    assert_same_state(optimizer, other)


@pytest.mark.parametrize("cls", [Adam, zoo.Lion])
def test_a_step_that_raises_keeps_the_norm_of_the_last_one(cls):
    w = np.ones(2)
    optimizer = cls([w], lr=0.1, max_grad_norm=1.0)
    optimizer.step([np.ones(2)])
    norm = optimizer.last_grad_norm
    w.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer.step([np.full(2, 5.0)])
    assert optimizer.last_grad_norm == norm
