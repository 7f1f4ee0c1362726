"""The zoo's classes with norms, totals and numbers of groups, beside the packages they come from: late parameters,
groups without gradients, checkpoints.
"""

import copy
import inspect
import io
import pickle
import statistics
import warnings

import pytest

torch = pytest.importorskip("torch")

import brief  # noqa: E402
import oxistep  # noqa: E402
from oxistep import zoo  # noqa: E402
from zoo_cases_b import CASES, CLASSES, class_of  # noqa: E402

SHAPES = [(), (5,), (4, 6), (3, 2, 3, 3), (7, 3)]
STEPS = 11
each_case = pytest.mark.parametrize("case", brief.some(CASES, 7), ids=str)

FIRST = {name: next(case for case in CASES if case.name == name) for name in CLASSES}
each_class = pytest.mark.parametrize(
    "case", brief.some((FIRST[name] for name in CLASSES), 3), ids=lambda case: case.name
)
NATIVE = ["AdEMAMix", "LARS", "MARS", "NovoGrad"]


def start(dtype=torch.float64):
    """Parameters, the last but one zero; of the values that bfloat16 has."""
    made = torch.Generator().manual_seed(0)
    params = [(torch.randn(shape, generator=made) * 0.5).bfloat16().to(dtype) for shape in SHAPES]
    params[-2] = params[-2] * 0
    return [p.requires_grad_() for p in params]


def gradient(p, i, k, seed=None):
    """One that depends on the parameter; with a seed, one that does not and is exact in bfloat16."""
    made = torch.Generator().manual_seed(1000 * i + k + (seed or 0))
    g = (torch.randn(p.shape, generator=made) * (0.3 + 0.2 * k)).bfloat16().double()
    return (g + 0.5 * p.detach().double() if seed is None else g).to(p.dtype)


def grouped(params, two=True, **more):
    return [{"params": params[:2]}, {"params": params[2:], **more}] if two else params


def turn(optimizer, train):
    if hasattr(optimizer, "train"):
        (optimizer.train if train else optimizer.eval)()


def steps(optimizer, params, of=range(STEPS), *, always=False, seed=None):
    """Steps; the last parameter has its first gradient in the fourth, the second none in the sixth, the second group
    none in the eighth.
    """
    turn(optimizer, True)
    for k in of:
        for i, p in enumerate(params):
            absent = (i == len(params) - 1 and k < 3) or (i == 1 and k == 5) or (i >= 2 and k == 7)
            p.grad = None if absent and not always else gradient(p, i, k, seed)
        optimizer.step()
        if k == 4:
            turn(optimizer, False)
            turn(optimizer, True)
    turn(optimizer, False)


def values(params):
    return [p.detach().double().clone() for p in params]


def apart(one, other):
    return max(((a - b).abs() / (1 + b.abs())).max().item() for a, b in zip(one, other, strict=True))


def made(case, params, theirs=False, *, two=True, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a decay that is large with decouple_lr
        other = {} if case.same_rates else {"lr": 0.01}
        make = case.make if theirs else lambda params: getattr(zoo, case.name)(params, **{**case.ours, **more})
        return make(grouped(params, two, **other))


def trained(case, dtype, theirs=False, *, seed=None, **more):
    params = start(dtype)
    steps(made(case, params, theirs, **more), params, always=not case.late, seed=seed)
    return values(params)


# ---- the packages' results ----


@each_case
def test_float64_is_the_packages(case):
    assert apart(trained(case, torch.float64), trained(case, torch.float64, True)) <= case.float64


@each_class
def test_float32_is_the_packages_and_as_near_to_float64(case):
    ours, theirs, exact = (trained(case, *how) for how in ((torch.float32,), (torch.float32, True), (torch.float64,)))
    assert apart(ours, theirs) <= 5e-5
    assert apart(ours, exact) <= 1.5 * apart(theirs, exact) + 1e-6


@each_class
def test_bfloat16_is_no_worse_than_the_packages(case):
    ratios = []
    for seed in range(0, 50000, 10000):
        exact = trained(case, torch.float64, seed=seed)
        errors = []
        for theirs in (False, True):
            found = trained(case, torch.bfloat16, theirs, seed=seed)
            errors.append(sum((a - b).abs().sum().item() for a, b in zip(found, exact, strict=True)))
        ratios.append(errors[0] / errors[1])
    # not each: the sums of Prodigy and the masks of caution make much of how one element was rounded
    assert statistics.median(ratios) <= 1.15, ratios


@each_class
def test_maximize_is_negated_gradients(case):
    one, other = start(), start()
    up, down = made(case, one, maximize=True), made(case, other)
    for optimizer in (up, down):
        turn(optimizer, True)
    for k in range(4):
        for i, (p, q) in enumerate(zip(one, other, strict=True)):
            p.grad, q.grad = gradient(p, i, k), -gradient(q, i, k)
        up.step()
        down.step()
    assert all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


@each_class
def test_two_groups_are_as_one(case):
    found = []
    for two in (False, True):
        params = start(torch.float32)
        optimizer = getattr(zoo, case.name)(grouped(params, two), **case.ours)
        turn(optimizer, True)
        for k in range(4):
            for i, p in enumerate(params):
                p.grad = None if i == 3 and k < 2 else gradient(p, i, k)
            optimizer.step()
        found.append(values(params))
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


@each_case
def test_nothing_moves_without_rate_and_gradient(case):
    params = start(torch.float32)
    arguments = {**case.ours, "lr": 0.0} | (
        {"corrected_weight_decay": False} if "corrected_weight_decay" in case.ours else {}
    )
    optimizer = getattr(zoo, case.name)(grouped(params), **arguments)
    turn(optimizer, True)
    before = values(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    turn(optimizer, False)
    assert all(torch.equal(p, q) for p, q in zip(values(params), before, strict=True))


@each_class
def test_gradients_stay_as_they_are(case):
    params = start(torch.float32)
    optimizer = made(case, params)
    turn(optimizer, True)
    for k in range(3):
        grads = [gradient(p, i, k) for i, p in enumerate(params)]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            assert p.grad is g
            if k == 0:
                assert torch.equal(g, gradient(start(torch.float32)[i], i, k))


# ---- checkpoints and copies ----


def same(one, other):
    """The same parameters, states and numbers of groups, to the bit."""
    (ps, a), (qs, b) = one, other
    assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True))
    for p, q in zip(ps, qs, strict=True):
        assert a.state[p].keys() == b.state[q].keys()
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(b.state[q][key])) for key, x in a.state[p].items())
    for group, other_group in zip(a.param_groups, b.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in other_group.items() if k != "params"
        }


@each_class
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_training_resumes_to_the_bit(case, how):
    params = start(torch.float32)
    optimizer = made(case, params)
    steps(optimizer, params, range(5))
    if how == "state_dict":
        others = [p.detach().clone().requires_grad_() for p in params]
        other = made(case, others)
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer))
    else:
        params_of = {"params": params, "optimizer": optimizer}
        copied = copy.deepcopy(params_of) if how == "deepcopy" else pickle.loads(pickle.dumps(params_of))
        others, other = copied["params"], copied["optimizer"]
    assert type(other) is type(optimizer)
    for one, its in ((optimizer, params), (other, others)):
        steps(one, its, range(5, STEPS))
    same((params, optimizer), (others, other))


@each_case
def test_the_packages_checkpoints_load(case):
    if case.name == "AdEMAMix":
        pytest.skip("bitsandbytes keeps both means in one tensor")
    found = []
    for ours in (True, False):
        params = start()
        optimizer = made(case, params, True)
        steps(optimizer, params, range(5))
        if ours:
            theirs, optimizer = optimizer, made(case, params)
            optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
        steps(optimizer, params, range(5, STEPS))
        found.append(values(params))
    assert apart(*found) <= case.float64


@each_case
def test_the_packages_load_ours(case):
    if case.name in ("AdEMAMix", "Prodigy", "StableAdamW"):
        pytest.skip("other states: two means in one tensor, flat ones, a counter that must be a tensor")
    if case.ours.get("mars_type") == "lion":
        pytest.skip("timm wants a second moment that is never used")
    found = []
    for ours in (True, False):
        params = start()
        optimizer = made(case, params, not ours)
        steps(optimizer, params, range(5))
        if ours:
            saved, optimizer = optimizer.state_dict(), made(case, params, True)
            optimizer.load_state_dict(copy.deepcopy(saved))
        steps(optimizer, params, range(5, STEPS))
        found.append(values(params))
    assert apart(*found) <= max(case.float64, 1e-6)  # for where timm counts with integers, our counter is a float32


# ---- the constructors ----

LEFT_OUT = {"triton", "gradient_release", "fsdp_in_use", "optim_bits", "min_8bit_size", "is_paged"}
OURS = ["state_dtype", "weights", "seed", "ema", "ema_warmup", "max_grad_norm", "skip_nonfinite", "grad_norm_group"]


@each_class
def test_the_signature_is_the_packages_then_ours(case):
    module = {"AdEMAMix": "bitsandbytes.optim"}.get(case.name, case.module)
    theirs = inspect.signature(class_of(module, case.cls)()).parameters.values()
    wanted = [(p.name, p.default) for p in theirs if p.name not in LEFT_OUT]
    shared = [name for name, _ in wanted]
    wanted += [(name, default) for name, default in (("maximize", False), ("foreach", None)) if name not in shared]
    parameters = inspect.signature(getattr(zoo, case.name)).parameters.values()
    plain = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert plain == wanted
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == [name for name in OURS if name not in shared]


@each_class
def test_kernels_take_the_steps_of_plain_tensors(case):
    params = start(torch.float32)
    optimizer = made(case, params)
    steps(optimizer, params, range(2))
    if case.name in NATIVE:
        assert {row.path for row in oxistep.explain(optimizer)} <= {"native", "skipped"}


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("LAMB", {"lr": -1.0}, "Invalid learning rate: -1.0"),
        ("LAMB", {"eps": -1.0}, "Invalid epsilon: -1.0"),
        ("LAMB", {"weight_decay": -1.0}, "Invalid weight_decay: -1.0"),
        ("LAMB", {"lr": 0.0, "corrected_weight_decay": True}, "requires a positive max lr"),
        ("LARS", {"momentum": -1.0}, "Invalid momentum value: -1.0"),
        ("LARS", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        ("MARS", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ("MARS", {"mars_type": "sgd"}, "MARS type not supported"),
        ("NovoGrad", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ("Prodigy", {"d0": 0.0}, "Invalid d0 value: 0.0"),
        ("Prodigy", {"eps": 0.0}, "Invalid epsilon value: 0.0"),
        ("Prodigy", {"slice_p": 11}, "slice_p is 1, not 11"),
        ("SGDScheduleFree", {"momentum": 1.0}, "Momentum must be between 0 and 1 exclusive: 1.0"),
        ("SGDScheduleFree", {"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
        ("AdamWScheduleFree", {"betas": (0.0, 0.9)}, "Momentum must be between 0 and 1 exclusive: 0.0"),
        ("StableAdamW", {"lr": 1.0, "betas": (0.9, 1.0)}, r"Invalid beta2 parameter: betas\[1\]=1.0"),
        ("StableAdamW", {"lr": -1.0}, "Invalid learning rate: lr=-1.0"),
        ("StableAdamW", {"lr": 1.0, "max_lr": -1.0}, "Invalid maximum learning rate: max_lr=-1.0"),
    ],
)
def test_what_is_out_of_range_is_refused(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        getattr(zoo, name)(start(), **arguments)


# ---- single classes ----


def test_lamb_clips_by_the_norm_of_all_groups_that_clip():
    params = [torch.ones(4, requires_grad=True) for _ in range(3)]
    groups = [{"params": [p], "max_grad_norm": limit} for p, limit in zip(params, (1.0, 2.0, None), strict=True)]
    optimizer = zoo.LAMB(groups, betas=(0.0, 0.0), weight_decay=0.0)
    for p in params:
        p.grad = torch.full((4,), 3.0)
    optimizer.step()
    means = [optimizer.state[p]["exp_avg"][0].item() for p in params]
    assert means == pytest.approx([3 / 72**0.5, 6 / 72**0.5, 3.0])


def test_novograd_keeps_one_second_moment():
    w = torch.ones(3, 2, requires_grad=True)
    optimizer = zoo.NovoGrad([w])
    w.grad = torch.full((3, 2), 2.0)
    optimizer.step()
    assert optimizer.state[w]["exp_avg_sq"].shape == () and optimizer.state[w]["exp_avg_sq"] == 24.0


def test_ademamix_is_bitsandbytes():
    bitsandbytes = pytest.importorskip("bitsandbytes.optim")
    for more in ({}, {"t_alpha": 5, "t_beta3": 7}, {"t_alpha": 0}):
        found = []
        for cls in (zoo.AdEMAMix, bitsandbytes.AdEMAMix):
            params = start(torch.float32)
            steps(cls(params, lr=0.02, weight_decay=0.1, **more), params)
            found.append(values(params))
        assert apart(*found) <= 5e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stableadamw_keeps_what_rounding_would_lose(dtype):
    losses = {}
    for kahan in (True, False):
        w = torch.ones(64, dtype=dtype, requires_grad=True)
        optimizer = zoo.StableAdamW([w], lr=1e-5, weight_decay=0.0, kahan_sum=kahan)
        for _ in range(400):
            w.grad = torch.ones(64, dtype=dtype)
            optimizer.step()
        losses[kahan] = abs(w.detach().double().mean().item() - (1 - 400e-5))
    assert losses[True] < 2e-3 and losses[True] < losses[False]


def test_stableadamw_wants_groups_of_one_dtype_for_kahan():
    half, whole = torch.ones(2, dtype=torch.bfloat16, requires_grad=True), torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="make one group of each dtype"):
        zoo.StableAdamW([half, whole], lr=0.1)
    optimizer = zoo.StableAdamW([half], lr=0.1)
    with pytest.raises(ValueError, match="make one group of each dtype"):
        optimizer.add_param_group({"params": [whole, torch.ones(1, dtype=torch.bfloat16, requires_grad=True)]})
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["kahan_sum"] is True
    assert zoo.StableAdamW([half, whole], lr=0.1, kahan_sum=False).param_groups[0]["kahan_split"] is None


def test_a_skipped_step_counts_for_no_group():
    params = start(torch.float32)
    optimizer = zoo.LAMB(grouped(params), skip_nonfinite=True)
    params[0].grad = torch.tensor(float("nan"))
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [0, 0]
    params[0].grad = torch.tensor(1.0)
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]
