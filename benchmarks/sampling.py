"""How many images a second are sampled, beside diffusers' pipeline?

    python -m benchmarks.sampling

DDIM in 10 steps on both sides, same network and weights; the pipeline as it comes and in its other
modes.  Writes sampling.json beside itself, or sampling-gpu.json.
"""

from collections.abc import Callable

import torch

from benchmarks import common
from diffusion_lib import runs, samplers

STEPS = 10
MINE = "diffusion_lib"


def main() -> None:
    options = common.options(__doc__)
    device, size = torch.device(options.device), options.batch_size
    found = common.in_turn([theirs, mine], options.rounds, options.paper, size, device)
    record = common.machine(device) | {
        "batch size": size,
        "steps": STEPS,
        "rounds": options.rounds,
        "ways": common.against(found, MINE, size),
    }
    common.write("sampling" + common.kind(device), device, record)


def theirs(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    return {
        f"diffusers, {name}": pipeline(mode, paper, size, device)
        for name, mode in common.modes(device).items()
    }


def mine(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    denoiser = common.suited(paper, device).eval()
    denoiser.clip = 1.0

    def sample() -> None:
        runs.sample(denoiser, size, 0, samplers.ddim, STEPS, batch_size=size)

    return {MINE: sample}


def pipeline(mode: common.Mode, paper: bool, size: int, device: torch.device) -> Callable[[], None]:
    from diffusers import DDIMPipeline, DDIMScheduler

    network = mode.prepare(common.theirs(paper), device)
    made = DDIMPipeline(network, DDIMScheduler())
    made.set_progress_bar_config(disable=True)

    def sample() -> None:
        with mode.precision(device):
            made(batch_size=size, num_inference_steps=STEPS, output_type="np")

    return sample


if __name__ == "__main__":
    main()
