"""The same bits for any number of threads, any SIMD level and any order of parameters, on random programs of steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import brief
import oxistep
import oxistep.optim
from optimizers import CASES
from oxistep import _core
from snapshots import bits
from test_random_programs import LAYOUTS, QUICK, Player, Program, params_of, programs

NAMES = sorted({case.name for case in CASES})
LARGE = (2, 150, 700)  # enough for several threads, and for several chunks in every layout


@pytest.fixture(autouse=True)
def restored():
    level, threads = oxistep.cpu_features()["simd"], torch.get_num_threads()
    yield
    _core.force_simd(level)
    oxistep.set_num_threads(None)
    torch.set_num_threads(threads)


@st.composite
def large_programs(draw, name):
    """A program with one large parameter more."""
    program = draw(programs(name))
    groups = [*program.groups, (program.groups[0][0], [(LARGE, draw(st.sampled_from(LAYOUTS)))])]
    steps = [
        step._replace(
            gradients=[*step.gradients, draw(st.sampled_from(LAYOUTS))],
            memory=[*step.memory, draw(st.sampled_from(LAYOUTS))],
        )
        for step in program.steps[:3]
    ]
    return Program(groups, steps, program.seed)


def play(name, program, max_grad_norm=None, backwards=False):
    """What a program ends in. `backwards`: the parameters of each group in reverse order, with the same values."""
    player = Player(oxistep.optim, name, program, max_grad_norm=max_grad_norm)
    for k, step in enumerate(program.steps):
        if step.before in ("lr", "swap"):
            player.apply(step, None)
        generator = torch.Generator().manual_seed(program.seed + 1 + k)
        for p, layout in zip(params_of(player.optimizer), step.gradients, strict=True):
            values = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad = None if layout is None else layout(values)
        if backwards:
            for group in player.optimizer.param_groups:
                group["params"].reverse()
        player.optimizer.step()
        if backwards:
            for group in player.optimizer.param_groups:
                group["params"].reverse()
    return [(what, None if value is None else bits(value)) for what, value in player.seen()]


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_levels(name):
    @settings(QUICK, max_examples=brief.number(whole=3, brief=2))  # large parameters cost
    @given(large_programs(name), st.sampled_from([None, 0.5]))
    def run(program, max_grad_norm):
        torch.set_num_threads(1)
        expected = play(name, program, max_grad_norm)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert play(name, program, max_grad_norm) == expected, f"{threads} threads of torch's"
        oxistep.set_num_threads(5)
        for level in oxistep.cpu_features()["available"]:
            _core.force_simd(level)
            assert play(name, program, max_grad_norm) == expected, f"{level}, 5 threads of rayon's"
        oxistep.set_num_threads(None)

    run()


@pytest.mark.parametrize("name", NAMES)
def test_order_of_parameters(name):
    @QUICK
    @given(programs(name), st.sampled_from([None, 0.5]))
    def run(program, max_grad_norm):
        assert play(name, program, max_grad_norm, backwards=True) == play(name, program, max_grad_norm)

    run()
