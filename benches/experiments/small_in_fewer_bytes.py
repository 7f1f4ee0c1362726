"""Many small tensors in fewer bytes: AdamW on 2,000 tensors of 64 elements, with each setting, on one thread.

    python benches/experiments/small_in_fewer_bytes.py

Printed are nanoseconds of processor time a tensor, medians, for machines that others use, too. With OXISTEP_CHECK=1 in
the environment every step looks everything up anew. docs/experiments.md has what it gave.
"""

import argparse
import statistics
import time

import torch

import oxistep.optim
from oxistep.optim._kept import WEIGHTS


def nanoseconds(dtype: torch.dtype, elements: int, tensors: int, seconds: float, **settings) -> float:
    params = [torch.nn.Parameter(torch.randn(elements).to(dtype)) for _ in range(tensors)]
    for p in params:
        p.grad = torch.randn(elements).to(dtype) / 10
    step = oxistep.optim.AdamW(params, lr=1e-3, **settings).step
    for _ in range(5):
        step()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.thread_time_ns()
        step()
        times.append((time.thread_time_ns() - begin) / tensors)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=64)
    parser.add_argument("--tensors", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def show(what: str, dtype: torch.dtype, **settings) -> None:
        time = nanoseconds(dtype, options.elements, options.tensors, options.seconds, **settings)
        print(f"{what:40} {time:6.0f} ns a tensor", flush=True)

    half = torch.bfloat16
    show("float32", torch.float32)
    show("bfloat16", half)
    show("bfloat16, states in float32", half, state_dtype=torch.float32)
    show("float32, states in bfloat16", torch.float32, state_dtype=half)
    for weights in WEIGHTS:
        for states in (torch.float32, half):
            show(f"{weights}, states in {str(states)[6:]}", half, weights=weights, state_dtype=states)


if __name__ == "__main__":
    main()
