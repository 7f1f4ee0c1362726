"""States have torch's strides, also where these mean nothing: dimensions of one element and of none."""

import random

import torch

import oxistep.optim
from scenarios import each_elementwise_class, make

SETTINGS = [{}, {"weight_decay": 0.1}, {"maximize": True}, {"weight_decay": 0.1, "maximize": True}]
SIZES = [0, 1, 1, 2, 3]


def random_layout(choose, sizes, values, overlapping=False):
    """A tensor of `sizes`, permuted, with gaps, with arbitrary strides where there is one element, or expanded."""
    dims = len(sizes)
    order = choose.sample(range(dims), dims)
    strides, step = [0] * dims, 1
    for d in order:
        if choose.random() < 0.2:
            step *= choose.choice([1, 2, 3])
        strides[d] = step
        step *= max(sizes[d], 1)
        if sizes[d] <= 1 and choose.random() < 0.5:
            strides[d] = choose.choice([0, 1, 2, 5, 100])
    if overlapping and dims and choose.random() < 0.2:
        strides[choose.randrange(dims)] = 0
    with torch.no_grad():
        if 0 in strides:  # several elements may be one: copying into such a tensor is refused
            reach = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True) if n) + 1
            return torch.randn(reach, generator=values).as_strided(sizes, strides)
        empty = torch.empty_strided(sizes, strides)
        return empty.copy_(torch.randn(sizes, generator=values))


def pair(seed):
    choose, values = random.Random(seed), torch.Generator().manual_seed(seed)
    sizes = [choose.choice(SIZES) for _ in range(choose.randrange(5))]
    p, grad = random_layout(choose, sizes, values), random_layout(choose, sizes, values, overlapping=True)
    if choose.random() < 0.3:
        grad = torch.randn(sizes, generator=values)
    if choose.random() < 0.2 and len(sizes) == 4:
        grad = grad.contiguous(memory_format=torch.channels_last)
    return p, grad


@each_elementwise_class
def test_strides_of_states_are_torchs(name):
    for seed in range(400):
        setting = SETTINGS[seed % 4]
        kwargs = {key: value for key, value in setting.items() if name != "Rprop" or key != "weight_decay"}

        def states(optim, seed=seed, kwargs=kwargs):
            p, grad = pair(seed)
            optimizer = make(optim, name, [p], foreach=False, **kwargs)
            p.grad = grad
            optimizer.step()
            return {key: (value.shape, value.stride()) for key, value in optimizer.state[p].items()}, p

        (ours, p), (theirs, q) = states(oxistep.optim), states(torch.optim)
        _, grad = pair(seed)
        assert ours == theirs, f"seed {seed}: parameter {p.shape} {p.stride()}, gradient {grad.stride()}, {kwargs}"
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_buffer_made_for_a_complex_parameter_too():
    for seed in range(50):
        strides = []
        for optim in (torch.optim, oxistep.optim):
            p, grad = (torch.complex(x, x.clone()) for x in pair(seed))
            p.grad = grad
            optimizer = optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.1)
            optimizer.step()
            strides.append(optimizer.state[p]["momentum_buffer"].stride())
        assert strides[0] == strides[1]
