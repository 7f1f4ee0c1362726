"""Draw the paths of optimizers over the contour lines of a function of two variables.

    oxistep trajectories --output bowl.png              eight optimizers on x1^2 + 10 x2^2 from (4, 3)
    oxistep trajectories --output bowl.gif              the same as an animation (.mp4 if ffmpeg is installed)
    oxistep trajectories --output two.svg --function rosenbrock --start -1.5 2 --steps 300 --together \\
        --optimizer Adam,lr=0.1 --optimizer SGD,lr=0.001,momentum=0.9
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from oxistep._functions import FUNCTIONS
from oxistep._options import count, finite, new_file
from oxistep.cli._terminal import UsageError, need, print_json, progress

SUMMARY = "draw the paths of optimizers over contour lines"
WRAPPERS = ("Grokfast", "Lookahead", "SAM")  # of the zoo, which take an optimizer
LIBRARIES = ("oxistep", "torch", "numpy")


def optimizer(text: str) -> tuple[str, str, dict[str, Any]]:
    """`Adam,lr=0.1,amsgrad=True` -> its label, the class, the arguments."""
    name, *pairs = _pieces(text)
    arguments = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key.isidentifier():
            raise argparse.ArgumentTypeError(
                f"expected NAME,argument=value,..., got {text!r}: {pair!r} is no argument=value"
            )
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise argparse.ArgumentTypeError(
                f"{name}: the argument {key} has the value {value!r}, which is neither a number, True, False, None nor "
                "a quoted string"
            ) from None
    return text.replace(",", ", ").replace("=", " "), name, arguments


def _pieces(text: str) -> list[str]:
    """Split at commas, but not inside brackets: `Adam,betas=(0.9,0.99)` has two pieces."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `trajectories`."""
    parser.add_argument(
        "--output",
        type=new_file,
        required=True,
        metavar="FILE",
        help=".png, .svg, .pdf ..., or an animation: .gif, .mp4; its folder is made if it is missing",
    )
    listed = "; ".join(f"{name}: {one.text}" for name, one in FUNCTIONS.items())
    parser.add_argument(
        "--function", choices=FUNCTIONS, default="bowl", metavar="NAME", help=f"{listed} (default: bowl)"
    )
    parser.add_argument(
        "--start", type=finite, nargs=2, metavar=("X1", "X2"), help="where all begin; default: what suits the function"
    )
    parser.add_argument("--steps", type=count, default=100, help="how many each takes (default: 100)")
    parser.add_argument(
        "--optimizer",
        type=optimizer,
        action="append",
        metavar="NAME,ARGUMENT=VALUE,...",
        help="a class of the library with its arguments, such as Adam,lr=0.1 or, of oxistep's zoo, zoo.Lion,lr=0.01 "
        "(repeatable); default: eight of them",
    )
    parser.add_argument(
        "--library", choices=LIBRARIES, help="whose classes (default: oxistep, or numpy where torch is missing)"
    )
    parser.add_argument("--together", action="store_true", help="all paths in one plot")
    parser.add_argument("--json", action="store_true", help="print where each ends as JSON, for scripts")


def run(options: argparse.Namespace) -> int:
    """Draw and write."""
    need("matplotlib", "rich", *(() if options.library in ("numpy", None) else ("torch",)))
    import numpy as np

    from oxistep import viz
    from oxistep.viz._descent import checked_start, track_of
    from oxistep.viz._surface import Surface

    library = _library(options.library)
    made = viz.eight(library) if options.optimizer is None else _optimizers(options.optimizer, library)
    function = FUNCTIONS[options.function].function
    try:
        start = checked_start(options.start or FUNCTIONS[options.function].start)
        tracks = {name: track_of(name, make, Surface(function), start, options.steps) for name, make in made.items()}
    except (ValueError, TypeError, RuntimeError) as error:  # an argument or a gradient that the optimizer refuses
        raise UsageError(str(error)) from None
    # What diverged is recorded with the point that is not finite, and drawn so.
    paths = {name: np.vstack([t.points, [np.nan, np.nan]]) if t.diverged else t.points for name, t in tracks.items()}
    with progress() as bar:
        task = bar.add_task(f"writing {options.output.name}", total=None)
        try:
            viz.trajectories(
                paths,
                function,
                start=start,
                together=options.together,
                output=options.output,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except ValueError as error:  # an ending that nobody can write
            raise UsageError(str(error)) from None
    if options.json:
        ends = {
            name: {"end": track.points[-1].tolist(), "steps": len(track.points) - 1, "diverged": track.diverged}
            for name, track in tracks.items()
        }
        print_json({"output": str(options.output), "function": options.function, "paths": ends})
    else:
        wide = max(map(len, tracks))
        for name, track in tracks.items():
            x1, x2 = track.points[-1]
            end = f"not finite in step {len(track.points)}" if track.diverged else f"ends at ({x1:.5g}, {x2:.5g})"
            print(f"{name:{wide}}  {end}")
        print(f"written: {options.output}")
    return 0


def _library(name: str | None) -> Any:
    if name == "torch":
        import torch.optim

        return torch.optim
    if name != "numpy":
        try:
            import oxistep.optim

            return oxistep.optim
        except ModuleNotFoundError:
            if name is not None:
                raise
    import oxistep.numpy

    return oxistep.numpy


def _zoo_of(library: Any) -> Any:
    """The optimizers that torch.optim lacks, for the same parameters as the library's."""
    if not library.__name__.startswith("oxistep."):
        raise UsageError("argument --optimizer: oxistep has a zoo, torch has none: leave out --library torch")
    return importlib.import_module("oxistep.numpy.zoo" if library.__name__ == "oxistep.numpy" else "oxistep.zoo")


def _makes_of_parameters(name: str) -> bool:
    """Whether a class is an optimizer: neither the base of all nor one that wraps another."""
    return name not in ("Optimizer", *WRAPPERS)


def _optimizers(chosen: list[tuple[str, str, dict[str, Any]]], library: Any) -> Mapping[str, Any]:
    made = {}
    for label, name, arguments in chosen:
        of, own = (_zoo_of(library), name.removeprefix("zoo.")) if name.startswith("zoo.") else (library, name)
        one = getattr(of, own, None) if own.isidentifier() else None
        if not isinstance(one, type) or not _makes_of_parameters(own):
            names = [n for n in of.__all__ if isinstance(getattr(of, n), type) and _makes_of_parameters(n)]
            raise UsageError(f"argument --optimizer: {of.__name__} has no {own!r}; it has {', '.join(sorted(names))}")
        _check_names(name, one, arguments)
        made[label] = lambda p, one=one, arguments=arguments: one(p, **arguments)
    return made


def _check_names(name: str, one: type, arguments: Mapping[str, Any]) -> None:
    """Refuses an argument that the class does not have, and lists those that it has."""
    parameters = inspect.signature(one).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    names = [p.name for p in parameters if p.name != "params"]
    for given in arguments:
        if given not in names:
            raise UsageError(f"argument --optimizer: {name} has no argument {given!r}; it has {', '.join(names)}")
