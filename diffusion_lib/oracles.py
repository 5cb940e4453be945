"""Data whose best denoiser is known in closed form, expressed in any prediction type.

The exact E[x_0 | x_t] takes the place of a trained network: the remaining error is that of the
sampler, and a test can compare with a formula instead of a shape.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lib.denoiser import Denoiser
from diffusion_lib.predictions import Prediction, v
from diffusion_lib.schedules import NoiseSchedule


class MixtureNetwork(nn.Module):
    """The ideal network for pixels drawn independently from a mixture of normal distributions.

    E[x_0 | x_t] = sum_k p(k | x_t) (mu_k + gain_k (x_t - signal mu_k)),
    gain_k = signal s_k^2 / (signal^2 s_k^2 + noise^2)

    Args:
        schedule: the forward process.
        prediction: meaning of the output, see `predictions`.
        components: mu_k, s_k and p(k), [3, K].
    """

    def __init__(self, schedule: NoiseSchedule, prediction: Prediction, components: Tensor) -> None:
        super().__init__()
        self.schedule, self.prediction = schedule, prediction
        self.means, self.stds, self.weights = components

    def forward(self, x_t: Tensor, index: Tensor) -> Tensor:
        """Compute the target's mean [B, C, H, W] for x_t [B, C, H, W] and index = t - 1 [B]."""
        schedule = self.schedule
        squares = (table[index + 1] for table in (schedule.alpha_bar, schedule.noise_variance))
        signal, noise = (x.sqrt()[:, None, None, None, None] for x in squares)
        x = x_t.double()[..., None]  # [B, C, H, W, 1] against K components
        variance = signal**2 * self.stds**2 + noise**2
        log_p = self.weights.log() - (x - signal * self.means) ** 2 / (2 * variance)
        p = (log_p - variance.log() / 2).softmax(-1)
        gain = signal * self.stds**2 / variance
        x_0 = (p * (self.means + gain * (x - signal * self.means))).sum(-1)
        signal, noise = signal[..., 0], noise[..., 0]
        c_x, c_eps = self.prediction(signal, noise)
        return c_x * x_0 + c_eps * (x_t - signal * x_0) / noise


def mixture(
    schedule: NoiseSchedule,
    means: Sequence[float],
    stds: Sequence[float],
    weights: Sequence[float],
    prediction: Prediction = v,
) -> Denoiser:
    """Make the exact denoiser of a mixture, see `MixtureNetwork`; it does not clip."""
    network = MixtureNetwork(schedule, prediction, torch.tensor([means, stds, weights]))
    return Denoiser(network, schedule, prediction, clip=None)


def gaussian(
    schedule: NoiseSchedule, mean: float, std: float, prediction: Prediction = v
) -> Denoiser:
    """Make the exact denoiser of independent pixels from N(mean, std^2); it does not clip."""
    return mixture(schedule, (mean,), (std,), (1.0,), prediction)


def gaussian_flow(schedule: NoiseSchedule, mean: float, std: float, x_0: Tensor, t: int) -> Tensor:
    """Follow the probability flow of N(mean, std^2) from x_0 [B, C, H, W] to x_t.

    x_t = signal mean + sqrt(signal^2 std^2 + noise^2) / std (x_0 - mean)
    """
    signal, noise = schedule.scales(t)
    return signal * mean + math.hypot(signal * std, noise) / std * (x_0 - mean)
