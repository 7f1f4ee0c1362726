"""Sharpness-aware minimization."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oxistep.zoo._wrapper import Wrapper

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SAM"]


class SAM(Wrapper):
    r"""SAM: steps with the gradients of the worst point nearby, which leads to flat minima.

    .. math::
        e &= \rho \frac{g}{\|g_{all}\| + 10^{-12}} \\
        \theta &\leftarrow base(\theta, \nabla L(\theta + e))

    As ``SAM`` of davda54/sam, around an optimizer that is there already. The parameters come back from the worst point
    to the bit, also if the closure raises.

    Args:
        base_optimizer: any optimizer of oxistep or torch, which takes the steps.
        rho: :math:`\rho`, how far the worst point is (default: 0.05).
        adaptive: the neighbourhood grows with the parameters: :math:`e` of :math:`\theta^2 g` over the norm of
            :math:`|\theta| g` (default: False).

    State:
        Of the group: ``rho``, ``adaptive``.

    Raises:
        TypeError: if the base is no optimizer.
        ValueError: for a hyperparameter out of range, in davda54's words.

    Example:
        >>> import torch
        >>> from oxistep import zoo
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> optimizer = zoo.SAM(torch.optim.SGD([w], lr=0.1), rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = w * w
        ...     loss.backward()
        ...     return loss
        >>> loss = closure()
        >>> loss_nearby = optimizer.step(closure)
        >>> round(w.item(), 6), loss_nearby.item()
        (0.7, 2.25)

    Reference:
        Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021; Kwon et al.,
        "ASAM", 2021.
    """

    def __init__(self, base_optimizer: Any, rho: float = 0.05, adaptive: bool = False) -> None:
        if not rho >= 0.0:
            raise ValueError(f"Invalid rho, should be non-negative: {rho}")
        super().__init__(base_optimizer, {"rho": rho, "adaptive": adaptive})

    def _begin(self, base_optimizer: Any, keys: dict[str, Any], kept: "dict[Tensor, Tensor]") -> None:
        self._as_stepped: list[Tensor] = []
        """Those of the parameters at the worst point that nobody had changed since the last step of the base."""
        super()._begin(base_optimizer, keys, kept)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Goes to the worst point, has the gradients taken there, comes back and takes a step of the base.

        Args:
            closure: clears the gradients, evaluates the model, calls ``backward`` and returns the loss. It is called at
                the worst point; before, if there are no gradients yet, which tell where that is.

        Returns:
            the loss at the worst point.

        Raises:
            RuntimeError: without a closure.
        """
        import torch

        if closure is None:
            raise RuntimeError(
                "Sharpness Aware Minimization requires closure, but it was not provided: step(closure), or "
                "first_step() and second_step() with a second backward between them"
            )
        self._refuse_release()
        if all(p.grad is None for group in self.param_groups for p in group["params"]):
            with torch.enable_grad():
                closure()
        self.first_step(zero_grad=True)
        try:
            with torch.enable_grad():
                loss = closure()
        except BaseException:
            self._come_back()
            raise
        self.second_step()
        return loss

    def first_step(self, zero_grad: bool = False) -> None:
        """Goes to the worst point.

        Args:
            zero_grad: clear the gradients (default: False).
        """
        import torch

        from oxistep.optim._digits import refuse_in_averaged, unedited

        self._refuse_release()
        refuse_in_averaged(self._steps, "first_step")
        self._come_back()  # from a step that was begun and not ended
        with torch.no_grad():
            rows = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms = [torch.linalg.vector_norm(p.abs() * g if group["adaptive"] else g) for p, g, group in rows]
            if norms:
                norm = torch.linalg.vector_norm(torch.stack([one.to(norms[0]) for one in norms]))
            self._as_stepped = unedited(self._steps, (p for p, *_ in rows))
            for p, g, group in rows:
                self._kept[p] = p.detach().clone(memory_format=torch.preserve_format)
                rho = (
                    -group["rho"] if group.get("maximize") else group["rho"]
                )  # where it is ascended, the worst is below
                scale = (rho / (norm + 1e-12)).to(p)
                p.add_(p * p * g * scale if group["adaptive"] else g * scale)
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Comes back, and takes a step of the base with the gradients of the worst point.

        Args:
            zero_grad: clear the gradients then (default: False).
        """
        self._come_back()
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def _come_back(self) -> None:
        import torch

        from oxistep.optim._digits import note

        with torch.no_grad():
            while self._kept:
                p, before = self._kept.popitem()
                p.copy_(before)
        note(self._steps, self._as_stepped)  # what stands beside them belongs to them again
        self._as_stepped = []
