"""How far are the images of a GPU from those of a CPU, seed by seed?

    python -m benchmarks.same_images

A small U-Net that predicts v is trained on smooth random images for a few hundred steps on the
device, and then samples there and on the CPU.  The noise of an image is drawn on the CPU in any
case, so what differs is rounding.  On a GPU convolutions in float32 round their inputs to ten bits
(TF32) unless they are told not to.  Writes same_images.json beside itself, or same_images-gpu.json.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import common
from diffusion_lib import data, rng, runs, samplers, viz
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.system import device as hardware

SAMPLERS = (samplers.ddim, samplers.ddpm)
IMAGES, TRAINING_STEPS, SAMPLING_STEPS = 16, 300, 50


def main() -> None:
    device = torch.device(common.options(__doc__).device)
    denoiser = trained(device)
    cpu = sampled(deepcopy(denoiser).to("cpu"), "float32")
    ways = {"float32": sampled(denoiser, "float32"), "bfloat16": sampled(denoiser, "bfloat16")}
    torch.backends.cudnn.allow_tf32 = False
    ways["float32, no TF32"] = sampled(denoiser, "float32")
    differences: dict[str, dict[str, Any]] = {}
    for name, images in ways.items():
        for sampler, own, reference in zip(SAMPLERS, images, cpu, strict=True):
            levels = (own.int() - reference.int()).abs()
            differences[f"{sampler.__name__}, {name}"] = {
                "largest": int(levels.max()),
                "mean": round(float(levels.float().mean()), 4),
                "share of pixels that differ": round(float((levels > 0).float().mean()), 4),
            }
    record = common.machine(device) | {
        "n": IMAGES,
        "steps of the training": TRAINING_STEPS,
        "steps of the sampler": SAMPLING_STEPS,
        "difference from the CPU in float32, in levels of 255": differences,
    }
    common.write("same_images", device, record)


def trained(device: torch.device) -> Denoiser:
    """Train the preset's network on the device."""
    shape = common.MNIST_ADAMW_V.network.image_shape
    coarse = rng.normal((2000, shape[0], 4, 4), rng.generator(0))
    images = data.to_uint8(F.interpolate(coarse, shape[1:], mode="bicubic").clamp(-1, 1))
    train = replace(common.MNIST_ADAMW_V.train, num_steps=TRAINING_STEPS, warmup_steps=30)
    trainer = replace(common.MNIST_ADAMW_V, train=train).trainer(device)
    for _ in viz.progress(trainer.run(images), TRAINING_STEPS, "training"):
        pass
    return trainer.ema


def sampled(denoiser: Denoiser, precision: str) -> list[torch.Tensor]:
    """Sample the same images with every sampler."""
    with hardware.overridden(precision=precision):
        return [
            runs.sample(denoiser, IMAGES, 0, sampler, SAMPLING_STEPS, IMAGES)
            for sampler in SAMPLERS
        ]


if __name__ == "__main__":
    main()
