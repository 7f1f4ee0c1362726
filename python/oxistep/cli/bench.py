"""Measure the step of oxistep beside torch.optim's implementations, on this machine.

    oxistep bench --brief                               a handful of cases, under half a minute
    oxistep bench --quick --output r.json --html r.html a selection, under two minutes, with a page of figures
    oxistep bench --workload flat_16 --optimizer Adam   one workload

For every case (a workload, an optimizer and a dtype) the results are checked against torch's for-loop. Then all
implementations take turns, and the speed-up is the ratio of times within a round.

Other measurements, each with its own --help:

    oxistep bench memory | release | threads | end-to-end | distributed | offload | rules | zoo | compact | numpy
    oxistep bench averages | watching                              what the monitors of oxistep.diagnostics cost
    oxistep bench compare old.json new.json             has anything become slower?
    oxistep bench wheels old.whl new.whl                two wheels in turn
    oxistep bench page r.json r.html                    the page of figures from a file of results
"""

from __future__ import annotations

import argparse
import shlex

from oxistep.bench.options import add_options as add_options
from oxistep.cli._terminal import UsageError, need

SUMMARY = "measure it beside torch.optim on this machine"


def run(options: argparse.Namespace) -> int:
    """Measure and report."""
    need("torch", "rich", *(("jinja2", "matplotlib") if options.page else ()))
    import torch

    from oxistep.bench import run as measurement

    try:
        plan = measurement.planned(options)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.threads:
        torch.set_num_threads(options.threads)
    return measurement.execute(plan, options, f"oxistep {shlex.join(options.argv)}")
