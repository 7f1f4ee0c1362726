"""What trainers and distributed engines do with an optimizer: each contract, with torch's classes beside ours.

The engines themselves are not installed; each test does what the named code does. torch's own are called.
"""

import copy
import inspect
import io
import os
import warnings

import pytest
import safetensors.torch
import torch
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import oxistep
import oxistep.optim
from every_torch_class import (
    KWARGS,
    assert_agrees,
    bowl,
    close,
    draw,
    each_of_fifteen,
    each_stepping_class,
    make,
    set_gradients,
    train,
)
from scenarios import PATH, assert_same, clone, params_of, result

each_dense_class = pytest.mark.parametrize("name", [name for name in KWARGS if name not in ("LBFGS", "SparseAdam")])
# torch.distributed.optim of torch before 2.13 warns when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

# Old versions of torch's Adagrad make states in the constructor alone: a parameter put in afterwards never has any.
makes_states_late = "full_like" in inspect.getsource(torch.optim.Adagrad._init_group)

distributed_here = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch is built without it"
)


class Net(torch.nn.Module):
    """Two matrices, which every dense class takes, the same at every call."""

    def __init__(self, name):
        super().__init__()
        self.first, self.second = map(torch.nn.Parameter, draw(name))

    def forward(self, x):
        return (x @ self.first).square().sum() + (self.second - 0.3).square().sum()


def loss_of(model, step):
    return model(torch.linspace(-1, 1, 8).reshape(2, 4) * (1 + step))


def backward(model, step):
    model.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return loss


# ---- trainers ----


@each_of_fifteen
def test_accelerate_loads_the_state_dict_at_once_and_replaces_step(name):
    """`AcceleratedOptimizer`: state_dict -> load_state_dict in its constructor, `step(closure)` by position."""

    def scenario(optim):
        optimizer = make(optim, name, draw(name))
        optimizer.load_state_dict(optimizer.state_dict())
        calls, original = [], optimizer.step

        def patched(*args, **kwargs):
            calls.append(len(args))
            return original(*args, **kwargs)

        for step in range(3):
            set_gradients(name, params_of(optimizer), step)
            optimizer.step = patched if step else original
            optimizer.step(bowl(optimizer) if name == "LBFGS" else None)
        optimizer.step = original
        return calls, result(optimizer)

    assert_agrees(name, scenario)


class LightningOptimizer:
    """The wrapper whose class is rebuilt from itself and the optimizer's (`lightning.pytorch.core.optimizer`)."""

    def __init__(self, optimizer):
        self.__class__ = type("Lightning" + type(optimizer).__name__, (type(self), type(optimizer)), {})
        self._optimizer = optimizer
        self.refresh()

    def refresh(self):
        self.__dict__.update({k: v for k, v in self._optimizer.__dict__.items() if k not in ("step", "__del__")})

    def step(self, closure=None, **kwargs):
        return self._optimizer.step(closure=closure, **kwargs)

    def __getattr__(self, item):
        return getattr(self._optimizer, item)


@each_of_fifteen
def test_lightning_rebuilds_the_class_and_always_passes_a_closure(name):
    def scenario(optim):
        plain = make(optim, name, draw(name))
        wrapped = LightningOptimizer(plain)
        assert isinstance(wrapped, torch.optim.Optimizer)
        assert isinstance(wrapped, getattr(optim, name))
        scheduler = torch.optim.lr_scheduler.StepLR(plain, 2)
        seen = []

        def closure():
            seen.append(torch.is_grad_enabled())
            loss = bowl(plain)()
            if name == "SparseAdam":
                set_gradients(name, params_of(plain), len(seen))
            return loss

        for _ in range(3):
            wrapped.step(closure)
            wrapped.refresh()
            scheduler.step()
        saved = wrapped.state_dict()
        return seen, saved["param_groups"], result(plain)

    assert_agrees(name, scenario)


@each_of_fifteen
def test_hugging_faces_trainer_wants_a_subclass_of_optimizer(name):
    """Else it takes the class for a factory; `create_optimizer` passes groups, of which one may be empty."""
    cls = getattr(oxistep.optim, name)
    assert inspect.isclass(cls)
    assert issubclass(cls, torch.optim.Optimizer)
    if name == "LBFGS":
        return

    def scenario(optim):
        params = draw(name)
        groups = [{"params": params}, {"params": []}]
        optimizer = getattr(optim, name)(groups, **KWARGS[name])
        train(name, optimizer)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        again = getattr(optim, name)([{"params": clone(params)}, {"params": []}], **KWARGS[name])
        again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        train(name, again, start=3)
        return result(again)

    assert_agrees(name, scenario)


@each_stepping_class
def test_timm_adds_keys_of_its_own_to_groups(name):
    def scenario(optim):
        a, b = draw(name)
        flag = {"foreach": None} if "foreach" in inspect.signature(getattr(torch.optim, name)).parameters else {}
        groups = [{"params": [a], "lr_scale": 0.5, "group_name": "early"}, {"params": [b], "lr_scale": 1.0}]
        optimizer = make(optim, name, groups, **flag)
        train(name, optimizer)
        return optimizer.state_dict()

    came = assert_agrees(name, scenario)
    assert came["param_groups"][0]["lr_scale"] == 0.5


# ---- engines that own the parameters ----


@each_stepping_class
def test_deepspeed_swaps_the_groups_and_steps_each(name):
    """ZeRO keeps one flat tensor per group (as lists that it replaces), and shows `step` one group at a time."""

    def scenario(optim):
        a, b = draw(name)
        optimizer = make(optim, name, [{"params": [a]}, {"params": [b], "lr": 0.02}])
        for group in optimizer.param_groups:  # other tensors in the place of those it was made with
            group["params"] = clone(group["params"])
        for step in range(3):
            set_gradients(name, params_of(optimizer), step)
            everything = optimizer.param_groups
            for group in everything:
                optimizer.param_groups = [group]
                optimizer.step()
            optimizer.param_groups = everything
            if optim is oxistep.optim:
                assert [row.path for row in oxistep.explain(optimizer)] == [PATH, PATH]
        assert torch.equal(a, draw(name)[0])
        return result(optimizer)

    if name == "Adagrad" and not makes_states_late:
        scenario(oxistep.optim)
    else:
        assert_agrees(name, scenario)


@each_stepping_class
def test_fsdp_of_accelerate_swaps_parameters_wholesale(name):
    def scenario(optim):
        first, second = draw(name), draw(name, seed=1)
        optimizer = make(optim, name, first)
        optimizer.param_groups[0]["params"] = second
        train(name, optimizer, 2)
        optimizer.param_groups[0]["params"] = [second[0], *draw(name, seed=2)[1:]]
        train(name, optimizer, 2, start=2)
        assert all(map(torch.equal, first, draw(name)))
        return result(optimizer)

    if name == "Adagrad" and not makes_states_late:
        scenario(oxistep.optim)
    else:
        assert_agrees(name, scenario)


@each_stepping_class
def test_torchao_offloads_one_optimizer_per_tensor_and_overwrites_gradients(name):
    def scenario(optim):
        params = draw(name)
        optimizers = [make(optim, name, [{"params": p}]) for p in params]
        set_gradients(name, params, 0)
        for step in range(3):
            for p, optimizer in zip(params, optimizers, strict=True):
                fresh = draw(name, seed=10 + step)[0 if p is params[0] else 1].detach()
                values = p.grad._values() if p.grad.is_sparse else p.grad
                values.copy_(fresh[: len(values)])
                kept = values.clone()
                optimizer.step()
                assert torch.equal(values, kept)
        return [result(o) for o in optimizers]

    assert_agrees(name, scenario)


def numbered(optimizer):
    """All tensors of the states, under names."""
    for i, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            for k, tensor in enumerate(value if isinstance(value, list) else [value]):
                if torch.is_tensor(tensor):
                    yield f"{i}.{key}.{k}", tensor


@each_of_fifteen
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
def test_safetensors_wants_contiguous_tensors_that_own_their_memory(name, loaded):
    optimizer = make(oxistep.optim, name, draw(name))
    train(name, optimizer, 4)
    if loaded:
        again = make(oxistep.optim, name, draw(name))
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(name, again, 1)
        optimizer = again
    tensors = dict(numbered(optimizer))
    assert len(tensors) >= 2
    # it refuses, with an error, tensors that share memory, and what is not contiguous
    saved = safetensors.torch.save({**tensors, **{f"p{i}": p for i, p in enumerate(params_of(optimizer))}})
    for key, value in safetensors.torch.load(saved).items():
        if key in tensors:
            assert torch.equal(value, tensors[key]), key
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors.values())  # torch.save writes whole storages


# ---- torch.distributed, one process ----


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@distributed_here
@each_dense_class
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_distributed_checkpoints(name, flat, alone, tmp_path):
    """get/set_optimizer_state_dict and a checkpoint on disk; the states are made by a step with lr = 0."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def scenario(optim):
        model = Net(name)
        optimizer = make(optim, name, model.parameters())
        if optim is oxistep.optim and name != "Rprop":  # (which reads lr only when it makes its states)
            get_optimizer_state_dict(model, optimizer, options=options)
            assert all(map(torch.equal, model.parameters(), draw(name))), "lr = 0 moved a parameter"
            model, optimizer = Net(name), None
            optimizer = make(optim, name, model.parameters())
        for step in range(2):
            backward(model, step)
            optimizer.step()
        place = tmp_path / optim.__name__
        checkpoint.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=place)

        again = Net(name)
        again.load_state_dict(model.state_dict())
        second = make(optim, name, again.parameters(), lr=0.5)
        loading = {"optimizer": get_optimizer_state_dict(again, second, options=options)}
        again.load_state_dict(model.state_dict())
        checkpoint.load(loading, checkpoint_id=place)
        set_optimizer_state_dict(again, second, optim_state_dict=loading["optimizer"], options=options)
        for step in range(2, 4):
            for m, o in ((model, optimizer), (again, second)):
                backward(m, step)
                o.step()
        assert_same(result(second), result(optimizer), exact=True)
        return loading["optimizer"], result(second)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch's own checkpoints deprecate
        assert_agrees(name, scenario)


@distributed_here
@each_dense_class
def test_distributed_checkpoints_of_torchs_optimizers_load_into_ours(name, alone):
    options = StateDictOptions(flatten_optimizer_state_dict=True)

    def trained(optim):
        model = Net(name)
        optimizer = make(optim, name, model.parameters())
        for step in range(2):
            backward(model, step)
            optimizer.step()
        return model, optimizer

    for source, target in ((torch.optim, oxistep.optim), (oxistep.optim, torch.optim)):
        model, optimizer = trained(source)
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))  # which shares tensors
        again = Net(name)
        again.load_state_dict(model.state_dict())
        second = make(target, name, again.parameters())
        set_optimizer_state_dict(again, second, optim_state_dict=saved, options=options)
        again.load_state_dict(model.state_dict())
        for m, o in ((model, optimizer), (again, second)):
            backward(m, 2)
            o.step()
        assert_same(result(second), result(optimizer), close=close(name))


@distributed_here
@each_dense_class
def test_zero_redundancy_optimizer(name, alone):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def scenario(optim):
        model = Net(name)
        wrapped = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = ZeroRedundancyOptimizer(wrapped.parameters(), optimizer_class=getattr(optim, name), **KWARGS[name])
        for step in range(3):
            backward(wrapped, step)
            optimizer.step()
            if optim is oxistep.optim:
                assert {row.path for row in oxistep.explain(optimizer.optim)} == {PATH}
        optimizer.consolidate_state_dict(0)
        return optimizer.state_dict(), [p.detach() for p in model.parameters()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_agrees(name, scenario)


@distributed_here
def test_the_map_of_functional_optimizers_takes_ours_when_registered(monkeypatch):
    """It knows exact classes; `register_functional_optim` is torch's way to add one (`overlap_with_ddp` wants it)."""
    from torch.distributed.optim import utils

    monkeypatch.setattr(utils, "functional_optim_map", dict(utils.functional_optim_map))
    for name in ("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "RMSprop", "Rprop", "Adamax"):
        ours, theirs = getattr(oxistep.optim, name), getattr(torch.optim, name)
        with pytest.raises(ValueError, match="does not have a functional counterpart"):
            utils.as_functional_optim(ours, lr=0.1)
        utils.register_functional_optim(ours, utils.functional_optim_map[theirs])
        made = utils.as_functional_optim(ours, lr=0.1)
        assert type(made) is type(utils.as_functional_optim(theirs, lr=0.1))


@distributed_here
@each_dense_class
def test_apply_optimizer_in_backward(name):
    from torch.distributed.optim import _apply_optimizer_in_backward

    def scenario(optim):
        model = Net(name)
        _apply_optimizer_in_backward(getattr(optim, name), model.parameters(), KWARGS[name])
        for step in range(3):
            loss_of(model, step).backward()
            assert all(p.grad is None for p in model.parameters())
        return [(p.detach(), result(p._in_backward_optimizers[0])) for p in model.parameters()]

    assert_agrees(name, scenario)


@distributed_here
@each_dense_class
def test_sharded_parameters(name, alone):
    """FSDP2: parameters, gradients and states are DTensors."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def scenario(optim):
        model = Net(name)
        fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))
        optimizer = make(optim, name, model.parameters())
        for step in range(2):
            backward(model, step)
            if optim is oxistep.optim:
                expected = "torch" if name in ("Adafactor", "Muon") else PATH
                assert {row.path for row in oxistep.explain(optimizer)} == {expected}
            optimizer.step()
        kinds = [{k: type(v).__name__ for k, v in optimizer.state[p].items()} for p in model.parameters()]
        assert all(isinstance(p, DTensor) for p in model.parameters())
        return kinds, [p.full_tensor().detach() for p in model.parameters()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_agrees(name, scenario)
