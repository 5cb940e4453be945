import pytest
import torch

from diffusion_lib import rng


def test_a_key_always_gives_the_same_numbers_and_another_key_others():
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]
    draws = [torch.randn(4, generator=rng.generator(*key)) for key in keys]
    again = [torch.randn(4, generator=rng.generator(*key)) for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)


def test_seeds_of_neighbouring_steps_are_unrelated():
    """torch's CPU generator keeps 32 bits of a seed; all of them must change from step to step."""
    seeds = [rng.seed(0, step) for step in range(1000)]
    assert len(set(seeds)) == 1000
    first = torch.stack([torch.randn(50, generator=rng.generator(0, s)) for s in range(200)])
    neighbours = (first[1:] * first[:-1]).mean()
    assert abs(neighbours) < 0.04  # 4 standard errors


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="must not be negative; got -3"):
        rng.generator(-3)


def test_image_i_does_not_depend_on_how_many_there_are():
    ten = rng.normal((10, 1, 5, 5), rng.per_image(7, 10))
    last = rng.normal((3, 1, 5, 5), rng.per_image(7, 3, first=7))
    assert torch.equal(ten[7:], last)
    assert abs(ten.mean()) < 4 / 250**0.5


def test_as_many_generators_as_images_are_needed():
    with pytest.raises(ValueError, match="3 generators for 4 images"):
        rng.normal((4, 1, 2, 2), rng.per_image(0, 3))
