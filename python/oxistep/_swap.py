"""``oxistep.swap``: our classes under torch's names, for programs that look them up in ``torch.optim``."""

import threading
from types import TracebackType
from typing import Any

import torch.optim

import oxistep.optim
from oxistep.optim._native import DropIn

__all__ = ["Swap", "swap"]

# Swaps that have not been undone, oldest first.
_active: list["Swap"] = []
_lock = threading.RLock()


class Swap:
    """What :func:`swap` returns: undoes it, by :meth:`undo` or at the end of a ``with`` block.

    Raises:
        RuntimeError: at the beginning of a ``with`` block, if the swap was undone before.

    Example:
        >>> import torch, oxistep
        >>> swapped = oxistep.swap()
        >>> torch.optim.SGD is oxistep.optim.SGD
        True
        >>> swapped.undo()
        >>> torch.optim.SGD is oxistep.optim.SGD
        False
    """

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        with _lock:
            names = vars(torch.optim)
            for name, ours in _ours().items():
                if name in names and names[name] is not ours:
                    self._found[name] = names[name]
                    setattr(torch.optim, name, ours)
            _active.append(self)

    def undo(self) -> None:
        """Puts back what was there. While another swap is active the names stay ours; a second call does nothing."""
        with _lock:
            if self not in _active:
                return
            place = _active.index(self)
            _active.remove(self)
            if place < len(_active):  # the next one puts it back
                _active[place]._found = self._found | _active[place]._found
                return
            ours = _ours()
            for name, found in self._found.items():
                if vars(torch.optim).get(name) is ours[name]:  # else somebody has put in another class since
                    setattr(torch.optim, name, found)

    def __enter__(self) -> "Swap":
        if self not in _active:
            raise RuntimeError("this swap was undone: call oxistep.swap() again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def _ours() -> dict[str, type]:
    """Our classes by name."""
    names = vars(oxistep.optim)
    return {name: value for name, value in names.items() if isinstance(value, type) and issubclass(value, DropIn)}


def swap() -> Swap:
    """Puts oxistep's classes into ``torch.optim``, for programs that look classes up there or compare with them.

    From then on ``torch.optim.AdamW`` is ``oxistep.optim.AdamW``, and so for every class that oxistep has. Only names
    in ``torch.optim`` change. Its submodules keep torch's classes, so pickles, checkpoints and oxistep's own way back
    to torch's step go on. What a module has imported before (``from torch.optim import AdamW``), and what is the
    default of an argument by then, stays torch's: call it before the program is imported.

    Calls may be nested, and undone in any order: the last undo puts back exactly what the first call found. A name that
    somebody else has changed in the meantime is left as it is.

    Returns:
        Swap: ``undo()`` takes our classes out again, and so does leaving ``with oxistep.swap():``.

    Note:
        Names in a module belong to the whole process: every thread sees the change. Swap before threads that make
        optimizers are started, and undo it after they have ended.

    Example:
        >>> import torch, oxistep
        >>> with oxistep.swap():
        ...     optimizer = getattr(torch.optim, "AdamW")([torch.zeros(2)])
        >>> type(optimizer) is oxistep.optim.AdamW
        True
        >>> torch.optim.AdamW is oxistep.optim.AdamW
        False
    """
    return Swap()
