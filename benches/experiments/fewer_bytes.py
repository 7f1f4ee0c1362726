"""AdamW with each setting of fewer bytes beside float32, step by step: what a change of the kernels does to a setting.

    python benches/experiments/fewer_bytes.py --elements 65536 --threads 1
    python benches/experiments/fewer_bytes.py --elements 67108864
    OXISTEP_SIMD=avx2 python benches/experiments/fewer_bytes.py --elements 67108864 --setting 8bit

The two step in turn. Printed are the median of ratios (above 1: faster than float32) with quartiles, the best time of
each in nanoseconds an element, and what memory gave float32 at its best: 28 bytes an element. docs/experiments.md has
what it gave.
"""

import argparse
import statistics
import time

import torch

from oxistep.optim import AdamW

HALF = torch.bfloat16
SETTINGS = {
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "bfloat16 states": (torch.float32, {"state_dtype": HALF}),
    "residual16": (HALF, {"weights": "residual16", "state_dtype": torch.float32}),
    "residual16, bfloat16 states": (HALF, {"weights": "residual16", "state_dtype": HALF}),
    "residual16, 8bit": (HALF, {"weights": "residual16", "state_dtype": "8bit"}),
    "residual8, 8bit": (HALF, {"weights": "residual8", "state_dtype": "8bit"}),
    "stochastic, 8bit": (HALF, {"weights": "stochastic", "state_dtype": "8bit"}),
    "kahan, bfloat16 states": (HALF, {"weights": "kahan", "state_dtype": HALF}),
    "master": (HALF, {"weights": "master", "state_dtype": torch.float32}),
    "all bfloat16": (HALF, {}),
}
BYTES = 28  # of AdamW in float32: parameter and two states read and written, gradient read


def optimizer_of(elements, dtype, settings):
    """An optimizer that has taken its first step."""
    p = torch.nn.Parameter(torch.randn(elements).to(dtype))
    p.grad = torch.randn(elements).to(dtype)
    optimizer = AdamW([p], lr=1e-4, **settings)
    optimizer.step()
    return optimizer


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=2**26)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this (repeatable)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each setting")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n = arguments.elements
    usual = optimizer_of(n, torch.float32, {})
    for name in arguments.setting or SETTINGS:
        optimizer = optimizer_of(n, *SETTINGS[name])
        own, other = [], []
        end = time.perf_counter() + arguments.seconds
        while len(own) < 8 or time.perf_counter() < end:
            start = time.perf_counter()
            usual.step()
            between = time.perf_counter()
            optimizer.step()
            own.append((time.perf_counter() - between) / n * 1e9)
            other.append((between - start) / n * 1e9)
        low, median, high = statistics.quantiles([b / a for a, b in zip(own, other, strict=True)], n=4)
        print(
            f"{name:28} {median:.2f} ({low:.2f} to {high:.2f})  {min(own):.3f} ns, float32 {min(other):.3f} ns, "
            f"{BYTES / min(other):.0f} GB/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
