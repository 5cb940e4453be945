"""The flow of the data's Gaussian, against closed forms."""

import pytest
import torch

from diffusion_lib import data, editing, oracles, rng, samplers, schedules
from diffusion_lib.late_start import LateStart

MEAN, STD = 0.2, 0.3


@pytest.fixture(scope="module")
def start():
    """Of independent pixels: 8,000 images of 2 x 2."""
    x_0 = MEAN + STD * rng.normal((8000, 1, 2, 2), rng.generator(0))
    return LateStart(data.to_uint8(x_0))


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.flow])
@pytest.mark.parametrize("t", [1, 30, 60, 99])
def test_of_independent_pixels_it_is_their_flow(start, make, t):
    schedule, x_0 = make(100), MEAN + STD * rng.normal((50, 1, 2, 2), rng.generator(1))
    x_T, expected = (
        oracles.gaussian_flow(schedule, MEAN, STD, x_0, time)
        for time in (schedule.num_timesteps, t)
    )
    torch.testing.assert_close(start(schedule, t, x_T), expected, atol=0.02, rtol=0.02)


def test_at_T_nothing_has_happened(start):
    x_T = rng.normal((3, 1, 2, 2), rng.generator(2))
    torch.testing.assert_close(start(schedules.linear(100), 100, x_T), x_T)


def test_states_have_the_covariance_of_noised_images():
    """Along one diagonal the images vary, along the other they do not."""
    a = rng.normal((9000, 1), rng.generator(3)) * 0.3
    x_0 = torch.cat([a, a], 1)[:, None, None]
    schedule, t = schedules.cosine(100), 50
    x_T = rng.normal((20_000, 1, 1, 2), rng.generator(4))
    x_t = LateStart(data.to_uint8(x_0))(schedule, t, x_T).flatten(1)
    signal, noise = schedule.scales(t)
    expected = signal**2 * 0.09 * torch.ones(2, 2) + noise**2 * torch.eye(2)
    torch.testing.assert_close(x_t.T.cov(), expected, atol=0.02, rtol=0.02)


def test_a_late_start_ends_where_all_steps_do(start):
    schedule = schedules.cosine(100)
    denoiser = oracles.gaussian(schedule, MEAN, STD)
    x_T = rng.normal((20, 1, 2, 2), rng.generator(5))
    times = schedule.timesteps(100)
    whole = samplers.final(samplers.heun(denoiser, x_T, times))
    x_t = start(schedule, 40, x_T)
    late = samplers.final(editing.reconstruct(denoiser, x_t, 40, times, samplers.heun))
    torch.testing.assert_close(late, whole, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("t", "size"), [(-1, 2), (101, 2), (50, 3)])
def test_other_times_and_shapes_are_refused(start, t, size):
    with pytest.raises(ValueError, match=r"0\.\.100, and x_T have 4 numbers"):
        start(schedules.linear(100), t, torch.zeros(2, 1, size, size))
