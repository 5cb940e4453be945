"""The baseline: a plain loop with diffusers' network and scheduler, 60 seconds of steps.

float32, AdamW with a constant rate of 1e-4, no moving average, no labels: what its tutorial does.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import diffusers_loop
from benchmarks.speedrun import Trained
from diffusion_lib import data
from diffusion_lib.data import Images


@dataclass(frozen=True)
class DiffusersLoop:
    """diffusers' DDPM as its users write it.

    Args:
        seconds: length of the loop.
        num_steps: number of sampling steps.
    """

    seconds: float
    num_steps: int = 50

    def train(self, images: Images, seed: int) -> Trained:
        from diffusion_lib.system import torchvision  # noqa: F401  (diffusers imports it too)

        from diffusers import (  # isort: skip
            DDPMScheduler,  # pyright: ignore[reportPrivateImportUsage]
            UNet2DModel,  # pyright: ignore[reportPrivateImportUsage]
        )

        torch.manual_seed(seed)
        network = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        )
        scheduler = DDPMScheduler()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        batches = data.batches(images.images, 64, seed)
        updates = diffusers_loop.updates(network, scheduler, optimizer, batches, self.seconds)
        steps = sum(1 for _ in updates)
        sample = diffusers_loop.sampler(network, scheduler, seed, self.num_steps)
        parameters = sum(p.numel() for p in network.parameters())
        return Trained(steps, parameters, sample, network.save_pretrained)

    def describe(self) -> dict[str, Any]:
        return {"diffusers": asdict(self), "precision": "float32"}


RECIPE = DiffusersLoop(seconds=60)
