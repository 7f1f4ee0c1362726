"""Two processes that compute together over gloo: a check runs in both, and what failed is told by its name.

A pair takes some ten seconds to start and to import torch, so one pair runs many checks, in their order. A process in
which a check fails ends at once, for its partner may wait for it in the middle of a collective: the partner's next call
then fails as well, and a new pair takes the checks that are left.

Checks are functions of a module of their own, under `check`. They are called with a folder that both processes see.
"""

import faulthandler
import functools
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import distributed

WORLD = 2
# Seconds for one check: more than it ever takes beside other work, so that only a deadlock takes as long.
PATIENCE = 120
# After so many checks that failed the others are not run: each of these costs a pair.
TOO_MANY = 5

CHECKS: dict[str, dict[str, Callable[[Path], None]]] = defaultdict(dict)  # of each module


def check(function: Callable) -> Callable:
    """Makes the function a check of its module."""
    CHECKS[function.__module__][function.__name__] = function
    return function


def check_each(values: Iterable) -> Callable[[Callable], Callable]:
    """Makes a check of the function and each value, which is its first argument."""

    def register(function: Callable) -> Callable:
        for value in values:
            CHECKS[function.__module__][f"{function.__name__}[{value}]"] = functools.partial(function, value)
        return function

    return register


def checks_of(*modules: str) -> dict[str, Callable[[Path], None]]:
    """The checks of modules of `tests`, by their names."""
    found: dict[str, Callable[[Path], None]] = {}
    for module in modules:
        with warnings.catch_warnings():
            # torch.distributed.optim of torch before 2.13 warns when it is imported
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            importlib.import_module(module)
        assert not found.keys() & CHECKS[module].keys()
        found |= CHECKS[module]
    return found


# ---- the process that starts them ----


def play(modules: Iterable[str], names: list[str], folder: Path) -> dict[str, str]:
    """Runs these checks of the modules. What came of each: an empty text if it held in both processes."""
    came: dict[str, str] = {}
    while left := [name for name in names if name not in came]:
        if sum(map(bool, came.values())) == TOO_MANY:
            return came | dict.fromkeys(left, f"not run, for {TOO_MANY} others failed")
        place = folder / f"pair{len(came)}"
        place.mkdir()
        came |= _of_one_pair(modules, left, place)
    return came


def _of_one_pair(modules: Iterable[str], names: list[str], place: Path) -> dict[str, str]:
    """The checks up to the first that fails; that is one at least."""
    (place / "names").write_text(json.dumps(names))
    # gloo asks for the address of the host's name otherwise, which not every machine can tell
    environment = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo", **os.environ}
    command = [sys.executable, __file__, ",".join(modules), str(place)]
    with (place / "stderr0").open("w") as first, (place / "stderr1").open("w") as second:
        pair = [
            subprocess.Popen([*command, str(rank)], env=environment, stdout=stderr, stderr=stderr)
            for rank, stderr in enumerate((first, second))
        ]
        try:
            for process in pair:
                process.wait(PATIENCE * len(names))
        finally:
            for process in pair:
                process.kill()
                process.wait()
    told = [_lines(place / f"told{rank}") for rank in range(WORLD)]
    came = {}
    for name in names:
        if all(lines.get(name) == "" for lines in told):
            came[name] = ""
            continue
        came[name] = "\n".join(
            f"-- rank {rank}: {lines.get(name) or 'nothing failed'}"
            if name in lines
            else f"-- rank {rank} ended with {pair[rank].returncode}:\n{(place / f'stderr{rank}').read_text()[-5000:]}"
            for rank, lines in enumerate(told)
        )
        break
    return came


def _lines(file: Path) -> dict[str, str]:
    return dict(json.loads(line) for line in file.read_text().splitlines()) if file.exists() else {}


# ---- each of the two ----


def round_square_roots() -> torch.library.Library:
    """Gives torch correctly rounded square roots, in the local tensors of distributed ones as well.

    What `ieee_sqrt` of conftest.py does to `Tensor` is not enough here: a DTensor calls the operator. The change lasts
    as long as what is returned.
    """

    def sqrt(x: torch.Tensor) -> torch.Tensor:
        wide = x.float() if x.dtype == torch.bfloat16 else x  # NumPy has no bfloat16; it hides a last digit of float32
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.asarray(np.sqrt(wide.detach().numpy()))).to(x.dtype)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something is replaced
        library.impl("sqrt", sqrt, "CPU")
        library.impl("sqrt_", lambda x: x.copy_(sqrt(x)), "CPU")
    return library


def join(store: Path, rank: int) -> None:
    """Makes this process one of the pair."""
    distributed.init_process_group("gloo", store=distributed.FileStore(str(store), WORLD), rank=rank, world_size=WORLD)


def main(modules: str, place: Path, rank: int) -> None:
    torch.set_num_threads(1)  # two processes on what may be two processors
    torch.sparse.check_sparse_tensor_invariants.enable()  # torch warns until it is told whether to
    rounded = round_square_roots()
    checks = checks_of(*modules.split(","))
    join(place / "store", rank)
    with (place / f"told{rank}").open("w") as told:
        for name in json.loads((place / "names").read_text()):
            # which tells where the process stands, if a check never ends
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            began = time.monotonic(), time.process_time()
            try:
                checks[name](place)
                failure = ""
            except BaseException:
                failure = traceback.format_exc(limit=-5)
            print(json.dumps([name, failure]), file=told, flush=True)
            took = time.monotonic() - began[0], time.process_time() - began[1]
            print(f"{name}: {took[0]:.2f} s, {took[1]:.2f} s of the processor", file=sys.stderr, flush=True)
            if failure:
                os._exit(1)
            distributed.barrier()
    faulthandler.cancel_dump_traceback_later()
    distributed.destroy_process_group()
    del rounded


if __name__ == "__main__":
    sys.modules["two_processes"] = sys.modules["__main__"]  # checks are registered in this module, not in a second one
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
