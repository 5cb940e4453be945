"""A plain loop around diffusers' DDPM, and the one that diffusers itself gives as an example."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speedrun import Trained
from diffusion_lib import data, rng
from diffusion_lib.data import Images


def updates(
    network: nn.Module,
    scheduler: Any,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Tensor],
    seconds: float,
) -> Iterator[float]:
    """Train a network to predict eps, and yield the seconds so far after each update.

    Args:
        network: diffusers' UNet2DModel, changed in place.
        scheduler: diffusers' DDPMScheduler.
        optimizer: optimizer of the network's parameters.
        batches: x_0 [B, C, H, W] in [-1, 1].
        seconds: time after which no update begins.
    """
    clock = time.perf_counter()
    for x_0 in batches:
        t, eps = torch.randint(0, 1000, (len(x_0),)), torch.randn_like(x_0)
        loss = F.mse_loss(network(scheduler.add_noise(x_0, eps, t), t).sample, eps)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield (elapsed := time.perf_counter() - clock)
        if elapsed > seconds:
            return


def sampler(
    network: nn.Module, scheduler: Any, seed: int, num_steps: int
) -> Callable[[int], Tensor]:
    """Make the function from n to samples of diffusers' DDPMPipeline, uint8 [n, C, H, W]."""
    from diffusers import DDPMPipeline  # pyright: ignore[reportPrivateImportUsage]

    pipeline: Any = DDPMPipeline(network, scheduler)  # pyright: ignore[reportArgumentType]
    pipeline.set_progress_bar_config(disable=True)

    def sample(n: int) -> Tensor:
        parts = [
            pipeline(size, rng.generator(seed, k), num_steps, output_type="np").images
            for k, size in enumerate(len(part) for part in torch.arange(n).split(125))
        ]
        images = torch.cat([torch.from_numpy(part).permute(0, 3, 1, 2) for part in parts])
        return (images * 255).round().to(torch.uint8)

    return sample


@dataclass(frozen=True)
class DiffusersExample:
    """diffusers' examples/unconditional_image_generation with the command of its README.

    Network, DDPMScheduler, AdamW and clipping are train_unconditional.py's, the batch of 16, mirror
    images, float32 and the moving average (at most 0.9999, with warm-up of power 3/4) its
    README's.  Three things differ.  The learning rate falls to 0 by a cosine of the time, as the
    number of steps is not known.  Its warm-up ends after 500 steps or, which favors the loop on a
    slow machine, a tenth of the time.  And samples take `num_steps`, not 1,000.

    Args:
        seconds: length of the loop.
        num_steps: number of sampling steps.
        widths: channels of each level; the last but one has attention.
        batch_size: number of images in a batch.
    """

    seconds: float = 0.0
    num_steps: int = 50
    widths: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    batch_size: int = 16

    def train(self, images: Images, seed: int) -> Trained:
        from diffusion_lib.system import torchvision  # noqa: F401  (diffusers imports it too)

        from diffusers import (  # isort: skip
            DDPMScheduler,  # pyright: ignore[reportPrivateImportUsage]
            UNet2DModel,  # pyright: ignore[reportPrivateImportUsage]
        )
        from diffusers.training_utils import EMAModel

        torch.manual_seed(seed)
        channels, size, _ = images.images.shape[1:]
        kinds = ["Down"] * (len(self.widths) - 2) + ["AttnDown", "Down"]
        network = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=2,
            block_out_channels=self.widths,
            down_block_types=tuple(f"{kind}Block2D" for kind in kinds),
            up_block_types=tuple(f"{kind[:-4]}UpBlock2D" for kind in kinds[::-1]),
        )
        scheduler = DDPMScheduler()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        share, steps = 0.0, 0  # of the time, and updates
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: (
                min(1, max(step / 500, 10 * share)) * (1 + math.cos(math.pi * min(1, share))) / 2
            ),
        )
        average = EMAModel(
            network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4
        )
        batches = data.batches(images.images, self.batch_size, seed, mirror=0.5)
        for elapsed in updates(network, scheduler, optimizer, batches, self.seconds):
            share, steps = elapsed / self.seconds, steps + 1
            rate.step()
            average.step(network.parameters())
        average.copy_to(network.parameters())
        sample = sampler(network, scheduler, seed, self.num_steps)
        parameters = sum(p.numel() for p in network.parameters())
        return Trained(steps, parameters, sample, network.save_pretrained)

    def load(self, path: Path, seed: int) -> Callable[[int], Tensor]:
        """Make the function from n to samples of a network that `Trained.save` wrote."""
        from diffusion_lib.system import torchvision  # noqa: F401  (diffusers imports it too)

        from diffusers import (  # isort: skip
            DDPMScheduler,  # pyright: ignore[reportPrivateImportUsage]
            UNet2DModel,  # pyright: ignore[reportPrivateImportUsage]
        )

        network = UNet2DModel.from_pretrained(path)
        return sampler(network, DDPMScheduler(), seed, self.num_steps)

    def describe(self) -> dict[str, Any]:
        example = {"num_steps": self.num_steps, "widths": [*self.widths], "batch": self.batch_size}
        return {"diffusers' example": example, "precision": "float32"}
