"""What a step costs that has next to nothing to do: two scalars, one thread, every class.

    python benches/experiments/fixed_cost.py before after

Each argument is a wheel, or a folder that holds the package. Printed are microseconds a step, the least of many rounds
of 100 steps, since whatever else a machine does only adds to it. docs/experiments.md has what it gave.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from oxistep.bench.wheels import unpacked

LOOPS = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy, torch
import oxistep.numpy, oxistep.optim, oxistep.zoo
torch.set_num_threads(1)

def least(step):
    for _ in range(200):
        step()
    least = float("inf")
    for _ in range(200):
        begin = time.perf_counter()
        for _ in range(100):
            step()
        least = min(least, (time.perf_counter() - begin) / 100)
    return 1e6 * least

found = {}
for module, names in json.loads(sys.argv[2]).items():
    for name in names:
        of = getattr(sys.modules[module], name)
        if "numpy" in module:
            params = [numpy.array(1.0), numpy.array(2.0)]
            optimizer = of(params, lr=1e-3)
            step = lambda: optimizer.step(gradients)
            gradients = [numpy.array(0.1), numpy.array(0.1)]
        else:
            params = [torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2)]
            for p in params:
                p.grad = torch.tensor(0.1)
            optimizer = of(params, lr=1e-3)
            step = optimizer.step
        getattr(optimizer, "train", lambda: None)()
        found[f"{module}.{name}"] = least(step)
print(json.dumps(found))
"""
ZOO = ["AdamW", "Lion", "SophiaG", "LAMB", "StableAdamW", "Prodigy", "SGDScheduleFree", "AdamWScheduleFree"]
CLASSES = {
    "oxistep.optim": ["SGD", "RMSprop", "Adagrad", "Adam", "AdamW"],
    "oxistep.zoo": ZOO,
    "oxistep.numpy": ["SGD", "Adam"],
    "oxistep.numpy.zoo": ZOO,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, nargs="+")
    options = parser.parse_args()
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for k, package in enumerate(options.packages):
            site = package.resolve() if package.is_dir() else unpacked(package, Path(folder, str(k)))
            command = [sys.executable, "-c", LOOPS, str(site), json.dumps(CLASSES)]
            found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    for name in found[0]:
        print(f"{name:36}", *(f"{of_package[name]:6.2f}" for of_package in found), "microseconds a step")


if __name__ == "__main__":
    main()
