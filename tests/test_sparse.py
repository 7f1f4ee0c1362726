"""Sparse gradients: natively by rows in SGD, Adagrad and SparseAdam, and in torch's words wherever torch refuses."""

import numpy as np
import pytest
import torch

import fresh
import oxistep
import oxistep.optim
from scenarios import assert_agrees, assert_same, draw, make, outcome, result

CLOSE = {torch.float32: {"rtol": 2e-6, "atol": 2e-6}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
BY_ROWS = {
    "SGD": [{"lr": 0.1}, {"lr": 0.1, "maximize": True}],
    "Adagrad": [{"lr": 0.1}, {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-3, "initial_accumulator_value": 0.5}],
    "SparseAdam": [{"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "maximize": True}],
}
SETTINGS = [pytest.param(name, kwargs, id=f"{name}-{k}") for name in BY_ROWS for k, kwargs in enumerate(BY_ROWS[name])]
each_setting = pytest.mark.parametrize("name, kwargs", SETTINGS)
each_by_rows = pytest.mark.parametrize("name", BY_ROWS)

# name: (shape of the parameter, indices of one step)
INDICES = {
    "in order": ((6, 3), [[0, 2, 5]]),
    "out of order": ((6, 3), [[5, 0, 2]]),
    "twice": ((6, 3), [[4, 1, 4, 4]]),
    "all rows": ((6, 3), [[0, 1, 2, 3, 4, 5]]),
    "none": ((6, 3), [[]]),
    "a vector": ((9,), [[8, 3, 3]]),
    "rows of matrices": ((4, 3, 2), [[3, 1, 3]]),
    "two sparse dimensions": ((4, 5, 3), [[0, 3, 3], [4, 0, 4]]),
    "two sparse dimensions, twice": ((4, 5, 3), [[3, 1, 3, 3], [2, 4, 2, 0]]),
    "single elements": ((4, 5), [[3, 0, 3, 3], [2, 4, 2, 0]]),
    "a row of one": ((7, 1), [[6]]),
}
each_indices = pytest.mark.parametrize("indices", INDICES)
each_order = pytest.mark.parametrize("coalesced", [False, True], ids=["as it came", "coalesced"])


def sparse(shape, indices, dtype=torch.float32, seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.tensor(indices, dtype=torch.int64)
    values = torch.randn(indices.shape[1], *shape[len(indices) :], generator=generator, dtype=dtype)
    return torch.sparse_coo_tensor(indices, values, shape, **extra)


def paths(optimizer):
    return [row.path for row in oxistep.explain(optimizer)]


@each_setting
@each_indices
@pytest.mark.parametrize("coalesced, dtype", [(False, torch.float32), (True, torch.float32), (False, torch.float64)])
def test_rows_are_updated_as_in_torch(name, kwargs, indices, coalesced, dtype):
    shape, where = INDICES[indices]
    (p,), (q,) = draw(shape, dtype=dtype), draw(shape, dtype=dtype)
    ours = getattr(oxistep.optim, name)([p], **kwargs)
    theirs = getattr(torch.optim, name)([q], **kwargs)
    for step in range(3):
        # every step names other rows, in the same pattern
        moved = [[(i + step) % n for i in row] for row, n in zip(where, shape, strict=False)]
        grad = sparse(shape, moved, dtype, seed=step)
        p.grad = grad.coalesce() if coalesced else grad.clone()
        q.grad = grad.clone()
        assert paths(ours) == ["native"], oxistep.explain(ours)
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, **CLOSE[dtype])
    assert ours.state[p].keys() == theirs.state[q].keys()
    for key, value in theirs.state[q].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours.state[p][key], value, **CLOSE[dtype], msg=lambda m, key=key: f"{key}: {m}")
        else:
            assert ours.state[p][key] == value, key


@each_setting
@each_order
def test_rows_that_are_not_named_keep_their_bits(name, kwargs, coalesced):
    """Odd bits: a signed zero, a NaN with a payload, infinities and a subnormal survive only if nothing is written."""
    odd = torch.tensor([-(2**31), 0x7FC12345, 0x7F800000, -0x00800000, 1, 0x3F800001], dtype=torch.int32)
    p = torch.zeros(8, 6).copy_(odd.view(torch.float32)).requires_grad_()
    assert torch.equal(p.detach().view(torch.int32)[0], odd)
    optimizer = getattr(oxistep.optim, name)([p], **kwargs)
    # the second step finds the states, which the first makes
    for step in range(2):
        with torch.no_grad():
            p[2], p[5] = 1.0, 1.0
        untouched = [0, 1, 3, 4, 6, 7]
        before = {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v) and v.dim()}
        grad = sparse((8, 6), [[5, 2, 5]], seed=step)
        p.grad = grad.coalesce() if coalesced else grad
        assert paths(optimizer) == ["native"]
        optimizer.step()
        assert torch.equal(p.detach().view(torch.int32)[untouched], odd.expand(6, 6))
        assert (p[[2, 5]] != 1.0).all()
        for key, value in before.items():
            now = optimizer.state[p][key]
            assert torch.equal(now[untouched], value[untouched]), key
            assert (now[[2, 5]] != value[[2, 5]]).any(), key


@each_by_rows
def test_a_gradient_without_rows_changes_no_element_and_counts_as_a_step(name):
    def scenario(optim):
        (p,) = draw((5, 2))
        optimizer = getattr(optim, name)([p], **BY_ROWS[name][0])
        p.grad = sparse((5, 2), [[]])
        for _ in range(2):
            if optim is oxistep.optim:
                assert paths(optimizer) == ["native"]
            optimizer.step()
        assert torch.equal(p, draw((5, 2))[0])
        return result(optimizer)

    assert_agrees(scenario, exact=True)


@each_by_rows
def test_the_gradient_is_left_as_it_was(name):
    (p,) = draw((6, 3))
    p.grad = sparse((6, 3), [[4, 1, 4]])
    grad, values = p.grad, p.grad._values().clone()
    getattr(oxistep.optim, name)([p], **BY_ROWS[name][0]).step()
    assert p.grad is grad
    assert not grad.is_coalesced()
    assert torch.equal(grad._indices(), torch.tensor([[4, 1, 4]]))
    assert torch.equal(grad._values(), values)


def test_an_embedding_beside_a_dense_layer():
    def scenario(optim):
        torch.manual_seed(0)
        table, dense = torch.nn.Embedding(20, 4, sparse=True), torch.nn.Linear(4, 1)
        optimizer = optim.Adagrad([*table.parameters(), *dense.parameters()], lr=0.1)
        for step in range(4):
            optimizer.zero_grad()
            dense(table(torch.tensor([step, 3, 3, 19]))).square().sum().backward()
            if optim is oxistep.optim:
                assert paths(optimizer) == ["native"] * 3
            optimizer.step()
        return result(optimizer)

    assert_agrees(scenario)


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_and_dense_gradients_in_turn(name):
    def scenario(optim):
        (p,) = draw((6, 3))
        optimizer = getattr(optim, name)([p], **BY_ROWS[name][0])
        for step in range(4):
            grad = sparse((6, 3), [[4, 1, 4]], seed=step)
            p.grad = None
            p.grad = grad.to_dense() if step % 2 else grad
            optimizer.step()
        return result(optimizer)

    assert_agrees(scenario)


@each_by_rows
def test_two_groups_and_a_missing_gradient(name):
    def scenario(optim):
        p, q, idle = draw((6, 3), (5, 2), (4, 2))
        optimizer = getattr(optim, name)([{"params": [p, idle]}, {"params": [q], "lr": 0.5}], lr=0.1)
        for step in range(3):
            p.grad, q.grad = sparse((6, 3), [[4, 1, 4]], seed=step), sparse((5, 2), [[step]], seed=step)
            if optim is oxistep.optim:
                assert paths(optimizer) == ["native", "skipped", "native"]
            optimizer.step()
        return result(optimizer)

    assert_agrees(scenario)


# ---- what torch refuses, or does in its own way ----

# In each of these a sparse gradient makes torch raise, or take a path of its own.
TORCHS = {
    "SGD with momentum": ("SGD", {"momentum": 0.9}),
    "SGD with Nesterov momentum": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "SGD with decay": ("SGD", {"momentum": 0.0, "weight_decay": 0.1}),
    "SGD with momentum and decay": ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "Adagrad with decay": ("Adagrad", {"weight_decay": 0.1}),
    **{name: (name, {}) for name in ("RMSprop", "Adam", "AdamW", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD")},
    "Rprop": ("Rprop", {}),
}


@pytest.mark.parametrize("what", TORCHS)
@each_order
def test_torchs_error_before_any_write_or_torchs_result(what, coalesced):
    name, extra = TORCHS[what]

    def scenario(optim):
        first, p, last = draw((3,), (6, 3), (2, 2))
        optimizer = make(optim, name, [first, p, last], **extra)
        came = []
        for step in range(3):
            first.grad, last.grad = torch.ones(3), torch.ones(2, 2)
            grad = sparse((6, 3), [[4, 1, 4]], seed=step)
            p.grad = grad.coalesce() if coalesced else grad
            if optim is oxistep.optim:
                assert paths(optimizer) == ["native", "torch", "native"]
            before = result(optimizer)
            raised = outcome(optimizer.step)
            if raised and optim is oxistep.optim:
                after = result(optimizer)
                # torch may have made an entry of its own for the parameter that it then refuses, or counted a step
                before["state"][1] = after["state"][1]
                assert_same(after, before, exact=True)
            came.append(raised or result(optimizer))
        return came

    came = assert_agrees(scenario)
    assert all(isinstance(c, dict) for c in came) == (what == "SGD with momentum" or "Nesterov" in what), came


def test_sparse_adam_refuses_dense_gradients_in_torchs_words():
    def scenario(optim):
        p, q = draw((4, 2), (3, 2))
        optimizer = optim.SparseAdam([p, q])
        p.grad, q.grad = sparse((4, 2), [[1]]), torch.ones(3, 2)
        came = outcome(optimizer.step)
        if optim is oxistep.optim:
            assert torch.equal(p, draw((4, 2), (3, 2))[0])
            assert p not in optimizer.state
        return came

    error, text = assert_agrees(scenario)
    assert error is RuntimeError
    assert "SparseAdam" in text


@each_by_rows
def test_fused_refuses_as_torch_does(name):
    if name == "SparseAdam":
        pytest.skip("SparseAdam has no fused")

    def scenario(optim):
        (p,) = draw((4, 2))
        optimizer = getattr(optim, name)([p], lr=0.1, fused=True)
        p.grad = sparse((4, 2), [[3, 1]])
        return outcome(optimizer.step)

    assert isinstance(assert_agrees(scenario), tuple)


# ---- parameters that begin inside their storage ----


def inside_a_storage(shape):
    base = torch.zeros(40)
    p = base[7 : 7 + torch.Size(shape).numel()].view(shape)
    p.grad = torch.ones(shape).to_sparse()
    return base, p


@pytest.mark.parametrize("shape", [(5,), (3, 2)])
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_rows_of_a_parameter_that_begins_inside_its_storage(name, shape):
    """torch (2.15) counts the offset twice where the gradient has no dense dimensions, and writes elsewhere."""
    base, p = inside_a_storage(shape)
    optimizer = getattr(oxistep.optim, name)([p], lr=0.1)
    assert paths(optimizer) == ["native"]
    optimizer.step()
    torch.testing.assert_close(p, torch.full(shape, -0.1))
    assert base.count_nonzero() == p.numel()


@pytest.mark.parametrize("shape", [(5,), (3, 2)])
def test_what_torch_would_add_elsewhere_is_refused(shape):
    base, p = inside_a_storage(shape)
    (q,) = draw((3,))
    q.grad = torch.ones(3)
    before = q.detach().clone()
    optimizer = oxistep.optim.SGD([q, p], lr=0.1, momentum=0.9)
    assert paths(optimizer) == ["native", "torch"]
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]\['params'\]\[1\].* begins inside its storage"):
        optimizer.step()
    assert not base.any()
    assert torch.equal(q, before)
    assert not optimizer.state
    with torch.no_grad():
        alone = p.clone()
    alone.grad = p.grad
    optimizer.param_groups[0]["params"][1] = alone
    optimizer.step()
    torch.testing.assert_close(alone, torch.full(shape, -0.1))


# ---- corrupt indices ----

# Never stepped: torch's own kernels do not check these either, and may write where they point.
OUTSIDE = "an index of the sparse gradient lies outside the parameter"
NOT_COALESCED = "the indices of the sparse gradient are not coalesced as it claims"
CORRUPT = {
    "too large": ((4, 2), [[1, 4]], OUTSIDE),
    "far too large": ((4, 2), [[1, 2**62]], OUTSIDE),
    "negative": ((4, 2), [[-1, 2]], OUTSIDE),
    "too large in the second dimension": ((4, 5, 2), [[0, 1], [0, 5]], OUTSIDE),
    "negative in the second dimension": ((4, 5, 2), [[1, 2], [-1, 0]], OUTSIDE),
    "twice": ((4, 2), [[1, 1]], NOT_COALESCED),
    "out of order": ((4, 2), [[2, 1]], NOT_COALESCED),
    "twice in two dimensions": ((4, 5, 2), [[3, 3], [1, 1]], NOT_COALESCED),
}


@each_by_rows
@pytest.mark.parametrize("corrupt", CORRUPT)
def test_corrupt_indices_that_claim_to_be_coalesced_are_not_ours(name, corrupt):
    shape, indices, reason = CORRUPT[corrupt]
    p = torch.ones(shape)
    grad = sparse(shape, indices, check_invariants=False)
    p.grad = grad._coalesced_(True)
    (row,) = oxistep.explain(getattr(oxistep.optim, name)([p]))
    assert (row.path, row.reason) == ("torch", reason)


def test_indices_outside_are_found_before_torch_coalesces_them():
    """In a process of its own: torch's `coalesce` believes the indices, and has written outside its memory."""
    corrupt = [(shape, indices) for shape, indices, reason in CORRUPT.values() if reason is OUTSIDE]
    code = f"""
import torch, oxistep, oxistep.optim
torch.sparse.check_sparse_tensor_invariants.disable()
coalesced = []
torch.Tensor.coalesce = lambda grad: coalesced.append(grad) or grad
for name in {list(BY_ROWS)}:
    for shape, indices in {corrupt}:
        p = torch.ones(shape)
        values = torch.ones(2, *shape[len(indices):])
        p.grad = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False, is_coalesced=False)
        (row,) = oxistep.explain(getattr(oxistep.optim, name)([p]))
        assert (row.path, row.reason) == ("torch", {OUTSIDE!r}), row
        assert not coalesced, (name, indices)
"""
    done = fresh.python(code)
    assert done.returncode == 0, done.stderr


NATIVELY = ("native", "plain CPU tensors")
EMPTY = {
    "rows of nothing": lambda: ((4, 0), [[1, 3]], torch.ones(2, 0)),
    "no rows of nothing": lambda: ((4, 0), torch.zeros(1, 0, dtype=torch.int64), torch.ones(0, 0)),
    "no elements named": lambda: ((4, 0), torch.zeros(2, 0, dtype=torch.int64), torch.ones(0)),
    "nothing in the middle": lambda: ((4, 0, 2), [[1]], torch.ones(1, 0, 2)),
    "no rows to name": lambda: ((0, 3), torch.zeros(1, 0, dtype=torch.int64), torch.ones(0, 3)),
    "a scalar": lambda: ((), torch.zeros(0, 1, dtype=torch.int64), torch.ones(1)),
}


@pytest.mark.parametrize("what", EMPTY)
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_parameters_without_elements_or_dimensions(name, what):
    def scenario(optim):
        shape, indices, values = EMPTY[what]()
        p, beside = torch.ones(shape, requires_grad=True), torch.ones(2, 2, requires_grad=True)
        optimizer = getattr(optim, name)([p, beside], lr=0.1)
        for _ in range(2):
            p.grad = torch.sparse_coo_tensor(indices, values, shape)
            beside.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (2, 2))
            if optim is oxistep.optim:
                assert {(row.path, row.reason) for row in oxistep.explain(optimizer)} == {NATIVELY}
            optimizer.step()
        return p, beside, [dict(optimizer.state[q]) for q in (p, beside)]

    assert_agrees(scenario)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 7, 64])
def test_rows_named_several_times_are_summed_in_the_order_they_are_named(dtype, width):
    """torch's own order is that of its sort, which is not stable: of three and more its last place is its own."""
    generator = torch.Generator().manual_seed(width)
    where = torch.randint(0, 300, (1, 2000), generator=generator)
    scales = 10 ** torch.randn(2000, 1, generator=generator, dtype=dtype)
    values = torch.randn(2000, width, generator=generator, dtype=dtype) * scales
    grad = torch.sparse_coo_tensor(where, values, (1000, width))
    sums = {}
    for row, value in zip(where[0].tolist(), values, strict=True):
        sums[row] = sums[row] + value if row in sums else value
    rows = sorted(sums)
    coalesced = torch.sparse_coo_tensor([rows], torch.stack([sums[row] for row in rows]), (1000, width))
    torch.testing.assert_close(coalesced.coalesce().values(), grad.coalesce().values())
    for name in BY_ROWS:
        (p,), (q,) = draw((1000, width), dtype=dtype), draw((1000, width), dtype=dtype)
        p.grad, q.grad = grad.clone(), coalesced.coalesce()
        for parameter in (p, q):
            getattr(oxistep.optim, name)([parameter], lr=0.1).step()
        assert torch.equal(p, q), name
        assert not p.grad.is_coalesced()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rows_of_nothing(dtype):
    p = torch.zeros((4, 0), dtype=dtype, requires_grad=True)
    p.grad = torch.sparse_coo_tensor([[2, 0, 2]], torch.zeros((3, 0), dtype=dtype), (4, 0))
    for name in BY_ROWS:
        getattr(oxistep.optim, name)([p], lr=0.1).step()


def untouched(rows, width):
    """Zeros whose memory the system has not given yet: a page of it comes when it is first read or written."""
    return torch.from_numpy(np.zeros((rows, width), np.float32))


@pytest.mark.parametrize("name, states", [("SGD", {}), ("Adagrad", ["sum"]), ("SparseAdam", ["exp_avg", "exp_avg_sq"])])
def test_a_step_touches_the_rows_that_are_named_and_no_others(name, states):
    resource = pytest.importorskip("resource", reason="counts page faults")
    rows, width, named = 1_000_000, 64, 64
    indices = torch.arange(0, rows, rows // named)[None, :named]

    def step_taken(table, states):
        p = torch.nn.Parameter(torch.zeros(1))
        p.data = table
        optimizer = getattr(oxistep.optim, name)([p], lr=0.1)
        step = torch.tensor(3.0) if name == "Adagrad" else 3
        optimizer.state[p].update({**states, **({"step": step} if states else {})})
        where = indices.clamp(max=len(table) - 1)
        p.grad = torch.sparse_coo_tensor(where, torch.ones(named, width), table.shape, check_invariants=False)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        optimizer.step()
        assert p.detach()[0, 0] != 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    step_taken(torch.zeros(8, width), {key: torch.zeros(8, width) for key in states})  # what a first step loads
    faults = step_taken(untouched(rows, width), {key: untouched(rows, width) for key in states})
    # a row may lie across two pages; the table has 62,500 pages of 4 KiB, and so has each state
    assert faults <= 2 * named * (1 + len(states)) + 1_000
