"""DTensors, in a world of one process. What two processes make of them is in test_two_processes.py."""

import subprocess
import sys

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import oxistep
import oxistep.optim
from oxistep.optim import SGD, Adafactor, Adam, AdamW, SparseAdam
from oxistep.optim._kept import WEIGHTS
from scenarios import FORCED, each_elementwise_class, make
from test_parity_page import OF_DTENSORS, assert_torchs

pytestmark = pytest.mark.skipif(FORCED, reason="everything is torch's")

SHAPES = [(4, 3), (5,), (0, 2), (2, 3, 2)]


@pytest.fixture(scope="module", autouse=True)
def alone():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def mesh(alone):
    return init_device_mesh("cpu", (1,))


def drawn(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def placed(t, mesh, placement=None):
    return distribute_tensor(t, mesh, [placement or Shard(0)])


def parameter(t, mesh, placement=None):
    p = torch.nn.Parameter(placed(t.clone(), mesh, placement))
    p.grad = placed(torch.ones_like(t), mesh, placement)
    return p


def paths(optimizer):
    return [(row.path, row.reason) for row in oxistep.explain(optimizer)]


def called_in(function):
    """The Python functions that run meanwhile."""
    names = []
    sys.setprofile(lambda frame, event, arg: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return names


@each_elementwise_class
def test_every_step_is_that_of_plain_tensors(name, mesh):
    if name == "SparseAdam":
        pytest.skip("looks at rows")
    plain = [torch.nn.Parameter(drawn(shape, i)) for i, shape in enumerate(SHAPES)]
    # a plain tensor among them
    mixed = [
        torch.nn.Parameter(p.detach().clone() if i == 1 else placed(p.detach(), mesh)) for i, p in enumerate(plain)
    ]
    ours, theirs = make(oxistep.optim, name, mixed), make(oxistep.optim, name, plain)
    for step in range(4):
        for i, (p, q) in enumerate(zip(plain, mixed, strict=True)):
            p.grad = drawn(p.shape, 10 * step + i)
            q.grad = p.grad.clone() if i == 1 else placed(p.grad, mesh)
        assert {path for path, _ in paths(ours)} == {"native"}
        versions = [q._version for q in mixed]
        theirs.step()
        ours.step()
        assert [q._version for q in mixed] == [version + 1 for version in versions]
    for p, q in zip(plain, mixed, strict=True):
        local = getattr(q, "_local_tensor", q)
        assert torch.equal(p, local)
        for key, value in theirs.state[p].items():
            state = ours.state[q][key]
            if isinstance(q, DTensor) and value.shape == p.shape and key != "step":
                assert type(state) is DTensor
                assert state._spec == q._spec
                state = state._local_tensor
            assert type(state) is torch.Tensor
            assert torch.equal(state, value)


def test_native_is_what_the_page_says(mesh):
    assert "DTensors" in OF_DTENSORS
    optimizer = Adam([parameter(drawn((4, 3)), mesh), parameter(drawn((4, 3)), mesh, Replicate())])
    for _ in range(2):  # before and after states are made
        assert set(paths(optimizer)) == {("native", "DTensors with plain CPU tensors")}
        optimizer.step()


def with_gradient(p, grad):
    p._grad = grad  # which, unlike `grad`, takes what torch would refuse
    return p


def with_state_that_is_none(mesh):
    p = parameter(drawn((4, 3)), mesh)
    optimizer = Adam([p])
    optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.zeros(4, 3)
    return [optimizer]


def of_partial(mesh):
    p = torch.nn.Parameter(DTensor.from_local(torch.ones(4, 3), mesh, [Partial()]))
    p.grad = DTensor.from_local(torch.ones(4, 3), mesh, [Partial()])
    return p


TORCHS = {
    "DTensor of a rule for whole tensors": lambda mesh: [
        cls([parameter(drawn((4, 3)), mesh)]) for cls in (Adafactor, SparseAdam)
    ],
    "DTensor with a gradient that is none": lambda mesh: [
        Adam([with_gradient(parameter(drawn((4, 3)), mesh), torch.ones(4, 3))])
    ],
    "DTensor with a gradient on another mesh": lambda mesh: [
        Adam(
            [
                with_gradient(
                    parameter(drawn((4, 3)), mesh),
                    distribute_tensor(torch.ones(4, 3), init_device_mesh("cpu", (1, 1)), [Shard(0), Replicate()]),
                )
            ]
        )
    ],
    "DTensor with a gradient placed otherwise": lambda mesh: [
        Adam([with_gradient(parameter(drawn((4, 3)), mesh), placed(torch.ones(4, 3), mesh, other))])
        for other in (Replicate(), Shard(1))
    ],
    "DTensor of another placement": lambda mesh: [Adam([of_partial(mesh)])],
    "DTensor with a state that is none": with_state_that_is_none,
}


def test_the_page_and_these_cases_are_the_same():
    assert OF_DTENSORS == {"DTensors", *TORCHS}


@pytest.mark.parametrize("what", TORCHS)
def test_torchs(what, mesh):
    for optimizer in TORCHS[what](mesh):
        assert_torchs(what, optimizer)


def test_a_gradient_placed_otherwise_is_moved_as_by_torch(mesh):
    ours, theirs = (
        with_gradient(parameter(drawn((4, 3)), mesh), placed(drawn((4, 3)), mesh, Replicate())) for _ in "ab"
    )
    oxistep.optim.SGD([ours], lr=0.5).step()
    torch.optim.SGD([theirs], lr=0.5, foreach=False).step()
    assert torch.equal(ours.full_tensor(), theirs.full_tensor())


def test_a_step_like_the_last_asks_nothing_of_python(mesh):
    params = [parameter(drawn(shape, i), mesh) for i, shape in enumerate(SHAPES)]
    grads = [p.grad for p in params]
    optimizer = AdamW([*params, torch.nn.Parameter(torch.ones(3))])
    optimizer.step()
    for p, grad in zip(params, grads, strict=True):  # as FSDP2 makes them at each backward
        p.grad = DTensor(torch.ones_like(grad._local_tensor), p._spec, requires_grad=False)
    optimizer.step()
    for p, grad in zip(params, grads, strict=True):
        p.grad = DTensor(torch.ones_like(grad._local_tensor), p._spec, requires_grad=False)
    assert "differs" not in called_in(optimizer.step)
    # of a specification that was not met before, Python is asked, whatever it says
    params[0].grad = placed(torch.ones(4, 3), mesh)
    assert "differs" in called_in(optimizer.step)


def test_what_was_put_in_place_of_shards_and_states_is_read(mesh):
    ours, theirs = parameter(drawn((4, 3)), mesh), torch.nn.Parameter(drawn((4, 3)))
    optimizer, plain = Adam([ours]), Adam([theirs])
    for step in range(8):
        theirs.grad = drawn((4, 3), step)
        ours.grad = placed(theirs.grad, mesh)
        optimizer.step()
        plain.step()
        if step == 2:
            ours._local_tensor = ours._local_tensor.clone()
        if step == 4:
            state, other = optimizer.state[ours], plain.state[theirs]
            state["exp_avg"] = placed(torch.ones(4, 3), mesh)
            other["exp_avg"] = torch.ones(4, 3)
        if step == 6:
            optimizer.state[ours]["exp_avg_sq"]._local_tensor.fill_(2)
            plain.state[theirs]["exp_avg_sq"].fill_(2)
        assert torch.equal(ours._local_tensor, theirs)


def test_a_dtensor_may_join_plain_parameters_between_steps(mesh):
    plain = torch.nn.Parameter(torch.ones(3))
    plain.grad = torch.ones(3)
    optimizer = SGD([plain], lr=0.5)
    for _ in range(3):
        optimizer.step()
    joined = parameter(torch.ones(4, 3), mesh)
    for params in ([joined, plain], [plain, joined], [joined]):
        optimizer.param_groups[0]["params"] = params
        before = [p.detach().clone() for p in params]
        optimizer.step()
        for p, was in zip(params, before, strict=True):
            assert torch.equal(getattr(p, "_local_tensor", p), getattr(was, "_local_tensor", was) - 0.5)


def test_states_in_float32_of_bfloat16(mesh):
    ours, theirs = parameter(drawn((4, 3), dtype=torch.bfloat16), mesh), torch.nn.Parameter(drawn((4, 3)).bfloat16())
    theirs.grad = torch.ones_like(theirs)
    optimizer, plain = (Adam([p], state_dtype=torch.float32) for p in (ours, theirs))
    for _ in range(3):
        optimizer.step()
        plain.step()
    state = optimizer.state[ours]["exp_avg"]
    assert state.dtype == state._local_tensor.dtype == state._spec.tensor_meta.dtype == torch.float32
    assert state.placements == ours.placements
    assert torch.equal(state._local_tensor, plain.state[theirs]["exp_avg"])
    assert torch.equal(ours._local_tensor, theirs)
    state + state  # torch computes with it


def test_a_buffer_follows_its_gradient(mesh):
    p = torch.nn.Parameter(placed(drawn((4, 3)), mesh))
    local = drawn((3, 4)).t()
    p.grad = DTensor.from_local(local, mesh, [Shard(0)], shape=torch.Size((4, 3)), stride=(1, 4))
    optimizer = SGD([p], lr=0.1, momentum=0.9)
    optimizer.step()
    buffer = optimizer.state[p]["momentum_buffer"]
    assert buffer.stride() == buffer._local_tensor.stride() == (1, 4)
    assert torch.equal(buffer._local_tensor, local)


def test_a_step_that_raises_changes_nothing(mesh):
    good, bad = parameter(drawn((4, 3)), mesh), parameter(drawn((5,)), mesh)
    optimizer = AdamW([{"params": [good]}, {"params": [bad]}])
    optimizer.step()
    before = good._local_tensor.clone(), optimizer.state[good]["exp_avg"]._local_tensor.clone()
    del optimizer.param_groups[1]["lr"]
    with pytest.raises(KeyError, match="lr") as raised:
        optimizer.step()
    assert "param_groups[1]['params'][0]" in raised.value.__notes__[0]
    assert torch.equal(good._local_tensor, before[0])
    assert torch.equal(optimizer.state[good]["exp_avg"]._local_tensor, before[1])


def test_shards_that_share_memory_take_turns_or_are_torchs(mesh):
    base = torch.ones(4, 3)
    params = [torch.nn.Parameter(DTensor.from_local(base, mesh, [Shard(0)])) for _ in "ab"]
    for p in params:
        p.grad = placed(torch.ones(4, 3), mesh)
    SGD(params, lr=0.25).step()
    assert torch.equal(base, torch.full((4, 3), 0.5))
    shared = params[0]
    shared.grad = shared.detach()
    assert {path for path, _ in paths(SGD([shared]))} == {"torch"}


@pytest.mark.parametrize("bytes_left", [0, 4])
@pytest.mark.parametrize("which", ["parameter", "gradient", "state"])
def test_a_shard_beyond_its_storage_is_refused(which, bytes_left, mesh):
    p = parameter(drawn((4, 3)), mesh)
    optimizer = Adam([p])
    optimizer.step()
    tensor = {"parameter": p, "gradient": p.grad, "state": optimizer.state[p]["exp_avg"]}[which]
    tensor._local_tensor.untyped_storage().resize_(bytes_left)
    with pytest.raises(RuntimeError, match="beyond its storage"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torchs(mesh, dtype, max_norm):
    def clipped(clip):
        params = [torch.nn.Parameter(placed(drawn(shape, i, dtype), mesh)) for i, shape in enumerate([(4, 3), (5,)])]
        for i, p in enumerate(params):
            p.grad = placed(drawn(p.shape, i + 7, dtype), mesh)
        versions = [p.grad._version for p in params]
        norm = clip(params, max_norm)
        assert type(norm) is DTensor
        grew = [p.grad._version > version for p, version in zip(params, versions, strict=True)]
        return norm.full_tensor(), [p.grad.full_tensor() for p in params], grew

    (norm, grads, grew), (expected, others, _) = (
        clipped(oxistep.clip_grad_norm_),
        clipped(torch.nn.utils.clip_grad_norm_),
    )
    assert norm.dtype == expected.dtype == dtype
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(grads, others)
    assert grew == [max_norm < 1] * 2


def test_a_norm_of_plain_and_distributed_tensors_is_plain(mesh):
    tensors = [placed(torch.full((2, 2), 2.0), mesh), torch.tensor([3.0])]
    assert torch.equal(oxistep.get_total_norm(tensors), torch.tensor(5.0))


@pytest.mark.parametrize(
    "settings",
    [
        {"state_dtype": torch.bfloat16},
        {"state_dtype": "8bit"},
        *({"weights": weights, "state_dtype": "8bit"} for weights in WEIGHTS),
    ],
    ids=str,
)
def test_fewer_bytes(mesh, settings):
    dtype = torch.bfloat16 if "weights" in settings else torch.float32
    p, plain = parameter(drawn((80, 64), dtype=dtype), mesh), drawn((80, 64), dtype=dtype).requires_grad_()
    ours, other = AdamW([p], lr=1e-2, **settings), AdamW([plain], lr=1e-2, **settings)
    for step in range(3):
        grad = drawn((80, 64), seed=step, dtype=dtype)
        p.grad, plain.grad = placed(grad, mesh), grad
        ours.step()
        other.step()
    assert [path for path, _ in paths(ours)] == ["native"]
    assert torch.equal(p.to_local(), plain)
    again = AdamW([parameter(plain.detach(), mesh)], lr=1e-2, **settings)
    again.load_state_dict(ours.state_dict())
    found = next(iter(again.state.values()))
    assert found.keys() == ours.state[p].keys()
    for key, value in ours.state[p].items():
        assert type(found[key]) is type(value)
        assert found[key].dtype == value.dtype
        assert torch.equal(getattr(found[key], "_local_tensor", found[key]), getattr(value, "_local_tensor", value))
    plain_form = oxistep.plain_state_dict(ours)["state"][0]
    assert {key: type(value) for key, value in plain_form.items()} == {
        "step": torch.Tensor,
        "exp_avg": DTensor,
        "exp_avg_sq": DTensor,
    }
    for key, value in oxistep.plain_state_dict(other)["state"][0].items():
        assert torch.equal(getattr(plain_form[key], "_local_tensor", plain_form[key]), value)


def test_the_memory_of_shards_in_codes_is_told_before_and_after(mesh):
    p = parameter(drawn((80, 64), dtype=torch.bfloat16), mesh)
    optimizer = AdamW([p], state_dtype="8bit", weights="residual16")
    estimated = oxistep.memory(optimizer)
    optimizer.step()
    found = oxistep.memory(optimizer)
    assert estimated.total == found.total
    assert found.groups[0].states == 4 + 2 * (80 * 64 + 4 * (20 + 1))


def test_a_state_that_begins_later_keeps_what_stands_beside_a_shard(mesh):
    p, plain = (drawn((80, 64), dtype=torch.bfloat16) for _ in "ab")
    p, plain = parameter(p, mesh), plain.requires_grad_()
    ours, other = (SGD([x], lr=1e-3, weights="residual16") for x in (p, plain))
    for step in range(6):
        grad = drawn((80, 64), seed=step, dtype=torch.bfloat16)
        p.grad, plain.grad = placed(grad, mesh), grad
        for optimizer in (ours, other):
            optimizer.param_groups[0]["momentum"] = 0.9 if step > 2 else 0.0
            optimizer.step()
    assert torch.equal(ours.master(p)._local_tensor, other.master(plain))


def test_a_plain_tensor_is_no_state_of_a_shard_in_codes(mesh):
    p, plain = parameter(drawn((80, 64)), mesh), drawn((80, 64)).requires_grad_()
    ours, other = (AdamW([x], state_dtype="8bit") for x in (p, plain))
    plain.grad = torch.ones(80, 64)
    ours.step()
    other.step()
    before = ours.state_dict()
    with pytest.raises(ValueError, match="expected a DTensor, since its parameter is one, got a plain tensor"):
        ours.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"got a DTensor, which belong to shards.*plain_state_dict"):
        other.load_state_dict(before)
    assert ours.state_dict()["state"][0]["exp_avg_codes"] is before["state"][0]["exp_avg_codes"]


ONE_OF_FOUR = """
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import oxistep
from oxistep.optim import AdamW

distributed.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
"""


def run_as_one_of_four(code):
    """The last process of four, of which the others are not there."""
    done = subprocess.run([sys.executable, "-c", ONE_OF_FOUR + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_codes_load_in_a_process_outside_the_mesh():
    run_as_one_of_four("""
half = DeviceMesh("cpu", [0, 1])
p = torch.nn.Parameter(distribute_tensor(torch.ones(64, 256), half, [Shard(0)], src_data_rank=None))
p.grad = DTensor(torch.ones_like(p._local_tensor), p._spec, requires_grad=False)
optimizer = AdamW([p], state_dtype="8bit")
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
""")


def test_memory_is_told_of_shards_that_could_not_have_codes():
    run_as_one_of_four("""
mesh = init_device_mesh("cpu", (4,))
local = torch.ones(40, 512)
p = torch.nn.Parameter(
    DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size((100, 512)), stride=(512, 1))
)
assert oxistep.memory(AdamW([p])).total > 3 * local.nbytes
""")
