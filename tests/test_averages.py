"""``ema=``: averages of parameters, moved in the step."""

import copy
import io
import pickle

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import oxistep
import oxistep.optim as optim
from every_torch_class import each_stepping_class, make, set_gradients
from oxistep import rules, zoo
from scenarios import FORCED

DECAY = 0.9
HALF = (torch.float16, torch.bfloat16)
EMA = "param_ema"

native = pytest.mark.skipif(FORCED, reason="everything is torch's")


def drawn(dtype=torch.float32, shapes=((70, 100), (33,))):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def wide(x):
    return x.detach().to(torch.float32 if x.dtype in HALF else x.dtype).clone()


class Separate:
    """The averages of an optimizer as people keep them beside one."""

    def __init__(self, optimizer, params, decay=DECAY):
        self.optimizer, self.params, self.decay = optimizer, list(params), decay
        self.averages = [wide(p) for p in self.params]

    def of(self, p):
        weights = getattr(self.optimizer, "_oxistep", None) and self.optimizer._oxistep.weights
        return self.optimizer.master(p) if weights not in (None, "stochastic") else p.detach()

    def step(self):
        self.optimizer.step()
        for average, p in zip(self.averages, self.params, strict=True):
            average.lerp_(self.of(p).to(average.dtype), 1 - self.decay)


def assert_averages(optimizer, params, wanted):
    for p, average in zip(params, wanted, strict=True):
        found = optimizer.state[p][EMA]
        torch.testing.assert_close(found, average, rtol=0, atol=0, equal_nan=True)


def moved_by_kernels(optimizer):
    """How many averages kernels moved in the last step."""
    return next(iter(optimizer._oxistep.plans.values())).averaged()


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16, "8bit"], ids=str)
@pytest.mark.parametrize(
    ("dtype", "weights"),
    [(torch.float32, None), (torch.float64, None)]
    + [(torch.bfloat16, w) for w in (None, "stochastic", "kahan", "residual8", "residual16", "master")]
    + [(torch.float16, w) for w in (None, "kahan", "master")],
    ids=str,
)
def test_averages_are_those_of_a_separate_pass_and_change_nothing_else(dtype, weights, state_dtype):
    if FORCED and (weights or state_dtype):
        pytest.skip("torch's step keeps nothing in fewer bytes")
    params, others = drawn(dtype), drawn(dtype)
    settings = {"weights": weights, "state_dtype": state_dtype}
    optimizer = optim.AdamW(params, lr=0.01, ema=DECAY, **settings)
    separate = Separate(optim.AdamW(others, lr=0.01, **settings), others)
    for step in range(5):
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        separate.step()
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p, other, rtol=0, atol=0, equal_nan=True)  # float16 by torch, whose eps is zero then
    assert_averages(optimizer, params, separate.averages)
    if not FORCED:
        assert moved_by_kernels(optimizer) == (0 if dtype == torch.float64 else 2)


@each_stepping_class
def test_each_class_of_torch_keeps_them(name):
    def shapes():
        torch.manual_seed(3)
        return [torch.randn(6, 5, requires_grad=True), torch.randn(3, 4, requires_grad=True)]

    params, others = shapes(), shapes()
    optimizer = make(optim, name, params, ema=DECAY)
    separate = Separate(make(optim, name, others), others)
    for step in range(4):
        set_gradients(name, params, step)
        set_gradients(name, others, step)
        optimizer.step()
        separate.step()
    for p, other in zip(params, others, strict=True):
        assert torch.equal(p, other)
    assert_averages(optimizer, params, separate.averages)


@pytest.mark.parametrize("cls", [zoo.Lion, zoo.LAMB, zoo.AdEMAMix, zoo.Prodigy], ids=lambda cls: cls.__name__)
def test_the_zoo_keeps_them(cls):
    params, others = drawn(), drawn()
    optimizer = cls(params, ema=DECAY)
    separate = Separate(cls(others), others)
    for step in range(4):
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        separate.step()
    assert all(torch.equal(p, other) for p, other in zip(params, others, strict=True))
    assert_averages(optimizer, params, separate.averages)


class Late(rules.Optimizer):
    """A state begins with the third step."""

    def __init__(self, params, lr=0.1, **settings):
        super().__init__(params, {"lr": lr}, **settings)

    @staticmethod
    def update(p, g, s, lr):
        s.m = 0.5 * s.m + g
        return p - lr * s.m


def test_rules_keep_them():
    params, others = drawn(), drawn()
    optimizer, separate = Late(params, ema=DECAY), Separate(Late(others), others)
    for step in range(3):
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        separate.step()
    assert_averages(optimizer, params, separate.averages)


def laid_out(kind):
    torch.manual_seed(1)
    if kind == "transposed":
        p = torch.randn(6, 4).t().requires_grad_()
    elif kind == "with gaps":
        p = torch.randn(6, 8)[:, ::2].detach().requires_grad_()
    elif kind == "complex":
        p = torch.randn(6, 4, dtype=torch.complex64).requires_grad_()
    elif kind == "empty":
        p = torch.randn(0, 4).requires_grad_()
    else:
        p = torch.tensor(2.0, requires_grad=True)
    return p


@pytest.mark.parametrize("kind", ["transposed", "with gaps", "complex", "empty", "one number"])
def test_any_layout_and_what_kernels_do_not_average(kind):
    p, other = laid_out(kind), laid_out(kind)
    optimizer, separate = optim.AdamW([p], ema=DECAY), Separate(optim.AdamW([other]), [other])
    for step in range(4):
        for each in (p, other):
            generator = torch.Generator().manual_seed(step)
            each.grad = torch.randn(tuple(each.shape), generator=generator).to(each.dtype)
        optimizer.step()
        separate.step()
    assert torch.equal(p, other)
    assert_averages(optimizer, [p], separate.averages)


def test_parameters_without_gradients_and_late_ones():
    params, others = drawn(), drawn()
    optimizer, separate = optim.Adam(params, ema=DECAY), Separate(optim.Adam(others), others)
    for step in range(6):
        give_gradients(params, step)
        give_gradients(others, step)
        if step in (0, 1, 4):
            params[1].grad = others[1].grad = None
        optimizer.step()
        separate.step()
        assert (EMA in optimizer.state.get(params[1], {})) == (step > 1)
    assert_averages(optimizer, params, separate.averages)


def test_a_group_that_is_added():
    params, others = drawn(), drawn()
    optimizer, plain = optim.SGD(params[:1], lr=0.1, ema=DECAY), optim.SGD(others[:1], lr=0.1)
    separate = Separate(plain, others)
    for step in range(4):
        if step == 2:
            optimizer.add_param_group({"params": params[1:]})
            plain.add_param_group({"params": others[1:]})
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        separate.step()
    assert_averages(optimizer, params, separate.averages)


def test_skipped_steps_move_nothing():
    params = drawn()
    optimizer = optim.Adam(params, ema=DECAY, ema_warmup=True, skip_nonfinite=True, max_grad_norm=1.0)
    for step in range(3):
        give_gradients(params, step)
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    params[0].grad[0, 0] = torch.inf
    optimizer.step()
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, entry in before["state"].items():
        assert torch.equal(after["state"][index][EMA], entry[EMA])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.6, 0.999])
@pytest.mark.parametrize("warmup", [False, True])
def test_decays_and_warmup(decay, warmup):
    params, others = drawn(), drawn()
    optimizer = optim.SGD(params, lr=0.1, ema=decay, ema_warmup=warmup)
    separate = Separate(optim.SGD(others, lr=0.1), others)
    for step in range(8):
        # timm's ModelEmaV3.get_decay(step) with its defaults, its steps counted from one
        separate.decay = min(1 - (1 + step) ** (-2 / 3), decay) if warmup else decay
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        separate.step()
        assert_averages(optimizer, params, separate.averages)
    assert ("ema_step" in optimizer.param_groups[0]) == warmup


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["state_dict", "torch.save", "deepcopy", "pickle"])
def test_checkpoints_and_copies_go_on_to_the_bit(dtype, way):
    params = drawn(dtype)
    optimizer = optim.AdamW(params, lr=0.01, ema=DECAY, ema_warmup=True)
    for step in range(3):
        give_gradients(params, step)
        optimizer.step()
    if way in ("deepcopy", "pickle"):
        both = (params, optimizer)
        copied, other = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
    else:
        copied = [p.detach().clone().requires_grad_() for p in params]
        other = optim.AdamW(copied, lr=0.01, ema=DECAY, ema_warmup=True)
        saved = copy.deepcopy(optimizer.state_dict())
        if way == "torch.save":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        other.load_state_dict(saved)
    assert_averages(other, copied, [optimizer.state[p][EMA] for p in params])
    for step in range(3, 6):
        give_gradients(params, step)
        give_gradients(copied, step)
        optimizer.step()
        other.step()
    assert_averages(other, copied, [optimizer.state[p][EMA] for p in params])
    assert all(torch.equal(p, q) for p, q in zip(params, copied, strict=True))


def test_checkpoints_with_and_without_averages_load_into_either():
    params = drawn()
    optimizer = optim.AdamW(params, ema=DECAY)
    give_gradients(params, 0)
    optimizer.step()
    without = optim.AdamW(drawn())
    without.load_state_dict(optimizer.state_dict())
    assert all(EMA not in entry for entry in without.state.values())
    plain = oxistep.plain_state_dict(optimizer)
    assert all(EMA not in entry for entry in plain["state"].values())
    assert EMA in optimizer.state[params[0]]
    others = drawn()
    begun = optim.AdamW(others, ema=DECAY)
    begun.load_state_dict(plain)
    wanted = [wide(p) for p in others]
    give_gradients(others, 1)
    begun.step()
    for average, p in zip(wanted, others, strict=True):
        average.lerp_(p.detach(), 1 - DECAY)
    assert_averages(begun, others, wanted)
    torchs = torch.optim.AdamW(drawn())
    torchs.load_state_dict(optimizer.state_dict())
    give_gradients(torchs.param_groups[0]["params"], 0)
    torchs.step()


@pytest.mark.parametrize(
    ("dtype", "weights"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "residual16"), (torch.bfloat16, "master")],
    ids=str,
)
def test_averaged_puts_them_in_place_and_the_parameters_back(dtype, weights):
    if FORCED and weights:
        pytest.skip("torch's step keeps nothing in fewer bytes")
    params, others = drawn(dtype), drawn(dtype)
    optimizer = optim.AdamW(params, lr=1e-4, ema=DECAY, weights=weights)
    undisturbed = optim.AdamW(others, lr=1e-4, ema=DECAY, weights=weights)
    for step in range(6):
        give_gradients(params, step)
        give_gradients(others, step)
        optimizer.step()
        undisturbed.step()
        own, averages = [p.detach().clone() for p in params], [optimizer.state[p][EMA].clone() for p in params]
        addresses = [p.data_ptr() for p in params]
        with pytest.raises(ZeroDivisionError), optimizer.averaged():
            assert all(torch.equal(p, a.to(dtype)) for p, a in zip(params, averages, strict=True))
            assert [p.data_ptr() for p in params] == addresses
            for refused in (optimizer.step, optimizer.state_dict, optimizer.ema_state_dict):
                with pytest.raises(RuntimeError, match="averaged"):
                    refused()
            with pytest.raises(RuntimeError, match="already"), optimizer.averaged():
                pass
            raise ZeroDivisionError
        assert all(torch.equal(p, before) for p, before in zip(params, own, strict=True))
        assert_averages(optimizer, params, averages)
        assert optimizer.state_dict()["state"]
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    assert_averages(optimizer, params, [undisturbed.state[p][EMA] for p in others])


def test_averages_by_name_make_a_model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    model[2].bias.requires_grad_(False)
    optimizer = optim.SGD(model.named_parameters(), lr=0.1, ema=DECAY)
    x = torch.randn(8, 4)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    averages = optimizer.ema_state_dict()
    assert set(averages) == {name for name, _ in model.named_parameters()}
    assert averages["0.weight"] is optimizer.state[model[0].weight][EMA]
    assert torch.equal(averages["2.bias"], model[2].bias)
    other = copy.deepcopy(model)
    missing = other.load_state_dict(averages, strict=False)
    assert not missing.unexpected_keys
    model.eval()
    other.eval()
    with optimizer.averaged():
        assert torch.equal(model(x), other(x))
    assert not torch.equal(model(x), other(x))
    unnamed = optim.SGD(model.parameters(), lr=0.1, ema=DECAY)
    assert list(unnamed.ema_state_dict()) == [str(i) for i in range(len(list(model.parameters())))]


def test_what_is_refused():
    p = torch.ones(3, requires_grad=True)
    for wrong, error in [(1.0, ValueError), (-0.1, ValueError), (float("nan"), ValueError), (True, TypeError)]:
        with pytest.raises(error, match="ema: expected"):
            optim.SGD([p], ema=wrong)
    with pytest.raises(TypeError, match="ema: expected"):
        optim.SGD([p], ema="0.9")
    with pytest.raises(TypeError, match="ema_warmup: expected"):
        optim.SGD([p], ema=0.9, ema_warmup=1)
    with pytest.raises(ValueError, match="ema_warmup: expected a decay"):
        optim.SGD([p], ema_warmup=True)
    for method in ("averaged", "ema_state_dict"):
        with pytest.raises(RuntimeError, match=f"{method}: this optimizer keeps no averages"):
            with getattr(optim.SGD([p]), method)():
                pass


def test_a_plain_optimizer_has_nothing_of_it():
    params = drawn()
    optimizer = optim.AdamW(params)
    give_gradients(params, 0)
    optimizer.step()
    assert all(EMA not in entry for entry in optimizer.state.values())
    assert "ema_step" not in optimizer.param_groups[0]


@native
def test_the_same_bits_for_any_threads():
    found = []
    before = oxistep.get_num_threads()
    try:
        for threads in (1, 2, 3):
            oxistep.set_num_threads(threads)
            params = drawn(shapes=((300, 500), (77,)))
            optimizer = optim.AdamW(params, ema=DECAY)
            for step in range(3):
                give_gradients(params, step)
                optimizer.step()
            found.append([optimizer.state[p][EMA] for p in params])
    finally:
        oxistep.set_num_threads(before)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_averages_of_dtensors_are_dtensors(mesh, dtype):
    whole, others = drawn(dtype), drawn(dtype)
    params = [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in whole]
    optimizer, separate = optim.AdamW(params, ema=DECAY), Separate(optim.AdamW(others), others)
    for step in range(4):
        give_gradients(others, step)
        for p, other in zip(params, others, strict=True):
            p.grad = distribute_tensor(other.grad, mesh, [Shard(0)])
        optimizer.step()
        separate.step()
    for p, average in zip(params, separate.averages, strict=True):
        found = optimizer.state[p][EMA]
        assert found.placements == p.placements
        assert torch.equal(found.to_local(), average)
    if not FORCED:
        assert moved_by_kernels(optimizer) == len(params)
    with optimizer.averaged():
        for p, average in zip(params, separate.averages, strict=True):
            assert torch.equal(p.to_local(), average.to(dtype))
    for p, other in zip(params, others, strict=True):
        assert torch.equal(p.to_local(), other)


# ---- what somebody does with them ----


def stepped(dtype=torch.float32, **settings):
    params = drawn(dtype, shapes=((10,), (4, 3), (5,)))
    optimizer = optim.AdamW(params, lr=0.01, ema=DECAY, **settings)
    for step in range(2):
        give_gradients(params, step)
        optimizer.step()
    return params, optimizer


UNFIT = {
    "one element": lambda: torch.zeros(1),
    "expanded": lambda: torch.zeros(1).expand(10),
    "whole numbers": lambda: torch.zeros(10, dtype=torch.int64),
    "float16": lambda: torch.zeros(10, dtype=torch.float16),
    "meta": lambda: torch.zeros(10, device="meta"),
    "more dimensions": lambda: torch.zeros(3, 10),
    "a word": lambda: "average",
}


@pytest.mark.parametrize("has_gradient", [True, False])
@pytest.mark.parametrize("kind", UNFIT)
def test_an_average_that_does_not_fit_is_refused_before_anything_is_written(kind, has_gradient):
    params, optimizer = stepped()
    optimizer.state[params[0]][EMA] = UNFIT[kind]()
    if not has_gradient:
        params[0].grad = None
    before = [p.detach().clone() for p in params]
    for refused in (optimizer.step, optimizer.averaged().__enter__):
        with pytest.raises(RuntimeError, match=r"average of .*\['params'\]\[0\] does not fit it.*delete optimizer"):
            refused()
    assert all(map(torch.equal, params, before))
    assert all(optimizer.state[p]["step"] == 2 for p in params)
    del optimizer.state[params[0]][EMA]
    optimizer.step()


@pytest.mark.parametrize("what", ["average", "average without gradient", "parameter without gradient"])
def test_memory_that_was_freed_is_refused(what):
    params, optimizer = stepped()
    freed = params[0] if what.startswith("parameter") else optimizer.state[params[0]][EMA]
    freed.untyped_storage().resize_(0)
    if what.endswith("without gradient"):
        params[0].grad = None
    before = params[1].detach().clone()
    with pytest.raises(RuntimeError, match=r"beyond its storage|does not fit it"):
        optimizer.step()
    assert torch.equal(params[1], before)


@pytest.mark.parametrize("weights", ["kahan", "residual8", "residual16", "master"])
@native
def test_averages_of_masters_move_without_a_gradient(weights):
    params, optimizer = stepped(torch.bfloat16, weights=weights)
    wanted = optimizer.state[params[0]][EMA].clone()
    for _ in range(3):
        params[0].grad = None
        optimizer.step()
        wanted.lerp_(optimizer.master(params[0]), 1 - DECAY)
    assert torch.equal(optimizer.state[params[0]][EMA], wanted)


def test_steps_and_copies_inside_of_averaged_are_refused():
    params, optimizer = stepped()
    own = [p.detach().clone() for p in params]
    with oxistep.step_in_backward(optimizer), optimizer.averaged():
        optimizer.zero_grad()
        for refused in (optimizer.step, lambda: copy.deepcopy(optimizer), lambda: pickle.dumps(optimizer)):
            with pytest.raises(RuntimeError, match="averaged"):
                refused()
    assert all(map(torch.equal, params, own))


def test_a_subclass_with_a_state_dict_of_its_own_is_refused_inside_of_averaged():
    class Own(optim.AdamW):
        def state_dict(self):
            return {"state": dict(self.state)}  # calls no hooks

    w = torch.ones(3, requires_grad=True)
    w.grad = torch.ones(3)
    optimizer = Own([w], ema=DECAY)
    optimizer.step()
    with optimizer.averaged(), pytest.raises(RuntimeError, match=r"inside `with optimizer\.averaged"):
        optimizer.state_dict()
    assert optimizer.state_dict().keys() == {"state"}
    assert "state_dict" not in vars(optimizer)


def test_a_parameter_that_is_there_twice_or_gets_other_memory_comes_back():
    params, optimizer = stepped()
    own, averages = [p.detach().clone() for p in params], [optimizer.state[p][EMA].clone() for p in params]
    optimizer.param_groups[0]["params"].append(params[0])
    with optimizer.averaged():
        assert all(map(torch.equal, params, averages))
        params[0].data = params[0].data.clone()
        params[1].data = params[1].data.double()
    assert torch.equal(params[0], own[0]) and torch.equal(params[1].float(), own[1])
    assert all(torch.equal(optimizer.state[p][EMA], a) for p, a in zip(params, averages, strict=True))


def test_one_that_cannot_come_back_keeps_no_other_from_it():
    params, optimizer = stepped()
    own = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError), optimizer.averaged():
        params[1].data = torch.zeros(2)
    assert torch.equal(params[0], own[0]) and torch.equal(params[2], own[2])
    params[1].data = own[1]
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_that_is_freed_inside_of_averaged_is_not_written(dtype):
    params, optimizer = stepped(dtype)
    own = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"averaged: the memory of .*\['params'\]\[1\]"), optimizer.averaged():
        params[1].untyped_storage().resize_(0)
    assert torch.equal(params[0], own[0]) and torch.equal(params[2], own[2])


class Named(rules.Optimizer):
    """A state under a name that stands beside parameters where `weights=` is given."""

    def __init__(self, params, lr=0.1, **settings):
        super().__init__(params, {"lr": lr}, **settings)

    @staticmethod
    def update(p, g, s, lr):
        s.master = 0.5 * s.master + g
        return p - lr * s.master


def test_a_state_of_a_users_rule_is_no_master():
    params = drawn(torch.bfloat16)
    optimizer = Named(params, ema=DECAY)
    wanted = [wide(p) for p in params]
    for step in range(4):
        give_gradients(params, step)
        if step == 2:
            params[0].grad = None
        optimizer.step()
        for average, p in zip(wanted, params, strict=True):
            average.lerp_(p.detach().float(), 1 - DECAY)
    assert_averages(optimizer, params, wanted)


def test_a_gradient_of_rows_that_torch_could_not_add_is_native_and_averaged():
    base = torch.ones(13)
    p = base[1:].detach().requires_grad_()
    other = torch.ones(12).requires_grad_()
    optimizer, separate = optim.SGD([p], lr=0.1, ema=DECAY), Separate(optim.SGD([other], lr=0.1), [other])
    for _ in range(3):
        for one in (p, other):
            one.grad = torch.sparse_coo_tensor([[2, 5]], torch.ones(2), (12,)).coalesce()
        optimizer.step()
        separate.step()
    assert_averages(optimizer, [p], separate.averages)


def test_averages_that_a_half_type_went_through_are_float32_again():
    params, optimizer = stepped(torch.bfloat16)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry[EMA] = entry[EMA].bfloat16()
    other = optim.AdamW(params, ema=DECAY, ema_warmup=True)
    other.load_state_dict(saved)
    assert all(entry[EMA].dtype == torch.float32 for entry in other.state.values())
    wanted = [entry[EMA].clone() for entry in other.state.values()]
    other.step()
    for p, average in zip(params, wanted, strict=True):
        average.lerp_(p.detach().float(), 1 - DECAY)  # not as in a first step: it has a past
    assert_averages(other, params, wanted)


def test_a_state_dict_that_was_looked_up_inside_of_averaged_works_after_it():
    class Own(oxistep.optim.SGD):
        def state_dict(self):
            return {"own": 1}

    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Own([p], lr=0.1, ema=0.9)
    p.grad = torch.ones(3)
    optimizer.step()
    with optimizer.averaged():
        kept = optimizer.state_dict
        with pytest.raises(RuntimeError, match=r"inside `with optimizer\.averaged"):
            kept()
    assert kept() == {"own": 1}
    assert "state_dict" not in vars(optimizer)
