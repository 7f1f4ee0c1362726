"""Gradients of some rows of an array: pairs of indices and rows, and matrices of scipy.sparse."""

import warnings

import numpy as np
import pytest

from numpy_table import same_bits, snapshot
from oxistep.numpy import SGD, Adagrad, Adam, SparseAdam

SERVED = {
    "SGD": (SGD, {"lr": 0.5}),
    "SGD, maximize": (SGD, {"lr": 0.5, "maximize": True}),
    "Adagrad": (Adagrad, {"lr": 0.5}),
    "SparseAdam": (SparseAdam, {"lr": 0.5}),
    "SparseAdam, all": (SparseAdam, {"lr": 0.5, "betas": (0.5, 0.75), "eps": 1e-3, "maximize": True}),
}
served = pytest.mark.parametrize(("cls", "hyper"), SERVED.values(), ids=SERVED)


def moments(optimizer):
    return [value for states in optimizer.state for state in states for value in state.values()]


@served
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("shape", [(9, 4), (9,), (9, 2, 3)])
def test_rows_not_named_stand_still(cls, hyper, dtype, shape):
    table = np.ones(shape, dtype)
    optimizer = cls([table], **hyper)
    for k in range(3):
        indices = np.array([7, 2, 7])
        optimizer.step([(indices, np.full((3, *shape[1:]), 0.5 + k, dtype))])
        moved = np.flatnonzero((table.reshape(9, -1) != 1).any(axis=1))
        assert moved.tolist() == [2, 7]


@served
def test_as_torch(cls, hyper):
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    start = draw.normal(size=(30, 5))
    table, tensor = start.copy(), torch.tensor(start, requires_grad=True)
    ours, theirs = cls([table], **hyper), getattr(torch.optim, cls.__name__)([tensor], **hyper)
    for _ in range(6):
        indices, rows = draw.integers(0, 30, 12), draw.normal(size=(12, 5))
        ours.step([(indices, rows)])
        tensor.grad = torch.sparse_coo_tensor(indices[None], torch.from_numpy(rows), (30, 5), check_invariants=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own sparse tensors are unchecked
            theirs.step()
        np.testing.assert_allclose(table, tensor.detach().numpy(), rtol=1e-12, atol=1e-14)


@served
@pytest.mark.parametrize("integers", [np.int64, np.int32, np.int16, np.uint8, np.uint64])
@pytest.mark.parametrize("floats", [np.float64, np.float32, np.int32])
def test_indices_and_rows_of_any_kind(cls, hyper, integers, floats):
    draw = np.random.default_rng(1)
    one, other = (np.ones((20, 3), np.float32) for _ in "ab")
    first, second = cls([one], **hyper), cls([other], **hyper)
    for _ in range(3):
        indices = draw.integers(0, 20, 8)
        rows = (4 * draw.normal(size=(8, 3))).astype(floats)
        first.step([(indices.astype(integers), np.asfortranarray(rows))])
        second.step([(indices.tolist(), rows.astype(np.float32))])
        assert same_bits(one, other)


@served
def test_repeated_rows_are_summed(cls, hyper):
    one, other = (np.ones((6, 2)) for _ in "ab")
    first, second = cls([one], **hyper), cls([other], **hyper)
    first.step([(np.array([4, 1, 4, 4]), np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]]))])
    second.step([(np.array([1, 4]), np.array([[3.0, 4], [13, 16]]))])
    assert same_bits(one, other)
    assert all(map(same_bits, moments(first), moments(second)))


class Csr:
    """What is asked of a matrix of SciPy's, for where SciPy is missing."""

    def __init__(self, dense):
        self.dense, self.shape = np.asarray(dense), np.shape(dense)
        self.indptr = np.append(0, np.cumsum((self.dense != 0).sum(axis=1)))

    def tocsr(self):
        return self

    def __getitem__(self, rows):
        return Csr(self.dense[rows])

    def toarray(self):
        return self.dense


def kinds_of_matrices():
    try:
        from scipy import sparse
    except ModuleNotFoundError:
        return [Csr]
    return [Csr, sparse.csr_matrix, sparse.coo_matrix, sparse.csc_array, sparse.lil_matrix]


@served
@pytest.mark.parametrize("make", kinds_of_matrices())
def test_sparse_matrices(cls, hyper, make):
    dense = np.zeros((6, 3))
    dense[[1, 4]] = [[1, 0, 2], [0, 3, 0]]
    expected = np.ones((6, 3))
    cls([expected], **hyper).step([(np.array([1, 4]), dense[[1, 4]])])
    table = np.ones((6, 3))
    optimizer = cls([table], **hyper)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"shape \(3, 6\), expected \(6, 3\)"):
        optimizer.step([make(dense.T)])
    assert snapshot(optimizer) == before
    optimizer.step([make(dense)])
    assert same_bits(table, expected)


@served
def test_no_rows_at_all(cls, hyper):
    table = np.ones((6, 3))
    optimizer = cls([table], **hyper)
    for nothing in (np.zeros(0, int), np.zeros(0), []):
        optimizer.step([(nothing, np.zeros((0, 3)))])
    assert (table == 1).all()


@served
@pytest.mark.parametrize(
    ("grad", "error", "text"),
    [
        (([0, 6], np.ones((2, 3))), IndexError, r"index 6 in the gradient of params\[1\] is out of range: .* 6 rows"),
        (([-1, 0], np.ones((2, 3))), IndexError, "index -1"),
        (([0, 1], np.ones((3, 3))), ValueError, r"have shape \(3, 3\), expected \(2, 3\): a row like those of params"),
        (([0, 1], np.ones((2, 2))), ValueError, r"have shape \(2, 2\), expected \(2, 3\)"),
        (([[0, 1]], np.ones((2, 3))), ValueError, "expected one dimension"),
        (([0.0, 1.0], np.ones((2, 3))), TypeError, "must be integers"),
        (([True, False], np.ones((2, 3))), TypeError, "must be integers"),
        (([0, 1], np.ones((2, 3), complex)), TypeError, "complex128"),
        (([0, 1], [[1.0] * 3] * 2), TypeError, "must be a numpy.ndarray, got list"),
    ],
)
def test_bad_rows_change_nothing(cls, hyper, grad, error, text):
    optimizer = cls([np.ones((2, 2)), np.ones((6, 3))], **hyper)
    good = (np.array([1]), np.ones((1, 2)))
    for _ in range(2):
        before = snapshot(optimizer)
        with pytest.raises(error, match=text):
            optimizer.step([good, grad])
        assert snapshot(optimizer) == before
        optimizer.step([good, (np.array([1]), np.ones((1, 3)))])


def test_tables_that_do_not_lie_in_one_piece():
    for table in (np.ones((4, 6)).T, np.ones((6, 8))[:, ::2], np.ones((12, 4))[::2]):
        with pytest.raises(ValueError, match=r"params\[0\] must lie in one piece, row after row"):
            SGD([table]).step([(np.array([1]), np.ones((1, 4)))])
        assert (table == 1).all()


def test_optimizers_that_move_every_row():
    for cls, hyper in ((Adam, {}), (SGD, {"momentum": 0.9}), (SGD, {"weight_decay": 0.1})):
        optimizer = cls([np.ones((4, 2))], **hyper)
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="of some rows only, and this optimizer moves every row"):
            optimizer.step([(np.array([1]), np.ones((1, 2)))])
        assert snapshot(optimizer) == before
        with pytest.raises(RuntimeError, match=r"make it dense with \.toarray\(\)"):
            optimizer.step([Csr(np.eye(4, 2))])
        assert snapshot(optimizer) == before


def test_an_optimizer_that_takes_rows_alone():
    with pytest.raises(RuntimeError, match="is dense, and this optimizer takes rows"):
        SparseAdam([np.ones((4, 2))]).step([np.ones((4, 2))])
    for three in ([0], np.ones((1, 2)), 1), ([0],):
        with pytest.raises((TypeError, RuntimeError), match="gradient of params"):
            SparseAdam([np.ones((4, 2))]).step([three])


@served
def test_rows_and_whole_gradients_together(cls, hyper):
    if cls is SparseAdam:
        pytest.skip("it takes rows alone")
    table, bias = np.ones((9, 2)), np.ones(3)
    both, alone = cls([table, bias], **hyper), [np.ones((9, 2)), np.ones(3)]
    first, second = cls(alone[:1], **hyper), cls(alone[1:], **hyper)
    for k in range(4):
        rows = (np.array([k, 8]), np.full((2, 2), 1.0 + k))
        both.step([rows, np.full(3, 2.0)])
        first.step([rows])
        second.step([np.full(3, 2.0)])
        assert same_bits(table, alone[0]) and same_bits(bias, alone[1])


def test_checkpoints_of_lazy_moments():
    table = np.ones((5, 2))
    optimizer = SparseAdam([table], lr=0.1)
    rows = (np.array([3]), np.ones((1, 2)))
    optimizer.step([rows])
    copy = table.copy()
    other = SparseAdam([copy], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        optimizer.step([rows])
        other.step([rows])
    assert same_bits(table, copy)
