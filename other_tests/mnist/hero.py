"""Draw the README's first picture: ten digits, two of each, that come out of noise as asked for.

    python -m other_tests.mnist.hero

Samples `runs.released("mnist_labels")` and writes assets/hero.png, an animation.
"""

import torch

from diffusion_lib import config, rng, runs, samplers, viz
from diffusion_lib.guidance import guided
from other_tests import common

OUT = common.ASSETS / "hero.png"
ROWS, STEPS, GUIDANCE = 2, 100, 1.5


def main() -> None:
    run = runs.released("mnist_labels")
    labels = torch.arange(10).repeat(ROWS)
    generators = rng.per_image(0, len(labels))
    x_T = rng.normal((len(labels), *run.image_shape), generators, config.device())
    denoiser = guided(run.denoiser, labels, GUIDANCE)
    times = denoiser.schedule.timesteps(STEPS)
    steps = samplers.ddpm(denoiser, x_T, times, generator=generators)
    picture = viz.animate([*steps], frames=24, columns=10, scale=3).data
    assert isinstance(picture, bytes)
    OUT.write_bytes(picture)
    print(OUT)


if __name__ == "__main__":
    main()
