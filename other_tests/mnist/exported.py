"""Sample an exported run of MNIST with diffusers' own pipeline.

    python -m other_tests.mnist.exported runs/NAME

Exports the run, loads it with `DDPMPipeline.from_pretrained`, and draws 64 digits in all T steps.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from diffusion_lib import interop, rng, runs, viz
from other_tests import common

OUT = common.ASSETS / "diffusers-mnist.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", help="folder of a run that can be exported")
    options = parser.parse_args()
    run = runs.load(options.run)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "exported"
        interop.to_diffusers(run.denoiser, folder)
        from diffusers import DDPMPipeline  # pyright: ignore[reportPrivateImportUsage]

        pipeline: Any = DDPMPipeline.from_pretrained(folder)
    T = run.denoiser.schedule.num_timesteps
    pixels = pipeline(64, rng.generator(0), num_inference_steps=T, output_type="np").images
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)
    viz.grid(images).save(OUT)


if __name__ == "__main__":
    main()
