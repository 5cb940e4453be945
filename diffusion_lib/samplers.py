"""Reverse processes.  A sampler is a generator: it yields its state after every step.

    for step in ddim(denoiser, x_T, denoiser.schedule.timesteps(50)):
        ...                     # progress bars, animations, early stops: the caller's business

`ddpm` and `ddim` go from time t to an earlier time s by

    x_s = signal_s * x_0_hat + sqrt(noise_s^2 - removed) * eps_hat + sqrt(added) * z,
    z ~ N(0, I),

the mean of which is that of q(x_s | x_t, x_0) where removed = beta_tilde.  They differ in the
two variances (see `posterior`).  The last step, to s = 0, adds no noise, as in Ho's code.

`dpm_solver` and `heun` are for few steps: both follow the probability-flow ODE, as `ddim` does with
eta = 0, but their error falls with the square of the step.

To add a sampler, write one generator function (denoiser, x_T, timesteps, ..., generator) and list
it in `__all__`.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import atan2, inf, log, sqrt
from operator import index
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion_lib import posterior, rng
from diffusion_lib.denoiser import Denoised
from diffusion_lib.posterior import Variance, beta_tilde
from diffusion_lib.posterior import beta as beta  # the other fixed variance, for callers of `ddpm`
from diffusion_lib.rng import Generator
from diffusion_lib.schedules import NoiseSchedule

__all__ = ["ddpm", "ddim", "dpm_solver", "heun"]


class DenoiserLike(Protocol):
    """What a sampler needs: a `Denoiser`, or any function like it that has a schedule."""

    schedule: NoiseSchedule

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Denoised: ...


class SampleStep(NamedTuple):
    """State of a sampler."""

    t: int  # time reached
    x_t: Tensor  # state at that time, [B, C, H, W]
    x_0: Tensor  # the prediction that led there, [B, C, H, W]


def ddpm(
    denoiser: DenoiserLike,
    x_T: Tensor,
    timesteps: Sequence[int] | None = None,
    variance: Variance | None = None,
    generator: Generator = None,
) -> Iterator[SampleStep]:
    """Sample by DDPM's reverse process [DDPM algorithm 2], also strided [Improved DDPM section 4].

    Args:
        denoiser: model that splits x_t into x_0_hat and eps_hat.
        x_T: noise, [B, C, H, W]: normal of variance `schedule.power[T]`, which is 1 for all of
            `schedules`.
        timesteps: strictly decreasing times, from at most T to 0; all of them if None.
        variance: sigma_t^2 of the noise that a step adds, `beta_tilde` or `beta`; None is the
            learned one if the denoiser has one, else beta_tilde.
        generator: source of the noise, see `rng.normal`.

    Raises:
        ValueError: timesteps that do not fall strictly from at most T to 0.
    """
    if timesteps is None:
        timesteps = denoiser.schedule.timesteps(denoiser.schedule.num_timesteps)
    return _steps(
        denoiser, x_T, check_timesteps(denoiser, timesteps), beta_tilde, variance, generator
    )


def ddim(
    denoiser: DenoiserLike,
    x_T: Tensor,
    timesteps: Sequence[int],
    eta: float = 0.0,
    generator: Generator = None,
) -> Iterator[SampleStep]:
    """Sample by DDIM [Song 2021, eq. 12 and 16]: eta = 0 is deterministic, eta = 1 is `ddpm`.

    `eta` is the standard deviation of the added noise in units of DDPM's.  Other arguments and
    errors as in `ddpm`; `timesteps` such as `schedule.timesteps(50)`.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], from deterministic to DDPM; got {eta}")

    def variance(schedule: NoiseSchedule, t: posterior.Times, s: posterior.Times) -> Tensor:
        return eta**2 * beta_tilde(schedule, t, s)

    return _steps(
        denoiser, x_T, check_timesteps(denoiser, timesteps), variance, variance, generator
    )


def dpm_solver(
    denoiser: DenoiserLike, x_T: Tensor, timesteps: Sequence[int], generator: Generator = None
) -> Iterator[SampleStep]:
    """Sample by DPM-Solver++(2M): deterministic, one evaluation a step [Lu 2022b, algorithm 2].

        x_s = noise_s / noise_t * x_t - signal_s * (exp(-h) - 1) * D
        D = x_0_hat_t + h / (2 h_before) * (x_0_hat_t - x_0_hat_before)
        lambda = log(signal / noise),  h = lambda_s - lambda_t

    The first step has no step before it and the last one an infinite h: both take D = x_0_hat_t,
    which is DDIM's step.  Arguments and errors as in `ddpm`; nothing is drawn from `generator`.
    """
    return _dpm_solver(denoiser, x_T, check_timesteps(denoiser, timesteps))


@torch.no_grad()
def _dpm_solver(denoiser: DenoiserLike, x_T: Tensor, timesteps: list[int]) -> Iterator[SampleStep]:
    schedule, x_t = denoiser.schedule, x_T
    before: tuple[Tensor, float] | None = None
    for t, s in pairwise(timesteps):
        (signal_t, noise_t), (signal_s, noise_s) = map(schedule.scales, (t, s))
        x_0 = denoiser(x_t, torch.full((len(x_t),), t, device=x_t.device)).x_0
        h = _log_ratio(signal_s, noise_s) - _log_ratio(signal_t, noise_t)
        D = x_0
        if before is not None and s > 0:
            x_0_before, h_before = before
            D = x_0 + h / (2 * h_before) * (x_0 - x_0_before)
        ratio = noise_s / noise_t  # signal_s * exp(-h) is ratio * signal_t
        x_t = ratio * x_t + (signal_s - ratio * signal_t) * D
        before = x_0, h
        yield SampleStep(s, x_t, x_0)


def heun(
    denoiser: DenoiserLike, x_T: Tensor, timesteps: Sequence[int], generator: Generator = None
) -> Iterator[SampleStep]:
    """Sample by Heun's method on the probability-flow ODE, deterministic.

        dy / dphi = (signal * eps_hat - noise * x_0_hat) / radius,       y = x_t / radius,
        phi = arctan(noise / signal),    radius^2 = signal^2 + noise^2

    [Salimans & Ho 2022, appendix D, where radius = 1], with the mean slope of both ends of a step,
    after a step of DDIM to the far end [Karras 2022, algorithm 1].  In phi nothing grows without
    bound where the signal vanishes.  Two evaluations a
    step, and one in the last, which is DDIM's.  Arguments and errors as in `dpm_solver`.
    """
    return _heun(denoiser, x_T, check_timesteps(denoiser, timesteps))


@torch.no_grad()
def _heun(denoiser: DenoiserLike, x_T: Tensor, timesteps: list[int]) -> Iterator[SampleStep]:
    schedule, x_t = denoiser.schedule, x_T
    for t, s in pairwise(timesteps):
        (signal_t, noise_t), (signal_s, noise_s) = map(schedule.scales, (t, s))
        x_0, eps, _ = denoiser(x_t, torch.full((len(x_t),), t, device=x_t.device))
        x_s = signal_s * x_0 + noise_s * eps
        if s > 0:
            x_0_s, eps_s, _ = denoiser(x_s, torch.full((len(x_t),), s, device=x_t.device))
            radius_t, radius_s = (sqrt(schedule.power[time]) for time in (t, s))
            slope_t = (signal_t * eps - noise_t * x_0) / radius_t
            slope_s = (signal_s * eps_s - noise_s * x_0_s) / radius_s
            step = atan2(noise_s, signal_s) - atan2(noise_t, signal_t)
            x_s = radius_s * (x_t / radius_t + step / 2 * (slope_t + slope_s))
        x_t = x_s
        yield SampleStep(s, x_t, x_0)


def final(steps: Iterable[SampleStep]) -> Tensor:
    """Run a sampler to its end, with one state in memory, and return the images [B, C, H, W]."""
    return deque(steps, maxlen=1).pop().x_t


def check_timesteps(denoiser: DenoiserLike, timesteps: Sequence[int]) -> list[int]:
    """Return times as a list, or raise a ValueError if they do not fall strictly to 0.

    A sampler checks them when it is called, not at its first step.
    """
    T = denoiser.schedule.num_timesteps
    try:
        times = [int(index(t)) for t in timesteps]
    except TypeError as error:
        raise ValueError(f"timesteps must be whole numbers; got {timesteps!r:.99}") from error
    if len(times) < 2 or times[0] > T or times[-1] != 0 or any(t <= s for t, s in pairwise(times)):
        raise ValueError(
            f"timesteps must fall strictly from at most T = {T} to 0; got "
            f"{times[:3]!r:.99} ... {times[-2:]!r:.99}. "
            "schedule.timesteps(num_steps) makes such a list."
        )
    return times


def _log_ratio(signal: float, noise: float) -> float:
    """Compute lambda = log(signal / noise)."""
    if signal == 0 or noise == 0:
        return inf if signal else -inf
    return log(signal / noise)


@torch.no_grad()
def _steps(
    denoiser: DenoiserLike,
    x_T: Tensor,
    timesteps: list[int],
    removed: Variance,
    added: Variance | None,
    generator: Generator,
) -> Iterator[SampleStep]:
    schedule = denoiser.schedule
    x_t = x_T
    for t, s in pairwise(timesteps):
        x_0, eps, fraction = denoiser(x_t, torch.full((len(x_t),), t, device=x_t.device))
        # The scales of a step are plain float64 numbers: exact, and nothing waits for a GPU.
        signal = sqrt(schedule.alpha_bar[s])
        eps_variance = float(schedule.noise_variance[s] - removed(schedule, t, s))
        x_t = signal * x_0 + sqrt(max(eps_variance, 0.0)) * eps  # >= 0 up to rounding
        deviation = _deviation(schedule, t, s, added, fraction)
        if isinstance(deviation, Tensor) or deviation > 0:
            x_t = x_t + deviation * rng.normal(x_t.shape, generator, x_t.device)
        yield SampleStep(s, x_t, x_0)


def _deviation(
    schedule: NoiseSchedule, t: int, s: int, variance: Variance | None, fraction: Tensor | None
) -> Tensor | float:
    """Compute the standard deviation of a step's noise: one for all pixels, or each pixel's own."""
    if s == 0:
        return 0.0
    if variance is None and fraction is not None:
        low, high = map(float, posterior.log_range(schedule, t, s))
        return (low / 2 + fraction * ((high - low) / 2)).exp()
    return sqrt(float((variance or beta_tilde)(schedule, t, s)))
