"""Muon: what is special to it. (torch's own table of inputs: test_optim_db.)"""

import copy
import io
from unittest import mock

import pytest
import torch

import oxistep
import oxistep.optim
from oxistep import _core
from seeing import Seeing

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# one row, one column, one element, none, tall, wide
SHAPES = [(3, 5), (1, 7), (7, 1), (1, 1), (0, 3), (130, 67), (16, 200)]
LARGE = [(600, 500), (3, 5), (100, 2000), (40, 40)]  # several go's (see _AT_ONCE), several threads
each_class = pytest.mark.parametrize("optim", [torch.optim, oxistep.optim], ids=["torch", "oxistep"])


def draw(dtype, seed=0, shapes=SHAPES, transposed=False):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    return [x.t().contiguous().t() if transposed else x for x in values]


def run(optim, dtype, steps=8, shapes=SHAPES, transposed=(False, False), **settings):
    params = [p.requires_grad_() for p in draw(dtype, 0, shapes, transposed[0])]
    optimizer = optim.Muon(params, **settings)
    for step in range(steps):
        for p, grad in zip(params, draw(dtype, 1 + step, shapes, transposed[1]), strict=True):
            p.grad = grad
        optimizer.step()
    return params, optimizer


def assert_equal(a, b):
    """Parameters and states, to the last bit. (torch rounds the learning rate to bfloat16 for such parameters.)"""
    for p, q in zip(a[0], b[0], strict=True):
        if p.dtype == torch.bfloat16:
            torch.testing.assert_close(p, q, rtol=2**-5, atol=2**-6)
        else:
            assert torch.equal(p, q), (p.shape, (p - q).abs().max())
        mine, theirs = a[1].state[p], b[1].state[q]
        assert list(mine) == list(theirs)
        for key in theirs:
            assert (mine[key].dtype, mine[key].shape, mine[key].stride()) == (
                theirs[key].dtype,
                theirs[key].shape,
                theirs[key].stride(),
            )
            assert torch.equal(mine[key], theirs[key]), key


SETTINGS = {
    "default": {"lr": 0.02},
    "no-nesterov": {"lr": 0.02, "nesterov": False, "weight_decay": 0.0},
    "short-memory": {"lr": 0.02, "momentum": 0.3},
    "tensor-lr": {"lr": torch.tensor(0.015), "weight_decay": 0.3},
    "rms": {"lr": 0.01, "adjust_lr_fn": "match_rms_adamw"},
    "unclamped": {"lr": 0.02, "adjust_lr_fn": "spectral_unclamped", "ns_steps": 2},
}


def knows(label):
    try:
        torch.optim.Muon([torch.zeros(2, 2)], **SETTINGS[label])
    except ValueError:
        return False  # a newer torch's way of adjusting the learning rate
    return True


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", [label for label in SETTINGS if knows(label)])
def test_eight_steps_equal_torchs_to_the_last_bit(label, dtype, fused_adds):
    shapes = [shape for shape in SHAPES if 0 not in shape or label != "unclamped"]  # A / B, by zero
    ours = run(oxistep.optim, dtype, shapes=shapes, **copy.deepcopy(SETTINGS[label]))
    assert_equal(ours, run(torch.optim, dtype, shapes=shapes, **copy.deepcopy(SETTINGS[label])))
    assert {row.path for row in oxistep.explain(ours[1])} == {"native"}


def test_large_matrices(fused_adds):
    assert_equal(*(run(optim, torch.float32, 1, LARGE, lr=0.02) for optim in (oxistep.optim, torch.optim)))


@pytest.mark.parametrize("transposed", [(True, True), (True, False), (False, True)])
def test_matrices_that_lie_transposed(transposed, fused_adds):
    shapes = [(3, 5), (5, 3), (70, 130), (130, 70), (1, 4), (4, 1), (64, 64)]
    ours = run(oxistep.optim, torch.float32, 4, shapes, transposed, lr=0.02)
    assert_equal(ours, run(torch.optim, torch.float32, 4, shapes, transposed, lr=0.02))
    assert {row.path for row in oxistep.explain(ours[1])} == {"native"}


def test_the_element_wise_work_is_native():
    with (
        mock.patch.object(torch.Tensor, "lerp_", side_effect=AssertionError),
        mock.patch.object(torch.Tensor, "add_", side_effect=AssertionError),
        mock.patch.object(_core, "muon_update", side_effect=_core.muon_update) as update,
    ):
        run(oxistep.optim, torch.float32, 1, [(3, 5)] * 40)
    assert update.call_count == 1


def test_groups_and_late_unfreezing(fused_adds):
    results = []
    for optim in (oxistep.optim, torch.optim):
        a, b, c = (p.requires_grad_() for p in draw(torch.float32, 0, [(4, 3), (3, 4), (5, 5)]))
        optimizer = optim.Muon([{"params": [a, b], "lr": 0.1}, {"params": [c], "momentum": 0.5, "nesterov": False}])
        for step in range(4):
            for k, (p, grad) in enumerate(
                zip((a, b, c), draw(torch.float32, step, [(4, 3), (3, 4), (5, 5)]), strict=True)
            ):
                p.grad = grad if k != 1 or step > 1 else None
            if optim is oxistep.optim and step == 0:
                assert [row.path for row in oxistep.explain(optimizer)] == ["native", "skipped", "native"]
            optimizer.step()
            assert (b in optimizer.state) == (step > 1)
        results.append(([a, b, c], optimizer))
    assert_equal(*results)


@pytest.mark.parametrize(("first", "second"), [(torch.optim, oxistep.optim), (oxistep.optim, torch.optim)])
def test_checkpoints_move_both_ways(first, second, fused_adds):
    shapes = [(4, 3), (3, 4)]
    params, a = run(first, torch.float32, 3, shapes, lr=0.1)
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    moved = [p.detach().clone().requires_grad_() for p in params]
    b = second.Muon(moved)
    b.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for step in range(3):
        for p, q, grad in zip(params, moved, draw(torch.float32, 50 + step, shapes), strict=True):
            p.grad, q.grad = grad.clone(), grad.clone()
        a.step()
        b.step()
    assert_equal((params, a), (moved, b))


def test_switching_between_steps(fused_adds):
    grads = draw(torch.float32, 3, [(4, 3)])
    (p,), (q,) = (draw(torch.float32, 0, [(4, 3)]) for _ in range(2))
    a, b = oxistep.optim.Muon([p.requires_grad_()]), torch.optim.Muon([q.requires_grad_()])
    p.grad, q.grad = grads[0], grads[0].clone()
    for turn in range(6):
        with mock.patch("oxistep.optim._modes.FORCED", bool(turn % 2)):
            assert oxistep.explain(a)[0].path == ("torch" if turn % 2 else "native")
            a.step()
        b.step()
    assert_equal(([p], a), ([q], b))


def test_bits_depend_neither_on_threads_nor_on_the_level():
    """(Of what is native: the products, torch's, are replaced by something that does not depend on threads.)"""
    before = torch.get_num_threads(), oxistep.cpu_features()["simd"]
    flipped = mock.patch.object(
        oxistep.optim.muon, "_zeropower_via_newtonschulz", lambda u, *_: u.t().contiguous().t().bfloat16()
    )
    try:
        with flipped:
            expected = run(oxistep.optim, torch.float32, 3, LARGE, lr=0.02)
            for level in oxistep.cpu_features()["available"]:
                _core.force_simd(level)
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    assert_equal(run(oxistep.optim, torch.float32, 3, LARGE, lr=0.02), expected)
    finally:
        torch.set_num_threads(before[0])
        _core.force_simd(before[1])


def test_states_in_float32_for_half_parameters():
    params, optimizer = run(oxistep.optim, torch.bfloat16, 4, [(40, 30)], lr=0.02, state_dtype=torch.float32)
    exact, reference = run(torch.optim, torch.float32, 0, [(40, 30)], lr=0.02)
    for step in range(4):
        exact[0].grad = draw(torch.bfloat16, 1 + step, [(40, 30)])[0].float()
        reference.step()
    buffer = optimizer.state[params[0]]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    torch.testing.assert_close(buffer, reference.state[exact[0]]["momentum_buffer"], rtol=1e-6, atol=1e-6)
    assert oxistep.explain(optimizer)[0].path == "native"


class Subclass(Seeing, torch.Tensor):
    pass


def attempt(optim, kind):
    """One step; parameters and states, or what was raised."""
    base = torch.arange(24.0).reshape(4, 6) / 10
    grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    w = base[:, :3].clone()
    match kind:
        case "strided":
            w = base[:, ::2]
        case "gradient-strided":
            grad = torch.stack([grad, grad], dim=2)[:, :, 0]
        case "subclass":
            w = w.as_subclass(Subclass)
        case "integer-momentum-tensor":
            w = w.double()
            grad = grad.double()
        case "complex":
            w, grad = w + 0j, grad + 0j
        case "sparse":
            grad = grad.to_sparse()
    params = [torch.ones(2, 2, requires_grad=True), w.requires_grad_()]
    if kind == "overlapping":
        params = [base.view(-1)[:12].view(4, 3).requires_grad_(), base.view(-1)[6:18].view(4, 3).requires_grad_()]
    optimizer = optim.Muon(params, lr=0.1)
    params[0].grad = torch.ones_like(params[0])
    params[1].grad = grad
    if kind == "momentum-tensor":
        optimizer.param_groups[0]["momentum"] = torch.tensor(0.5)
    if kind in ("state-none", "state-without-buffer"):
        for p in params:
            optimizer.state[p]["momentum_buffer" if kind == "state-none" else "label"] = None
    if kind == "ns-steps":
        optimizer.param_groups[0]["ns_steps"] = 100
    if kind == "coefficients":
        optimizer.param_groups[0]["ns_coefficients"] = (1.0, 2.0)
    path = oxistep.explain(optimizer)[1].path if optim is oxistep.optim else "torch"
    assert path == ("native" if optim is oxistep.optim and kind == "state-without-buffer" else "torch")
    try:
        optimizer.step()
    except Exception as error:  # the kind and the words are compared
        if optim is oxistep.optim:
            assert torch.equal(params[0].detach(), torch.ones(2, 2))
            if kind in ("complex", "sparse"):
                assert not optimizer.state
        return type(error), str(error)
    return [p.detach().as_subclass(torch.Tensor).clone() for p in params]


@pytest.mark.parametrize(
    "kind",
    [
        "strided",
        "gradient-strided",
        "subclass",
        "complex",
        "sparse",
        "overlapping",
        "momentum-tensor",
        "state-none",
        "state-without-buffer",
        "ns-steps",
        "coefficients",
    ],
)
def test_what_is_not_served_is_torchs(kind):
    ours, theirs = attempt(oxistep.optim, kind), attempt(torch.optim, kind)
    if isinstance(theirs, tuple):
        assert ours == theirs
    else:
        assert all(map(torch.equal, ours, theirs))


def test_a_native_parameter_that_shares_memory_with_one_that_torch_updates():
    """torch goes through both in the order of the list; what is native would come after what is not."""
    results = []
    for optim in (oxistep.optim, torch.optim):
        (base,) = draw(torch.float32, 0, [(4, 3)])
        p, q = base.detach(), base.detach()
        p.grad, (row,) = draw(torch.float32, 1, [(4, 3)])[0], draw(torch.float32, 2, [(1, 3)])
        q.grad = row.expand(4, 3)
        optimizer = optim.Muon([p, q], lr=0.1)
        if optim is oxistep.optim:
            assert [row.path for row in oxistep.explain(optimizer)] == ["torch", "torch"]
        optimizer.step()
        results.append(base)
    assert torch.equal(*results)


def test_version_counters_move_once():
    (p,) = draw(torch.float32, 0, [(4, 3)])
    p.requires_grad_().grad = torch.ones_like(p)
    optimizer = oxistep.optim.Muon([p])
    before = p._version
    kept = (p * p).sum()
    optimizer.step()
    assert p._version == before + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


@each_class
def test_hooks_closure_and_profiler(optim):
    (p,) = draw(torch.float32, 0, [(4, 3)])
    optimizer = optim.Muon([p.requires_grad_()])
    torch.optim.Muon([torch.ones(1, 1)])  # torch wraps its own step now
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        assert torch.is_grad_enabled()
        seen.append("closure")
        (p**2).sum().backward()
        return 7.0

    with torch.profiler.profile(acc_events=True) as profile:
        assert optimizer.step(closure) == 7.0
    assert seen == ["before", "closure", "after"]
    names = [event.key for event in profile.key_averages() if event.key.startswith("Optimizer.step")]
    assert names == ["Optimizer.step#Muon.step"]


def test_native_functions_refuse_what_does_not_fit():
    x, half = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bfloat16)
    for grad, buffer, update in [
        (x, x, None),
        (x, torch.ones(3, 2), None),
        (x, half, None),
        (x, torch.ones(2, 3), torch.ones(2, 3)),
        (x, torch.ones(3, 2).t(), None),
    ]:
        with pytest.raises(RuntimeError, match="was changed while the step ran"):
            _core.muon_momentum([grad], [buffer], [update], [0.5])
    for param, product in [(x, torch.ones(2, 3)), (x, half[:, :2]), (half, half)]:
        with pytest.raises(RuntimeError, match="was changed while the step ran"):
            _core.muon_update([param], [product], [1.0], [1.0])
    assert torch.equal(x, torch.ones(2, 3))


def test_clipping_and_skipping(fused_adds):
    def made(optim, **ours):
        params = [p.requires_grad_() for p in draw(torch.float32)]
        return params, optim.Muon(params, **ours)

    (params, ours), (twins, theirs) = made(oxistep.optim, max_grad_norm=0.5, skip_nonfinite=True), made(torch.optim)
    for step in range(3):
        for p, q, grad in zip(params, twins, draw(torch.float32, 1 + step), strict=True):
            p.grad, q.grad = grad.clone(), grad.clone()
        ours.step()
        torch.testing.assert_close(ours.last_grad_norm, torch.nn.utils.get_total_norm([q.grad for q in twins]))
        # clipped by our norm: torch's sums have their processor's order, and products in bfloat16 enlarge a last digit
        torch.nn.utils.clip_grads_with_norm_(twins, 0.5, ours.last_grad_norm)
        theirs.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=2e-6)
    before = [p.clone() for p in params]
    states = copy.deepcopy([ours.state[p] for p in params])
    params[1].grad[0, 0] = float("nan")
    ours.step()
    assert ours.last_grad_norm.isnan()
    assert all(map(torch.equal, params, before))
    for p, state in zip(params, states, strict=True):
        assert torch.equal(ours.state[p]["momentum_buffer"], state["momentum_buffer"])
