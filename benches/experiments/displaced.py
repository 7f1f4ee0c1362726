"""Which distances between two arrays make their lines displace each other in the first-level cache.

    python benches/experiments/displaced.py                        distances 2^i + 2^j
    python benches/experiments/displaced.py --only 12 27 --elements 262144

SGD with momentum on one thread; parameter and momentum buffer lie in one piece of memory, that far apart, the gradient
elsewhere. Prints the time of a step beside that at a distance where nothing is in the way. Needs as much memory as
the largest distance, and a GiB more. docs/experiments.md has what it gave.
"""

import argparse
import statistics
import time

import torch

import oxistep.optim

PAGE = 2**12


def step_time(memory: torch.Tensor, distance: int, elements: int, seconds: float) -> float:
    """Microseconds of a step whose buffer begins so many bytes after the parameter."""
    p = torch.nn.Parameter(memory[:elements])
    p.grad = torch.ones(elements)
    optimizer = oxistep.optim.SGD([p], lr=1e-6, momentum=0.9)
    start = distance // 4
    optimizer.state[p]["momentum_buffer"] = memory[start : start + elements].fill_(0.0)
    assert [row.path for row in oxistep.explain(optimizer)] == ["native"]
    optimizer.step()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        for _ in range(20):
            optimizer.step()
        times.append((time.perf_counter_ns() - begin) / 20e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs=2, type=int, metavar=("I", "J"), help="one distance")
    parser.add_argument("--elements", type=int, default=2**18, help="of each array (default: %(default)s)")
    parser.add_argument("--most", type=int, default=28, help="the largest J (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each distance (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    least = (4 * options.elements - 1).bit_length()  # so that the arrays do not overlap
    pairs = (
        [tuple(options.only)]
        if options.only
        else [(i, j) for j in range(least, options.most + 1) for i in range(12, 20)]
    )
    far = max(2**i + 2**j for i, j in pairs)
    memory = torch.empty(far // 4 + options.elements + 2 * PAGE)
    memory = memory[-memory.data_ptr() % PAGE // 4 :]  # from the beginning of a page
    apart = step_time(memory, 2**least + 37 * PAGE + 2048, options.elements, 5 * options.seconds)
    print(f"nothing in the way: {apart:.1f} µs")
    for i, j in pairs:
        found = step_time(memory, 2**i + 2**j, options.elements, options.seconds)
        mark = " displaced" if found > 1.5 * apart else ""
        if mark or options.only:
            print(f"2^{i} + 2^{j}: {found:.1f} µs, {found / apart:.2f} times as long{mark}")


if __name__ == "__main__":
    main()
