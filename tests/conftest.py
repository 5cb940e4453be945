"""One thread for each of pytest's processes, and for those that tests start: together they are as
many as there are cores, and such small networks keep no second one busy.  No folder of whoever runs
the tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

from diffusion_lib import _torchvision  # noqa: F401  (first: diffusers imports torchvision too)

for name in ("DIFFUSION_DATA", "DIFFUSION_RUNS", "DIFFUSION_BUDGET"):
    os.environ.pop(name, None)
