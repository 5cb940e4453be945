"""The baseline: a plain loop with diffusers' network and scheduler, 60 seconds of steps.

float32, AdamW with a constant rate of 1e-4, no moving average, no labels: what its tutorial does.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speedrun import Trained
from diffusion_lib import data, rng
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
            DDPMPipeline,  # pyright: ignore[reportPrivateImportUsage]
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
        scheduler: Any = DDPMScheduler()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        clock, steps = time.perf_counter(), 0
        for x_0 in data.batches(images.images, 64, seed):
            t, eps = torch.randint(0, 1000, (64,)), torch.randn_like(x_0)
            loss = F.mse_loss(network(scheduler.add_noise(x_0, eps, t), t).sample, eps)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if time.perf_counter() - clock > self.seconds:
                break
        pipeline: Any = DDPMPipeline(network, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        sample = self._sampler(pipeline, seed)
        return Trained(steps, sum(p.numel() for p in network.parameters()), sample)

    def _sampler(self, pipeline: Any, seed: int) -> Callable[[int], Tensor]:
        def sample(n: int) -> Tensor:
            parts = [
                pipeline(size, rng.generator(seed, k), self.num_steps, output_type="np").images
                for k, size in enumerate(len(part) for part in torch.arange(n).split(125))
            ]
            images = torch.cat([torch.from_numpy(part).permute(0, 3, 1, 2) for part in parts])
            return (images * 255).round().to(torch.uint8)

        return sample

    def describe(self) -> dict[str, Any]:
        return {"diffusers": asdict(self), "precision": "float32"}


RECIPE = DiffusersLoop(seconds=60)
