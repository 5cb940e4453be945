"""Samplers against closed forms and against diffusers."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

from diffusion_lib import predictions, rng, samplers, schedules
from diffusion_lib.denoiser import Denoised, Denoiser
from diffusion_lib.oracles import gaussian, mixture
from diffusion_lib.samplers import ddim, ddpm, dpm_solver, final, heun

PREDICTIONS = [getattr(predictions, name) for name in predictions.__all__]
SAMPLERS = [getattr(samplers, name) for name in samplers.__all__]


def noise(n: int, seed: int = 0, shape: tuple[int, int, int] = (1, 1, 1)) -> torch.Tensor:
    return rng.normal((n, *shape), rng.generator(seed))


# ---- the moments of known data -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize(
    ("run", "tolerance"),
    [
        (lambda d, x, g: ddpm(d, x, generator=g), 0.01),
        (lambda d, x, g: ddpm(d, x, variance=samplers.beta, generator=g), 0.01),
        (lambda d, x, g: ddim(d, x, range(1000, -1, -1)), 0.01),
        (lambda d, x, g: ddim(d, x, range(1000, -1, -1), eta=0.5, generator=g), 0.01),
        (lambda d, x, g: ddpm(d, x, d.schedule.timesteps(250), generator=g), 0.03),
        (lambda d, x, g: dpm_solver(d, x, d.schedule.timesteps(50)), 0.01),
        (lambda d, x, g: heun(d, x, d.schedule.timesteps(50)), 0.01),
    ],
    ids=["ddpm", "ddpm beta", "ddim", "ddim eta=0.5", "ddpm 250 steps", "dpm_solver", "heun"],
)
def test_a_gaussian_comes_out_with_its_mean_and_deviation(schedule, run, tolerance):
    n, mean, std = 6_000, 0.4, 0.5
    x_0 = final(run(gaussian(schedule(), mean, std), noise(n), rng.generator(1)))
    assert x_0.mean().item() == pytest.approx(mean, abs=tolerance + 4 * std / n**0.5)
    assert x_0.std().item() == pytest.approx(std, abs=tolerance + 4 * std / (2 * n) ** 0.5)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("T", [1000, 4000])
def test_a_schedule_that_ends_without_signal_gives_the_same_moments(sampler, T):
    n, mean, std = 4000, 0.4, 0.3
    denoiser = gaussian(schedules.zero_terminal(schedules.linear(T)), mean, std, predictions.v)
    times = denoiser.schedule.timesteps(200)
    x_0 = final(sampler(denoiser, noise(n), times, generator=rng.generator(1)))
    assert x_0.mean().item() == pytest.approx(mean, abs=0.01 + 4 * std / n**0.5)
    assert x_0.std().item() == pytest.approx(std, abs=0.03 + 4 * std / (2 * n) ** 0.5)


def test_strided_ddim_of_a_gaussian_has_its_closed_form():
    """For N(0, std^2) every deterministic step is linear: the product of the gains is known."""
    schedule, std, times = schedules.linear(), 0.3, schedules.linear().timesteps(20)
    gain = 1.0
    for t, s in pairwise(times):
        a_t, a_s = schedule.alpha_bar[[t, s]].tolist()
        variance = a_t * std**2 + 1 - a_t
        to_x_0, to_eps = math.sqrt(a_t) * std**2 / variance, math.sqrt(1 - a_t) / variance
        gain *= math.sqrt(a_s) * to_x_0 + math.sqrt(1 - a_s) * to_eps
    x_T = noise(50)
    torch.testing.assert_close(
        final(ddim(gaussian(schedule, 0.0, std), x_T, times)), gain * x_T, atol=1e-5, rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mixture_comes_out_with_its_shares(sampler):
    n = 8000
    denoiser = mixture(schedules.cosine(), (-0.7, 0.6), (0.05, 0.1), (0.3, 0.7))
    times = denoiser.schedule.timesteps(500)
    x_0 = final(sampler(denoiser, noise(n), times, generator=rng.generator(1)))
    low = x_0 < 0
    assert low.float().mean().item() == pytest.approx(0.3, abs=0.01 + 4 * (0.21 / n) ** 0.5)
    assert x_0[low].mean().item() == pytest.approx(-0.7, abs=0.01)
    assert x_0[~low].mean().item() == pytest.approx(0.6, abs=0.01)
    assert x_0[low].std().item() == pytest.approx(0.05, abs=0.01)
    assert x_0[~low].std().item() == pytest.approx(0.1, abs=0.01)


# ---- the algebra of one step ---------------------------------------------------------------


class Fixed(nn.Module):
    """A denoiser that always answers x_0."""

    def __init__(self, schedule, x_0):
        super().__init__()
        self.schedule, self.x_0 = schedule, x_0

    def forward(self, x_t, t):
        signal, noise = self.schedule(t)
        return Denoised(self.x_0, (x_t - signal * self.x_0) / noise)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver, 2), (heun, 2)])
def test_the_error_falls_at_the_order_of_the_sampler(schedule, sampler, order):
    """Down to t = T / 8, as the last step to 0 is DDIM's in all of them, whatever came before."""
    T, x_T = 4000, noise(100).double()
    denoiser = mixture(schedule(T), (-0.5, 0.6), (0.3, 0.2), (0.4, 0.6))

    def state(run, num_steps):
        times = [T - T * 7 // 8 * i // num_steps for i in range(num_steps + 1)]
        return next(step.x_t for step in run(denoiser, x_T, [*times, 0]) if step.t == T // 8)

    exact = state(heun, 1750)
    errors = [(state(sampler, n) - exact).abs().mean() for n in (20, 40, 80)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == pytest.approx([order, order], abs=0.2)


@pytest.mark.parametrize(("t", "s"), [(1000, 999), (500, 480), (2, 1), (800, 0)])
def test_eta_1_is_the_posterior_of_bayes(t, s):
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): multiply the two normals."""
    schedule, n, x_0, x_t = schedules.linear(), 40_000, 0.3, -0.8
    a_t, a_s = schedule.alpha_bar[[t, s]].tolist()
    step = a_t / a_s
    # As functions of x_s: N(x_t; sqrt(step) x_s, 1 - step) and N(x_s; sqrt(a_s) x_0, 1 - a_s).
    if s == 0:
        mean, variance = x_0, 0.0
    else:
        precision = step / (1 - step) + 1 / (1 - a_s)
        mean = (step**0.5 * x_t / (1 - step) + a_s**0.5 * x_0 / (1 - a_s)) / precision
        variance = 1 / precision
    denoiser = Fixed(schedule, torch.full((n, 1, 1, 1), x_0))
    start = torch.full((n, 1, 1, 1), x_t)
    first = next(ddim(denoiser, start, [t, s, 0] if s else [t, 0], 1.0, rng.generator(0)))
    assert first.x_t.mean().item() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5 + 1e-6)
    assert first.x_t.var().item() == pytest.approx(variance, rel=0.03, abs=1e-10)
    assert samplers.beta_tilde(schedule, t, s) == pytest.approx(variance, rel=1e-9)


def test_beta_is_the_variance_of_a_step_forward():
    schedule = schedules.linear()
    assert samplers.beta(schedule, 500, 499) == pytest.approx(float(schedule.betas[499]))
    skipped = 1 - (1 - schedule.betas[480:500]).prod()
    assert samplers.beta(schedule, 500, 480) == pytest.approx(float(skipped))
    assert samplers.beta(schedule, 1, 0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1000, 100, 7])
def test_ddim_with_eta_1_is_ddpm(num_steps):
    denoiser = mixture(schedules.linear(), (-0.5, 0.5), (0.1, 0.2), (0.5, 0.5))
    times, x_T = denoiser.schedule.timesteps(num_steps), noise(10)
    one = final(ddim(denoiser, x_T, times, eta=1.0, generator=rng.generator(5)))
    other = final(ddpm(denoiser, x_T, times, generator=rng.generator(5)))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_trajectory_does_not_depend_on_the_prediction_type(schedule, sampler):
    s, x_T = schedule(), noise(20)
    ends = [
        final(
            sampler(
                mixture(s, (-0.5, 0.6), (0.1, 0.2), (0.4, 0.6), prediction),
                x_T,
                s.timesteps(100),
                generator=rng.generator(2),
            )
        )
        for prediction in PREDICTIONS
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], atol=1e-5, rtol=0)


# ---- agreement with diffusers --------------------------------------------------------------


class Wave(nn.Module):
    """A network that is neither trained nor trivial."""

    def forward(self, x_t, index):
        return torch.sin(3 * x_t) + 0.1 * torch.cos(index / 100)[:, None, None, None]


DIFFUSERS = {predictions.eps: "epsilon", predictions.x_0: "sample", predictions.v: "v_prediction"}
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def diffusers_trajectory(scheduler, schedule, x_t, **arguments):
    # Its own table is a float32 product, off by 1e-4 in noise_1; here the algebra is compared.
    scheduler.alphas_cumprod = schedule.alpha_bar[1:]
    for index in scheduler.timesteps:
        output = Wave()(x_t, index.expand(len(x_t)))
        x_t = scheduler.step(output, index, x_t, **arguments).prev_sample
    return x_t


@pytest.mark.slow
@pytest.mark.parametrize("prediction", DIFFUSERS)
@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize(
    ("variance", "name"),
    [(samplers.beta_tilde, "fixed_small"), (samplers.beta, "fixed_large")],
    ids=["beta_tilde", "beta"],
)
def test_ddpm_agrees_with_diffusers(prediction, schedule, variance, name):
    scheduler = DDPMScheduler(
        1000,
        beta_schedule=BETAS[schedule.__name__],
        variance_type=name,
        prediction_type=DIFFUSERS[prediction],
        clip_sample=True,
    )
    scheduler.set_timesteps(1000)
    x_T = noise(4, shape=(1, 4, 4))
    denoiser = Denoiser(Wave(), schedule(), prediction)
    expected = diffusers_trajectory(scheduler, denoiser.schedule, x_T, generator=rng.generator(9))
    actual = final(ddpm(denoiser, x_T, variance=variance, generator=rng.generator(9)))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


class WaveWithVariance(Wave):
    """Its second output is a share of the log-variance, inside and outside of [-1, 1]."""

    def forward(self, x_t, index):
        return torch.cat([super().forward(x_t, index), 1.2 * torch.sin(5 * x_t)], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize("num_steps", [1000, 50])
def test_a_learned_variance_agrees_with_diffusers(schedule, num_steps):
    scheduler = DDPMScheduler(
        1000,
        beta_schedule=BETAS[schedule.__name__],
        variance_type="learned_range",
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(num_steps)
    x_t = x_T = noise(4, shape=(1, 4, 4))
    denoiser = Denoiser(WaveWithVariance(), schedule())
    scheduler.alphas_cumprod = denoiser.schedule.alpha_bar[1:]
    generator = rng.generator(9)
    times = denoiser.schedule.timesteps(num_steps)
    steps = list(ddpm(denoiser, x_T, times, generator=rng.generator(9)))
    for index, step in zip(scheduler.timesteps, steps, strict=True):
        output = denoiser.network(x_t, index.expand(4))
        x_t = scheduler.step(output, index, x_t, generator=generator).prev_sample
        # diffusers adds noise to the clean image where the last step is longer than 1.
        if step.t > 0 or num_steps == 1000:
            torch.testing.assert_close(step.x_t, x_t, atol=1e-4, rtol=0)
    fixed = final(ddpm(denoiser, x_T, times, samplers.beta_tilde, rng.generator(9)))
    assert (fixed - steps[-1].x_t).abs().max() > 0.01  # None takes the learned one


@pytest.mark.parametrize("prediction", DIFFUSERS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_strided_ddim_agrees_with_diffusers(prediction, eta):
    scheduler = DDIMScheduler(
        1000,
        beta_schedule="linear",
        prediction_type=DIFFUSERS[prediction],
        clip_sample=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(50)
    x_T = noise(4, shape=(1, 4, 4))
    denoiser = Denoiser(Wave(), schedules.linear(), prediction)
    expected = diffusers_trajectory(
        scheduler,
        denoiser.schedule,
        x_T,
        eta=eta,
        generator=rng.generator(9),
        use_clipped_model_output=True,
    )
    times = denoiser.schedule.timesteps(50)
    actual = final(ddim(denoiser, x_T, times, eta, rng.generator(9)))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction", DIFFUSERS)
@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
@pytest.mark.parametrize("num_steps", [10, 50])
def test_dpm_solver_agrees_with_diffusers(prediction, schedule, num_steps):
    scheduler = DPMSolverMultistepScheduler(
        1000,
        prediction_type=DIFFUSERS[prediction],
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    x_T = noise(4, shape=(1, 4, 4))
    denoiser = Denoiser(Wave(), schedule(), prediction, clip=None)
    scheduler.alphas_cumprod = denoiser.schedule.alpha_bar[1:]
    scheduler.set_timesteps(num_steps)
    expected = diffusers_trajectory(scheduler, denoiser.schedule, x_T)
    actual = final(dpm_solver(denoiser, x_T, denoiser.schedule.timesteps(num_steps)))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


# ---- how they are used ---------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_is_a_lazy_generator_of_its_states(sampler):
    calls = []
    denoiser = gaussian(schedules.linear(), 0.0, 0.5)
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    steps = sampler(denoiser, noise(2), [1000, 600, 200, 0], generator=rng.generator(0))
    assert calls == []
    assert next(steps).t == 600
    assert len(calls) == (2 if sampler is heun else 1)
    states = list(steps)
    assert [state.t for state in states] == [200, 0]
    assert torch.equal(states[-1].x_t, states[-1].x_0)  # the last state is the last prediction
    assert not states[-1].x_t.requires_grad


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("times", [[1000, 500], [500, 500, 0], [0, 1000], [1001, 0], [0], []])
def test_times_that_are_not_a_way_down_are_refused_at_once(sampler, times):
    with pytest.raises(ValueError, match="fall strictly from at most T = 1000 to 0"):
        sampler(gaussian(schedules.linear(), 0.0, 0.5), noise(1), times)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_outside_the_interval_is_refused(eta):
    with pytest.raises(ValueError, match=f"eta must lie in .* got {eta}"):
        ddim(gaussian(schedules.linear(), 0.0, 0.5), noise(1), [1000, 0], eta)


def test_a_zero_signal_at_T_is_no_obstacle_to_x_0_prediction():
    schedule = schedules.NoiseSchedule.from_betas(
        torch.linspace(1e-3, 1.0, 50, dtype=torch.float64)
    )
    denoiser = gaussian(schedule, 0.3, 0.2, predictions.x_0)
    x_0 = final(ddpm(denoiser, noise(4000), generator=rng.generator(1)))
    assert x_0.mean().item() == pytest.approx(0.3, abs=0.03)
    assert x_0.isfinite().all()
