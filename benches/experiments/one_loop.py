"""One optimizer stepping in a loop, with nothing between its steps: what code in the caches costs.

    python benches/experiments/one_loop.py before.whl after.whl

`make bench-wheels` lets wheels take turns, and so displaces their code and data; here each round is a process that
steps with one wheel alone, on one thread. Prints the median of each round. docs/experiments.md has what it gave.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from oxistep.bench.wheels import unpacked

LOOP = """
import statistics, sys, time
sys.path.insert(0, sys.argv[1])
import torch
import oxistep.optim
torch.set_num_threads(1)

def lamb_like(params, lr):
    from oxistep.bench.rules import RULES
    return RULES["LAMB-like"].rule(params, lr=lr)

make, shapes = {
    "Adam on 7 floats": (oxistep.optim.Adam, [(7,)]),
    "SGD on 7 floats": (oxistep.optim.SGD, [(7,)]),
    "Adam on 100 x 64": (oxistep.optim.Adam, [(64,)] * 100),
    "SGD on 2,000 x 64": (oxistep.optim.SGD, [(64,)] * 2000),
    "Adam on 2,000 x 64": (oxistep.optim.Adam, [(64,)] * 2000),
    "LAMB-like rule on 64 Ki": (lamb_like, [(2**16,)]),
}[sys.argv[2]]
params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
for p in params:
    p.grad = torch.randn_like(p)
step = make(params, lr=1e-3).step
step()
times, end = [], time.perf_counter() + 1.5
while time.perf_counter() < end:
    start = time.perf_counter_ns()
    for _ in range(50):
        step()
    times.append((time.perf_counter_ns() - start) / 50e3)
print(statistics.median(times))
"""
LOOPS = ("Adam on 7 floats", "SGD on 7 floats", "Adam on 100 x 64", "SGD on 2,000 x 64", "Adam on 2,000 x 64",
         "LAMB-like rule on 64 Ki")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--only", choices=LOOPS, action="append")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sites = [unpacked(wheel, Path(folder, str(k))) for k, wheel in enumerate(options.wheels)]
        for loop in options.only or LOOPS:
            rounds: dict[Path, list[str]] = {site: [] for site in sites}
            for _ in range(options.rounds):
                for site in sites:
                    done = subprocess.run(
                        [sys.executable, "-c", LOOP, str(site), loop], capture_output=True, text=True, check=False
                    )
                    rounds[site].append(f"{float(done.stdout):.2f}" if done.returncode == 0 else "-")
            for wheel, site in zip(options.wheels, sites, strict=True):
                print(f"{loop:24} {wheel}: {' '.join(rounds[site])} us", flush=True)


if __name__ == "__main__":
    main()
