"""The command `python -m diffusion_lib`, see `cli`."""

import sys

from diffusion_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
