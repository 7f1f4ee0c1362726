"""What two processes check: DTensors and the wrappers of `torch.distributed`, beside torch and beside one process.

Gradients are drawn for the whole tensor, and each process takes its part: one process that holds everything has exactly
the same ones, so element-wise rules must come to the same bits. `test_two_processes.py` runs this.
"""

import contextlib
import copy
import itertools
import warnings

import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import oxistep
import oxistep.optim
from scenarios import NATIVE, PATH, assert_same, params_of, torch_updates_raise
from two_processes import WORLD, check, check_each, join

# Element-wise rules, each with hyperparameters that use all of its states, and some in their shortest form.
RULES = {
    **{name: (name, kwargs) for name, kwargs in NATIVE.items() if name != "Adafactor"},
    "SGD-plain": ("SGD", {"lr": 0.1}),
    "SGD-nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    "RMSprop-plain": ("RMSprop", {"lr": 0.01}),
    "Adam-plain": ("Adam", {"lr": 0.1}),
    "AdamW-amsgrad": ("AdamW", {"lr": 0.1, "amsgrad": True, "maximize": True}),
}
# For what does not depend on the rule: states like the parameter, none, and one that is made at the first step.
SOME_RULES = ("AdamW", "SGD", "SGD-plain")
WRITTEN = ("AdamW", "NAdam")  # where checkpoints take their time
MORE_RULES = (*SOME_RULES, "NAdam", "RMSprop")  # counters of other kinds, three states


def fused_adds() -> bool:
    """Whether torch's loops fuse multiply-adds, as ours do (see the fixture of that name)."""
    sums = torch.full((64,), -(1 + 2.0**-11)).add_(torch.full((64,), 1 + 2.0**-12), alpha=1 + 2.0**-12)
    return bool((sums == 2.0**-24).all())


# Bits of torch's for-loop; where it does not fuse, as close as is promised.
EXACT = fused_adds()


# ---- models and gradients ----

# Thirteen layers, 26 parameters. Of two processes the first gets more rows of 5, 7, 3 and 9, and the only row of 1.
WIDTHS = (6, 5, 1, 7, 3, 8, 1, 2, 9, 4, 5, 1, 3, 2)


def net(dtype=torch.float32, seed=0) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(a, b, dtype=dtype) for a, b in itertools.pairwise(WIDTHS)]
    return torch.nn.Sequential(*layers)


def sharded(dtype=torch.float32, mesh=None, seed=0, **policies) -> torch.nn.Sequential:
    """The same under FSDP2: every third layer by itself, and what is left together."""
    model = net(dtype, seed)
    mesh = init_device_mesh("cpu", (WORLD,)) if mesh is None else mesh
    for layer in list(model)[::3]:
        fully_shard(layer, mesh=mesh, **policies)
    return fully_shard(model, mesh=mesh, **policies)


def part(p: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Of a tensor that every process has, the part that is placed as the parameter is."""
    whole = whole.to(p.dtype)
    if not isinstance(p, DTensor):
        return whole.clone()
    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)


def set_gradients(params, step: int, without=()) -> None:
    """The gradients of that step, but for the parameters at some places."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = None if i in without else part(p, gradient)


def batch(step: int, rank=None, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """What a process trains on, not the same as the other's."""
    rank = distributed.get_rank() if rank is None else rank
    generator = torch.Generator().manual_seed(10 * step + rank)
    return tuple(torch.randn(4, n, generator=generator).to(dtype) for n in (WIDTHS[0], WIDTHS[-1]))


def backward(model: torch.nn.Module, step: int, dtype=torch.float32) -> float:
    """Gradients of a real loss, which it returns."""
    x, y = batch(step, dtype=dtype)
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss.item()


# ---- optimizers ----


def make(optim, rule: str, params, **kwargs) -> torch.optim.Optimizer:
    name, settings = RULES[rule]
    return getattr(optim, name)(params, **{**settings, **kwargs})


def paths(optimizer) -> list[str]:
    return [row.path for row in oxistep.explain(optimizer)]


def expected_paths(optimizer, of_dtensors=PATH) -> list[str]:
    def path(p):
        if p.grad is None:
            return "skipped"
        return (of_dtensors if PATH == "native" else PATH) if isinstance(p, DTensor) else PATH

    return [path(p) for p in params_of(optimizer)]


def step(optimizer, of_dtensors=PATH) -> None:
    """A step that takes the expected paths, if the optimizer is ours."""
    guard = contextlib.nullcontext()
    if type(optimizer).__module__.startswith("oxistep."):
        assert paths(optimizer) == expected_paths(optimizer, of_dtensors)
        if "torch" not in paths(optimizer):
            guard = torch_updates_raise()
    with guard:
        optimizer.step()


def train(optimizer, steps=3, start=0) -> None:
    for k in range(start, start + steps):
        set_gradients(params_of(optimizer), k)
        step(optimizer)


def training_of(model, optimizer, steps=3, start=0, backward=backward) -> list[float]:
    """Losses of a real training."""
    losses = []
    for k in range(start, start + steps):
        losses.append(backward(model, k))
        step(optimizer)
        optimizer.zero_grad()
    return losses


def whole(value):
    """A value of a state, or a parameter, with what the other process holds."""
    if isinstance(value, DTensor):
        return value.detach().full_tensor()
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def result(optimizer) -> dict:
    """As `scenarios.result`, of whole tensors."""
    params = params_of(optimizer)
    state = [
        {key: whole(value) for key, value in optimizer.state[p].items()} if optimizer.state.get(p) else "none"
        for p in params
    ]
    return {"params": [whole(p) for p in params], "state": state}


def assert_placed_alike(optimizer) -> None:
    """States of a parameter's shape are distributed as it is, and counters are plain tensors."""
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(p, DTensor) and isinstance(value, torch.Tensor) and value.shape == p.shape and p.dim():
                assert isinstance(value, DTensor), key
                assert value.device_mesh == p.device_mesh, key
                assert value.placements == p.placements, key
                assert value.to_local().shape == p.to_local().shape, key
                assert not value.requires_grad, key
            if key == "step":
                assert not isinstance(value, DTensor)
            if isinstance(value, DTensor) and value.numel():
                assert (
                    value.to_local().untyped_storage().data_ptr() != p.to_local().untyped_storage().data_ptr()
                    or not value.to_local().numel()
                )


def outcome(scenario, *args, **kwargs):
    """As `scenarios.outcome`, but an assertion that fails is no result."""
    try:
        return scenario(*args, **kwargs)
    except AssertionError:
        raise
    except Exception as error:
        return type(error), str(error)


# ---- FSDP2, beside one process ----


@check_each(RULES)
def fsdp2_comes_to_the_bits_of_one_process(rule, _):
    """Uneven and empty shards; some gradients missing; a learning rate that changes."""
    ours, plain, theirs = (
        make(optim, rule, model.parameters())
        for optim, model in ((oxistep.optim, sharded()), (oxistep.optim, net()), (torch.optim, net()))
    )
    empty = [p.to_local().numel() == 0 for p in params_of(ours)]
    assert sum(empty) == (0 if distributed.get_rank() == 0 else 6)
    for k in range(4):
        for optimizer in (ours, plain, theirs):
            set_gradients(params_of(optimizer), k, without=(2, 7) if k == 1 else ())
            optimizer.param_groups[0]["lr"] *= 0.5 if k == 2 else 1
            step(optimizer)
    came = result(ours)
    assert_same(came, result(plain), exact=True)
    assert_same(came, result(theirs), exact=EXACT)
    assert_placed_alike(ours)
    assert all(isinstance(p, DTensor) for p in params_of(ours))


@check_each(["float64", "bfloat16", "float16"])
def fsdp2_in_other_dtypes(dtype, _):
    dtype = getattr(torch, dtype)
    for rule in SOME_RULES:
        ours = make(oxistep.optim, rule, sharded(dtype).parameters())
        # torch rounds half types after every operation, a native step once
        other = make(oxistep.optim, rule, net(dtype).parameters())
        for optimizer in (ours, other):
            train(optimizer)
        assert_same(result(ours), result(other), exact=True)


@check_each([None, "stochastic"])
def fsdp2_draws_for_an_element_what_one_process_draws(weights, _):
    """Second moments in bfloat16, and weights, rounded with fair odds; shards that begin anywhere."""
    for rule in ("AdamW", "SGD-plain") if weights else ("AdamW",):
        dtype = torch.bfloat16 if weights else torch.float32
        settings = {"weights": weights, "state_dtype": torch.bfloat16, "seed": 3}
        ours = make(oxistep.optim, rule, sharded(dtype).parameters(), **settings)
        other = make(oxistep.optim, rule, net(dtype).parameters(), **settings)
        for optimizer in (ours, other):
            train(optimizer, 4)
        assert_same(result(ours), result(other), exact=True)


@check_each([None, 0.9])
def fsdp2_keeps_averages(ema, _):
    """Averages of shards are shards of the averages."""
    ours, other = (make(oxistep.optim, "AdamW", model.parameters(), ema=ema) for model in (sharded(), net()))
    for optimizer in (ours, other):
        train(optimizer, 4)
    assert_same(result(ours), result(other), exact=True)
    assert_placed_alike(ours)
    assert all(("param_ema" in state) == (ema is not None) for state in ours.state.values())


@check_each(SOME_RULES)
def fsdp2_trains_as_with_torchs_class(rule, _):
    """Losses and parameters of a real training, each process with data of its own."""

    def training(optim, **flags):
        model = sharded()
        optimizer = make(optim, rule, model.parameters(), **flags)
        return training_of(model, optimizer, 4), result(optimizer)

    theirs = training(torch.optim)
    assert_same(training(oxistep.optim), theirs, exact=EXACT)
    for flag in ("foreach", "fused"):
        assert_same(training(oxistep.optim, **{flag: True}), theirs, exact=EXACT)


def groups_of(model) -> list[dict]:
    decay, others = [], []
    for p in model.parameters():
        (decay if p.dim() > 1 else others).append(p)
    return [{"params": decay, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 0.02}]


@check_each(SOME_RULES)
def groups_a_scheduler_and_a_tensor_for_lr(rule, _):
    def training(optim, model, lr):
        optimizer = make(optim, rule, groups_of(model), lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for k in range(4):
            set_gradients(params_of(optimizer), k)
            step(optimizer)
            scheduler.step()
        return result(optimizer)

    for lr in (lambda: 0.05, lambda: torch.tensor(0.05)):  # a scheduler writes into the tensor
        ours = training(oxistep.optim, sharded(), lr())
        assert_same(ours, training(oxistep.optim, net(), lr()), exact=True)
        # torch computes with a tensor in its precision
        assert_same(ours, training(torch.optim, net(), lr()), exact=EXACT and isinstance(lr(), float))


@check
def a_rank_without_any_element(_):
    """The second process holds nothing: it neither fails nor lets the other wait."""
    for rule in RULES:
        results = []
        for optim, shard in ((oxistep.optim, True), (torch.optim, False)):
            torch.manual_seed(0)
            model = torch.nn.Linear(3, 1)
            if shard:
                fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
            optimizer = make(optim, rule, model.parameters())
            train(optimizer)
            results.append(result(optimizer))
        assert_same(*results, exact=EXACT)


@check
def many_steps_with_states_replaced_between(_):
    """What later steps remember of earlier ones must not outlive `set_optimizer_state_dict`, and the like."""
    for rule in SOME_RULES:
        model, plain = sharded(), net()
        ours, theirs = make(oxistep.optim, rule, model.parameters()), make(torch.optim, rule, plain.parameters())
        for k in range(12):
            for optimizer in (ours, theirs):
                train(optimizer, 1, start=k)
            if k % 4 == 1:
                set_optimizer_state_dict(model, ours, get_optimizer_state_dict(model, ours))
            if k % 4 == 2:
                ours.load_state_dict(copy.deepcopy(ours.state_dict()))
            if k == 7:
                for optimizer in (ours, theirs):
                    optimizer.state.clear()
            if k == 9:  # loading a model writes into the parameters
                set_model_state_dict(model, {key: value.clone() for key, value in get_model_state_dict(model).items()})
        assert_same(result(ours), result(theirs), exact=EXACT)


# ---- other meshes, policies, placements ----


@check_each(["1x2", "2x1"])
def hsdp(shape, _):
    """Replicas in one direction of the mesh, shards in the other."""
    mesh = init_device_mesh("cpu", tuple(map(int, shape.split("x"))), mesh_dim_names=("replicas", "shards"))
    for rule in MORE_RULES:
        ours, theirs = (
            make(oxistep.optim, rule, sharded(mesh=mesh).parameters()),
            make(torch.optim, rule, net().parameters()),
        )
        assert params_of(ours)[0].placements == (Replicate(), Shard(0))
        for optimizer in (ours, theirs):
            train(optimizer)
        assert_same(result(ours), result(theirs), exact=EXACT)
        assert_placed_alike(ours)


POLICIES = {
    "offload": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    "mixed": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
    "kept": {"reshard_after_forward": False},
}


@check_each(POLICIES)
def fsdp2_with_a_policy(policy, _):
    def training(optim, rule):
        model = sharded(**POLICIES[policy])
        optimizer = make(optim, rule, model.parameters())
        return training_of(model, optimizer), result(optimizer)

    for rule in SOME_RULES:
        assert_same(training(oxistep.optim, rule), training(torch.optim, rule), exact=EXACT)


class Perceptron(torch.nn.Module):
    """What tensor parallelism is shown with; the norm stays a plain module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.norm = torch.nn.Linear(6, 8), torch.nn.Linear(8, 2), torch.nn.LayerNorm(2)

    def forward(self, x):
        return self.norm(self.down(torch.tanh(self.up(x))))


def parallel(mesh) -> Perceptron:
    return parallelize_module(Perceptron(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def same_data(model, k: int) -> float:
    """Tensor parallelism: every process sees the same data."""
    x, y = batch(k, rank=0)
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss.item()


@check
def tensor_parallel(_):
    """Shard(0), Shard(1), Replicate and plain tensors in one group."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for rule in RULES:
        ours, theirs = (
            make(optim, rule, model.parameters())
            for optim, model in ((oxistep.optim, parallel(mesh)), (torch.optim, Perceptron()))
        )
        placements = [p.placements if isinstance(p, DTensor) else None for p in params_of(ours)]
        assert placements == [(Shard(0),), (Shard(0),), (Shard(1),), (Replicate(),), None, None]
        for optimizer in (ours, theirs):
            train(optimizer)
        assert_same(result(ours), result(theirs), exact=EXACT)
        assert_placed_alike(ours)


@check_each(["1x2", "2x1"])
def tensor_parallel_trains_as_with_torchs_class(shape, _):
    """And FSDP2 over it, in the other direction of the mesh."""
    mesh = init_device_mesh("cpu", tuple(map(int, shape.split("x"))), mesh_dim_names=("data", "tensor"))

    def training(optim, rule):
        model = fully_shard(parallel(mesh["tensor"]), mesh=mesh["data"], ignored_params=set())
        optimizer = make(optim, rule, model.parameters())
        return training_of(model, optimizer, backward=same_data), result(optimizer)

    for rule in SOME_RULES:
        assert_same(training(oxistep.optim, rule), training(torch.optim, rule), exact=EXACT)


SHAPES = ((5, 3), (2, 7), (1, 5), (4,), (3, 3, 3), ())


@check
def placements_of_all_kinds_beside_plain_tensors(_):
    """Uneven in any dimension, also nothing for one process; a scalar."""
    mesh = init_device_mesh("cpu", (WORLD,))

    def draw():
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=generator) for shape in SHAPES]

    def placed(x, k):
        kind = (Shard(0), Shard(1), Shard(0), Replicate(), Shard(2), Replicate())[k]
        return distribute_tensor(x, mesh, [kind], src_data_rank=None)

    for rule in RULES:
        mixed, twice = [], []
        for k, x in enumerate(draw()):
            mixed += [torch.nn.Parameter(placed(x, k)), torch.nn.Parameter(x.clone())]
            twice += [torch.nn.Parameter(x.clone()) for _ in range(2)]
        ours, theirs = make(oxistep.optim, rule, mixed), make(torch.optim, rule, twice)
        for optimizer in (ours, theirs):
            train(optimizer)
        assert_same(result(ours), result(theirs), exact=EXACT)
        assert_placed_alike(ours)


@check
def gradients_and_states_that_are_placed_otherwise_are_left_to_torch(_):
    mesh = init_device_mesh("cpu", (WORLD,))
    value = torch.arange(12.0).reshape(4, 3)

    def scenario(optim, rule, kind):
        p = torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None))
        optimizer = make(optim, rule, [p])
        for k in range(3):
            whole_gradient = torch.full((4, 3), 0.5 + k)
            gradient = distribute_tensor(whole_gradient, mesh, [Replicate()], src_data_rank=None)
            if kind == "partial":
                gradient = DTensor.from_local(whole_gradient / WORLD, mesh, [Partial()], run_check=False)
            if kind == "sharded otherwise":
                gradient = gradient.redistribute(placements=[Shard(1)])
            if kind == "state":
                gradient = gradient.redistribute(placements=[Shard(0)])
                for key, state in optimizer.state[p].items():
                    if isinstance(state, DTensor):
                        optimizer.state[p][key] = state.redistribute(placements=[Replicate()])
            p.grad = gradient
            step(optimizer, of_dtensors="torch" if kind != "state" or k else PATH)
        return result(optimizer)

    for kind in ("replicated", "partial", "sharded otherwise", "state"):
        for rule in ("AdamW", "SGD"):
            outcomes = [outcome(scenario, optim, rule, kind) for optim in (oxistep.optim, torch.optim)]
            assert_same(*outcomes, where=f"{rule}, {kind}", exact=EXACT)


@check
def adafactor_stays_torchs(_):
    """It looks at whole tensors. Torch's own fails on distributed ones: the same exception, and nothing waits."""

    def scenario(optim):
        optimizer = optim.Adafactor(sharded().parameters(), lr=0.1)
        set_gradients(params_of(optimizer), 0)
        step(optimizer, of_dtensors="torch")
        return result(optimizer)

    ours, theirs = outcome(scenario, oxistep.optim), outcome(scenario, torch.optim)
    assert_same(ours, theirs)


@check
def float32_states_of_bfloat16(_):
    for rule in RULES:
        optimizers = []
        for model in (sharded(torch.bfloat16), net(torch.bfloat16)):
            optimizers.append(make(oxistep.optim, rule, model.parameters(), state_dtype=torch.float32))
            train(optimizers[-1])
        ours, plain = optimizers
        assert_same(result(ours), result(plain), exact=True)
        assert {value.dtype for s in ours.state.values() for value in s.values() if isinstance(value, DTensor)} <= {
            torch.float32
        }
        assert_placed_alike(ours)


# ---- clipping, and steps that are skipped ----


@check_each(SOME_RULES)
def max_grad_norm_is_that_of_all_shards(rule, _):
    ours = make(oxistep.optim, rule, sharded().parameters(), max_grad_norm=0.5)
    plain = make(oxistep.optim, rule, net().parameters(), max_grad_norm=0.5)
    for k in range(3):
        for optimizer in (ours, plain):
            train(optimizer, 1, start=k)
        assert abs(float(whole(ours.last_grad_norm)) / float(plain.last_grad_norm) - 1) < 1e-6
    assert_same(result(ours), result(plain))


@check_each(["nan", "inf"])
def what_is_not_finite_in_one_shard_skips_the_step_everywhere(value, _):
    for rule in WRITTEN:
        for row in (0, 4):  # of the first process, of the second
            model = sharded()
            optimizer = make(oxistep.optim, rule, model.parameters(), skip_nonfinite=True)
            train(optimizer, 1)
            before = result(optimizer)
            set_gradients(params_of(optimizer), 1)
            gradient = torch.ones(5, 6)
            gradient[row, 0] = float(value)
            first = params_of(optimizer)[0]
            assert first.shape == gradient.shape
            first.grad = part(first, gradient)
            optimizer.step()
            assert_same(result(optimizer), before, exact=True)
            train(optimizer, 1, start=2)
            assert not torch.equal(result(optimizer)["params"][0], before["params"][0])


@check
def the_clipping_functions_take_distributed_tensors(_):
    model, plain = sharded(), net()
    # for the largest element of an empty shard torch's function raises, in the process that has it
    for k, norm_type in enumerate((2.0, 1.0, float("inf"))):
        for one in (model, plain):
            set_gradients(list(one.parameters()), k)
        norms = [
            whole(oxistep.clip_grad_norm_(one.parameters(), max_norm=0.5, norm_type=norm_type))
            for one in (model, plain)
        ]
        torch.testing.assert_close(*norms, rtol=1e-6, atol=0)
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(whole(p.grad), q.grad, rtol=1e-6, atol=1e-7)
        for one in (model, plain):
            oxistep.clip_grad_value_(one.parameters(), 0.01)
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(whole(p.grad), q.grad, rtol=1e-6, atol=1e-7)


# ---- checkpoints ----

OPTIONS = {
    "plain": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "offload": {"cpu_offload": True},
    "flat, offload": {"flatten_optimizer_state_dict": True, "cpu_offload": True},
    "full, offload": {"full_state_dict": True, "cpu_offload": True},  # in the first process alone
}
DIRECTIONS = {
    "ours to ours": (oxistep.optim, oxistep.optim),
    "torch's to ours": (torch.optim, oxistep.optim),
    "ours to torch's": (oxistep.optim, torch.optim),
}


def gather(model, optimizer, options) -> dict:
    """What is saved, as a copy: it shares tensors with what goes on training."""
    return {
        "model": copy.deepcopy(get_model_state_dict(model, options=options)),
        "optimizer": copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options)),
    }


def restore(model, optimizer, saved, options) -> None:
    set_model_state_dict(model, saved["model"], options=options)
    set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=options)


@check_each(DIRECTIONS)
def state_dicts_of_distributed_checkpoints(direction, _):
    source, target = DIRECTIONS[direction]
    for kind, options in OPTIONS.items():
        for rule in SOME_RULES if kind == "plain" else ("AdamW",):
            model = sharded()
            optimizer = make(source, rule, model.parameters())
            train(optimizer, 2)
            how = StateDictOptions(**options)
            saved = gather(model, optimizer, how)
            again = sharded(seed=1)
            second = make(target, rule, again.parameters(), lr=0.7)
            if kind == "full, offload":
                how = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            restore(again, second, saved, how)
            for one in (optimizer, second):
                train(one, 2, start=2)
            assert_same(result(second), result(optimizer), where=f"{kind}, {rule}", exact=EXACT)


def save(model, optimizer, place, **how) -> None:
    checkpoint.save(gather(model, optimizer, StateDictOptions()), checkpoint_id=place, **how)


def load(model, optimizer, place, **how) -> None:
    options = StateDictOptions()
    state = gather(model, optimizer, options)
    checkpoint.load(state, checkpoint_id=place, **how)
    restore(model, optimizer, state, options)


@check_each(DIRECTIONS)
def distributed_checkpoints_on_disk(direction, folder):
    source, target = DIRECTIONS[direction]
    for rule in (*WRITTEN, "SGD-plain"):
        model = sharded()
        optimizer = make(source, rule, model.parameters())
        train(optimizer, 2)
        place = folder / f"disk {direction} {rule}"
        save(model, optimizer, place)
        again = sharded(seed=1)
        second = make(target, rule, again.parameters())
        load(again, second, place)
        for one in (optimizer, second):
            train(one, 2, start=2)
        assert_same(result(second), result(optimizer), where=rule, exact=EXACT)


REJOINED = itertools.count()


@contextlib.contextmanager
def a_world_of_one(folder):
    """Each process is alone for a while, with groups and meshes of its own."""
    rank = distributed.get_rank()
    distributed.barrier()
    distributed.destroy_process_group()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    join(folder / f"store of {next(REJOINED)}", rank)


@check_each(["ours alone", "torch's and ours in turn"])
def from_two_processes_to_one_and_back(who, folder):
    """A checkpoint of two goes on in one, under FSDP2 and without; that of the one goes on in two."""
    first, second, third = (oxistep.optim, torch.optim if "torch" in who else oxistep.optim, oxistep.optim)
    rank = distributed.get_rank()
    finished = {}
    for rule in WRITTEN:
        plain = net()
        finished[rule] = make(torch.optim, rule, plain.parameters())
        train(finished[rule], 2)
        model = sharded()
        optimizer = make(first, rule, model.parameters())
        train(optimizer, 2)
        save(model, optimizer, folder / f"{who}, {rule} of two")
    with a_world_of_one(folder):
        for rule in WRITTEN:
            train(finished[rule], 2, start=2)
            for under_fsdp in (True, False):
                how = {} if under_fsdp else {"no_dist": True}
                model = sharded(seed=1, mesh=init_device_mesh("cpu", (1,))) if under_fsdp else net(seed=1)
                optimizer = make(second, rule, model.parameters())
                load(model, optimizer, folder / f"{who}, {rule} of two", **how)
                train(optimizer, 2, start=2)
                assert_same(result(optimizer), result(finished[rule]), where=rule, exact=EXACT)
                save(model, optimizer, folder / f"{who}, {rule} of one, {rank}, {under_fsdp}", **how)
    for rule in WRITTEN:
        train(finished[rule], 2, start=4)
        for under_fsdp in (True, False):
            model = sharded(seed=1)
            optimizer = make(third, rule, model.parameters())
            load(model, optimizer, folder / f"{who}, {rule} of one, 0, {under_fsdp}")
            train(optimizer, 2, start=4)
            assert_same(result(optimizer), result(finished[rule]), where=rule, exact=EXACT)


# ---- wrappers that keep parameters as plain tensors ----


@check_each(RULES)
def ddp(rule, _):
    from torch.nn.parallel import DistributedDataParallel

    def training(optim, **how):
        model = DistributedDataParallel(net(), **how)
        optimizer = make(optim, rule, model.parameters())
        return training_of(model, optimizer), result(optimizer)

    for how in ({}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
        assert_same(training(oxistep.optim, **how), training(torch.optim, **how), exact=EXACT)


@check
def ddp_with_a_hook_and_with_averaging(_):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer
    from torch.nn.parallel import DistributedDataParallel

    def compressed(optim, rule):
        model = DistributedDataParallel(net())
        model.register_comm_hook(None, bf16_compress_hook)
        optimizer = make(optim, rule, model.parameters())
        return training_of(model, optimizer), result(optimizer)

    def averaged(optim, rule):
        model = net()
        inside = make(optim, rule, model.parameters())
        optimizer = PostLocalSGDOptimizer(inside, PeriodicModelAverager(period=2, warmup_steps=1))
        losses = []
        for k in range(4):
            losses.append(backward(model, k))
            if optim is oxistep.optim:
                assert paths(optimizer) == [PATH] * 26
            optimizer.step()
            optimizer.zero_grad()
        return losses, result(inside)

    for scenario in (compressed, averaged):
        for rule in SOME_RULES:
            assert_same(scenario(oxistep.optim, rule), scenario(torch.optim, rule), exact=EXACT)


@check_each(["AdamW", "SGD", "RMSprop", "Adamax"])
def zero_redundancy_optimizer(rule, _):
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    name, settings = RULES[rule]

    def made(optim, model, **how):
        return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=getattr(optim, name), **how, **settings)

    def native(optim, optimizer):
        """What a process holds is native: all its parameters, or one flat tensor."""
        if optim is oxistep.optim:
            backward_was = [row for row in oxistep.explain(optimizer) if row.path != "skipped"]
            assert backward_was and {row.path for row in backward_was} == {PATH}

    def training(optim, model, optimizer, start=0):
        losses = []
        for k in range(start, start + 3):
            losses.append(backward(model, k))
            native(optim, optimizer)
            optimizer.step()
            optimizer.zero_grad()
        return losses, [whole(p) for p in model.parameters()]

    for how in ({}, {"parameters_as_bucket_view": True}):
        saved, after = {}, {}
        for optim in (oxistep.optim, torch.optim):
            model = DistributedDataParallel(net())
            optimizer = made(optim, model, **how)
            came = training(optim, model, optimizer)
            for to in range(WORLD):  # the whole state is in the process that is named, until the next call
                optimizer.consolidate_state_dict(to)
                if to == distributed.get_rank():
                    saved[optim] = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
            after[optim] = came, training(optim, model, optimizer, start=3)
        assert_same(after[oxistep.optim], after[torch.optim], exact=EXACT)
        for source, target in DIRECTIONS.values():
            model = DistributedDataParallel(net(seed=1))
            optimizer = made(target, model, **how)
            model.load_state_dict(saved[source][0])
            optimizer.load_state_dict(copy.deepcopy(saved[source][1]))
            assert_same(training(target, model, optimizer, start=3), after[torch.optim][1], exact=EXACT)


FSDP1 = [
    f"{strategy}, {kind}" for strategy in ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD") for kind in ("flat", "original")
]


@check_each(FSDP1)
def fsdp1(how, _):
    """Flat parameters; or views into them, of which some have no element here, and then no gradient."""
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    strategy, _, kind = how.partition(", ")

    def made(optim, rule, seed=0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that NO_SHARD is old
            model = FullyShardedDataParallel(
                net(seed=seed),
                sharding_strategy=ShardingStrategy[strategy],
                use_orig_params=kind == "original",
                device_id=torch.device("cpu"),  # else torch looks for an accelerator
            )
        return model, make(optim, rule, model.parameters())

    def training(model, optimizer, start=0):
        losses = training_of(model, optimizer, start=start)
        return losses, [p.detach().clone() for p in model.parameters()]

    for rule in SOME_RULES:
        came = {}
        for source, target in DIRECTIONS.values():
            model, optimizer = made(source, rule)
            before = training(model, optimizer)
            weights, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
            came[source, target] = before, training(model, optimizer, start=3)
            # each process keeps its own part
            again, second = made(target, rule, seed=1)
            again.load_state_dict(weights)
            second.load_state_dict(saved)
            assert_same(training(again, second, start=3), came[source, target][1], where=rule, exact=EXACT)
        assert_same(*(came[pair] for pair in DIRECTIONS.values() if pair != (oxistep.optim, torch.optim)), exact=EXACT)


@check
def fsdp1_gathers_and_scatters_states(_):
    """`optim_state_dict`, from two processes' flat parameters to whole tensors and back."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    def made(optim, rule, seed=0):
        model = FullyShardedDataParallel(net(seed=seed), device_id=torch.device("cpu"))
        return model, make(optim, rule, model.parameters())

    for rule in ("AdamW", "SGD"):
        for source, target in DIRECTIONS.values():
            model, optimizer = made(source, rule)
            training_of(model, optimizer)
            weights = copy.deepcopy(model.state_dict())
            saved = copy.deepcopy(FullyShardedDataParallel.optim_state_dict(model, optimizer))
            expected = training_of(model, optimizer, start=3), [whole(p) for p in model.parameters()]
            again, second = made(target, rule, seed=1)
            again.load_state_dict(weights)
            second.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(again, second, saved))
            came = training_of(again, second, start=3), [whole(p) for p in again.parameters()]
            assert_same(came, expected, where=rule, exact=EXACT)


@check
def on_purpose_one_process_fails(_):
    """Not a check of ours, but of how they are run: the other process waits for this one."""
    if distributed.get_rank() == 1:
        raise ZeroDivisionError("on purpose")
    distributed.barrier()
