import math

import pytest
import torch
from diffusers import DDPMScheduler

from diffusion_lib import posterior, schedules
from diffusion_lib.schedules import NoiseSchedule

SCHEDULES = {"linear": schedules.linear, "squaredcos_cap_v2": schedules.cosine}
T = torch.arange(1, 1001)


def exact(theirs, **options):
    """diffusers' scheduler with its own betas, but tables in float64 as ours.

    Its float32 `1 - alphas_cumprod` is off by 3e-4 at the first steps of the cosine schedule.
    """
    scheduler = DDPMScheduler(1000, beta_schedule=theirs, **options)
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = scheduler.one.double()
    return scheduler


@pytest.mark.parametrize("theirs", SCHEDULES)
def test_alpha_bar_agrees_with_diffusers_at_every_t(theirs):
    found = SCHEDULES[theirs]().alpha_bar[1:]
    torch.testing.assert_close(found, exact(theirs).alphas_cumprod, atol=1e-6, rtol=0)


@pytest.mark.parametrize("theirs", SCHEDULES)
@pytest.mark.parametrize(
    ("variance", "name"), [(posterior.beta_tilde, "fixed_small"), (posterior.beta, "fixed_large")]
)
def test_the_fixed_variances_agree_with_diffusers_at_every_t(theirs, variance, name):
    scheduler = exact(theirs, variance_type=name)
    expected = torch.stack([scheduler._get_variance(t) for t in range(1, 1000)])
    found = variance(SCHEDULES[theirs](), T[1:], T[1:] - 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("theirs", SCHEDULES)
def test_the_learned_range_agrees_with_diffusers_at_every_t(theirs):
    """But for t = 1, where diffusers takes log(1e-20) and Ho the second step's beta_tilde."""
    scheduler = exact(theirs, variance_type="learned_range")
    share = torch.tensor([0.0, 0.3, 1.0]).double()
    expected = torch.stack([scheduler._get_variance(t, 2 * share - 1) for t in range(1, 1000)])
    low, high = posterior.log_range(SCHEDULES[theirs](), T[1:], T[1:] - 1)
    found = low[:, None] + share * (high - low)[:, None]
    torch.testing.assert_close(found.exp(), expected.exp(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("theirs", SCHEDULES)
def test_the_posterior_mean_agrees_with_diffusers_at_every_t(theirs):
    """diffusers' step with the noise it adds taken away, for a prediction of x_0."""
    scheduler = exact(theirs, prediction_type="sample", clip_sample=False)
    schedule, x_t, x_0 = (
        SCHEDULES[theirs](),
        torch.full((1, 1), 0.7).double(),
        torch.full((1, 1), -0.4).double(),
    )
    for t in range(1, 1001):
        generator = torch.Generator().manual_seed(t)
        step = scheduler.step(x_0, t - 1, x_t, generator=generator).prev_sample
        deviation = float(posterior.beta_tilde(schedule, t, t - 1)) ** 0.5
        again = torch.Generator().manual_seed(t)
        z = torch.randn(1, 1, generator=again, dtype=torch.float64)
        a_t, a_s = schedule.alpha_bar[[t, t - 1]].tolist()
        of_x_0 = float(posterior.x_0_coefficient(schedule, t, t - 1))
        of_x_t = math.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t)
        mean = of_x_0 * x_0 + of_x_t * x_t
        torch.testing.assert_close(mean + deviation * z, step, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variance", [posterior.beta, posterior.beta_tilde])
def test_the_first_log_variance_is_that_of_hos_code(variance):
    schedule = schedules.linear()
    assert variance(schedule, 1, 0) == 0
    second = posterior.beta_tilde(schedule, 2, 1).log()
    assert posterior.log_variance(schedule, 1, 0, variance) == second
    times = torch.tensor([1, 2, 500])
    found = posterior.log_variance(schedule, times, times - 1, variance)
    assert found[0] == second
    torch.testing.assert_close(found[1:], variance(schedule, times[1:], times[1:] - 1).log())


def test_a_single_step_has_a_finite_log_variance():
    found = posterior.log_variance(NoiseSchedule.from_betas(torch.tensor([0.4])), 1, 0)
    assert found.item() == pytest.approx(math.log(0.4))


def test_a_stride_has_the_variance_of_its_steps_together():
    schedule = schedules.cosine()
    expected = 1 - (1 - schedule.betas[480:500]).prod()
    torch.testing.assert_close(posterior.beta(schedule, 500, 480), expected)
