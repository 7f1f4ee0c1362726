"""`python -m oxistep`, the same as the program `oxistep`."""

import sys

from oxistep.cli import main

if __name__ == "__main__":
    sys.exit(main())
