"""`python -m m31a_mp`: the command line."""

import sys

from m31a_mp.cli import main

if __name__ == "__main__":
    sys.exit(main())
