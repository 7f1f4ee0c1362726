"""``oxistep.explain``: which path each parameter of an optimizer takes, and why."""

from collections import deque
from typing import Any, NamedTuple

from oxistep._names import name_of


class ParameterPath(NamedTuple):
    """The path of one parameter through the next step: a named tuple.

    Example:
        >>> from oxistep import explain
        >>> import torch
        >>> explain(torch.optim.SGD([torch.zeros(2)]))[0].path
        'skipped'
    """

    group: int
    """Place of its group in ``param_groups``."""
    position: int
    """Place in the group's ``params``."""
    name: str
    """Its name, if the optimizer was given named parameters, else ``param_groups[g]['params'][i]``."""
    path: str
    """``"native"`` (oxistep's kernels), ``"torch"`` (torch's own operations) or ``"skipped"`` (no gradient)."""
    reason: str
    """Why, in words; docs/torch-parity.md lists them all."""


class Explanation(list[ParameterPath]):
    """What :func:`explain` returns: a list of named tuples, one for each parameter, which prints as a table.

    Each has ``group`` and ``position`` (places in ``param_groups`` and in the group's ``params``), ``name``, ``path``
    (``"native"``, ``"torch"`` or ``"skipped"``) and ``reason``.

    Example:
        >>> import torch, oxistep
        >>> w = torch.zeros(2, requires_grad=True)
        >>> w.grad = torch.ones(2)
        >>> print(oxistep.explain(oxistep.optim.SGD([("weight", w)])))
        weight  native   plain CPU tensors
    """

    def __str__(self) -> str:
        if not self:
            return "no parameters"
        wide = max(len(row.name) for row in self)
        return "\n".join(f"{row.name:{wide}}  {row.path:7}  {row.reason}" for row in self)


def explain(optimizer: Any) -> Explanation:
    """Tells which path each parameter of ``optimizer`` would take if it stepped now, and why. Changes nothing.

    It looks through wrappers, whether or not they are optimizers: accelerate's and Lightning's, DeepSpeed's, Opacus',
    timm's Lookahead, torch's ZeroRedundancyOptimizer and PostLocalSGDOptimizer. Groups and parameters are then those of
    the optimizer inside. A parameter is skipped that has no gradient now. Where none has one, since a trainer has
    cleared them, it tells what the last step did. With ``OXISTEP_EXPLAIN=1`` the first step of each optimizer writes to
    stderr how many of its parameters are native.

    Args:
        optimizer: an optimizer of ``oxistep.optim``, or what wraps one (of ``torch.optim``: every path is torch's).

    Returns:
        Explanation: one :class:`ParameterPath` per parameter; ``print`` shows it as a table.

    Raises:
        TypeError: if ``optimizer`` is no torch optimizer and wraps none.

    Example:
        >>> import torch, oxistep
        >>> w = torch.ones(3, requires_grad=True)
        >>> optimizer = oxistep.optim.SGD([w], lr=0.1)
        >>> w.sum().backward()
        >>> oxistep.explain(optimizer)[0].path
        'native'
    """
    if any(base.__module__.startswith("oxistep.numpy") for base in type(optimizer).__mro__):
        raise TypeError(
            f"expected an optimizer of oxistep.optim or torch.optim, got oxistep.numpy's {type(optimizer).__name__}: "
            "all of its arrays are native, what is not raises"
        )
    try:
        import torch.optim
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "oxistep.explain tells about torch's tensors and needs PyTorch: pip install 'oxistep[torch]'", name="torch"
        ) from error
    from oxistep.optim._compact import bytes_of
    from oxistep.optim._definition import definition_of
    from oxistep.optim._native import DropIn

    inner = unwrapped(optimizer, DropIn, torch.optim.Optimizer)
    if inner is None:
        raise TypeError(
            f"expected an optimizer of oxistep.optim or torch.optim, or what wraps one, got {type(optimizer).__name__}"
        )
    if isinstance(inner, DropIn):
        rows = definition_of(type(inner)).explain(inner)
        params = {(g, i): p for g, group in enumerate(inner.param_groups) for i, p in enumerate(group["params"])}
        each = {place: bytes_of(inner, p) for place, p in params.items()}
        rows = [
            (g, i, path, reason if each.get((g, i)) is None else f"{reason}; {each[g, i]:.2f} bytes an element")
            for g, i, path, reason in rows
        ]
    else:
        reason = _not_ours(optimizer, inner)
        rows = [
            (g, i, "torch" if p.grad is not None else "skipped", reason if p.grad is not None else "it has no gradient")
            for g, group in enumerate(inner.param_groups)
            for i, p in enumerate(group["params"])
        ]
    return Explanation(
        ParameterPath(g, i, name_of(inner.param_groups, g, i), path, reason) for g, i, path, reason in rows
    )


# Under which names wrappers keep what they wrap: accelerate, Lightning, DeepSpeed and many others; torch.distributed;
# timm's Lookahead and torch_optimizer's; Opacus.
_INSIDE = ("optimizer", "optim", "_base_optimizer", "base_optimizer", "original_optimizer")

# How many objects are looked at: wrappers are few, and objects that have every attribute end somewhere.
_MOST = 32


def unwrapped(wrapper: Any, ours: type, optimizers: type) -> Any:
    """The innermost optimizer of ours at or inside of ``wrapper``; if there is none, the innermost of all, or None."""
    innermost = found = None
    waiting, seen = deque([wrapper]), [wrapper]
    while waiting:
        one = waiting.popleft()
        if isinstance(one, ours):
            found = one  # it may wrap another one: Fabric's wrapper inherits from the class of what it wraps
            waiting.clear()
        elif isinstance(one, optimizers):
            innermost = one
        for name in _INSIDE:
            try:
                inside = getattr(one, name, None)
            except Exception:  # a property that is not ready, say
                continue
            if inside is not None and len(seen) < _MOST and all(inside is not other for other in seen):
                seen.append(inside)
                waiting.append(inside)
    return innermost if found is None else found


def _not_ours(wrapper: Any, inner: Any) -> str:
    """Why nothing of an optimizer is native."""
    name = type(inner).__name__
    what = "torch's own class" if type(inner).__module__.startswith("torch.") else "no class of oxistep's"
    return f"{name} is {what}" if inner is wrapper else f"{name}, which {type(wrapper).__name__} wraps, is {what}"
