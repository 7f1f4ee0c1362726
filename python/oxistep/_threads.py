"""``oxistep.set_num_threads``: a number, ``"auto"``, or what torch uses."""

import os

from oxistep import _core

__all__ = ["set_num_threads"]


def set_num_threads(n: int | str | None = None) -> None:
    """Sets how many threads a step may use; the result does not depend on it.

    ``"auto"`` is for several processes on one machine: the processors that this process may use, divided by the number
    of processes (``LOCAL_WORLD_SIZE``, which torchrun sets), at least one. It is counted at the call. torchrun also
    sets ``OMP_NUM_THREADS=1``, so that torch has one thread, and every step too without this call. A launcher that
    gives each process processors of its own has divided them already: then give a number.

    Args:
        n: a positive number, ``"auto"``, or None: as many as torch uses, without torch as many as there are processors
            (default: None). More than torch uses do not come from torch's pool, and may wait for its threads.

    Raises:
        TypeError: for something that is neither an integer nor a string.
        ValueError: for a number below one, for another string than ``"auto"``; with ``"auto"`` if
            ``LOCAL_WORLD_SIZE`` is set and is no positive integer.

    Example:
        >>> import oxistep
        >>> oxistep.set_num_threads(1)
        >>> oxistep.get_num_threads()
        1
        >>> oxistep.set_num_threads("auto")
        >>> oxistep.get_num_threads() >= 1
        True
        >>> oxistep.set_num_threads(None)
    """
    if isinstance(n, str):
        if n != "auto":
            raise ValueError(
                f'n: expected a positive number of threads, "auto" or None (follow torch), got {n!r}; a number goes '
                "without quotes"
            )
        n = max(1, _processors() // _processes_here())
    _core.set_num_threads(n)


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processes_here() -> int:
    """How many processes of this run are on this machine."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not said.isdecimal() or int(said) == 0:
        raise ValueError(
            f"LOCAL_WORLD_SIZE: expected the number of processes on this machine, got {said!r}; set it to a positive "
            'integer, unset it, or call set_num_threads with a number instead of "auto"'
        )
    return int(said)
