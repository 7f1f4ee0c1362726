"""What a worker of test_fork does; in a module of its own, which a spawned process can import."""

import numpy as np
import torch

import oxistep.optim


def step_shared(p: torch.Tensor, turns, steps: int) -> None:
    """Steps on a parameter in shared memory; with a lock where turns are taken."""
    p = p.detach().requires_grad_()
    optimizer = oxistep.optim.SGD([p], lr=1.0)
    p.grad = torch.from_numpy(np.ones(p.shape, np.float32))
    for _ in range(steps):
        if turns is None:
            optimizer.step()
        else:
            with turns:
                optimizer.step()
