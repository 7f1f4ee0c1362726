"""Random programs on one optimizer, ours beside torch's for-loop: in float64, and in mixed dtypes judged by float64.

Groups with different settings, memory in every layout, gradients laid out otherwise or missing, and between the steps
what a training program may do: another lr, other memory, a state dict saved and loaded by either. With states and
weights in fewer bytes, ours beside itself, and beside a float32 run where these are one.
"""

import copy
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import brief
import oxistep
import oxistep.optim
from optimizers import CASES
from oxistep.optim._kept import WEIGHTS

# Relative to the largest element that is compared, or to one.
TOLERANCE = 1e-12
NAMES = sorted({case.name for case in CASES})
SHAPES = [(), (1,), (0,), (7,), (3, 4), (0, 3), (1, 5), (33, 6), (2, 3, 4), (2, 3, 2, 2), (2, 1, 3, 5), (130, 211)]


# The same examples at every run, and no time spent on shrinking: give it `Phase.shrink` to look into a failure.
QUICK = settings(
    max_examples=brief.number(whole=15, brief=6),
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


# ---- layouts: each returns `values` in memory of its own ----


def contiguous(values):
    return values.clone(memory_format=torch.contiguous_format)


def transposed(values):
    return (
        torch.empty(values.shape[::-1], dtype=values.dtype).permute(tuple(reversed(range(values.dim())))).copy_(values)
    )


def rolled(values):
    """The last dimension is the slowest in memory."""
    if not values.dim():
        return contiguous(values)
    inner = torch.empty([values.shape[-1], *values.shape[:-1]], dtype=values.dtype)
    return inner.movedim(0, -1).copy_(values)


def sliced(values):
    steps = [2 + d % 2 for d in range(values.dim())]
    base = torch.full([n * k for n, k in zip(values.shape, steps, strict=True)], torch.nan, dtype=values.dtype)
    return base[tuple(slice(None, None, k) for k in steps)].copy_(values)


def offset(values):
    base = torch.full((values.numel() + 5,), torch.nan, dtype=values.dtype)
    return base[3 : 3 + values.numel()].view(values.shape).copy_(values)


def channels_last(values):
    if values.dim() != 4:
        return contiguous(values)
    return values.clone(memory_format=torch.channels_last)


LAYOUTS = [contiguous, transposed, rolled, sliced, offset, channels_last]

# ---- programs ----


class Step(NamedTuple):
    before: str
    lr: float
    gradients: list  # a layout for each parameter, or None
    memory: list  # a layout for each parameter, for "swap"


class Program(NamedTuple):
    groups: list  # of (settings, shapes with layouts)
    steps: list
    seed: int


BETWEEN = ["nothing", "nothing", "lr", "swap", "reload", "exchange", "deepcopy"]


@st.composite
def programs(draw, name, shapes=SHAPES, own=LAYOUTS, between=BETWEEN):
    layouts = st.sampled_from(LAYOUTS)
    choices = [case.kwargs for case in CASES if case.name == name]
    parameters = st.lists(st.tuples(st.sampled_from(shapes), st.sampled_from(own)), min_size=1, max_size=4)
    groups = draw(st.lists(st.tuples(st.sampled_from(choices), parameters), min_size=1, max_size=3))
    n = sum(len(params) for _, params in groups)
    step = st.builds(
        Step,
        before=st.sampled_from(between),
        lr=st.sampled_from([1e-4, 0.003, 0.1]),
        gradients=st.lists(st.one_of(st.none(), layouts, layouts, layouts), min_size=n, max_size=n),
        memory=st.lists(layouts, min_size=n, max_size=n),
    )
    return Program(groups, draw(st.lists(step, min_size=2, max_size=7)), draw(st.integers(0, 2**16)))


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def keep_scalars(optimizer, saved):
    """Undoes what torch's load does to the numbers that it keeps in float32 itself.

    It casts them to the parameter's dtype, so that a resumed run goes on otherwise than the one that was
    saved. Ours goes on as that one (test_resume.py).
    """
    for k, p in enumerate(params_of(optimizer)):
        for key in {"mu_product", "eta", "mu"} & saved["state"].get(k, {}).keys():
            optimizer.state[p][key] = saved["state"][k][key].clone()


class Player:
    """The program with one of the two modules; parameters in their dtypes, or what these hold in a `wide` one."""

    def __init__(self, optim, name, program, dtypes=None, wide=None, **settings):
        self.make = getattr(optim, name)
        self.dtypes, self.wide = dtypes, wide
        # torch's foreach is compared with elsewhere
        self.flags = {"foreach": False} if optim is torch.optim else settings
        self.settings = [settings for settings, _ in program.groups]
        generator = torch.Generator().manual_seed(program.seed)
        i, groups = 0, []
        for _, g in program.groups:
            groups.append([])
            for shape, layout in g:
                values = self.cast(torch.randn(shape, generator=generator, dtype=torch.float64), i)
                groups[-1].append(layout(values).requires_grad_())
                i += 1
        self.optimizer = self.new(groups)

    def cast(self, values, i):
        """`values` as the parameter at place `i` can hold them."""
        if self.dtypes:
            values = values.to(self.dtypes[i])
        return values.to(self.wide) if self.wide else values

    def new(self, groups):
        given = [{"params": params, **kwargs} for params, kwargs in zip(groups, self.settings, strict=True)]
        return self.make(given, **self.flags)

    def apply(self, step, theirs_state):
        if step.before == "lr":
            self.optimizer.param_groups[-1]["lr"] = step.lr
        elif step.before == "swap":
            for p, layout in zip(params_of(self.optimizer), step.memory, strict=True):
                p.data = layout(p.detach())
        elif step.before in ("reload", "exchange"):
            state = self.optimizer.state_dict() if step.before == "reload" else theirs_state
            flags = [group["foreach"] for group in self.optimizer.param_groups]
            self.optimizer = self.new([group["params"] for group in self.optimizer.param_groups])
            self.optimizer.load_state_dict(copy.deepcopy(state))
            if type(self.optimizer).__module__.startswith("torch."):
                keep_scalars(self.optimizer, state)
            for group, foreach in zip(self.optimizer.param_groups, flags, strict=True):
                group["foreach"] = foreach
        elif step.before == "deepcopy":
            self.optimizer = copy.deepcopy(self.optimizer)

    def step(self, step, seed):
        generator = torch.Generator().manual_seed(seed)
        for i, (p, layout) in enumerate(zip(params_of(self.optimizer), step.gradients, strict=True)):
            values = self.cast(torch.randn(p.shape, generator=generator, dtype=torch.float64), i)
            p.grad = None if layout is None else layout(values)
        self.optimizer.step()

    def seen(self):
        """Parameters and states, under names."""
        for i, p in enumerate(params_of(self.optimizer)):
            yield f"parameter {i}", p.detach()
            for key, value in self.optimizer.state.get(p, {}).items():
                yield f"{key} of parameter {i}", value


def moves(tensor):
    """The strides that are ever used."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def assert_close(ours, theirs):
    ours, theirs = dict(ours.seen()), dict(theirs.seen())
    assert ours.keys() == theirs.keys()
    for what, b in theirs.items():
        a = ours[what]
        if b is None:
            assert a is None, what
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), what
        if b.numel():
            assert moves(a) == moves(b), what
            error = (a - b).abs().max().item()
            assert error <= TOLERANCE * max(1.0, b.abs().max().item()), f"{what}: {error}"


@pytest.mark.parametrize("name", NAMES)
def test_a_random_program_ends_as_with_torch(name):
    @QUICK
    @given(programs(name))
    def play(program):
        ours, theirs = (Player(optim, name, program) for optim in (oxistep.optim, torch.optim))
        for k, step in enumerate(program.steps):
            states = [player.optimizer.state_dict() for player in (theirs, ours)]
            for player, other in zip((ours, theirs), states, strict=True):
                player.apply(step, other)
            for player in (ours, theirs):
                player.step(step, program.seed + 1 + k)
            paths = {row.path for row in oxistep.explain(ours.optimizer)}
            assert paths <= {"native", "skipped"}, oxistep.explain(ours.optimizer)
            assert_close(ours, theirs)

    play()


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def assert_no_worse(ours, theirs, exact):
    """Mean errors against float64, where torch is finite: ours are torch's, with room for the luck of few elements."""
    for (what, a), (_, b), (_, c) in zip(ours.seen(), theirs.seen(), exact.seen(), strict=True):
        if b is None:
            assert a is None, what
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), what
        finite = b.isfinite() & c.isfinite()
        if finite.any():
            mine, torchs = ((x.double() - c.double()).abs()[finite].mean().item() for x in (a, b))
            unit = torch.finfo(a.dtype).eps * max(1.0, c.double()[finite].abs().mean().item())
            assert mine <= 1.5 * torchs + 2 * unit, f"{what} ({a.dtype}): {mine:.3e}, torch {torchs:.3e}"


@pytest.mark.parametrize("name", NAMES)
def test_a_random_program_of_mixed_dtypes_is_no_further_from_float64_than_torch(name):
    @QUICK
    @given(programs(name), st.lists(st.sampled_from(DTYPES), min_size=12, max_size=12))
    def play(program, dtypes):
        ours, theirs = (Player(optim, name, program, dtypes) for optim in (oxistep.optim, torch.optim))
        exact = Player(torch.optim, name, program, dtypes, wide=torch.float64)
        for k, step in enumerate(program.steps):
            states = [player.optimizer.state_dict() for player in (theirs, ours, exact)]
            for player, other in zip((ours, theirs, exact), states, strict=True):
                player.apply(step, other)
                player.step(step, program.seed + 1 + k)
            paths = {row.path for row in oxistep.explain(ours.optimizer)}
            assert paths <= {"native", "skipped"}, oxistep.explain(ours.optimizer)
        assert_no_worse(ours, theirs, exact)

    play()


# ---- in fewer bytes ----

# About the least number of elements that is kept in codes, with blocks that are not full, and chunks.
FEW_AND_MANY = [(), (7,), (33, 6), (4095,), (64, 64), (17, 300), (2, 3, 40, 20), (130, 211)]
# What stands beside a parameter lies as that does, so it has no gaps, and stays in the same order.
WITHOUT_GAPS = [layout for layout in LAYOUTS if layout is not sliced]
# (Other memory makes residuals start anew, but not between a load and the parameter's first step.)
BETWEEN_IN_FEWER_BYTES = ["nothing", "lr", "reload", "deepcopy", "plain"]


class Frugal(Player):
    """A player with settings; `quiet`: nothing is saved, copied, or laid out otherwise that need not be."""

    def __init__(self, name, program, dtype, quiet=False, **settings):
        self.quiet = quiet
        super().__init__(oxistep.optim, name, program, [dtype] * 12, **settings)

    def apply(self, step, theirs_state):
        if step.before == "plain":
            state = copy.deepcopy(oxistep.plain_state_dict(self.optimizer))
            self.optimizer.load_state_dict(state)
        elif not self.quiet or step.before not in ("reload", "deepcopy"):
            super().apply(step, self.optimizer.state_dict())

    def step(self, step, seed):
        if self.quiet:
            step = step._replace(gradients=[layout and contiguous for layout in step.gradients])
        super().step(step, seed)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(ours, other):
    ours, other = dict(ours.seen()), dict(other.seen())
    assert ours.keys() == other.keys()
    for what, b in other.items():
        a = ours[what]
        if b is None or not isinstance(b, torch.Tensor):
            assert a == b, what
            continue
        assert (a.dtype, a.shape) == (b.dtype, b.shape), what
        assert torch.equal(bits(a), bits(b)), what


@pytest.mark.parametrize("name", NAMES)
def test_a_random_program_in_fewer_bytes_has_the_bits_of_a_quiet_one(name):
    """Saving, copying, and gradients that lie otherwise change nothing at all."""
    modes = st.sampled_from([None, *WEIGHTS])
    kept = st.sampled_from([None, torch.float32, torch.bfloat16, "8bit"])

    @QUICK
    @given(programs(name, FEW_AND_MANY, WITHOUT_GAPS, BETWEEN_IN_FEWER_BYTES), modes, kept)
    def play(program, weights, state_dtype):
        dtype = torch.float32 if weights is None else torch.bfloat16
        settings = {"weights": weights, "state_dtype": state_dtype}
        ours, quiet = (Frugal(name, program, dtype, quiet, **settings) for quiet in (False, True))
        for k, step in enumerate(program.steps):
            for player in (ours, quiet):
                player.apply(step, None)
                player.step(step, program.seed + 1 + k)
            assert_same_bits(ours, quiet)
            for what, value in ours.seen():
                assert not isinstance(value, torch.Tensor) or value.isfinite().all(), what

    play()


# Rprop's step sizes begin as lr in the parameter's dtype, which is another number.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "Rprop"])
def test_a_random_program_with_full_weights_is_a_float32_run(name):
    between = ["nothing", "lr", "reload", "deepcopy"]  # what keeps the digits beside the weights

    @QUICK
    @given(programs(name, FEW_AND_MANY, WITHOUT_GAPS, between), st.sampled_from(["residual16", "master"]))
    def play(program, weights):
        ours = Frugal(name, program, torch.bfloat16, weights=weights, state_dtype=torch.float32)
        single = Player(oxistep.optim, name, program, [torch.bfloat16] * 12, wide=torch.float32)
        for k, step in enumerate(program.steps):
            for player in (ours, single):
                player.apply(step, single.optimizer.state_dict())
                player.step(step, program.seed + 1 + k)
            for i, (p, right) in enumerate(zip(params_of(ours.optimizer), params_of(single.optimizer), strict=True)):
                found = p.detach().float() if p not in ours.optimizer.state else ours.optimizer.master(p)
                assert torch.equal(bits(found), bits(right.detach())), f"parameter {i}, {tuple(p.shape)}"

    play()
