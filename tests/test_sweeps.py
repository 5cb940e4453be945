"""The sweeps of samplers in few steps and of scales of guidance."""

import pytest
import torch

from diffusion_lib import data, metrics, rng, samplers, schedules
from diffusion_lib.denoiser import Denoised
from diffusion_lib.metrics import features
from diffusion_lib.metrics.features import ClassifierOutput
from other_tests.mnist import few_steps, guidance


class Greys(torch.nn.Module):
    """Describe an image by its mean and a pixel, and be sure of what is bright."""

    def extract_features(self, images):
        x = images.double().flatten(1) / 255
        probabilities = torch.stack([x.mean(1), 1 - x.mean(1)], 1)
        return ClassifierOutput(torch.stack([x.mean(1), x[:, 0]], 1), probabilities)


class Half:
    """A denoiser that takes half of x_t for the image."""

    schedule = schedules.cosine(100)

    def __call__(self, x_t, t):
        signal, noise = self.schedule(t)
        return Denoised(x_t / 2, (x_t - signal * x_t / 2) / noise)


@pytest.mark.slow
def test_a_sweep_counts_evaluations_and_measures_what_was_drawn():
    denoiser = Half()
    drawn = []

    def sample(sampler, num_steps):
        x_T = rng.normal((30, 1, 4, 4), rng.generator(num_steps))
        timesteps = denoiser.schedule.timesteps(num_steps)
        parts = [samplers.final(sampler(denoiser, part, timesteps)) for part in x_T.split(20)]
        drawn.append(data.to_uint8(torch.cat(parts)))
        return drawn[-1]

    reference = Greys().extract_features(data.to_uint8(rng.normal((40, 1, 4, 4), rng.generator(5))))
    ways = {"few": samplers.ddim, "many": samplers.heun}
    rows = few_steps.sweep(sample, ways, [2, 5], Greys(), reference)
    costs = [(row["sampler"], row["steps"], row["evaluations"]) for row in rows]
    assert costs == [("few", 2, 2), ("few", 5, 5), ("many", 2, 3), ("many", 5, 9)]
    assert all(row["seconds"] > 0 for row in rows)
    for row, images in zip(rows, drawn, strict=True):
        expected = metrics.quality(Greys().extract_features(images), reference)
        assert {name: [*value] for name, value in expected.items()}.items() <= row.items()


@pytest.mark.slow
def test_a_sweep_of_guidance_has_a_row_for_each_scale():
    network = features.load("mnist")
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 1, 28, 28), dtype=torch.uint8, generator=g)
    labels = torch.arange(80) % 10
    scales = []

    def sample(scale):
        scales.append(scale)
        return images

    classes = torch.nn.functional.one_hot(torch.arange(200) % 10, 10).double()
    reference = ClassifierOutput(torch.randn(200, 64, generator=g).double(), classes)
    rows = guidance.sweep(sample, [1.0, 3.0], labels, network, reference)
    assert scales == [row["scale"] for row in rows] == [1.0, 3.0]
    right = network.extract_features(images).probabilities.argmax(1) == labels
    assert rows[0]["accuracy"][0] == pytest.approx(float(right.double().mean()))
    assert {"accuracy", "spread", "recall", "Frechet distance"} <= rows[0].keys()
