"""Lookahead."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oxistep.zoo._wrapper import Wrapper

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Lookahead"]


class Lookahead(Wrapper):
    r"""Lookahead: every few steps the parameters go back, part of the way to where they were before.

    .. math::
        \phi &\leftarrow \phi + \alpha (\theta - \phi) \\
        \theta &\leftarrow \phi

    As ``timm.optim.Lookahead``: names, order, defaults, param-group keys and states. The slow weights :math:`\phi`
    begin as what the parameter is after the first ``k`` steps. Of a base with ``weights=`` that keeps digits beside
    bfloat16 parameters, both have these digits, and the slow weights are float32.

    Args:
        base_optimizer: any optimizer of oxistep or torch, which takes the steps.
        alpha: :math:`\alpha` (default: 0.5).
        k: the slow weights are updated once in so many steps (default: 6).

    State:
        lookahead_slow_buff: :math:`\phi`, in ``state_dict`` among the states of the base.
        Of the group: ``lookahead_alpha``, ``lookahead_k``, ``lookahead_step``.

    Raises:
        TypeError: if the base is no optimizer.
        ValueError: for a hyperparameter out of range, in timm's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.Lookahead(torch.optim.SGD([w], lr=0.1), k=1)
        >>> for _ in range(2):
        ...     w.grad = torch.tensor(1.0)
        ...     optimizer.step()
        >>> round(w.item(), 6)
        0.85

    Reference:
        Zhang, Lucas, Hinton, Ba, "Lookahead Optimizer: k steps forward, 1 step back", 2019.
    """

    _kept_as = "lookahead_slow_buff"

    def __init__(self, base_optimizer: Any, alpha: float = 0.5, k: int = 6) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"Invalid slow update rate: {alpha}")
        if not k >= 1:
            raise ValueError(f"Invalid lookahead steps: {k}")
        super().__init__(base_optimizer, {"lookahead_alpha": alpha, "lookahead_k": k, "lookahead_step": 0})

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Takes a step of the base; in every k-th the parameters go back to the slow weights.

        Args:
            closure: a function that evaluates the model again and returns the loss (default: None).

        Returns:
            what the base returned.
        """
        self._refuse_release()
        loss = self.base_optimizer.step(closure) if closure is not None else self.base_optimizer.step()
        if not self._was_skipped():
            for group in self.param_groups:
                group["lookahead_step"] += 1
                if group["lookahead_step"] % group["lookahead_k"] == 0:
                    self._go_back(group)
        return loss

    def sync_lookahead(self) -> None:
        """Updates the slow weights now, and takes the parameters back to them: at the end of training, say."""
        from oxistep.optim._digits import refuse_in_averaged

        refuse_in_averaged(self._steps, "sync_lookahead")
        for group in self.param_groups:
            self._go_back(group)

    def _go_back(self, group: dict[str, Any]) -> None:
        import torch

        from oxistep.optim._digits import now, write

        with torch.no_grad():
            for p in group["params"]:
                if p.grad is None:
                    continue
                fast = now(self._steps, p)
                if p in self._kept:
                    write(self._steps, p, self._kept[p].lerp_(fast, group["lookahead_alpha"]))
                else:
                    self._kept[p] = fast.clone(memory_format=torch.preserve_format)

    def _dtype_kept(self, p: "Tensor") -> Any:
        import torch

        from oxistep.optim._digits import keeps_digits

        return torch.float32 if keeps_digits(self._steps) else p.dtype
