"""The benchmarks of oxistep: `oxistep bench COMMAND --help` explains each.

run         speed-ups over torch.optim and other packages, case by case; what `oxistep bench` does without a command
memory      does a step take memory beyond its states?
release     parameters stepped in backward beside backward and a step: time and peak memory
threads     does it gain from threads as much as torch's fused?
end-to-end  the share of the step when a small GPT and an MLP are trained
distributed steps on DTensors under FSDP2, in two processes
offload     a step inside DeepSpeed beside DeepSpeedCPUAdam
rules       rules that users write beside compiled ones and torch's operations
zoo         the optimizers of oxistep.zoo beside the packages that people take them from
averages    averages of the weights in the step, against a separate pass of torch
compact     fewer bytes a parameter beside float32, and beside packages that have 8-bit states
numpy       oxistep.numpy beside NumPy by hand
watching    what the monitors of oxistep.diagnostics cost
page        one HTML page from a file of results
compare     did anything become slower, relative to its peer, between two files of results?
wheels      two wheels in turn: what did a change cost or gain?
"""

from __future__ import annotations

import argparse
import importlib
import sys

from oxistep.cli._terminal import ended, need

COMMANDS = {
    "run": "run",
    "memory": "memory",
    "release": "release",
    "threads": "threads",
    "end-to-end": "end_to_end",
    "distributed": "distributed",
    "offload": "offload",
    "rules": "rules",
    "zoo": "zoo",
    "averages": "averages",
    "compact": "compact",
    "numpy": "by_hand",
    "watching": "watching",
    "page": "page",
    "compare": "compare",
    "wheels": "wheels",
}


def main(argv: list[str] | None = None, program: str = "python -m oxistep.bench") -> int:
    """Run one command; `program` is what helps and recorded commands call it."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    command = parser.parse_args(argv[:1]).command

    def run() -> int:
        need("torch", "rich", *(("jinja2", "matplotlib") if command == "page" else ()))
        module = importlib.import_module(f".{COMMANDS[command]}", __package__)
        code: int = module.main(argv[1:], f"{program} {command}")
        return code

    return ended(f"{program} {command}", run)


if __name__ == "__main__":
    sys.exit(main())
