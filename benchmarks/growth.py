"""How does the speed of training grow with width, resolution and batch, beside diffusers?

    python -m benchmarks.growth

The bare step of both sides, the same lines: forward, squared error, backward, AdamW.  diffusers
runs in the best of its modes that need no compiling, found at each point.  Writes growth.json
beside itself, or growth-gpu.json.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import common
from diffusion_lib import interop, schedules
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.system import device as hardware

OURS = "diffusion_lib"
BASE = (64, 32, 16)  # width, pixels, images; each row below changes one of them
POINTS = {
    "width": [(width, *BASE[1:]) for width in (32, 64, 96, 128)],
    "pixels": [(BASE[0], pixels, BASE[2]) for pixels in (16, 32, 64)],
    "images": [(*BASE[:2], images) for images in (1, 4, 16, 64)],
}


def main() -> None:
    options = common.options(__doc__)
    device = torch.device(options.device)
    points = dict.fromkeys(point for row in POINTS.values() for point in row)  # each once
    measured = [measure(point, options.rounds, device) for point in points]
    record = common.machine(device) | {"rounds": options.rounds, "points": measured}
    common.write("growth" + common.record_suffix(device), device, record)


def measure(point: tuple[int, int, int], rounds: int, device: torch.device) -> dict[str, Any]:
    """Time a step of both sides.

    Args:
        point: width of the network, pixels of a side of its images, images in a batch.
        rounds: number of timings of each way.
        device: device to measure.
    """
    timings = common.interleaved_timings([diffusers_ways, our_ways], rounds, *point, device)
    width, pixels, images = point
    record = {"width": width, "pixels": pixels, "images": images}
    record |= {"ways": common.speeds(timings, OURS, images)}
    print(record, flush=True)
    return record


def diffusers_ways(
    width: int, pixels: int, images: int, device: torch.device
) -> dict[str, Callable[[], None]]:
    return {
        f"diffusers, {name}": step(
            mode.prepare(common.diffusers_unet(width, pixels), device),
            partial(mode.precision, device),
            pixels,
            images,
            device,
        )
        for name, mode in common.modes(device).items()
        if not mode.compiled
    }


def our_ways(
    width: int, pixels: int, images: int, device: torch.device
) -> dict[str, Callable[[], None]]:
    network = interop.unet_from_diffusers(common.diffusers_unet(width, pixels))
    denoiser = hardware.optimize_memory_layout(
        Denoiser(network, schedules.linear(), clip=None).to(device)
    )
    precision = partial(hardware.autocast, denoiser)
    return {OURS: step(denoiser.network, precision, pixels, images, device)}


def step(
    network: nn.Module,
    precision: Callable[[], AbstractContextManager[Any]],
    pixels: int,
    images: int,
    device: torch.device,
) -> Callable[[], None]:
    """Make a step of training on random images.

    Args:
        network: network that predicts eps.
        precision: function that makes the context in which it computes.
        pixels: height and width of the images.
        images: number of images in a batch.
        device: device of the network.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    x_t, eps = torch.randn(2, images, 3, pixels, pixels, device=device)
    t = torch.arange(images, device=device)

    def run() -> None:
        with precision():
            output = network(x_t, t)
            output = output if isinstance(output, torch.Tensor) else output.sample
        F.mse_loss(output.float(), eps).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


if __name__ == "__main__":
    main()
