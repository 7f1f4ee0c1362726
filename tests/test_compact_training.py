"""Training with states in fewer bytes ends where float32 states end, also where naive 8 bits diverge."""

import math
from functools import partial

import pytest
import torch

import brief
import oxistep.optim as optim
from oxistep import zoo
from trainings import TRAININGS

RATES = {
    "AdamW": {"GPT": 3e-3, "quadratic": 1e-2, "rare rows": 1e-2, "digits": 3e-3},
    "Adam": {"GPT": 3e-3, "quadratic": 1e-2, "rare rows": 1e-2, "digits": 3e-3},
    "NAdam": {"GPT": 3e-3, "quadratic": 1e-2, "rare rows": 1e-2, "digits": 3e-3},
    "RAdam": {"GPT": 3e-3, "quadratic": 3e-2, "rare rows": 3e-2, "digits": 3e-3},
    "RMSprop": {"GPT": 1e-3, "quadratic": 1e-2, "rare rows": 1e-2, "digits": 1e-3},
    "Adagrad": {"GPT": 2e-2, "quadratic": 1e-1, "rare rows": 1e-1, "digits": 2e-2},
    "Lion": {"GPT": 5e-4, "quadratic": 1e-2, "rare rows": 3e-3, "digits": 5e-4},
    "SGD": {"GPT": 0.1, "quadratic": 0.05, "rare rows": 1.0, "digits": 0.05},
}
SEEDS = range(brief.number(whole=3, brief=1))


@pytest.fixture(autouse=True)
def _one_thread():
    """What is compared is a matter of rounding, torch's sums included."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(name, training, **settings):
    cls = zoo.Lion if name == "Lion" else getattr(optim, name)
    more = {"momentum": 0.9} if name == "SGD" else {}
    return lambda ps: cls(ps, lr=RATES[name][training], **more, **settings)


def difference(name, training, state_dtype):
    """How much higher the mean loss over the seeds ends than with float32 states, as a share."""
    train = TRAININGS[training]
    wanted = sum(train(made(name, training), seed) for seed in SEEDS)
    return sum(train(made(name, training, state_dtype=state_dtype), seed) for seed in SEEDS) / wanted - 1


# (state_dtype, the largest difference) of a training
BF16, CODES = (torch.bfloat16, 0.02), ("8bit", 0.05)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("name", RATES)
@pytest.mark.covers(("name", "training"))
def test_training_ends_where_float32_ends(name, training):
    """Measured over three seeds: bfloat16 within 0.02 % (Lion 0.12 %, digits 0.1 %), 8 bits within 0.3 %."""
    for state_dtype, largest in [BF16, CODES]:
        found = difference(name, training, state_dtype)
        print(f"{training} {name} {state_dtype}: {found:+.4%}")
        assert abs(found) < largest, state_dtype


@pytest.mark.whole
@pytest.mark.parametrize(("lr", "steps"), [(3e-3, 300), (3e-3, 1000), (1e-2, 300), (1e-2, 600), (1e-2, 1000)])
def test_lion_in_8_bits_ends_where_float32_ends_on_a_quadratic(lr, steps):
    """A sign is another's where a mean that was rounded is near zero, so this is where 8 bits are hardest.

    Measured: -0.6 to 2.2 % over six seeds. Rounded with odds that are drawn anew at each step, and in codes an eighth
    of an octave apart, 2 to 71 %.
    """
    makes = [partial(zoo.Lion, lr=lr, state_dtype=state_dtype) for state_dtype in ("8bit", None)]
    own, wanted = (sum(TRAININGS["quadratic"](make, seed, steps) for seed in range(6)) for make in makes)
    found = own / wanted - 1
    print(f"{lr} {steps}: {found:+.2%}")
    assert abs(found) < CODES[1]


class NaiveAdam(torch.optim.Optimizer):
    """Adam whose states are rounded as everybody tries first: linear in 8 bits, to the nearest of the codes from 0 to
    the largest of each block of 256."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.largest = 0.0

    @staticmethod
    def rounded(state, codes):
        blocks = torch.nn.functional.pad(state.flatten(), (0, -state.numel() % 256)).view(-1, 256)
        unit = blocks.abs().amax(1, keepdim=True) / codes
        kept = torch.where(unit > 0, (blocks / unit).round() * unit, 0.0)
        return kept.flatten()[: state.numel()].view_as(state)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                state["step"] += 1
                state["exp_avg"].lerp_(p.grad, 0.1)
                state["exp_avg_sq"].mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                if p.numel() >= 4096:  # as ours
                    state["exp_avg"] = self.rounded(state["exp_avg"], 127)
                    state["exp_avg_sq"] = self.rounded(state["exp_avg_sq"], 255)
                root = (state["exp_avg_sq"] / (1 - 0.999 ** state["step"])).sqrt() + 1e-8
                update = state["exp_avg"] / (1 - 0.9 ** state["step"]) / root
                self.largest = max(self.largest, update.abs().max().item())
                p.sub_(update, alpha=group["lr"])


def largest_update_of(training, seed):
    """The loss of the naive Adam, and its largest update before the learning rate."""
    made = []

    def make(ps):
        made.append(NaiveAdam(ps, lr=RATES["Adam"][training]))
        return made[0]

    return TRAININGS[training](make, seed), made[0].largest


@pytest.mark.parametrize("training", TRAININGS)
def test_where_naive_8_bits_diverge_ours_do_not(training):
    """A second moment below half a code becomes zero, its first moment does not, and epsilon is all that divides.

    Measured: updates of 1e5 (rare rows) to 1e24, which are about one otherwise; losses four times float32's to NaN.
    """
    for seed in SEEDS:
        wanted = TRAININGS[training](made("Adam", training), seed)
        diverged, largest = largest_update_of(training, seed)
        assert largest > 1e4
        assert not diverged < 2 * wanted, "NaN, too, is divergence"
        found = TRAININGS[training](made("Adam", training, state_dtype="8bit"), seed)
        assert math.isclose(found, wanted, rel_tol=0.05)
