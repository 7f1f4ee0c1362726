"""``oxistep.step_in_backward``: parameters are stepped while backward runs, and their gradients freed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

__all__ = ["GradientRelease", "accumulating", "step_in_backward"]


class GradientRelease:
    """What :func:`step_in_backward` returns: takes back what it did, by ``remove()`` or at the end of a ``with``.

    Example:
        >>> import torch, oxistep
        >>> w = torch.tensor([3.0], requires_grad=True)
        >>> optimizer = oxistep.optim.SGD([w], lr=0.5)
        >>> with oxistep.step_in_backward(optimizer):
        ...     w.sum().backward()
        ...     optimizer.step()
        >>> w.sum().backward()
        >>> w.item(), w.grad
        (2.5, tensor([1.]))
    """

    def __init__(self, release: Any) -> None:
        self._release = release

    def remove(self) -> None:
        """From now on ``step()`` steps, as it did before. Call it after ``step()``; again it does nothing."""
        self._release.remove()

    def __enter__(self) -> "GradientRelease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.remove()


def step_in_backward(optimizer: Any, *, clip: Literal["parameter"] | None = None) -> GradientRelease:
    """Steps each parameter as soon as backward has accumulated its gradient, and frees the gradient.

    So the gradients of all parameters are never there at once. The optimizer stays what it is: groups, schedulers,
    ``state_dict`` and hooks. Call ``step()`` at the end of each iteration, as always: it steps what has a gradient
    still, calls the hooks of steps, and begins the next iteration. The parameters come out with the bits of the
    ordinary loop. A copy or a pickle of the optimizer is an ordinary one.

    Each parameter is stepped whole or not at all; a backward that raises half-way has stepped those whose gradients
    were there. Call ``step()`` before the next one.

    Args:
        optimizer: an optimizer of ``oxistep.optim``, ``oxistep.zoo`` or a rule, with its parameters on any device.
        clip: with ``"parameter"`` the optimizer's ``max_grad_norm`` is the largest norm of each gradient by itself
            (default: None).

    Returns:
        GradientRelease: its ``remove()`` takes it back.

    Raises:
        TypeError: if ``optimizer`` is none of oxistep's; for one inside a wrapper, give that one.
        ValueError: for what needs all gradients at once: ``max_grad_norm`` without ``clip``, ``skip_nonfinite``, rules
            with ``total``, LBFGS, Muon, parameters of DistributedDataParallel and FSDP1; for an optimizer that steps in
            backward already; for a ``clip`` that is none. Nothing was changed.
        RuntimeError: later, in ``step``, if a GradScaler takes it; in ``backward``, for a second gradient in an
            iteration that no :func:`accumulating` announced.

    Example:
        >>> import torch, oxistep
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = oxistep.optim.AdamW(model.parameters())
        >>> release = oxistep.step_in_backward(optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 2)).sum().backward()  # steps, and frees the gradients
        ...     optimizer.step()  # the end of the iteration
        >>> model.weight.grad is None, optimizer.state[model.weight]["step"].item()
        (True, 3.0)

    Reference:
        Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited Resources" (LOMO), 2023.
    """
    from oxistep.optim._kept import kept_of
    from oxistep.optim._native import DropIn
    from oxistep.optim._release import Release

    if not isinstance(optimizer, DropIn):
        inside = getattr(optimizer, "base_optimizer", None) or getattr(optimizer, "optimizer", None)
        raise TypeError(
            f"step_in_backward: expected an optimizer of oxistep, got {type(optimizer).__name__}"
            + (f"; {type(inside).__name__}, which it wraps, is one" if isinstance(inside, DropIn) else "")
        )
    if clip is not None and clip != "parameter":
        raise ValueError(f"clip: expected 'parameter' or None, got {clip!r}")
    kept = kept_of(optimizer)
    if kept.release is not None:
        raise ValueError(
            f"step_in_backward: this {type(optimizer).__name__} steps in backward already; call remove() of what the "
            "first call returned"
        )
    if clip is not None and "max_grad_norm" not in kept.given:
        raise ValueError(
            'clip="parameter": the largest norm is the max_grad_norm of the optimizer, which was not given'
        )
    monitors = sys.modules.get("oxistep.diagnostics.update_monitor")
    if monitors is not None and optimizer in monitors._watched:
        raise ValueError(
            "step_in_backward: this optimizer has an UpdateMonitor, which measures what step() does; call its "
            "remove() first"
        )
    release = Release(optimizer, clip)
    kept.plans.clear()
    kept.release = release
    return GradientRelease(release)


@contextmanager
def accumulating(optimizer: Any) -> Iterator[None]:
    """Inside, backward adds to the gradients and steps nothing: for all micro-batches of an iteration but the last.

    Without :func:`step_in_backward` it does nothing, so that a loop may be written once.

    Args:
        optimizer: an optimizer of oxistep.

    Returns:
        A context manager.

    Raises:
        TypeError: if it is none.

    Example:
        >>> import torch, oxistep
        >>> w = torch.tensor([3.0], requires_grad=True)
        >>> optimizer = oxistep.optim.SGD([w], lr=0.5)
        >>> release = oxistep.step_in_backward(optimizer)
        >>> with oxistep.accumulating(optimizer):
        ...     (w * 2).sum().backward()
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> w.item()
        1.5
    """
    from oxistep.optim._native import DropIn
    from oxistep.optim._release import release_of

    if not isinstance(optimizer, DropIn):
        raise TypeError(f"accumulating: expected an optimizer of oxistep, got {type(optimizer).__name__}")
    release = release_of(optimizer)
    if release is None:
        yield
        return
    release.held += 1
    try:
        yield
    finally:
        release.held -= 1
