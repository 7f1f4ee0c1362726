"""A run that was interrupted at any step and resumed from its checkpoint ends in the same bits as one that was not."""

import io

import numpy as np
import pytest
import torch

import oxistep.numpy
import oxistep.optim
from numpy_table import ROWS, assert_same_state, same_bits
from optimizers import CASES
from scenarios import make
from snapshots import outcome_of

STEPS = 5
SHAPES = [(6, 4), (7,), ()]


def starting_values(dtype, layout):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    if layout == "transposed":
        values[0] = values[0].t().contiguous().t()
    return values


def fresh(values):
    return [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype).copy_(v).requires_grad_() for v in values]


def gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for i, p in enumerate(params):
        values = torch.randn(p.shape, generator=generator).to(p.dtype)
        with torch.no_grad():
            # one parameter is unfrozen late
            p.grad = None if i == 1 and step < 2 else torch.empty_like(p).copy_(values)


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def build(make_it, params):
    return make_it([{"params": params[:1]}, {"params": params[1:]}])


def run(make_it, dtype, layout, interrupted_at=None):
    params = fresh(starting_values(dtype, layout))
    optimizer = build(make_it, params)
    for step in range(STEPS):
        if step == interrupted_at:
            saved = through_a_file([[p.detach() for p in params], optimizer.state_dict()])
            params = fresh(saved[0])
            optimizer = build(make_it, params)
            optimizer.load_state_dict(saved[1])
        gradients(params, step)
        optimizer.step()
    return outcome_of(params, optimizer)


WAYS = {
    "float32": (torch.float32, "contiguous", {}),
    "transposed": (torch.float32, "transposed", {}),
    "float64": (torch.float64, "contiguous", {}),
    "bfloat16": (torch.bfloat16, "contiguous", {}),
    "bfloat16, state_dtype": (torch.bfloat16, "contiguous", {"state_dtype": torch.float32}),
    "float16, state_dtype": (torch.float16, "contiguous", {"state_dtype": torch.float32}),
    "clipping": (torch.float32, "contiguous", {"max_grad_norm": 0.5}),
}
WHOLE = [("Adafactor", {"lr": 0.1}), ("Adafactor", {"lr": 0.1, "weight_decay": 0.1, "maximize": True})]
NAMED = [(case.name, case.kwargs) for case in CASES] + WHOLE


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name, kwargs", NAMED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_run_interrupted_at_any_step(name, kwargs, way):
    dtype, layout, more = WAYS[way]

    def make_it(groups):
        return getattr(oxistep.optim, name)(groups, **kwargs, **more)

    expected = run(make_it, dtype, layout)
    for step in range(STEPS):
        assert run(make_it, dtype, layout, step) == expected, f"interrupted before step {step}"


def test_what_torch_does_with_scalars_that_it_keeps_in_float32():
    """For the page: loading casts them to the parameter's dtype, so a run that was resumed goes on differently."""

    def make_it(groups):
        return torch.optim.NAdam(groups, lr=0.1, foreach=False)

    assert run(make_it, torch.float32, "contiguous", 2) == run(make_it, torch.float32, "contiguous")
    assert run(make_it, torch.bfloat16, "contiguous", 2) != run(make_it, torch.bfloat16, "contiguous")


def test_scalars_of_another_precision_are_cast_as_torch_casts_them():
    for name in ("NAdam", "ASGD"):
        saved = build(
            lambda g, name=name: make(oxistep.optim, name, g), fresh(starting_values(torch.float32, "contiguous"))
        )
        gradients([p for group in saved.param_groups for p in group["params"]], 3)
        saved.step()
        types = []
        for optim in (oxistep.optim, torch.optim):
            params = fresh(starting_values(torch.float64, "contiguous"))
            optimizer = build(lambda g, optim=optim, name=name: make(optim, name, g), params)
            optimizer.load_state_dict(saved.state_dict())
            types.append([{key: value.dtype for key, value in optimizer.state[p].items()} for p in params])
        assert types[0] == types[1]


@pytest.mark.parametrize("way", ["float32", "bfloat16, state_dtype"])
def test_muon(way):
    dtype, _, more = WAYS[way]

    def one(interrupted_at=None):
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in [(6, 4), (3, 9)]]
        optimizer = oxistep.optim.Muon(params, lr=0.1, **more)
        for step in range(STEPS):
            if step == interrupted_at:
                saved = through_a_file([[p.detach() for p in params], optimizer.state_dict()])
                params = [v.clone().requires_grad_() for v in saved[0]]
                optimizer = oxistep.optim.Muon(params, lr=0.1, **more)
                optimizer.load_state_dict(saved[1])
            gradients(params, step)
            optimizer.step()
        return outcome_of(params, optimizer)

    expected = one()
    for step in range(STEPS):
        assert one(step) == expected


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs(search):
    def one(interrupted_at=None):
        w = torch.tensor([-1.5, 2.0, 0.3], requires_grad=True)

        def new():
            return oxistep.optim.LBFGS([w], lr=0.5, max_iter=3, history_size=4, line_search_fn=search)

        optimizer = new()

        def closure():
            optimizer.zero_grad()
            loss = (1 - w[0]) ** 2 + 10 * (w[1] - w[0] ** 2) ** 2 + w[2] ** 4
            loss.backward()
            return loss

        for step in range(STEPS):
            if step == interrupted_at:
                saved = through_a_file([w.detach(), optimizer.state_dict()])
                w = saved[0].clone().requires_grad_()
                optimizer = new()
                optimizer.load_state_dict(saved[1])
            optimizer.step(closure)
        return w.detach().view(torch.int32).tolist()

    expected = one()
    for step in range(STEPS):
        assert one(step) == expected


def test_sparse_adam():
    def one(interrupted_at=None):
        table = torch.linspace(-1, 1, 40).reshape(10, 4).requires_grad_()
        optimizer = oxistep.optim.SparseAdam([table], lr=0.1)
        for step in range(STEPS):
            if step == interrupted_at:
                saved = through_a_file([table.detach(), optimizer.state_dict()])
                table = saved[0].clone().requires_grad_()
                optimizer = oxistep.optim.SparseAdam([table], lr=0.1)
                optimizer.load_state_dict(saved[1])
            rows = torch.tensor([[step, 9 - step, step]])
            values = torch.linspace(0.1, 1, 12).reshape(3, 4)
            table.grad = torch.sparse_coo_tensor(rows, values, (10, 4))
            optimizer.step()
        return outcome_of([table], optimizer)

    expected = one()
    for step in range(STEPS):
        assert one(step) == expected


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adafactor"])
def test_the_state_of_a_scheduler_goes_with_it(name):
    def one(interrupted_at=None):
        params = fresh(starting_values(torch.float32, "contiguous"))

        def new():
            optimizer = make(oxistep.optim, name, params)
            return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)

        optimizer, scheduler = new()
        for step in range(STEPS):
            if step == interrupted_at:
                saved = through_a_file([[p.detach() for p in params], optimizer.state_dict(), scheduler.state_dict()])
                params = fresh(saved[0])
                optimizer, scheduler = new()
                optimizer.load_state_dict(saved[1])
                scheduler.load_state_dict(saved[2])
            gradients(params, step)
            optimizer.step()
            scheduler.step()
        return outcome_of(params, optimizer)

    expected = one()
    for step in range(STEPS):
        assert one(step) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("cls, hyper", ROWS.values(), ids=ROWS)
def test_numpy(cls, hyper, dtype, tmp_path):
    def one(interrupted_at=None):
        rng = np.random.default_rng(1)
        params = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
        optimizer = cls(params, **hyper)
        for step in range(STEPS):
            if step == interrupted_at:
                np.save(tmp_path / "run.npy", np.array([params, optimizer.state_dict()], dtype=object))
                params, state = np.load(tmp_path / "run.npy", allow_pickle=True)
                optimizer = cls(params, **hyper)
                optimizer.load_state_dict(state)
            grads = [rng.normal(size=p.shape).astype(dtype) for p in params]
            optimizer.step([None if i == 1 and step < 2 else g for i, g in enumerate(grads)])
        return params, optimizer

    expected, reference = one()
    for step in range(STEPS):
        params, optimizer = one(step)
        assert all(map(same_bits, params, expected))
        assert_same_state(optimizer, reference)
        assert optimizer.step_count == STEPS
