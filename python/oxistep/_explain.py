"""``oxistep.explain``: which path each parameter of an optimizer takes, and why."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from oxistep._names import name_of

NO_GRADIENT = "it has no gradient"
Rows = list[tuple[int, int, str, str]]


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
    """Why, in words; the page "Supported inputs" lists all reasons."""


LISTED = 20
"""How many of the parameters that are not native are printed."""

_LATER = " (after the first backward: it has no gradient yet)"
_BEFORE = " (in the last step: it has no gradient now)"
_FORMS = {"": ("{} native", "{} by torch", "{} skipped")}
_FORMS[_LATER] = ("{} would be native", "{} would fall back to torch", "{} would be skipped")
_FORMS[_BEFORE] = ("{} native in the last step", "{} by torch", "{} skipped")


class Explanation(list[ParameterPath]):
    """What :func:`explain` returns: a list of named tuples, one for each parameter. It prints as a summary.

    Each has ``group`` and ``position`` (places in ``param_groups`` and in the group's ``params``), ``name``, ``path``
    (``"native"``, ``"torch"`` or ``"skipped"``) and ``reason``. The summary lists the parameters that are not native,
    at most twenty of them; iterate over the list to see all.

    Example:
        >>> import torch, oxistep
        >>> w, b = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
        >>> w.grad = torch.ones(2)
        >>> print(oxistep.explain(oxistep.optim.SGD([("weight", w), ("bias", b)])))
        2 parameters: 1 native, 1 skipped
          bias  skipped  it has no gradient
    """

    def __str__(self) -> str:
        if not self:
            return "no parameters"
        when = next((mark for mark in (_LATER, _BEFORE) if any(row.reason.endswith(mark) for row in self)), "")
        counts = {path: sum(row.path == path for row in self) for path in ("native", "torch", "skipped")}
        said = [form.format(f"{n:,}") for form, n in zip(_FORMS[when], counts.values(), strict=True) if n]
        lines = [f"{len(self):,} parameter{'s' if len(self) > 1 else ''}: {', '.join(said)}"]
        others = [row for row in self if row.path != "native"]
        wide = max((len(row.name) for row in others[:LISTED]), default=0)
        lines += [
            f"  {row.name:{wide}}  {row.path:7}  {row.reason.removesuffix(when)}".rstrip() for row in others[:LISTED]
        ]
        if len(others) > LISTED:
            lines.append(f"  and {len(others) - LISTED:,} more: iterate over the explanation to see all")
        return "\n".join(lines)


def explain(optimizer: Any) -> Explanation:
    """Tells which path each parameter of ``optimizer`` would take if it stepped now, and why. Changes nothing.

    A parameter without a gradient is skipped. If no parameter has one, the answer is what the last step did, because
    trainers clear gradients after each step. Before the first step it is what a step would do after a backward that
    gives every trainable parameter a gradient (a sparse one for SparseAdam, else a dense one).

    It looks through wrappers, whether or not they are optimizers: accelerate's and Lightning's, DeepSpeed's, Opacus',
    timm's Lookahead, torch's ZeroRedundancyOptimizer and PostLocalSGDOptimizer. Groups and parameters are then those of
    the optimizer inside. With ``OXISTEP_EXPLAIN=1`` the first step of each optimizer writes to stderr how many of its
    parameters are native.

    Args:
        optimizer: an optimizer of ``oxistep.optim``, or what wraps one (of ``torch.optim``: every path is torch's).

    Returns:
        Explanation: one :class:`ParameterPath` per parameter; ``print`` shows a summary.

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
            "NumPy optimizers always run natively"
        )
    try:
        import torch.optim
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            "oxistep.explain tells about torch's tensors and needs PyTorch: pip install 'torch>=2.10'", name="torch"
        ) from error
    from oxistep.optim._compact import bytes_of
    from oxistep.optim._definition import definition_of, what_last
    from oxistep.optim._native import DropIn

    inner = unwrapped(optimizer, DropIn, torch.optim.Optimizer)
    if inner is None:
        raise TypeError(
            f"expected an optimizer of oxistep.optim or torch.optim, or what wraps one, got {type(optimizer).__name__}"
        )
    look: Callable[[Any], Rows]
    if isinstance(inner, DropIn):
        look = definition_of(type(inner)).explain
    else:
        look = partial(_all_by_torch, _not_ours(optimizer, inner))

    rows = look(inner)
    began = what_last(inner) if isinstance(inner, DropIn) else inner.state
    if not began and all(path == "skipped" for _, _, path, _ in rows):
        rows = _foreseen(inner, rows, look)
    if isinstance(inner, DropIn):
        params = {(g, i): p for g, group in enumerate(inner.param_groups) for i, p in enumerate(group["params"])}
        each = {place: bytes_of(inner, p) for place, p in params.items()}
        rows = [
            (g, i, path, reason if each.get((g, i)) is None else f"{reason}; {each[g, i]:.2f} bytes an element")
            for g, i, path, reason in rows
        ]
    return Explanation(
        ParameterPath(g, i, name_of(inner.param_groups, g, i), path, reason) for g, i, path, reason in rows
    )


def _foreseen(optimizer: Any, rows: Rows, look: Callable[[Any], Rows]) -> Rows:
    """What a step would do if every trainable parameter had a gradient; ``rows`` if that cannot be known."""
    given = []
    try:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.requires_grad and p.grad is None:
                    p.grad = _stand_in(p, type(optimizer).__name__ == "SparseAdam")
                    given.append(p)
        later = look(optimizer) if given else rows
    except Exception:  # a parameter may be anything that its class makes of it
        return rows
    finally:
        for p in given:
            p.grad = None
    return [row if row[2] == "skipped" else (*row[:3], row[3] + _LATER) for row in later]


def _stand_in(p: Any, is_sparse: bool) -> Any:
    """A gradient that takes no memory: on the CPU pages that nobody touches, elsewhere one number for all elements."""
    import torch

    if is_sparse:
        nowhere, nothing = torch.zeros((1, 0), dtype=torch.int64), p.detach().new_empty((0, *p.shape[1:]))
        return torch.sparse_coo_tensor(nowhere, nothing, p.shape, check_invariants=False)
    if p.device.type in ("cpu", "meta"):
        return torch.empty_like(p)
    return p.detach().new_zeros(()).expand_as(p)


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


def _all_by_torch(reason: str, inner: Any) -> Rows:
    """The rows of an optimizer of which nothing is native."""
    each = ((g, i, p) for g, group in enumerate(inner.param_groups) for i, p in enumerate(group["params"]))
    return [(g, i, "skipped", NO_GRADIENT) if p.grad is None else (g, i, "torch", reason) for g, i, p in each]


def _not_ours(wrapper: Any, inner: Any) -> str:
    """Why nothing of an optimizer is native."""
    name = type(inner).__name__
    what = "torch's own class" if type(inner).__module__.startswith("torch.") else "no class of oxistep's"
    return f"{name} is {what}" if inner is wrapper else f"{name}, which {type(wrapper).__name__} wraps, is {what}"
