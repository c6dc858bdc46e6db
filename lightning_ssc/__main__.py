"""``python -m lightning_ssc``: the same as the command ``lightning-ssc``."""

import sys

from lightning_ssc.cli import main

if __name__ == "__main__":
    sys.exit(main())
