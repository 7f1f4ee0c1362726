"""`python benches COMMAND ...` is `python -m oxistep.bench COMMAND ...`: the benchmark is part of the package."""

import sys

from oxistep.bench.__main__ import main

if __name__ == "__main__":
    sys.exit(main(program="python benches"))
