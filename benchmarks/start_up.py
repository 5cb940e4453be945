"""How long does importing take, beside torch alone and beside diffusers?

    python -m benchmarks.start_up

Fresh processes in turn.  Writes start_up.json beside itself.
"""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from benchmarks import common

NOTEBOOK = "from diffusion_lib import config, data, losses, predictions, rng, runs, samplers, viz"
WAYS = {
    "torch": "import torch",
    "torch, diffusion_lib": "import torch, diffusion_lib",
    "torch, the library's core": "from diffusion_lib import denoiser, losses, samplers, training",
    "torch, all that a notebook imports": NOTEBOOK,
    "torch, diffusers' network and pipeline": "import torch; from diffusion_lib."
    "system import torchvision; from diffusers import DDPMPipeline, UNet2DModel",
}


def main() -> None:
    options, cpu = common.options(__doc__), torch.device("cpu")
    timings = common.interleaved_timings([imports], options.rounds)
    seconds = {name: median(timed.seconds) for name, timed in timings.items()}
    record = common.machine(cpu) | {
        "rounds": options.rounds,
        "seconds": {name: round(took, 3) for name, took in seconds.items()},
        "seconds more than torch": {
            name: round(took - seconds["torch"], 3)
            for name, took in seconds.items()
            if name != "torch"
        },
    }
    common.write("start_up", cpu, record)


def imports() -> dict[str, Callable[[], None]]:
    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    return {name: partial(start, code) for name, code in WAYS.items()}


if __name__ == "__main__":
    main()
