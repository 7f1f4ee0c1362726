"""What is installed and what oxistep makes of this machine: version, processor, threads, what runs native.

Paste it into a report of a problem. Needs no extra; without torch it tells about NumPy alone.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from textwrap import fill
from typing import Any

import oxistep
from oxistep.bench.environment import cpu_model
from oxistep.bench.workloads import DTYPES
from oxistep.cli._terminal import print_json
from oxistep.cli.trajectories import WRAPPERS

SUMMARY = "version, processor, threads, what is installed, what runs native"
EXTRAS = ("torch", "matplotlib", "rich", "jinja2")
VARIABLES = ("OXISTEP_SIMD", "OXISTEP_BACKEND", "OXISTEP_CHECK", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
COLUMNS = 100  # of a terminal
# What torch's optimizers step on here: a matrix, because Muon wants one.
SIDE = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `info`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(options: argparse.Namespace) -> int:
    """Print it."""
    found = gather()
    if options.json:
        print_json(found)
    else:
        for name, value in _lines(found):
            print(fill(f"{name:<12}{value}".rstrip(), COLUMNS, subsequent_indent=" " * 12, break_on_hyphens=False))
    return 0


def gather() -> dict[str, Any]:
    """All that is known, ready for JSON."""
    torch_version, torch_error = _torch()
    features = oxistep.cpu_features()
    return {
        "oxistep": oxistep.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "simd": features["simd"],
        "simd_available": features["available"],
        "threads": oxistep.get_num_threads(),
        "numpy": _version("numpy"),
        "torch": torch_version,
        "torch_error": torch_error,
        "extras": {name: _version(name) for name in EXTRAS[1:]},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "native": {"oxistep.numpy": _numpy_classes()}
        | ({} if torch_version is None else {name: _native(name) for name in ("oxistep.optim", "oxistep.zoo")}),
    }


def _version(name: str) -> str | None:
    try:
        importlib.import_module(name)
        return version(name)
    except (ModuleNotFoundError, PackageNotFoundError):
        return None


def _torch() -> tuple[str | None, str | None]:
    """torch's version, or why there is none: an installation may be broken."""
    try:
        import torch

        importlib.import_module("oxistep.optim")  # from then on threads are torch's
    except ModuleNotFoundError as error:
        return None, None if error.name == "torch" else str(error)
    except (ImportError, OSError) as error:
        return None, str(error).splitlines()[0]
    return torch.__version__, None


def _numpy_classes() -> list[str]:
    import oxistep.numpy

    # those of the zoo are made when they are touched
    there = {name: value for name, value in vars(oxistep.numpy).items() if name in oxistep.numpy.__all__}
    return [name for name in sorted(there) if isinstance(there[name], type) and name != "Optimizer"]


def _native(module: str) -> dict[str, dict[str, str]]:
    """Class -> dtype -> "native", or why not: what `oxistep.explain` says of a small step of each."""
    import torch

    library = importlib.import_module(module)
    found: dict[str, dict[str, str]] = {}
    for name in sorted(library.__all__):
        made = getattr(library, name)
        if not isinstance(made, type) or not made.__module__.startswith("oxistep.") or name in WRAPPERS:
            continue
        found[name] = {dtype: _path(made, getattr(torch, dtype)) for dtype in DTYPES}
    return found


def _path(optimizer: Any, dtype: Any) -> str:
    import torch

    parameter = torch.nn.Parameter(torch.ones(SIDE, SIDE, dtype=dtype))
    gradient = torch.ones(SIDE, SIDE, dtype=dtype)
    parameter.grad = gradient.to_sparse(1) if optimizer.__name__ == "SparseAdam" else gradient
    [row] = oxistep.explain(optimizer([parameter], lr=1e-3))
    return row.path if row.path == "native" else f"{row.path}: {row.reason}"


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "oxistep", f"{found['oxistep']}, Python {found['python']}, {found['system']}"
    yield "processor", f"{found['cpu']}, {found['cores']} cores"
    forced = ", forced by OXISTEP_SIMD" if "OXISTEP_SIMD" in found["environment"] else ""
    yield "SIMD", f"{found['simd']}{forced} (this processor has {', '.join(found['simd_available'])})"
    yield "threads", f"{found['threads']}" + (", as torch" if found["torch"] else "")
    yield "numpy", str(found["numpy"])
    yield "torch", found["torch"] or found["torch_error"] or "not installed: pip install 'torch>=2.10'"
    yield "extras", ", ".join(f"{name} {v or 'not installed'}" for name, v in found["extras"].items())
    for name, value in found["environment"].items():
        yield "variable", f"{name}={value}"
    yield "", ""
    yield "native for NumPy arrays", ": " + ", ".join(found["native"]["oxistep.numpy"])
    optimizers = found["native"].get("oxistep.optim", {})
    optimizers = optimizers | {f"zoo.{name}": paths for name, paths in found["native"].get("oxistep.zoo", {}).items()}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, paths in optimizers.items():
        groups.setdefault(tuple(d for d, path in paths.items() if path == "native"), []).append(name)
    for dtypes, names in groups.items():
        if dtypes:
            yield f"native for torch tensors, {' '.join(dtypes)}", f": {', '.join(names)}"
    reasons: dict[str, list[str]] = {}
    for name, paths in optimizers.items():
        for dtype, path in paths.items():
            if path != "native":
                reasons.setdefault(path, []).append(f"{name} {dtype}")
    for reason, cases in reasons.items():
        yield "by torch", f"{', '.join(cases)} ({reason.removeprefix('torch: ')})"
