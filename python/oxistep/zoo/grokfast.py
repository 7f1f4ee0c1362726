"""Grokfast."""

from collections.abc import Callable
from typing import Any

from oxistep.zoo._wrapper import Wrapper

__all__ = ["Grokfast"]


class Grokfast(Wrapper):
    r"""Grokfast: what changes slowly in the gradients counts more.

    .. math::
        a &\leftarrow \alpha a + (1 - \alpha) g \\
        g &\leftarrow g + \lambda a

    As ``gradfilter_ema`` of ``pytorch_optimizer``, before each step; but ``p.grad`` stays as it is. The mean :math:`a`
    begins as the first gradient.

    Args:
        base_optimizer: any optimizer of oxistep or torch, which takes the steps.
        alpha: :math:`\alpha` (default: 0.98).
        lamb: :math:`\lambda` (default: 2.0).

    State:
        grok_exp_avg: :math:`a`, in ``state_dict`` among the states of the base.
        Of the group: ``grokfast_alpha``, ``grokfast_lamb``.

    Raises:
        TypeError: if the base is no optimizer.
        ValueError: for a hyperparameter out of range.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.Grokfast(torch.optim.SGD([w], lr=0.1))
        >>> w.grad = torch.tensor(1.0)
        >>> optimizer.step()
        >>> round(w.item(), 6), w.grad.item()
        (0.7, 1.0)

    Reference:
        Lee et al., "Grokfast: Accelerated Grokking by Amplifying Slow Gradients", 2024.
    """

    _kept_as = "grok_exp_avg"

    def __init__(self, base_optimizer: Any, alpha: float = 0.98, lamb: float = 2.0) -> None:
        if not 0.0 <= alpha < 1.0:
            raise ValueError(f"Invalid grokfast_alpha: {alpha}")
        if not lamb >= 0.0:
            raise ValueError(f"Invalid grokfast_lamb: {lamb}")
        super().__init__(base_optimizer, {"grokfast_alpha": alpha, "grokfast_lamb": lamb})

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Takes a step of the base on filtered gradients.

        Args:
            closure: a function that evaluates the model again and returns the loss, called once, before the gradients
                are filtered (default: None).

        Returns:
            the loss that ``closure`` returned, else None.
        """
        import torch

        self._refuse_release()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        with torch.no_grad():
            try:
                for p, grad, group in grads:
                    before = self._kept.get(p, grad)
                    mean = before.lerp(grad, 1.0 - group["grokfast_alpha"]) if before is not grad else grad
                    p.grad = torch.add(grad, mean, alpha=group["grokfast_lamb"])
                self.base_optimizer.step()
            finally:
                for p, grad, _ in grads:
                    p.grad = grad
            if not self._was_skipped():  # a step that raised or was skipped has changed no mean
                for p, grad, group in grads:
                    if p in self._kept:
                        self._kept[p].lerp_(grad, 1.0 - group["grokfast_alpha"])
                    else:
                        self._kept[p] = grad.detach().clone(memory_format=torch.preserve_format)
        return loss
