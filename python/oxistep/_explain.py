"""``oxistep.explain``: which path each parameter of an optimizer takes, and why."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch.optim import Optimizer


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


def explain(optimizer: "Optimizer") -> Explanation:
    """Tells which path each parameter of ``optimizer`` would take if it stepped now, and why. Changes nothing.

    Args:
        optimizer: an optimizer of ``oxistep.optim`` (of ``torch.optim``: every path is torch's).

    Returns:
        Explanation: one :class:`ParameterPath` per parameter; ``print`` shows it as a table.

    Raises:
        TypeError: if ``optimizer`` is no torch optimizer.

    Example:
        >>> import torch, oxistep
        >>> w = torch.ones(3, requires_grad=True)
        >>> optimizer = oxistep.optim.SGD([w], lr=0.1)
        >>> w.sum().backward()
        >>> oxistep.explain(optimizer)[0].path
        'native'
    """
    if type(optimizer).__module__.startswith("oxistep.numpy"):
        raise TypeError(
            f"expected an optimizer of oxistep.optim or torch.optim, got oxistep.numpy's {type(optimizer).__name__}: "
            "all of its arrays are native, what is not raises"
        )
    try:
        from torch.optim import Optimizer
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "oxistep.explain tells about torch's tensors and needs PyTorch: pip install 'oxistep[torch]'", name="torch"
        ) from error

    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected an optimizer of oxistep.optim or torch.optim, got {type(optimizer).__name__}")
    from oxistep.optim._definition import definition_of
    from oxistep.optim._native import DropIn

    if isinstance(optimizer, DropIn):
        rows = definition_of(type(optimizer)).explain(optimizer)
    else:
        reason = f"{type(optimizer).__name__} is torch's own class"
        rows = [
            (g, i, "torch" if p.grad is not None else "skipped", reason if p.grad is not None else "it has no gradient")
            for g, group in enumerate(optimizer.param_groups)
            for i, p in enumerate(group["params"])
        ]
    return Explanation(
        ParameterPath(g, i, _name(optimizer.param_groups, g, i), path, reason) for g, i, path, reason in rows
    )


def _name(groups: list[dict[str, Any]], g: int, i: int) -> str:
    names = groups[g].get("param_names")
    return names[i] if names else f"param_groups[{g}]['params'][{i}]"
