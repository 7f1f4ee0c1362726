"""Many small tensors by programs: classes of the zoo and rules on 2,000 tensors of 64 elements, on one thread.

    python benches/experiments/small_programs.py before after

Each argument is a wheel, or a folder that holds the package. Each round is a process that steps with one of them alone,
and counts processor time, for machines that others use, too. Printed are nanoseconds a tensor, the median of each
round. With --cold 128 MiB are written between two steps, as forward and backward would: then all of a step comes from
memory. docs/experiments.md has what it gave.
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
import oxistep.optim, oxistep.zoo
from oxistep.bench.rules import RULES
torch.set_num_threads(1)
torch.manual_seed(0)
params = [torch.nn.Parameter(torch.randn(64)) for _ in range(2000)]
for p in params:
    p.grad = torch.randn(64) / 10
name = sys.argv[2]
if name.startswith("rule "):
    step = RULES[name.removeprefix("rule ")].rule(params).step
elif name.startswith("compiled "):
    step = getattr(oxistep.optim, name.removeprefix("compiled "))(params).step
else:
    optimizer = getattr(oxistep.zoo, name)(params, lr=1.0 if name == "Prodigy" else 1e-3)
    getattr(optimizer, "train", lambda: None)()
    step = optimizer.step
elsewhere = torch.zeros(2**25 if sys.argv[4] == "cold" else 1)
for _ in range(10):
    step()
times, end = [], time.perf_counter() + float(sys.argv[3])
while time.perf_counter() < end:
    elsewhere.add_(1.0)
    begin = time.thread_time_ns()
    step()
    times.append((time.thread_time_ns() - begin) / 2000)
print(statistics.median(times))
"""
LOOPS = ("compiled SGD", "compiled Adam", "rule Adam", "rule LAMB-like", "Lion", "LAMB", "Adan", "Prodigy", "AdaBelief",
         "StableAdamW", "NovoGrad", "MARS")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="+")
    parser.add_argument("--only", action="append", help="one of those that are printed, or any class of the zoo")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--cold", action="store_true", help="nothing of a step is in the caches when it begins")
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sites = [
            package.resolve() if package.is_dir() else unpacked(package, Path(folder, str(k)))
            for k, package in enumerate(options.packages)
        ]
        for loop in options.only or LOOPS:
            rounds: dict[Path, list[str]] = {site: [] for site in sites}
            for _ in range(options.rounds):
                for site in sites:
                    command = [sys.executable, "-c", LOOP, str(site), loop, str(options.seconds)]
                    command.append("cold" if options.cold else "warm")
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode != 0:
                        sys.exit(f"{loop} with {site}: {done.stderr.strip()}")
                    rounds[site].append(f"{float(done.stdout):.0f}")
            for package, site in zip(options.packages, sites, strict=True):
                print(f"{loop:16} {package}: {' '.join(rounds[site])} ns a tensor", flush=True)


if __name__ == "__main__":
    main()
