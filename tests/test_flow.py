"""Paths that are not variance preserving: flow matching and one's own, against closed forms."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from diffusion_lib import config, interop, metrics, posterior, predictions, rng, runs, schedules
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.oracles import gaussian, gaussian_flow, mixture
from diffusion_lib.samplers import ddim, ddpm, dpm_solver, final, heun
from diffusion_lib.schedules import NoiseSchedule
from tests.helpers import assert_same_run, random_images, tiny

PREDICTIONS = [getattr(predictions, name) for name in predictions.__all__]
MIXTURE = (-0.5, 0.6), (0.1, 0.2), (0.4, 0.6)


def noise(n: int, shape: tuple[int, int, int] = (1, 1, 1)) -> torch.Tensor:
    return rng.normal((n, *shape), rng.generator(0))


def exploding(T: int = 1000) -> NoiseSchedule:
    """A path that never shrinks the image: x_T is normal noise of standard deviation 20."""
    return NoiseSchedule(torch.ones(T + 1), 20 * torch.linspace(0, 1, T + 1) ** 2)


def start(schedule: NoiseSchedule, n: int) -> torch.Tensor:
    return schedule.power[-1].sqrt() * noise(n).double()


# ---- the tables --------------------------------------------------------------------------------


def test_flow_is_the_straight_line():
    schedule = schedules.flow(10)
    signal, noise = schedule(torch.arange(11))
    torch.testing.assert_close(signal.flatten(), 1 - torch.arange(11) / 10)
    torch.testing.assert_close(noise.flatten(), torch.arange(11) / 10)
    assert schedule.betas is None
    assert schedule.describe()["alpha_bar_T"] == 0


@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine, schedules.sigmoid])
@pytest.mark.parametrize("T", [40, 1000, 4000])
def test_the_power_of_a_schedule_of_betas_is_exactly_1(schedule, T):
    assert (schedule(T).power == 1).all()


@pytest.mark.parametrize("make", [schedules.linear, schedules.flow, exploding])
def test_a_schedule_is_made_again_from_its_tables(make):
    schedule = make(50)
    tables = schedule.tables()
    again = NoiseSchedule.from_betas(**tables) if "betas" in tables else NoiseSchedule(**tables)
    for name in ("alpha_bar", "noise_variance", "signal", "noise"):
        assert torch.equal(getattr(again, name), getattr(schedule, name))


@pytest.mark.parametrize(
    ("signal", "noise", "message"),
    [
        ([1.0], [0.0], r"T \+ 1 >= 2 numbers each; got shapes \[1\] and \[1\]"),
        ([1.0, 0.5], [0.0, 0.5, 1.0], r"shapes \[2\] and \[3\]"),
        ([0.9, 0.5], [0.0, 0.5], "starts at the clean image.*got 0.9 and 0"),
        ([1.0, 0.5, 0.6], [0.0, 0.5, 0.5], "must fall at every step.*at t = 2 signal goes from"),
        ([1.0, 0.5, -0.1], [0.0, 0.5, 0.9], "no signal below 0"),
        ([1.0, math.nan, 0.0], [0.0, 0.5, 1.0], "at t = 1"),
        ([1.0, 0.0, 0.0], [0.0, 0.5, 1.0], "no signal is left at t = 1, before the end at T = 2"),
    ],
)
def test_tables_that_are_no_path_to_noise_are_refused(signal, noise, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(torch.tensor(signal), torch.tensor(noise))


@pytest.mark.parametrize("make", [schedules.flow, exploding])
@pytest.mark.parametrize(("t", "s"), [(1000, 999), (700, 300), (2, 1), (1000, 1)])
def test_the_posterior_of_any_flow_is_that_of_bayes(make, t, s):
    """As functions of x_s: N(x_t; step x_s, beta) and N(x_s; signal_s x_0, noise_s^2)."""
    schedule, x_0, x_t = make(), 0.3, -0.8
    (signal_t, noise_t), (signal_s, noise_s) = schedule.scales(t), schedule.scales(s)
    step = signal_t / signal_s
    beta = float(posterior.beta(schedule, t, s))
    assert step**2 * noise_s**2 + beta == pytest.approx(noise_t**2)
    variance = 1 / (step**2 / beta + 1 / noise_s**2)
    assert posterior.beta_tilde(schedule, t, s) == pytest.approx(variance)
    mean = variance * (step * x_t / beta + signal_s * x_0 / noise_s**2)
    assert posterior.x_0_coefficient(schedule, t, s) == pytest.approx(
        variance * signal_s / noise_s**2
    )
    eps = (x_t - signal_t * x_0) / noise_t  # the form in which samplers step
    assert signal_s * x_0 + math.sqrt(noise_s**2 - variance) * eps == pytest.approx(mean, abs=1e-7)


# ---- samplers --------------------------------------------------------------------------------


def test_ddim_on_a_flow_is_eulers_method():
    schedule, x_t = schedules.flow(), noise(50).double()
    denoiser = mixture(schedule, *MIXTURE, predictions.velocity)
    times = schedule.timesteps(20)
    steps = ddim(denoiser, x_t, times)
    for (t, s), step in zip(pairwise(times), steps, strict=True):
        velocity = denoiser.output(x_t, torch.full((50,), t))
        x_t = x_t + (s - t) / 1000 * velocity
        torch.testing.assert_close(step.x_t, x_t, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "sampler", "order"),
    [
        *((schedules.flow, *pair) for pair in ((ddim, 1), (dpm_solver, 2), (heun, 2))),
        *((exploding, *pair) for pair in ((ddim, 1), (heun, 2))),
    ],
)
def test_a_flow_of_a_gaussian_is_followed_at_the_order_of_the_sampler(make, sampler, order):
    """From T / 2 down to T / 8, where the way back is known in closed form."""
    T, mean, std, x_0 = 4000, 0.2, 0.5, noise(50).double()
    schedule = make(T)
    denoiser = gaussian(schedule, mean, std)
    start, end = (gaussian_flow(schedule, mean, std, x_0, t) for t in (T // 2, T // 8))

    def error(num_steps):
        times = [T // 2 - T * 3 // 8 * i // num_steps for i in range(num_steps + 1)]
        states = sampler(denoiser, start, [*times, 0])
        return (next(s.x_t for s in states if s.t == T // 8) - end).abs().mean().item()

    errors = [error(n) for n in (10, 20, 40)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([order, order], abs=0.25)


@pytest.mark.parametrize("make", [schedules.flow, exploding])
@pytest.mark.parametrize("sampler", [ddpm, ddim, dpm_solver, heun])
def test_a_mixture_comes_out_of_any_flow_with_its_shares(make, sampler):
    n, schedule = 4000, make()
    denoiser = mixture(schedule, (-0.7, 0.6), (0.05, 0.1), (0.3, 0.7), predictions.x_0)
    times = schedule.timesteps(200)
    x_0 = final(sampler(denoiser, start(schedule, n), times, generator=rng.generator(1)))
    low = x_0 < 0
    assert low.float().mean().item() == pytest.approx(0.3, abs=0.02 + 4 * (0.21 / n) ** 0.5)
    assert x_0[low].mean().item() == pytest.approx(-0.7, abs=0.02)
    assert x_0[~low].std().item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("sampler", [ddpm, ddim, dpm_solver, heun])
def test_the_trajectory_of_a_flow_does_not_depend_on_the_prediction(sampler):
    """eps apart, which a flow refuses: here its path stops just short of pure noise."""
    times = torch.linspace(0, 0.995, 501, dtype=torch.float64)
    schedule = NoiseSchedule(1 - times, times)
    x_T, grid = noise(20).double(), schedule.timesteps(50)
    ends = [
        final(
            sampler(mixture(schedule, *MIXTURE, prediction), x_T, grid, generator=rng.generator(1))
        )
        for prediction in PREDICTIONS
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], atol=2e-5, rtol=0)


def test_a_flow_at_the_signal_to_noise_ratios_of_a_schedule_gives_the_same_samples():
    """Both follow one path of x / sqrt(power): deterministic samplers cannot tell them apart."""
    linear = schedules.linear(200)
    total = linear.alpha_bar.sqrt() + linear.noise_variance.sqrt()
    straight = NoiseSchedule(linear.alpha_bar.sqrt() / total, linear.noise_variance.sqrt() / total)
    x_T, times = noise(20).double(), linear.timesteps(30)
    for sampler in (ddim, dpm_solver, heun):
        one = final(sampler(mixture(linear, *MIXTURE), x_T, times))
        other = final(sampler(mixture(straight, *MIXTURE), straight.power[-1].sqrt() * x_T, times))
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


class Wave(nn.Module):
    def forward(self, x_t, index):
        return torch.sin(3 * x_t) + 0.1 * torch.cos(index / 100)[:, None, None, None]


def test_ddim_on_a_flow_agrees_with_diffusers_flow_matching():
    scheduler = FlowMatchEulerDiscreteScheduler(1000)
    times = schedules.flow().timesteps(25)
    scheduler.set_timesteps(sigmas=[t / 1000 for t in times[:-1]])
    x_t = x_T = noise(4, (1, 4, 4))
    for t, time in zip(scheduler.timesteps, times, strict=False):
        assert t == pytest.approx(time)  # diffusers counts from 1 here, too
        output = Wave()(x_t, torch.full((4,), time - 1))
        x_t = scheduler.step(output, t, x_t).prev_sample
    denoiser = Denoiser(Wave(), schedules.flow(), predictions.velocity, clip=None)
    torch.testing.assert_close(final(ddim(denoiser, x_T, times)), x_t, atol=1e-5, rtol=0)


# ---- likelihood --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [schedules.linear, schedules.flow, exploding])
def test_bits_of_a_gaussian_reach_its_density_on_any_flow(make):
    mean, std = 0.1, 0.25
    images = (mean + std * noise(200, (1, 4, 4))).mul(127.5).add(127.5).round().clamp(0, 255)
    images = images.to(torch.uint8)
    density = torch.distributions.Normal(mean, std).log_prob(images.double() / 127.5 - 1)
    exact = -density.mean().item() / math.log(2) + math.log2(127.5)
    denoiser = gaussian(make(), mean, std, predictions.x_0)
    assert metrics.ode_bits_per_dim(denoiser, images, 100).mean == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("make", [schedules.linear, schedules.flow, exploding])
def test_the_terms_of_the_bound_have_their_closed_form_on_any_flow(make):
    """With E[x_0 | x_t] the KL of a step is coefficient^2 / beta_tilde times Var[x_0 | x_t] / 2."""
    schedule, mean, std = make(30), 0.1, 0.25
    images = (mean + std * noise(2000, (1, 4, 4))).mul(127.5).add(127.5).round().clamp(0, 255)
    images = images.to(torch.uint8)
    bound = metrics.bits_per_dim(gaussian(schedule, mean, std, predictions.x_0), images)
    for t, term in zip(bound.times, bound.L_t, strict=True):
        signal, noise_t = schedule.scales(int(t))
        left = std**2 * noise_t**2 / (signal**2 * std**2 + noise_t**2)
        shift = posterior.x_0_coefficient(schedule, int(t), int(t) - 1) ** 2 * left
        nats = float(shift / posterior.beta_tilde(schedule, int(t), int(t) - 1) / 2)
        assert term * math.log(2) == pytest.approx(nats, rel=0.05)
    signal, noise_T = schedule.scales(30)
    variance, square = noise_T**2 / (signal**2 + noise_T**2), mean**2 + std**2
    nats = ((1 - variance) * square + variance - 1 - math.log(variance)) / 2
    assert bound.L_T * math.log(2) == pytest.approx(nats, rel=0.05, abs=1e-12)


# ---- the rest of the library -------------------------------------------------------------------


def test_a_flow_trains_resumes_is_saved_and_sampled(tmp_path):
    experiment = replace(
        tiny(config.smoke(config.MNIST)),
        schedule=schedules.flow,
        prediction=predictions.velocity,
        T=100,
    )
    assert config.Experiment.from_json(experiment.to_json()) == experiment
    images, held_out = random_images(40, 1, 28, 28), random_images(8, 1, 28, 28)
    short = replace(experiment, train=replace(experiment.train, num_steps=2))
    runs.train(short, images, held_out, tmp_path / "short")
    resumed = runs.train(
        experiment, images, held_out, tmp_path / "resumed", None, tmp_path / "short"
    )
    runs.train(experiment, images, held_out, tmp_path / "whole")
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")
    loaded = runs.load(tmp_path / "resumed")
    assert torch.equal(loaded.denoiser.schedule.noise_variance, schedules.flow(100).noise_variance)
    assert loaded.denoiser.prediction is predictions.velocity
    one, other = (runs.sample(run, 3, sampler=heun, num_steps=4) for run in (resumed, loaded))
    assert torch.equal(one, other)
    denoiser = Denoiser(loaded.denoiser.network, schedules.flow(100), predictions.v)
    with pytest.raises(ValueError, match="takes betas, and this schedule has none"):
        interop.to_diffusers(denoiser, tmp_path / "export")
    with pytest.raises(ValueError, match="no image follows from eps"):
        replace(experiment, prediction=predictions.eps).build()
