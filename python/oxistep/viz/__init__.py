"""Pictures of what optimizers do, drawn with matplotlib: paths, loss curves, schedules, benchmarks,
what the monitors of `oxistep.diagnostics` saw.

Every function returns a ``matplotlib.figure.Figure`` and writes it where ``output=`` says. pyplot is not used, so
nothing opens a window, and the colours are told apart by the colour-blind.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "matplotlib":
        raise
    raise ModuleNotFoundError("oxistep.viz needs matplotlib: pip install matplotlib", name="matplotlib") from _error

from oxistep._bowl import bowl, eight
from oxistep.viz._benchmark import benchmark
from oxistep.viz._compare import compare
from oxistep.viz._gradients import gradients, updates
from oxistep.viz._learning_rate import lr_range
from oxistep.viz._schedule import schedule
from oxistep.viz._trajectories import trajectories

__all__ = [
    "benchmark",
    "bowl",
    "compare",
    "eight",
    "gradients",
    "lr_range",
    "schedule",
    "trajectories",
    "updates",
]
