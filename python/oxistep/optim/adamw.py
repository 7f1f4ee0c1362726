"""AdamW: Adam with decoupled weight decay."""

import torch
from torch.optim.adamw import adamw as adamw

from oxistep.optim.adam import Adam

__all__ = ["AdamW", "adamw"]


class AdamW(Adam, torch.optim.AdamW):
    r"""Adam that shrinks the parameter instead of adding weight decay to the gradient.

    .. math::
        \theta \leftarrow \theta (1 - \gamma \lambda), \text{ then Adam's step with } \lambda = 0

    Arguments, state, errors and accuracy are those of :class:`Adam`, except that ``weight_decay`` is 1e-2 by default
    and there is no ``decoupled_weight_decay``: it is always on.

    Example:
        >>> import torch, oxistep.optim as optim
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = optim.AdamW([w], lr=0.1)
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.899

    Reference:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2017.
    """

    _torch = torch.optim.AdamW
