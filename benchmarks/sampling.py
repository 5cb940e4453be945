"""How many images a second are sampled, beside diffusers' pipeline?

    python -m benchmarks.sampling

DDIM in 10 steps on both sides, same network and weights; the pipeline as it comes and in its other
modes.  Writes sampling.json beside itself, or sampling-gpu.json.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import common
from diffusion_lib import runs, samplers

STEPS = 10
OURS = "diffusion_lib"


def main() -> None:
    options = common.options(__doc__)
    device, size = torch.device(options.device), options.batch_size
    timings = common.interleaved_timings(
        [diffusers_ways, our_ways], options.rounds, options.paper, size, device
    )
    record = common.machine(device) | {
        "batch size": size,
        "steps": STEPS,
        "rounds": options.rounds,
        "ways": common.speeds(timings, OURS, size),
    }
    common.write("sampling" + common.record_suffix(device), device, record)


def diffusers_ways(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    return {
        f"diffusers, {name}": pipeline(mode, paper, size, device)
        for name, mode in common.modes(device).items()
    }


def our_ways(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], None]]:
    ways = {}
    for name, steps in common.our_modes(OURS, device).items():
        denoiser = common.as_the_library_runs_it(paper, device, steps).eval()
        denoiser.clip = 1.0

        def sample(denoiser=denoiser) -> None:
            runs.sample(denoiser, size, 0, samplers.ddim, STEPS, batch_size=size)

        ways[name] = sample
    return ways


def pipeline(mode: common.Mode, paper: bool, size: int, device: torch.device) -> Callable[[], None]:
    from diffusers import (
        DDIMPipeline,  # pyright: ignore[reportPrivateImportUsage]
        DDIMScheduler,  # pyright: ignore[reportPrivateImportUsage]
    )

    network: Any = mode.prepare(common.diffusers_network(paper), device)
    made = DDIMPipeline(network, DDIMScheduler())
    made.set_progress_bar_config(disable=True)

    def sample() -> None:
        with mode.precision(device):
            made(batch_size=size, num_inference_steps=STEPS, output_type="np")

    return sample


if __name__ == "__main__":
    main()
