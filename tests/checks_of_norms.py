"""What two processes check of norms that each of them holds a part of: all clip alike, skip alike, or raise alike.

One process that holds all parameters says what the norm is. `test_two_processes.py` runs this, after the checks that it
imports.
"""

import math

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import oxistep
import oxistep.optim
from checks_of_two import batch, make, net, outcome, result, set_gradients, sharded, whole
from scenarios import assert_same, params_of
from two_processes import WORLD, check, check_each

RULES = ("AdamW", "SGD", "Adagrad", "NAdam")


def of_all_ranks(x: float) -> list[float]:
    gathered = [torch.zeros((), dtype=torch.float64) for _ in range(WORLD)]
    distributed.all_gather(gathered, torch.tensor(x, dtype=torch.float64))
    return [one.item() for one in gathered]


def assert_norm(optimizer, expected) -> None:
    """The norm is that, and of the same bits on all ranks."""
    first, second = of_all_ranks(optimizer.last_grad_norm.item())
    assert first == second
    torch.testing.assert_close(first, float(expected), rtol=1e-6, atol=0)


def shards(*placed, mesh=None) -> list[torch.nn.Parameter]:
    """Parameters with gradients, each given as a whole tensor and its placements."""
    mesh = init_device_mesh("cpu", (WORLD,)) if mesh is None else mesh
    params = []
    for x, placements in placed:
        params.append(torch.nn.Parameter(distribute_tensor(torch.zeros_like(x), mesh, placements)))
        params[-1].grad = distribute_tensor(x.clone(), mesh, placements)  # a replica is no copy
    return params


@check_each(RULES)
def fsdp2_clips_by_the_norm_of_all(rule, _):
    for max_norm in (0.5, 1e3):
        ours = make(oxistep.optim, rule, sharded().parameters(), max_grad_norm=max_norm)
        one = make(oxistep.optim, rule, net().parameters(), max_grad_norm=max_norm)
        for k in range(4):
            for optimizer in (ours, one):
                set_gradients(params_of(optimizer), k)
                optimizer.step()
            assert_norm(ours, one.last_grad_norm)
        assert_same(result(ours), result(one))


@check
def replicas_are_counted_once(_):
    x, y = torch.full((4, 3), 2.0), torch.full((5,), 3.0)
    expected = math.sqrt(4 * 12 + 9 * 5)
    for shape, placements in (
        ((2, 1), [Replicate(), Shard(0)]),
        ((1, 2), [Replicate(), Shard(0)]),
        ((2, 1), [Shard(0), Replicate()]),
        ((2,), [Replicate()]),
        ((2,), [Shard(0)]),
    ):
        params = shards((x, placements), (y, placements), mesh=init_device_mesh("cpu", shape))
        optimizer = oxistep.optim.SGD(params, lr=0.1, max_grad_norm=1.0)
        optimizer.step()
        assert_norm(optimizer, expected)
        torch.testing.assert_close(oxistep.clip_grad_norm_(params, 1.0).full_tensor(), torch.tensor(expected))


@check
def the_norm_has_one_dtype_on_all_ranks(_):
    """Also on a rank that holds replicas alone, which it does not count."""
    for dtype in (torch.bfloat16, torch.float64):
        params = shards((torch.full((5,), 3.3, dtype=dtype), [Replicate()]))
        optimizer = oxistep.optim.SGD(params, lr=0.1, max_grad_norm=1.0)
        optimizer.step()
        assert optimizer.last_grad_norm.dtype == dtype
        assert_norm(optimizer, torch.full((5,), 3.3, dtype=dtype).double().norm().to(dtype))


@check
def two_meshes_and_plain_tensors_in_one_optimizer(_):
    x = torch.full((4, 3), 2.0)
    one, other = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    plain = torch.nn.Parameter(torch.zeros(2))
    plain.grad = torch.full((2,), 5.0)
    params = [*shards((x, [Shard(0)]), mesh=one), plain, *shards((x, [Replicate(), Shard(1)]), mesh=other)]
    optimizer = oxistep.optim.AdamW(params, max_grad_norm=1.0)
    for _k in range(3):
        optimizer.step()
        assert_norm(optimizer, math.sqrt(2 * 48 + 50))
    norm = oxistep.clip_grad_norm_(params, 1.0)
    assert type(norm) is torch.Tensor
    assert_norm(optimizer, norm)


@check_each(["nan", "inf"])
def one_rank_has_no_finite_gradient_and_all_skip(value, _):
    for where in ("shard", "plain"):
        plain = torch.nn.Parameter(torch.zeros(2))
        plain.grad = torch.ones(2)
        params = [*shards((torch.ones(4, 3), [Shard(0)])), plain]
        optimizer = oxistep.optim.AdamW(params, skip_nonfinite=True)
        optimizer.step()
        before = result(optimizer)
        if distributed.get_rank() == 1:
            grad = params[0].grad._local_tensor if where == "shard" else plain.grad
            grad[0] = float(value)
        optimizer.step()
        assert_same(result(optimizer), before, exact=True)
        first, second = map(repr, of_all_ranks(optimizer.last_grad_norm.item()))
        assert first == second == value


def lacks_lr(optimizer):
    del optimizer.param_groups[0]["lr"]


def lacks_a_state(optimizer):
    del optimizer.state[params_of(optimizer)[0]]["exp_avg"]


def shrunk(optimizer):
    params_of(optimizer)[0]._local_tensor.untyped_storage().resize_(0)


def with_a_hook_that_raises(optimizer):
    # an error of the user's in the middle of a survey
    class Raises:
        def __bool__(self):
            raise ZeroDivisionError("no truth")

    optimizer.param_groups[0]["maximize"] = Raises()


DAMAGES = {function.__name__: function for function in (lacks_lr, lacks_a_state, shrunk, with_a_hook_that_raises)}


@check_each(DAMAGES)
def a_rank_that_cannot_step_lets_nobody_wait(damage, _):
    optimizer = oxistep.optim.Adam(shards((torch.ones(4, 3), [Shard(0)]), (torch.ones(3), [Shard(0)])), max_grad_norm=1)
    optimizer.step()
    if distributed.get_rank() == 1:
        DAMAGES[damage](optimizer)
        error = outcome(optimizer.step)
        assert error is not None
        assert "another rank" not in error[1]
        return
    before = result_of_shards(optimizer)
    error = outcome(optimizer.step)
    assert error[0] is RuntimeError
    assert "another rank cannot take this step" in error[1]
    assert_same(result_of_shards(optimizer), before, exact=True)


def result_of_shards(optimizer) -> list:
    """What this rank holds, without asking the other."""
    held = [p._local_tensor.detach().clone() for p in params_of(optimizer)]
    return held + [
        getattr(value, "_local_tensor", value).clone() for s in optimizer.state.values() for value in s.values()
    ]


@check
def after_an_error_the_next_step_is_taken(_):
    optimizer = oxistep.optim.SGD(shards((torch.ones(4, 3), [Shard(0)])), lr=1.0, max_grad_norm=100.0)
    (lr,) = (group.pop("lr") for group in optimizer.param_groups)
    if distributed.get_rank() == 0:
        optimizer.param_groups[0]["lr"] = lr
    assert outcome(optimizer.step)[0] is (RuntimeError if distributed.get_rank() == 0 else KeyError)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()
    assert torch.equal(whole(params_of(optimizer)[0]), -torch.ones(4, 3))


@check
def a_gradient_that_is_torchs_on_one_rank_alone(_):
    class Marked(torch.Tensor):
        """Sees every function, and changes nothing."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return super().__torch_function__(func, types, args, kwargs or {})

    (p,) = shards((torch.full((4, 3), 2.0), [Shard(0)]))
    if distributed.get_rank() == 1:
        p.grad = DTensor(p.grad._local_tensor.as_subclass(Marked), p.grad._spec, requires_grad=False)
    optimizer = oxistep.optim.SGD([p], lr=1.0, max_grad_norm=math.inf)
    assert oxistep.explain(optimizer)[0].path == ("native", "torch")[distributed.get_rank()]
    optimizer.step()
    assert_norm(optimizer, math.sqrt(48))


# ---- flat parts, of which the optimizer cannot know ----


@check
def zero_sums_over_the_world(_):
    """ZeroRedundancyOptimizer gives each rank some of the parameters; of one parameter, nothing to the second."""
    for count in (26, 1):
        model, plain = net(), net()
        params = list(model.parameters())[:count]
        ours = ZeroRedundancyOptimizer(params, oxistep.optim.AdamW, lr=0.1, max_grad_norm=0.5, grad_norm_group="world")
        one = oxistep.optim.AdamW(list(plain.parameters())[:count], lr=0.1, max_grad_norm=0.5)
        for k in range(3):
            set_gradients(params, k)
            set_gradients(params_of(one), k)
            ours.step()
            one.step()
            assert_norm(ours.optim, one.last_grad_norm)
        assert_same([p.detach() for p in params], [p.detach() for p in params_of(one)])


@check_each(["group", "function"])
def other_ways_of_naming_the_ranks(way, _):
    group = {"group": distributed.group.WORLD, "function": distributed.all_reduce}[way]
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.tensor([3.0 + distributed.get_rank()])
    optimizer = oxistep.optim.SGD([p], lr=0.1, max_grad_norm=1.0, grad_norm_group=group)
    for _k in range(3):
        optimizer.step()
        assert_norm(optimizer, 5.0)


@check_each([False, True])
def fsdp1_sums_over_the_world(use_orig_params, _):
    def losses_and_norms(shard):
        model = net()
        if shard:
            model = FullyShardedDataParallel(
                model,
                device_id=torch.device("cpu"),
                use_orig_params=use_orig_params,
                sharding_strategy=ShardingStrategy.FULL_SHARD,
            )
        told = {"grad_norm_group": "world"} if shard else {}
        optimizer = oxistep.optim.AdamW(model.parameters(), lr=0.1, max_grad_norm=0.01, **told)
        came = []
        for k in range(3):
            x, y = batch(k, rank=0)
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            came += [loss.item(), optimizer.last_grad_norm.item()]
        return came

    torch.testing.assert_close(losses_and_norms(True), losses_and_norms(False), rtol=1e-4, atol=1e-6)


@check
def what_says_nothing_of_its_ranks_is_refused(_):
    model = net()
    zero = ZeroRedundancyOptimizer(model.parameters(), oxistep.optim.AdamW, lr=0.1, max_grad_norm=0.5)
    set_gradients(list(model.parameters()), 0)
    error = outcome(zero.step)
    assert "ZeroRedundancyOptimizer gives each rank's optimizer a part" in error[1]
    flat = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    optimizer = oxistep.optim.AdamW(flat.parameters(), lr=0.1, max_grad_norm=0.5)
    x, y = batch(0)
    torch.nn.functional.mse_loss(flat(x), y).backward()
    assert "FSDP1 gives each rank's optimizer a part" in outcome(optimizer.step)[1]
    # under DDP all ranks see all gradients
    ddp = torch.nn.parallel.DistributedDataParallel(net())
    optimizer = oxistep.optim.AdamW(ddp.parameters(), lr=0.1, max_grad_norm=0.5)
    torch.nn.functional.mse_loss(ddp(x), y).backward()
    optimizer.step()
    assert_norm(optimizer, optimizer.last_grad_norm)
