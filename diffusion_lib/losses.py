"""Training losses.

    x_t = signal_t * x_0 + noise_t * eps
    loss = weight(SNR_t) * mean((network(x_t, t) - target)^2)     [DDPM eq. 14, algorithm 1]

The target belongs to the denoiser's prediction type.  For one and the same denoiser,

    SNR_t * (x_0_hat - x_0)^2 = (eps_hat - eps)^2,

so x_0-prediction weighted by `snr` and eps-prediction weighted by `uniform` measure the same
error.

To add a weight, write one function of the signal-to-noise ratio and list it in `__all__`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lib import rng
from diffusion_lib.denoiser import Denoiser

__all__ = ["uniform", "snr"]

Weight = Callable[[Tensor], Tensor]


def uniform(snr: Tensor) -> Tensor:
    """1: L_simple where the network predicts eps [DDPM eq. 14]."""
    return torch.ones_like(snr)


def snr(snr: Tensor) -> Tensor:
    """The signal-to-noise ratio: turns the error of x_0_hat into that of eps_hat."""
    return snr


def loss_at(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight = uniform
) -> Tensor:
    """Weighted squared error of the network's output, [B]; draws nothing at random.

    Args:
        x_0: clean images, [B, C, H, W].
        t: times, [B] in 1..T.
        eps: the noise to add, [B, C, H, W].
        weight: function of the signal-to-noise ratio [B].
    """
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    error = denoiser.output(x_t, t) - denoiser.target(x_0, eps, t)
    return weight(denoiser.schedule.snr(t)) * error.square().flatten(1).mean(1)


def diffusion_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight = uniform,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Training loss at random times and noise, shape [] [DDPM algorithm 1].

    Args:
        x_0: clean images, [B, C, H, W].
        generator: of x_0's device; None draws from torch's global one.
    """
    T, device = denoiser.schedule.num_timesteps, x_0.device
    t = torch.randint(1, T + 1, (len(x_0),), generator=generator, device=device)
    eps = torch.randn(x_0.shape, generator=generator, device=device)
    return loss_at(denoiser, x_0, t, eps, weight).mean()


@torch.no_grad()
def held_out_loss(denoiser: Denoiser, x_0: Tensor, weight: Weight = uniform) -> Tensor:
    """Loss with times spread evenly over 1..T and noise fixed for ever, shape [].

    Always the same draws, so that two denoisers, or two moments of a training, can be compared.

    Args:
        x_0: images that were not trained on, [B, C, H, W].
    """
    T = denoiser.schedule.num_timesteps
    t = torch.linspace(1, T, len(x_0), device=x_0.device).round().long()
    eps = rng.normal(x_0.shape, rng.generator(0), x_0.device)
    return loss_at(denoiser, x_0, t, eps, weight).mean()


@torch.no_grad()
def loss_per_t(denoiser: Denoiser, x_0: Tensor, times: Tensor, weight: Weight = uniform) -> Tensor:
    """The loss at each of `times` [K], averaged over the same images and noise at all of them: [K].

    Args:
        x_0: images that were not trained on, [B, C, H, W].
    """
    eps = rng.normal(x_0.shape, rng.generator(0), x_0.device)
    per_t = [loss_at(denoiser, x_0, t.expand(len(x_0)), eps, weight).mean() for t in times]
    return torch.stack(per_t)
