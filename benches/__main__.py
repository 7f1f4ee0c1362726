"""The benchmarks of oxistep: `python benches COMMAND --help` tells about each.

run         ratios to torch.optim and other peers, cell by cell
memory      does a step take memory beyond its states?
threads     does it gain from threads as much as torch's fused?
end-to-end  the share of the step when a small GPT and an MLP are trained
page        one HTML page from a file of results
compare     did anything become slower, relative to its peer, between two files of results?
"""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "run": "run",
    "memory": "memory",
    "threads": "threads",
    "end-to-end": "end_to_end",
    "page": "page",
    "compare": "compare",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python benches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv[0] = f"python benches {command}"  # what its own help calls itself
    code: int = importlib.import_module(COMMANDS[command]).main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
