"""Results as the benchmark writes them, made up."""

import torch

from oxistep.bench.optimizer_table import OPTIMIZERS
from oxistep.bench.paired import Paired
from oxistep.bench.record import CellName, Record
from oxistep.bench.workloads import WORKLOADS


def record(workload, optimizer="Adam", dtype="float32", ours=100.0, probe=None, **peers):
    """A cell of three rounds in which everybody takes what is given, in nanoseconds."""
    streams = OPTIMIZERS[optimizer].streams
    elements = WORKLOADS[workload].touched
    bytes_per_step = None if streams is None else streams * getattr(torch, dtype).itemsize * elements
    times = {"oxistep": ours} | {name.replace("_", "-"): time for name, time in peers.items()}
    if probe is not None:
        times["probe"] = probe
    return Record(
        name=CellName(workload, optimizer, dtype),
        parameters=WORKLOADS[workload].parameters,
        tensors=len(WORKLOADS[workload].shapes),
        bytes_per_step=bytes_per_step,
        missing={"deepspeed": "deepspeed is not installed"},
        probe_bytes=None if probe is None else bytes_per_step,
        paired=Paired({name: [time] * 3 for name, time in times.items()}, dict.fromkeys(times, 1)),
        other_cores=0.0,
    )


def content(*records):
    where = {
        "cpu": "a processor",
        "cpu_features": {"arch": "x86_64", "simd": "avx2", "available": ["baseline", "avx2"]},
        "cores": 4,
        "threads": 2,
        "torch": "2.15.0",
        "oxistep": "0.1.0",
        "python": "3.11.7",
        "system": "Linux x86_64",
        "date": "2026-11-20T12:00:00+00:00",
    }
    cells = [made.to_json() for made in records]
    return {"schema": 2, "command": "python -m oxistep.bench run", "environment": where, "cells": cells, "left_out": []}
