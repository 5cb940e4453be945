"""The true reverse step q(x_s | x_t, x_0), s < t, and the variances that models of it use.

    beta       = noise_t^2 - (signal_t / signal_s * noise_s)^2    variance of q(x_t | x_s)
    beta_tilde = (noise_s / noise_t)^2 * beta                     variance of q(x_s | x_t, x_0)
    mean       = signal_s * beta / noise_t^2 * x_0 + ... * x_t

With DDPM's schedules, where signal^2 = alpha_bar = 1 - noise^2, these are [DDPM eq. 6, 7].
For s = t - 1 these are DDPM's; other s < t give its strided form [Improved DDPM section 4].
Times are numbers or tensors of one shape; results are float64 tensors of that shape, on the CPU.

To add a variance, write one function (schedule, t, s) and list it in `__all__`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lib.schedules import NoiseSchedule

__all__ = ["beta", "beta_tilde"]

Times = int | Tensor
Variance = Callable[[NoiseSchedule, Times, Times], Tensor]


def beta(schedule: NoiseSchedule, t: Times, s: Times) -> Tensor:
    """Compute the variance of q(x_t | x_s), exact for the reverse steps of N(0, I) data.

    [DDPM section 3.2].  0 at s = 0: the clean image gets no more noise, as in Ho's code.
    """
    return _forward(schedule, t, s) * torch.as_tensor(s, device="cpu").sign()


def beta_tilde(schedule: NoiseSchedule, t: Times, s: Times) -> Tensor:
    """Compute the variance of q(x_s | x_t, x_0), exact if all data are one point [DDPM eq. 7]."""
    variance = schedule.noise_variance
    return variance[s] / variance[t] * _forward(schedule, t, s)


def log_variance(
    schedule: NoiseSchedule, t: Times, s: Times, variance: Variance = beta_tilde
) -> Tensor:
    """Compute the log of a variance; at s = 0, where that is 0, of the second step's beta_tilde.

    As in Ho's code, for both of its variances.
    """
    # T = 1 has no second step.
    has_second = schedule.num_timesteps > 1
    second = beta_tilde(schedule, 2, 1) if has_second else _forward(schedule, 1, 0)
    value = variance(schedule, t, s)
    return torch.where(value > 0, value, second).log()


def log_range(schedule: NoiseSchedule, t: Times, s: Times) -> tuple[Tensor, Tensor]:
    """Compute (log beta_tilde, log beta), the ends between which a learned variance lies.

    log variance = (1 - fraction) * log beta_tilde + fraction * log beta, with the network's
    fraction of each pixel [Improved DDPM eq. 15].
    """
    return log_variance(schedule, t, s), _forward(schedule, t, s).log()


def x_0_coefficient(schedule: NoiseSchedule, t: Times, s: Times) -> Tensor:
    """Compute the coefficient of x_0 in the mean of q(x_s | x_t, x_0) [DDPM eq. 7]."""
    signal = schedule.alpha_bar[s].sqrt()
    return signal * _forward(schedule, t, s) / schedule.noise_variance[t]


def _forward(schedule: NoiseSchedule, t: Times, s: Times) -> Tensor:
    # With signal^2 + noise^2, which is exactly 1 for DDPM's schedules.
    ratio = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    return schedule.power[t] - ratio * schedule.power[s]
