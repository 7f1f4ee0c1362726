"""What two processes check of engines that are no part of torch: DeepSpeed, and accelerate over DDP.

`engines/test_deepspeed.py` and `engines/test_accelerate.py` run this, where those are installed.
"""

import copy
import os
import warnings

import torch
from torch import distributed

import oxistep
import oxistep.optim
from recipes import BATCHES, DIRECTIONS, follow, model, watched
from scenarios import NATIVE, assert_same
from two_processes import WORLD, check, check_each

warnings.simplefilter("ignore")  # what these warn of is theirs


def mine() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each process has batches of its own."""
    return BATCHES[distributed.get_rank() :: WORLD]


def environment() -> None:
    """What a launcher sets; the group is there already."""
    rank = str(distributed.get_rank())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "DS_ACCELERATOR": "cpu"}
    import deepspeed.ops

    # a reduction in shared memory, which it would compile for minutes; without it DeepSpeed takes gloo
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def all_native(steps) -> None:
    assert steps
    assert {path for step in steps for path in step} == {"native"}


# ---- DeepSpeed ----


def configuration(stage: int, offload=False, bf16=False) -> dict:
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": stage},
    }
    if offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    if bf16:
        config["bf16"] = {"enabled": True}
    return config


def initialized(optim, config, name="AdamW", one=None):
    import deepspeed

    one = model() if one is None else one
    optimizer = getattr(optim, name)(one.parameters(), **NATIVE[name])
    engine, *_ = deepspeed.initialize(model=one, optimizer=optimizer, config=copy.deepcopy(config))
    return engine


def training(engine, steps=4, start=0) -> list[float]:
    losses = []
    dtype = next(engine.parameters()).dtype
    for k in range(start, start + steps):
        x, y = mine()[k % len(mine())]
        loss = torch.nn.functional.mse_loss(engine(x.to(dtype)).float(), y)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def parameters(engine) -> list[torch.Tensor]:
    """Whole ones: stage 3 keeps parts."""
    import deepspeed

    came = []
    for p in engine.module.parameters():
        with deepspeed.zero.GatheredParameters([p], enabled=hasattr(p, "ds_id")):
            came.append(p.detach().clone())
    return came


STAGES = {
    **{f"stage {stage}": {"stage": stage} for stage in range(4)},
    **{f"stage {stage}, bf16": {"stage": stage, "bf16": True} for stage in range(4)},
    **{f"stage {stage}, offload": {"stage": stage, "offload": True} for stage in (1, 2, 3)},
    "stage 2, offload, bf16": {"stage": 2, "offload": True, "bf16": True},
}


@check
def the_recipe_of_deepspeed(folder):
    environment()
    came = []
    os.chdir(folder)
    with watched() as steps:
        for optim in (oxistep.optim, torch.optim):
            made = follow("DeepSpeed", optim, model=model(), batches=mine())
            came.append(parameters(made["engine"]))
            if optim is oxistep.optim:
                assert isinstance(made["engine"].optimizer.optimizer, oxistep.optim.AdamW)
                (row,) = oxistep.explain(made["engine"].optimizer)  # of one flat parameter
                assert row.path == "native"
    assert len(steps) == len(mine())
    all_native(steps)
    assert_same(*came, exact=True)


@check_each(STAGES)
def deepspeed_trains_as_with_torchs_class(how, _):
    environment()
    config = configuration(**STAGES[how])
    for name in ("AdamW", "SGD"):
        came = []
        with watched() as steps:
            for optim in (oxistep.optim, torch.optim):
                engine = initialized(optim, config, name)
                came.append([training(engine), parameters(engine)])
                if optim is oxistep.optim and how != "stage 0":  # which has no wrapper
                    assert {row.path for row in oxistep.explain(engine.optimizer)} <= {"native"}
        all_native(steps)
        assert_same(*came, exact=True)


@check_each(f"{direction}, stage {stage}" for direction in DIRECTIONS for stage in range(4))
def deepspeeds_checkpoints(what, folder):
    environment()
    direction, _, stage = what.partition(", stage ")
    config = configuration(int(stage))
    source, target = DIRECTIONS[direction]
    first = initialized(source, config)
    training(first)
    first.save_checkpoint(str(folder / what), tag="here")
    expected = training(first, start=4), parameters(first)
    torch.manual_seed(1)
    again = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    second = initialized(target, config, one=again)
    second.load_checkpoint(str(folder / what), tag="here")
    assert_same((training(second, start=4), parameters(second)), expected, exact=True)


@check
def deepspeed_says_what_its_configuration_must_permit(_):
    """Why the two keys are there."""
    environment()
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    for key, kind in (
        ("zero_allow_untested_optimizer", AssertionError),
        ("zero_force_ds_cpu_optimizer", ZeRORuntimeException),
    ):
        config = configuration(2, offload=True)
        del config[key]
        try:
            initialized(oxistep.optim, config)
        except kind:
            continue
        raise AssertionError(f"it did without {key}")


# ---- accelerate ----


@check
def accelerate_over_ddp(folder):
    environment()
    os.environ["ACCELERATE_USE_CPU"] = "1"
    from accelerate import Accelerator

    for name in ("AdamW", "SGD", "RMSprop"):
        came = []
        with watched() as steps:
            for optim in (oxistep.optim, torch.optim):
                accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
                assert accelerator.num_processes == WORLD
                one = model()
                prepared, optimizer = accelerator.prepare(one, getattr(optim, name)(one.parameters(), **NATIVE[name]))
                assert isinstance(prepared, torch.nn.parallel.DistributedDataParallel)
                losses = []
                for x, y in mine() * 2:
                    with accelerator.accumulate(prepared):
                        loss = torch.nn.functional.mse_loss(prepared(x), y)
                        accelerator.backward(loss)
                        if accelerator.sync_gradients:
                            accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
                        optimizer.step()
                        optimizer.zero_grad()
                        losses.append(loss.item())
                came.append([losses, one.state_dict(), optimizer.state_dict()])
        assert len(steps) == len(mine())
        all_native(steps)
        assert_same(*came, exact=True)
