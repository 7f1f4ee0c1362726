"""One class on tensors of the shapes that are named, beside torch's own ways to step.

    python benches/experiments/beside_torch.py Adafactor 1024x1024 '200*64x64' 50000x768 --seconds 5
    python benches/experiments/beside_torch.py LBFGS 1000 100000 --set history_size=100 --dtype float64
    python benches/experiments/beside_torch.py Muon '50*64x64' --no-products

Contestants take turns; the figure is the time of torch's over ours within a round. They must have come to the same
parameters before. LBFGS minimizes a quadratic, 20 iterations a step from the same start, its closure only multiplies;
its parameters are four parts of the vector. --no-products leaves Muon's matrix products out, of both.
docs/experiments.md has what it gave.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

import oxistep.optim
from oxistep.bench.beside import spread
from oxistep.bench.paired import contestant, measure
from oxistep.bench.tables import plain, show
from oxistep.bench.wording import duration

OURS = "oxistep"
WAYS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def shapes_of(text: str) -> list[tuple[int, ...]]:
    """`200*64x64`: two hundred tensors of 64 x 64."""
    times, _, shape = text.rpartition("*")
    return [tuple(map(int, shape.split("x")))] * int(times or 1)


def tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator).to(dtype)
    return made


def step_of(cls: type[Any], shapes: list[tuple[int, ...]], dtype: torch.dtype, arguments: dict[str, Any]) -> Any:
    """Parameters, and what takes a step of them."""
    if cls.__name__ != "LBFGS":
        params = tensors(shapes, dtype)
        return params, cls(params, **arguments).step
    [(count,)] = shapes
    params = [torch.nn.Parameter(part.clone()) for part in torch.ones(count, dtype=dtype).tensor_split(min(4, count))]
    curvatures = torch.logspace(-2, 0, count, dtype=dtype).tensor_split(len(params))
    starts = [p.detach().clone() for p in params]
    optimizer = cls(params, **{"max_iter": 20, "tolerance_grad": 0, "tolerance_change": 0, **arguments})

    @torch.no_grad()
    def closure() -> torch.Tensor:
        losses = []
        for p, curvature in zip(params, curvatures, strict=True):
            p.grad = p * curvature
            losses.append(torch.dot(p, p.grad))
        return torch.stack(losses).sum() / 2

    def step() -> None:
        with torch.no_grad():
            for p, start in zip(params, starts, strict=True):
                p.copy_(start)
        optimizer.step(closure)

    return params, step


def contestants(name: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, given: dict[str, Any]) -> dict[str, Any]:
    """A step of each that the class has; after three of them they must agree with torch's first way."""
    theirs = getattr(torch.optim, name)
    ways = {"torch": {}} if name in ("LBFGS", "Muon") else WAYS
    made = {OURS: step_of(getattr(oxistep.optim, name), shapes, dtype, given)}
    for way, flags in ways.items():
        try:
            made[way] = step_of(theirs, shapes, dtype, given | flags)
        except (TypeError, RuntimeError):  # there is no such way
            continue
    for _, step in made.values():
        for _ in range(3):
            step()
    wanted = made[next(way for way in made if way != OURS)][0]
    # of LBFGS rounding decides where it is after many iterations; the loss is what counts, and that is near zero
    tolerance = 0.05 if dtype in (torch.bfloat16, torch.float16) or name == "LBFGS" else 1e-3
    for way, (params, _) in made.items():
        if not all(torch.allclose(p, q, rtol=tolerance, atol=tolerance) for p, q in zip(params, wanted, strict=True)):
            raise SystemExit(f"{way} came to other parameters than torch")
    return {way: step for way, (_, step) in made.items()}


def argument(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    for read in (int, float):
        try:
            return name, read(value)
        except ValueError:
            pass
    return name, {"True": True, "False": False, "None": None}.get(value, value)


def leave_products_out() -> None:
    def copied(matrix: torch.Tensor, *_: Any) -> torch.Tensor:
        return matrix.bfloat16()

    for module in ("torch.optim._muon", "oxistep.optim.muon"):
        vars(importlib.import_module(module))["_zeropower_via_newtonschulz"] = copied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizer", help="a class of torch.optim")
    parser.add_argument("shapes", nargs="+", help="cells: 64x64, 200*64x64, 7")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    parser.add_argument("--set", action="append", default=[], type=argument, metavar="NAME=VALUE", help="an argument")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each cell (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads; default: torch's own")
    parser.add_argument("--no-products", action="store_true", help="of Muon")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.no_products:
        leave_products_out()
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for cell in options.shapes:
        steps: dict[str, Callable[[], Any]] = contestants(
            options.optimizer, shapes_of(cell), getattr(torch, options.dtype), dict(options.set)
        )
        paired = measure({way: contestant(step) for way, step in steps.items()}, options.seconds, lead_in=False)
        ratios = {way: spread(vars(paired.ratio(way, OURS))) for way in steps if way != OURS}
        found[cell] = duration(paired.median(OURS)), ratios
    ways = list(dict.fromkeys(way for _, ratios in found.values() for way in ratios))
    table = plain(options.optimizer, OURS, *ways, title="time of a step; torch's time over ours")
    for cell, (time, ratios) in found.items():
        table.add_row(cell, time, *(ratios.get(way, "") for way in ways))
    show(Console(highlight=False), table)


if __name__ == "__main__":
    main()
