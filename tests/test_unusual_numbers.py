"""Hyperparameters and counters that torch's Python cannot compute a step with: torch's exception, before any write."""

import random

import pytest
import torch

import brief
import oxistep
import oxistep.optim
from scenarios import assert_agrees, assert_same, outcome, params_of, result, set_gradients

# Everything that enters the constants of a step, as it usually is.
USUAL = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-8},
    "RMSprop": {"lr": 0.1, "alpha": 0.9, "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.5},
    "Adam": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1},
    "AdamW": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1},
    "Adadelta": {"lr": 0.1, "rho": 0.9, "eps": 1e-8, "weight_decay": 0.1},
    "Adamax": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1},
    "NAdam": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "momentum_decay": 4e-3},
    "RAdam": {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1},
    "ASGD": {"lr": 0.1, "lambd": 1e-4, "alpha": 0.75, "t0": 2.0, "weight_decay": 0.1},
    "Rprop": {"lr": 0.1, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)},
    "Adafactor": {"lr": 0.1, "beta2_decay": -0.8, "eps": (1e-8, 1e-3), "d": 1.0, "weight_decay": 0.1},
}
INFINITY = float("inf")
NUMBERS = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 10.0, 1e-300, 70000.0, -70000.0, 1e39, -1e39, 1e300, -1e300]
NUMBERS += [1e308, float("nan"), INFINITY, -INFINITY, 0, 1, -1, 2, 1 - 2**-53, 0.9999]
STEPS = [0, 1, -1, 2, -2, 3, 1e4, 0.5, 1.5, 1e30, float("nan"), INFINITY, -5]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def unusual(optim, name, dtype, seed):
    """An optimizer some of whose numbers were changed after construction, and the generator of its gradients."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def set_gradient():
        p.grad = torch.randn(5, generator=generator, dtype=torch.float64).to(dtype)

    p = torch.randn(5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    optimizer = getattr(optim, name)([p], foreach=False, **USUAL[name])
    if choose.random() < 0.6:
        set_gradient()
        optimizer.step()
    group = optimizer.param_groups[0]
    for key in choose.sample(sorted(USUAL[name]), choose.choice([1, 1, 2, 3])):
        usual = USUAL[name][key]
        group[key] = choose.choice(NUMBERS)
        if name == "Adafactor" and key == "lr":
            # below zero it is multiplied by the parameter's size, and whether torch takes the product depends on that
            group[key] = abs(group[key])
        if isinstance(usual, tuple):
            group[key] = choose.choice([(group[key], usual[1]), (usual[0], group[key])])
    if choose.random() < 0.3 and "step" in optimizer.state.get(p, {}):
        optimizer.state[p]["step"].fill_(choose.choice(STEPS))
    return optimizer, set_gradient


@pytest.mark.filterwarnings("ignore:(BComplex32|ComplexHalf|Casting complex):UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", USUAL)
def test_whatever_the_numbers_torchs_result_or_its_type_of_error(name, dtype, request):
    if dtype.itemsize > 2:  # numbers this odd enlarge what square roots of another last digit make different
        request.getfixturevalue("ieee_sqrt")
        request.getfixturevalue("fused_adds")
    raised = 0
    for seed in range(brief.number(whole=150, brief=50)):
        (ours, our_gradient), (theirs, their_gradient) = (
            unusual(optim, name, dtype, seed) for optim in (oxistep.optim, torch.optim)
        )
        told = f"seed {seed}, {theirs.param_groups[0]}"
        for _ in range(3):
            our_gradient()
            their_gradient()
            before = result(ours)
            a, b = outcome(ours.step), outcome(theirs.step)
            assert (a and a[0]) == (b and b[0]), f"{told}: ours {a}, torch's {b}"
            if a is not None:
                assert_same(result(ours), before, told, exact=True)
                assert a[1].startswith(b[1]), told
                raised += 1
                break
            if dtype.itemsize > 2:  # half types: torch rounds after every operation
                for x, y in zip(tensors_of(ours), tensors_of(theirs), strict=True):
                    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert raised or (dtype is torch.float64 and name in ("SGD", "RMSprop", "Adadelta", "Rprop"))


def tensors_of(optimizer):
    (p,) = params_of(optimizer)
    return [p.detach(), *(value for value in optimizer.state.get(p, {}).values() if value is not None)]


ZERO_DIVISIONS = {
    "Adam": ({"betas": (1.0, 0.99)}, "betas=(1.0, 0.99)"),
    "AdamW": ({"betas": (1.0, 0.99)}, "betas=(1.0, 0.99)"),
    "Adamax": ({"betas": (1.0, 0.99)}, "betas=(1.0, 0.99)"),
    "RAdam": ({"betas": (0.9, 1.0)}, "betas=(0.9, 1.0)"),
    # mu = 2 (1 - 0.5 0.96^0) = 1, and so is mu_product
    "NAdam": ({"betas": (2.0, 0.99), "momentum_decay": 0.0}, "betas=(2.0, 0.99)"),
    "Adagrad": ({"lr_decay": -1.0}, "lr_decay=-1.0"),
    "ASGD": ({"lambd": -5.0}, "lambd=-5.0"),  # 1 + lambd lr t = 0 at t = 2
}


@pytest.mark.parametrize("name", ZERO_DIVISIONS)
def test_a_division_by_zero_in_one_group_leaves_all_groups_as_they_were(name):
    changed, told = ZERO_DIVISIONS[name]

    def scenario(optim):
        w, v, sub = torch.ones(3), torch.ones(4), torch.nn.Parameter(torch.ones(2))
        optimizer = getattr(optim, name)([{"params": [v, sub]}, {"params": [w]}], **USUAL[name], foreach=False)
        set_gradients([w, v, sub], 0)
        optimizer.step()
        optimizer.param_groups[1].update(changed)
        if name == "NAdam":
            optimizer.state[w]["mu_product"].fill_(1.0)
        before = result(optimizer)
        versions = [p._version for p in params_of(optimizer)]
        refused = outcome(optimizer.step)
        if optim is oxistep.optim:
            assert_same(result(optimizer), before, exact=True)
            assert versions == [p._version for p in params_of(optimizer)]
            assert "param_groups[1], with lr=0.1, " in refused[1]
            assert told in refused[1]
            assert "nothing was updated" in refused[1]
            paths = [(row.path, row.reason) for row in oxistep.explain(optimizer)]
            assert paths[:2] == [("native", "plain CPU tensors")] * 2
            assert paths[2] == ("torch", UNUSUAL)
        return refused[0]

    assert assert_agrees(scenario) is ZeroDivisionError


UNUSUAL = "a hyperparameter or counter is outside its usual range, torch decides what that means"


def test_sparse_adam_and_sparse_adagrad_too():
    def scenario(optim, name, changed):
        p = torch.ones(4, 2, requires_grad=True)
        optimizer = getattr(optim, name)([p], lr=0.1)
        optimizer.param_groups[0].update(changed)
        p.grad = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 2), (4, 2))
        before = result(optimizer)
        refused = outcome(optimizer.step)
        if optim is oxistep.optim:
            assert_same(result(optimizer), before, exact=True)
        return refused[0]

    assert assert_agrees(scenario, "SparseAdam", {"betas": (1.0, 0.9)}) is ZeroDivisionError
    assert assert_agrees(scenario, "Adagrad", {"lr": 1e39}) is RuntimeError


def test_a_power_that_overflows_though_its_parts_do_not():
    def scenario(optim):
        p = torch.ones(3, requires_grad=True)
        optimizer = optim.ASGD([p], foreach=False)
        set_gradients([p], 0)
        optimizer.step()
        optimizer.state[p]["step"].fill_(1e4)
        optimizer.param_groups[0].update(lr=1e19, lambd=1e19, alpha=8.0)
        before = result(optimizer)
        refused = outcome(optimizer.step)
        if optim is oxistep.optim:
            assert_same(result(optimizer), before, exact=True)
        return refused[0]

    assert assert_agrees(scenario) is OverflowError


def test_adafactor_of_a_matrix():
    def scenario(optim, changed):
        p = torch.ones(3, 2, requires_grad=True)
        optimizer = optim.Adafactor([p], foreach=False)
        set_gradients([p], 0)
        optimizer.step()
        optimizer.param_groups[0].update(changed)
        before = result(optimizer)
        refused = outcome(optimizer.step)
        if optim is oxistep.optim:
            assert_same(result(optimizer), before, exact=True)
        return refused[0]

    assert assert_agrees(scenario, {"d": 0.0}) is ZeroDivisionError
    assert assert_agrees(scenario, {"beta2_decay": 1e300}) is OverflowError


def test_states_are_not_made_where_the_first_step_is_refused():
    p = torch.ones(3)
    p.grad = torch.ones(3)
    optimizer = oxistep.optim.Adam([p], lr=0.1)
    optimizer.param_groups[0]["betas"] = (1.0, 0.9)
    with pytest.raises(ZeroDivisionError, match=r"param_groups\[0\], with lr=0.1, betas=\(1.0, 0.9\)"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("name", USUAL)
def test_numbers_at_the_edge_of_what_is_usual_stay_native(name):
    for seed in range(3):
        p = torch.ones(3)
        optimizer = getattr(oxistep.optim, name)([p], **USUAL[name])
        group = optimizer.param_groups[0]
        edges = [
            {"lr": 0.0},
            {"lr": 1e19},
            {"weight_decay": 0},
            {"eps": 0.0},
            {"betas": (0.0, 0.0)},
            {"betas": (0.999, 0.9999)},
        ]
        for changed in edges:
            for key, value in changed.items():
                if key in group and isinstance(group[key], tuple) == isinstance(value, tuple):
                    group[key] = value
            set_gradients([p], seed)
            assert [row.path for row in oxistep.explain(optimizer)] == ["native"], group


def test_float32_states_of_a_half_parameter_are_kept_where_torch_refuses_nothing():
    # torch's for-loop does not take a parameter and states of two dtypes
    p = torch.ones(3, dtype=torch.bfloat16)
    optimizer = oxistep.optim.Adam([p], lr=0.1, state_dtype=torch.float32)
    optimizer.param_groups[0]["betas"] = (-0.1, 0.9)
    set_gradients([p], 0)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype is torch.float32
    assert torch.isfinite(p).all()
    assert not torch.equal(p, torch.ones_like(p))
