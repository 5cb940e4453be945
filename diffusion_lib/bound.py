"""The variational bound, and the losses that train by it: L_vlb and L_hybrid.

    L = L_T + L_{T-1} + ... + L_0                                              [DDPM eq. 5]

`hybrid_loss` teaches a network with `outputs=2` the variance of the reverse steps.
"""

import math

import torch
from torch import Tensor

from diffusion_lib import posterior, predictions, rng
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.losses import Weight, draw, trains, weighted_error
from diffusion_lib.posterior import Variance
from diffusion_lib.schedules import NoiseSchedule

HYBRID = 0.001
"""Share of T * L_vlb in the hybrid loss [Improved DDPM eq. 16]."""

_HALF_BIN = 1 / 255  # pixels are -1, -1 + 2 / 255, ..., 1
_SMALLEST_P = 1e-12  # as in Ho's code: a pixel costs at most 40 bits


def bound_term(
    schedule: NoiseSchedule,
    x_0: Tensor,
    x_0_hat: Tensor,
    t: Tensor,
    variance: Variance | Tensor | None = None,
) -> Tensor:
    """The bound's term at t, in bits per dim: L_{t-1}, or L_0 where t = 1 [DDPM eq. 5]: [B].

        L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
        L_0     = -log p(x_0 | x_1), the chance of each pixel's bin of width 2 / 255 [DDPM eq. 13]

    Args:
        x_0: clean images, [B, C, H, W], pixels being multiples of 2 / 255 from -1.
        x_0_hat: their predictions at t, [B, C, H, W].
        t: times, [B] in 1..T.
        variance: of p: one from `posterior`, or a learned variance's shares [B, C, H, W]; None is
            beta_tilde.
    """
    # Of all times, in float64, of which those of the images are picked on the device: to ask a GPU
    # for its times would be to wait for it.
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
    if first.is_cuda or first.any():  # on a GPU always, as looking at t would wait for it
        deviation = ((excess + column(low)) / 2).exp()
        decoder = -_log_p(x_0.double(), x_0_hat.double(), deviation.double()).to(kl.dtype)
        nats = torch.where(first[:, None, None, None], decoder, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def prior_term(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) in bits per dim, [B] [DDPM eq. 5]."""
    alpha_bar = float(schedule.alpha_bar[-1])
    nats = (alpha_bar * (x_0.double().square() - 1) - math.log1p(-alpha_bar)) / 2
    return nats.flatten(1).mean(1) / math.log(2)


def vlb_at(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None = None
) -> Tensor:
    """T times the bound's term at t, in bits per dim: the mean over t is L_vlb without L_T: [B].

    Args:
        weight: of the terms of the bound; None is the bound itself.
    """
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    output, share = denoiser.predict(x_t, t)
    x_0_hat = _x_0_hat(denoiser, output, x_t, t)
    T = denoiser.schedule.num_timesteps
    factor = 1.0 if weight is None else weight(denoiser.schedule.snr(t))
    return factor * T * bound_term(denoiser.schedule, x_0, x_0_hat, t, share)


def hybrid_at(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None = None
) -> Tensor:
    """`loss_at` + 0.001 `vlb_at`, which teaches the variance alone, [B] [Improved DDPM eq. 16].

    The mean is cut off from L_vlb's gradient, as in Improved DDPM section 3.1.

    Raises:
        ValueError: the network learns no variance.
    """
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    output, share = denoiser.predict(x_t, t)
    if share is None:
        raise ValueError(
            "hybrid_loss teaches a variance, but this network has no output for one: build it "
            "with UNetConfig(outputs=2), or use diffusion_loss"
        )
    x_0_hat = _x_0_hat(denoiser, output.detach(), x_t, t)
    T = denoiser.schedule.num_timesteps
    bound = T * bound_term(denoiser.schedule, x_0, x_0_hat, t, share)
    return weighted_error(denoiser, output, x_0, t, eps, weight) + HYBRID * bound


@trains(outputs=2)
def vlb_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight | None = None,
    generator: torch.Generator | rng.Rows | None = None,
) -> Tensor:
    """L_vlb in bits per dim, with times drawn uniformly [DDPM eq. 5, Improved DDPM eq. 4].

    Arguments as in `losses.diffusion_loss`; `weight` here weights the bound's terms.
    """
    return vlb_at(denoiser, x_0, *draw(denoiser, x_0, generator), weight).mean()


@trains(outputs=2)
def hybrid_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight | None = None,
    generator: torch.Generator | rng.Rows | None = None,
) -> Tensor:
    """L_hybrid = L_simple + 0.001 L_vlb, for a learned variance [Improved DDPM eq. 16].

    Arguments as in `losses.diffusion_loss`.
    """
    return hybrid_at(denoiser, x_0, *draw(denoiser, x_0, generator), weight).mean()


def _log_p(x_0: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """log of N(mean, deviation^2)'s mass in the bin of x_0; -1 and 1 take all beyond them."""
    above = torch.special.ndtr((x_0 + _HALF_BIN - mean) / deviation)
    below = torch.special.ndtr((x_0 - _HALF_BIN - mean) / deviation)
    above = torch.where(x_0 > 0.999, 1.0, above)
    below = torch.where(x_0 < -0.999, 0.0, below)
    return (above - below).clamp(min=_SMALLEST_P).log()


def _x_0_hat(denoiser: Denoiser, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Unclipped: a clipped pixel would learn nothing."""
    return predictions.solve(denoiser.prediction, output, x_t, *denoiser.schedule(t))[0]
