"""The true reverse step q(x_s | x_t, x_0), s < t, and the variances that models of it use.

    beta       = 1 - alpha_bar_t / alpha_bar_s                    variance of q(x_t | x_s)
    beta_tilde = (1 - alpha_bar_s) / (1 - alpha_bar_t) * beta     variance of q(x_s | x_t, x_0)
    mean       = signal_s * beta / (1 - alpha_bar_t) * x_0 + ... * x_t         [DDPM eq. 6, 7]

For s = t - 1 these are DDPM's; other s < t give its strided form [Improved DDPM section 4].
Times are numbers or tensors of one shape; results are float64 tensors of that shape, on the CPU.

To add a variance, write one function (schedule, t, s).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lib.schedules import NoiseSchedule

Times = int | Tensor
Variance = Callable[[NoiseSchedule, Times, Times], Tensor]


def beta(schedule: NoiseSchedule, t: Times, s: Times) -> Tensor:
    """Variance of q(x_t | x_s) [DDPM section 3.2]: right for the reverse steps of N(0, I) data.

    0 where s = 0: the clean image gets no more noise, as in Ho's code.
    """
    return _forward(schedule, t, s) * torch.as_tensor(s, device="cpu").sign()


def beta_tilde(schedule: NoiseSchedule, t: Times, s: Times) -> Tensor:
    """Variance of q(x_s | x_t, x_0) [DDPM eq. 7]: right if all data were one point; 0 at s = 0."""
    alpha_bar = schedule.alpha_bar
    return (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * _forward(schedule, t, s)


def log_variance(
    schedule: NoiseSchedule, t: Times, s: Times, variance: Variance = beta_tilde
) -> Tensor:
    """log of a variance; where that is 0 (s = 0), the log of the second step's beta_tilde.

    So Ho's code has it, for both of its variances.
    """
    # T = 1 has no second step.
    one = schedule.num_timesteps == 1
    second = _forward(schedule, 1, 0) if one else beta_tilde(schedule, 2, 1)
    value = variance(schedule, t, s)
    return torch.where(value > 0, value, second).log()


def log_range(schedule: NoiseSchedule, t: Times, s: Times) -> tuple[Tensor, Tensor]:
    """(log beta_tilde, log beta): the ends between which a learned variance lies.

    log_variance = (1 - share) * log beta_tilde + share * log beta, with the network's share of
    each pixel [Improved DDPM eq. 15].
    """
    return log_variance(schedule, t, s), _forward(schedule, t, s).log()


def x_0_coefficient(schedule: NoiseSchedule, t: Times, s: Times) -> Tensor:
    """By how much the mean of q(x_s | x_t, x_0) moves with x_0 [DDPM eq. 7]."""
    alpha_bar = schedule.alpha_bar
    return alpha_bar[s].sqrt() * _forward(schedule, t, s) / (1 - alpha_bar[t])


def _forward(schedule: NoiseSchedule, t: Times, s: Times) -> Tensor:
    return 1 - schedule.alpha_bar[t] / schedule.alpha_bar[s]
