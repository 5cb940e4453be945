"""Data whose best denoiser is known in closed form, expressed in any prediction type."""

import torch
from torch import Tensor, nn

from diffusion_lib.denoiser import Denoiser
from diffusion_lib.predictions import Prediction, eps
from diffusion_lib.schedules import NoiseSchedule


class MixtureNetwork(nn.Module):
    """The ideal network for pixels drawn independently from a mixture of normal distributions.

    E[x_0 | x_t] = sum_k p(k | x_t) (mu_k + gain_k (x_t - signal mu_k)),
    gain_k = signal s_k^2 / (signal^2 s_k^2 + noise^2)

    Args:
        means, stds, weights: of the components, each [K].
        prediction: the form in which the answer is given.
    """

    def __init__(self, schedule: NoiseSchedule, prediction: Prediction, means, stds, weights):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction
        self.means, self.stds, self.weights = (torch.tensor(x) for x in (means, stds, weights))

    def forward(self, x_t: Tensor, index: Tensor) -> Tensor:
        alpha_bar = self.schedule.alpha_bar[index + 1][:, None, None, None, None]
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x = x_t.double()[..., None]  # [B, C, H, W, 1] against K components
        variance = alpha_bar * self.stds**2 + noise**2
        log_p = self.weights.log() - (x - signal * self.means) ** 2 / (2 * variance)
        p = (log_p - variance.log() / 2).softmax(-1)
        gain = signal * self.stds**2 / variance
        x_0 = (p * (self.means + gain * (x - signal * self.means))).sum(-1)
        signal, noise = signal[..., 0], noise[..., 0]
        e = (x_t - signal * x_0) / noise
        c_x, c_eps = self.prediction(signal, noise)
        return c_x * x_0 + c_eps * e


def mixture(
    schedule: NoiseSchedule,
    means: tuple[float, ...],
    stds: tuple[float, ...],
    weights: tuple[float, ...],
    prediction: Prediction = eps,
) -> Denoiser:
    """The exact denoiser of a mixture, unclipped."""
    network = MixtureNetwork(schedule, prediction, means, stds, weights)
    return Denoiser(network, schedule, prediction, clip=None)


def gaussian(
    schedule: NoiseSchedule, mean: float, std: float, prediction: Prediction = eps
) -> Denoiser:
    """The exact denoiser of pixels from N(mean, std^2), unclipped."""
    return mixture(schedule, (mean,), (std,), (1.0,), prediction)
