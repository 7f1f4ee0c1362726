"""What is rounded at random: fair, and the same draw nowhere twice.

Where a number lies between two neighbours that a format holds, each element goes up or down. That is a coin of known
odds, so means and correlations of many coins are known up to their sample: five standard deviations are allowed. Seeds
are fixed; nothing here fails now and then.
"""

import itertools

import pytest
import torch

import oxistep
import oxistep.optim as optim

N, STEPS = 2**15, 6
BF16 = torch.bfloat16
LAGS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 255, 256, 512, 8192)


def up_in_weights(seed=0):
    """Of bfloat16 weights: 1 - lr * grad is a quarter of the way from 1 to the next number."""
    ps = [torch.ones(N, dtype=BF16, requires_grad=True) for _ in range(2)]
    optimizer = optim.SGD(ps, lr=1.0, weights="stochastic", seed=seed)
    for _ in range(STEPS):
        with torch.no_grad():
            for p in ps:
                p.fill_(1.0)
                p.grad = torch.full_like(p, -(2**-9))
        optimizer.step()
        assert all(torch.all((p == 1) | (p == 1 + 2**-7)) for p in ps)
        yield [p.detach() > 1 for p in ps]


def up_in_residuals(seed=0):
    """Of the byte beside bfloat16 weights: a quarter of the way from 1 to the next of its numbers, 2^-15."""
    ps = [torch.ones(N, dtype=BF16, requires_grad=True) for _ in range(2)]
    optimizer = optim.SGD(ps, lr=1.0, weights="residual8", seed=seed)
    for _ in range(STEPS):
        with torch.no_grad():
            for p in ps:
                p.fill_(1.0)  # which resets the residual
                p.grad = torch.full_like(p, -(2**-17))
        optimizer.step()
        masters = [optimizer.master(p) for p in ps]
        assert all(torch.all((master == 1) | (master == 1 + 2**-15)) for master in masters)
        yield [master > 1 for master in masters]


def up_in_moments(state_dtype, seed=0):
    """Of second moments: RMSprop with alpha = 0 keeps the square of this step's gradient."""
    ps = [torch.zeros(N, requires_grad=True) for _ in range(2)]
    optimizer = optim.RMSprop(ps, lr=1e-6, alpha=0.0, state_dtype=state_dtype, seed=seed)
    # a block of codes reaches from 1 to 2^30, two codes an octave or so; what is between is looked at
    value = 1 + 2**-9 if state_dtype == BF16 else 2.0**10 * 1.1
    squares = torch.full((N,), value)
    squares[::256], squares[1::256] = 1.0, 2.0**30
    kept = squares == squares[2]
    for _ in range(STEPS):
        for p in ps:
            p.grad = squares.sqrt()
        optimizer.step()
        plain = oxistep.plain_state_dict(optimizer)["state"]
        moments = [plain[k]["square_avg"][kept] for k in range(2)]
        neighbours = torch.cat(moments).unique()
        assert len(neighbours) == 2 and neighbours[0] < squares[2] < neighbours[1]
        odds = (squares[2] - neighbours[0]) / (neighbours[1] - neighbours[0])
        yield [moment > squares[2] for moment in moments], odds.item()


DRAWN = {
    "weights": lambda seed: ((ups, 0.25) for ups in up_in_weights(seed)),
    "residual8": lambda seed: ((ups, 0.25) for ups in up_in_residuals(seed)),
    "bfloat16 states": lambda seed: up_in_moments(BF16, seed),
    "8-bit states": lambda seed: up_in_moments("8bit", seed),
}


def coins(kind, seed=0):
    """(steps, tensors, elements) of ±: what was drawn, less its mean, by its deviation."""
    thrown = []
    for ups, odds in DRAWN[kind](seed):
        thrown.append(torch.stack([(up.double() - odds) / (odds * (1 - odds)) ** 0.5 for up in ups]))
    return torch.stack(thrown)


@pytest.fixture(scope="module")
def thrown():
    before = torch.get_rng_state()
    found = {kind: coins(kind) for kind in DRAWN}
    assert torch.equal(torch.get_rng_state(), before), "torch's generator is untouched"
    return found


def alike(a, b):
    """A correlation in standard deviations of its sample."""
    return abs((a * b).mean().item()) * a.numel() ** 0.5


each_kind = pytest.mark.parametrize("kind", DRAWN)


@each_kind
def test_rounding_is_unbiased(thrown, kind):
    mean = thrown[kind].mean().item()
    assert abs(mean) * thrown[kind].numel() ** 0.5 < 5


@each_kind
def test_neighbours_are_uncorrelated(thrown, kind):
    coin = thrown[kind]
    for lag in LAGS:
        assert alike(coin[..., :-lag], coin[..., lag:]) < 5, lag


@each_kind
def test_tensors_are_uncorrelated(thrown, kind):
    first, second = thrown[kind][:, 0], thrown[kind][:, 1]
    assert alike(first, second) < 5


@each_kind
def test_steps_are_uncorrelated(thrown, kind):
    coin = thrown[kind]
    for a, b in itertools.combinations(range(STEPS), 2):
        assert alike(coin[a], coin[b]) < 5, (a, b)


@each_kind
def test_seeds_are_uncorrelated_and_the_same_seed_draws_the_same(thrown, kind):
    assert torch.equal(coins(kind), thrown[kind])
    assert alike(coins(kind, seed=1), thrown[kind]) < 5


def test_weights_and_states_do_not_share_a_draw():
    """Both in one step: RMSprop's square, and the weight that it moves to halfway between two numbers."""
    p = torch.ones(N, dtype=BF16, requires_grad=True)
    optimizer = optim.RMSprop([p], lr=2**-8, alpha=0.0, eps=0.0, state_dtype=BF16, weights="stochastic")
    # the square of this, 1 + 2^-7 + 2^-8 + ..., lies between two numbers; the step is lr whatever it is, but for 2^-9
    p.grad = torch.full_like(p, -(1 + 2**-7))
    optimizer.step()
    moments = optimizer.state[p]["square_avg"]
    ups = p.detach() > 1, moments == moments.max()
    weights, states = ((up.double() - up.double().mean()) / up.double().std() for up in ups)
    assert 0.1 < ups[0].double().mean() < 0.9 and 0.0 < ups[1].double().mean() < 1.0
    assert alike(weights, states) < 5
