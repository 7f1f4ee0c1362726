"""Random programs on one optimizer, ours beside torch's for-loop: in float64, and in mixed dtypes judged by float64.

Groups with different settings, memory in every layout, gradients laid out otherwise or missing, and between the steps
what a training program may do: another lr, other memory, a state dict saved and loaded by either.
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


@st.composite
def programs(draw, name):
    layouts = st.sampled_from(LAYOUTS)
    choices = [case.kwargs for case in CASES if case.name == name]
    parameters = st.lists(st.tuples(st.sampled_from(SHAPES), layouts), min_size=1, max_size=4)
    groups = draw(st.lists(st.tuples(st.sampled_from(choices), parameters), min_size=1, max_size=3))
    n = sum(len(params) for _, params in groups)
    step = st.builds(
        Step,
        before=st.sampled_from(["nothing", "nothing", "lr", "swap", "reload", "exchange", "deepcopy"]),
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
    """The program with one of the two modules; parameters in their dtypes, or `wide`: what these hold, in float64."""

    def __init__(self, optim, name, program, dtypes=None, wide=False, **settings):
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
        return values.double() if self.wide else values

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
        exact = Player(torch.optim, name, program, dtypes, wide=True)
        for k, step in enumerate(program.steps):
            states = [player.optimizer.state_dict() for player in (theirs, ours, exact)]
            for player, other in zip((ours, theirs, exact), states, strict=True):
                player.apply(step, other)
                player.step(step, program.seed + 1 + k)
            paths = {row.path for row in oxistep.explain(ours.optimizer)}
            assert paths <= {"native", "skipped"}, oxistep.explain(ours.optimizer)
        assert_no_worse(ours, theirs, exact)

    play()
