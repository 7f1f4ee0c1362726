"""Rules beside compiled classes, on one thread, by processor time: for machines that others use, too.

    python benches/experiments/rules_alone.py --tensors 2000 --elements 64
    python benches/experiments/rules_alone.py --tensors 1 --elements 16777216
    python benches/experiments/rules_alone.py --passes

Each round takes a step of each in a random order. Printed is the time of the compiled class, or of the probe where
there is none, by that of the rule: median and quartiles of rounds, then the fastest tenths of both. The rules are those
of `oxistep bench rules`. `--passes` shows what a pass costs that only reads, as the first one of "LAMB-like" does.
docs/experiments.md has what it gave.
"""

import argparse
import random
import statistics
import time

import torch

import oxistep
from oxistep import rules as functions
from oxistep.bench import rules
from oxistep.bench.probe import native_probe


def contestants(name, shapes, dtype):
    """The steps of the rule and of the other, what that is, and how its time becomes one of as many bytes."""
    cell = rules.RULES[name]
    rule = cell.rule(rules.parameters(shapes, dtype)).step
    if cell.compiled is not None:
        return rule, cell.compiled(rules.parameters(shapes, dtype)).step, "compiled", 1.0
    size = sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
    probe = native_probe(size, cell.states)
    if probe is None:
        return rule, None, "", 1.0
    return rule, probe[0], "probe", (3 + 2 * cell.states) * size / probe[1] * cell.passes


def seconds_of(step):
    begin = time.thread_time()
    step()
    return time.thread_time() - begin


@oxistep.rule
def norms(p, g, s, lr=0.1, beta=0.9):
    """The first pass of "LAMB-like"; no element is written."""
    s.n = functions.norm(p) + functions.norm(functions.lerp(s.m, g, 1 - beta))
    return p


def passes(seconds, elements=2**24):
    """Three streams that are read, by a rule and by a norm, beside the probe, which also writes two of them."""
    (p,) = parameters = rules.parameters([(elements,)])
    tensors = [p.detach().clone(), p.grad, torch.randn(elements)]
    probe, moved = native_probe(4 * elements, 1)
    steps = {
        "two norms of three streams, by a rule": (norms(parameters).step, 1.0),
        "get_total_norm of as many bytes": (lambda: oxistep.get_total_norm(tensors), 1.0),
        "the probe, which writes two of three": (probe, 20 * elements / moved),
    }
    times = {name: [] for name in steps}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, (step, by) in random.sample(list(steps.items()), len(steps)):
            times[name].append(seconds_of(step) * by)
    for name, own in times.items():
        print(f"{name}: {1e3 * statistics.median(own[2:]):.2f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", action="append", choices=rules.RULES)
    parser.add_argument("--tensors", type=int, default=2000)
    parser.add_argument("--elements", type=int, default=64, help="of each")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each rule")
    parser.add_argument("--passes", action="store_true", help="what reading costs, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.passes:
        passes(options.seconds)
        return
    shapes = [(options.elements,)] * options.tensors
    for name in options.rule or rules.RULES:
        rule, other, against, scale = contestants(name, shapes, getattr(torch, options.dtype))
        if other is None:
            continue  # nothing that is timed would be larger than the caches
        ours, theirs = [], []
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            turns = [(rule, ours, 1.0), (other, theirs, scale)]
            random.shuffle(turns)
            for step, times, by in turns:
                times.append(seconds_of(step) * by / options.tensors)
        ours, theirs = ours[3:], theirs[3:]  # the first steps make states
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        fastest = [sorted(times)[len(times) // 10] for times in (ours, theirs)]
        print(
            f"{name} beside {against}: {middle:.3f} ({low:.3f} to {high:.3f}), of the fastest tenths "
            f"{fastest[1] / fastest[0]:.3f} ({1e9 * fastest[0]:.0f} ns a tensor, {1e9 * fastest[1]:.0f})"
        )


if __name__ == "__main__":
    main()
