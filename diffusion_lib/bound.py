"""The variational bound, and the losses that train by it: L_vlb and L_hybrid.

    L = L_T + L_{T-1} + ... + L_0                                              [DDPM eq. 5]

`hybrid_loss` teaches a network with `outputs=2` the variance of the reverse steps.
"""

import math

import torch
from torch import Tensor

from diffusion_lib import densities, posterior, predictions, rng
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.densities import Density, draw
from diffusion_lib.losses import Weight, trains, weighted_error
from diffusion_lib.posterior import Variance
from diffusion_lib.schedules import NoiseSchedule

VLB_WEIGHT = 0.001
"""Weight of T * L_vlb in the hybrid loss: lambda of [Improved DDPM eq. 16]."""

_HALF_BIN = 1 / 255  # pixels are -1, -1 + 2 / 255, ..., 1
_SMALLEST_P = 1e-12  # as in Ho's code: a pixel costs at most 40 bits


def bound_term(
    schedule: NoiseSchedule,
    x_0: Tensor,
    x_0_hat: Tensor,
    t: Tensor,
    variance: Variance | Tensor | None = None,
) -> Tensor:
    """Compute the bound's term at t, [B] in bits per dim [DDPM eq. 5].

        L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
        L_0     = -log p(x_0 | x_1), the mass of each pixel's bin of width 2 / 255 [DDPM eq. 13]

    Args:
        schedule: forward process.
        x_0: clean images, [B, C, H, W], pixels being multiples of 2 / 255 from -1.
        x_0_hat: their predictions at t, [B, C, H, W].
        t: times, [B] in 1..T.
        variance: variance of p: one from `posterior`, or the fractions of a learned one,
            [B, C, H, W]; None is beta_tilde.
    """
    # Float64 tables of all times, indexed on the device: reading t would wait for a GPU.
    times = torch.arange(1, schedule.num_timesteps + 1, device="cpu")
    low, high = posterior.log_range(schedule, times, times - 1)

    def column(table: Tensor) -> Tensor:
        table = table.to(x_0.device, x_0.dtype, non_blocking=True)
        return table[t - 1][:, None, None, None]

    if isinstance(variance, Tensor):
        excess = variance * column(high - low)  # log variance of p, less that of q
    else:
        variance = variance or posterior.beta_tilde
        excess = column(posterior.log_variance(schedule, times, times - 1, variance) - low)
    shift = column(posterior.x_0_coefficient(schedule, times, times - 1)) * (x_0_hat - x_0)
    kl = (excess + torch.expm1(-excess) + shift.square() * (-excess - column(low)).exp()) / 2
    first = t == 1
    nats = kl
    if first.is_cuda or first.any():  # on a GPU always: checking t would synchronize
        deviation = ((excess + column(low)) / 2).exp()
        decoder = -_log_p(x_0.double(), x_0_hat.double(), deviation.double()).to(kl.dtype)
        nats = torch.where(first[:, None, None, None], decoder, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def prior_term(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """Compute L_T = KL(q(x_T | x_0) || N(0, power_T I)), [B] in bits per dim [DDPM eq. 5]."""
    alpha_bar = float(schedule.alpha_bar[-1] / schedule.power[-1])
    nats = (alpha_bar * (x_0.double().square() - 1) - math.log1p(-alpha_bar)) / 2
    return nats.flatten(1).mean(1) / math.log(2)


def vlb_at(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None = None
) -> Tensor:
    """Compute T times the bound's term at t, [B] in bits per dim: the mean over t is L_vlb - L_T.

    Arguments as in `losses.loss_at`; `weight` here weights the terms of the bound.
    """
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    output, fraction = denoiser.predict(x_t, t)
    factor = 1.0 if weight is None else weight(denoiser.schedule.snr(t))
    T = denoiser.schedule.num_timesteps
    return factor * T * _term(denoiser, output, fraction, x_0, x_t, t)


def hybrid_at(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None = None
) -> Tensor:
    """Compute `loss_at` + 0.001 `vlb_at`, [B], for a learned variance [Improved DDPM eq. 16].

    The bound trains the variance alone: its gradient stops at the mean, as in Improved DDPM
    section 3.1.  Arguments as in `losses.loss_at`.

    Raises:
        ValueError: the network learns no variance.
    """
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    output, fraction = denoiser.predict(x_t, t)
    if fraction is None:
        raise ValueError(
            "hybrid_loss teaches a variance, but this network has no output for one: build it "
            "with outputs=2, or use diffusion_loss"
        )
    T = denoiser.schedule.num_timesteps
    bound = T * _term(denoiser, output.detach(), fraction, x_0, x_t, t)
    return weighted_error(denoiser, output, x_0, t, eps, weight) + VLB_WEIGHT * bound


@trains(1, 2)
def vlb_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight | None = None,
    generator: torch.Generator | rng.Rows | None = None,
    density: Density = densities.uniform,
) -> Tensor:
    """Average `vlb_at` over random times and noise: L_vlb in bits per dim [Improved DDPM eq. 4].

    Arguments as in `losses.diffusion_loss`; `weight` here weights the terms of the bound.
    """
    t, eps = draw(density, x_0, denoiser.schedule.num_timesteps, generator)
    return vlb_at(denoiser, x_0, t, eps, weight).mean()


@trains(2)
def hybrid_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight | None = None,
    generator: torch.Generator | rng.Rows | None = None,
    density: Density = densities.uniform,
) -> Tensor:
    """Average `hybrid_at` over random times and noise; arguments as in `losses.diffusion_loss`."""
    t, eps = draw(density, x_0, denoiser.schedule.num_timesteps, generator)
    return hybrid_at(denoiser, x_0, t, eps, weight).mean()


def _log_p(x_0: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Compute the log mass of N(mean, deviation^2) in x_0's bin; those of -1 and 1 are open."""
    above = torch.special.ndtr((x_0 + _HALF_BIN - mean) / deviation)
    below = torch.special.ndtr((x_0 - _HALF_BIN - mean) / deviation)
    above = torch.where(x_0 > 0.999, 1.0, above)
    below = torch.where(x_0 < -0.999, 0.0, below)
    return (above - below).clamp(min=_SMALLEST_P).log()


def _term(
    denoiser: Denoiser, output: Tensor, fraction: Tensor | None, x_0: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    # x_0_hat is not clipped: a clipped pixel would learn nothing.
    x_0_hat, _ = predictions.solve(denoiser.prediction, output, x_t, *denoiser.schedule(t))
    return bound_term(denoiser.schedule, x_0, x_0_hat, t, fraction)
