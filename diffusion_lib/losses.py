"""Training losses: weights, L_simple, L_vlb and L_hybrid.

    x_t = signal_t * x_0 + noise_t * eps
    loss = weight(SNR_t) * mean((x_0_hat - x_0)^2),  t uniform in 1..T        [DDPM algorithm 1]

A weight is a function of the signal-to-noise ratio and always acts on the error of x_0_hat, so
that it means the same whatever the network predicts.  As every prediction is a combination of x_0
and eps, (x_0_hat - x_0)^2 is the network's own squared error times `x_0_scale(signal, noise)`,
and the same weight acts on the errors of eps and v as

    weight / SNR * (eps_hat - eps)^2  =  weight / (SNR + 1) * (v_hat - v)^2.

Without a weight (None) the network's own error counts, as in the papers that introduced each
prediction.  That is `snr` for eps (L_simple, DDPM eq. 14), `uniform` for x_0 and `snr_plus_1` for
v: "eps or x_0?" asked without a weight compares two weights as well.

To add a weight, write one function of the signal-to-noise ratio and list it in `__all__`.  To add
a loss, write one function (denoiser, x_0, weight, generator) and list it in `LOSSES`; what draws
by `rng.normal` and `rng.integers` can be divided among processes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lib import posterior, predictions, rng
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.posterior import Variance
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule

__all__ = ["uniform", "snr", "truncated_snr", "snr_plus_1", "min_snr"]

Weight = Callable[[Tensor], Tensor]

HYBRID = 0.001
"""Share of T * L_vlb in the hybrid loss [Improved DDPM eq. 16]."""

_HALF_BIN = 1 / 255  # pixels are -1, -1 + 2 / 255, ..., 1
_SMALLEST_P = 1e-12  # as in Ho's code: a pixel costs at most 40 bits


# ---- weights: functions of the signal-to-noise ratio, on the error of x_0_hat ----------------


def uniform(snr: Tensor) -> Tensor:
    """1: the plain error of x_0_hat."""
    return torch.ones_like(snr)


def snr(snr: Tensor) -> Tensor:
    """SNR: the plain error of eps_hat, L_simple [DDPM eq. 14]."""
    return snr


def truncated_snr(snr: Tensor) -> Tensor:
    """max(SNR, 1): the larger of the errors of x_0_hat and eps_hat [Salimans & Ho 2022, 4]."""
    return snr.clamp(min=1)


def snr_plus_1(snr: Tensor) -> Tensor:
    """SNR + 1: the plain error of v_hat [Salimans & Ho 2022, section 4]."""
    return snr + 1


def min_snr(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma): spends less on nearly clean images than `snr` [Hang 2023, section 3.4]."""
    return snr.clamp(max=gamma)


def x_0_scale(prediction: Prediction, signal: Tensor, noise: Tensor) -> Tensor:
    """What turns the squared error of a prediction into that of x_0_hat, at the same x_t.

    1 for x_0, 1 / SNR for eps, 1 / (SNR + 1) for v.
    """
    c_x, c_eps = prediction(signal, noise)
    # With x_t fixed, an error d in x_0_hat is -signal / noise * d in eps_hat.
    return (noise / (c_x * noise - c_eps * signal)).square()


def implied_weight(
    weight: Weight | None, prediction: Prediction, schedule: NoiseSchedule, t: Tensor
) -> Tensor:
    """The factor of a prediction's own squared error at times t [B] in 1..T: [B].

    Args:
        weight: of x_0_hat's error; None gives 1.
    """
    if weight is None:
        return torch.ones_like(schedule.signal[t])
    return weight(schedule.snr(t)) * x_0_scale(prediction, schedule.signal[t], schedule.noise[t])


# ---- losses of given times and noise: [B], nothing drawn at random ---------------------------


def loss_at(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None = None
) -> Tensor:
    """Weighted squared error, [B].

    Args:
        x_0: clean images, [B, C, H, W].
        t: times, [B] in 1..T.
        eps: the noise to add, [B, C, H, W].
        weight: of x_0_hat's error; None is the plain error of the network's own prediction.
    """
    output = denoiser.output(denoiser.schedule.add_noise(x_0, t, eps), t)
    return _squared_error(denoiser, output, x_0, t, eps, weight)


def vlb_at(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None = None
) -> Tensor:
    """T times the bound's term at t, in bits per dim: the mean over t is L_vlb without L_T: [B].

    Args:
        weight: of the terms of the bound; None is the bound itself.
    """
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    output, share = denoiser.outputs(x_t, t)
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
    output, share = denoiser.outputs(x_t, t)
    if share is None:
        raise ValueError(
            "hybrid_loss teaches a variance, but this network has no output for one: build it "
            "with UNetConfig(outputs=2), or use diffusion_loss"
        )
    x_0_hat = _x_0_hat(denoiser, output.detach(), x_t, t)
    T = denoiser.schedule.num_timesteps
    bound = T * bound_term(denoiser.schedule, x_0, x_0_hat, t, share)
    return _squared_error(denoiser, output, x_0, t, eps, weight) + HYBRID * bound


# ---- losses of random times and noise: [] ----------------------------------------------------


def diffusion_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight | None = None,
    generator: torch.Generator | rng.Rows | None = None,
) -> Tensor:
    """`loss_at` at random times and noise, shape [] [DDPM algorithm 1].

    Args:
        x_0: clean images, [B, C, H, W].
        weight: of x_0_hat's error; None is the plain error of the network's own prediction.
        generator: of x_0's device; None draws from torch's global one. `rng.Rows` where x_0 is a
            part of a batch.
    """
    return loss_at(denoiser, x_0, *_draw(denoiser, x_0, generator), weight).mean()


def hybrid_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight | None = None,
    generator: torch.Generator | rng.Rows | None = None,
) -> Tensor:
    """L_hybrid = L_simple + 0.001 L_vlb, for a learned variance [Improved DDPM eq. 16].

    Arguments as in `diffusion_loss`.
    """
    return hybrid_at(denoiser, x_0, *_draw(denoiser, x_0, generator), weight).mean()


def vlb_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight | None = None,
    generator: torch.Generator | rng.Rows | None = None,
) -> Tensor:
    """L_vlb in bits per dim, with times drawn uniformly [DDPM eq. 5, Improved DDPM eq. 4].

    Arguments as in `diffusion_loss`; `weight` here weights the bound's terms.
    """
    return vlb_at(denoiser, x_0, *_draw(denoiser, x_0, generator), weight).mean()


LOSSES = {f.__name__: f for f in (diffusion_loss, hybrid_loss, vlb_loss)}


# ---- held-out errors: always the same draws --------------------------------------------------


@torch.no_grad()
def held_out_loss(denoiser: Denoiser, x_0: Tensor, weight: Weight | None = None) -> Tensor:
    """`loss_at` with times spread evenly over 1..T and noise fixed for ever, shape [].

    Always the same draws, so that two denoisers, or two moments of a training, can be compared.

    Args:
        x_0: images that were not trained on, [B, C, H, W].
    """
    T = denoiser.schedule.num_timesteps
    t = torch.linspace(1, T, len(x_0), device=x_0.device).round().long()
    eps = rng.normal(x_0.shape, rng.generator(0), x_0.device)
    return loss_at(denoiser, x_0, t, eps, weight).mean()


@torch.no_grad()
def loss_per_t(
    denoiser: Denoiser, x_0: Tensor, times: Tensor, weight: Weight | None = None
) -> Tensor:
    """The loss at each of `times` [K], averaged over the same images and noise at all of them: [K].

    Args:
        x_0: images that were not trained on, [B, C, H, W].
    """
    eps = rng.normal(x_0.shape, rng.generator(0), x_0.device)
    per_t = [loss_at(denoiser, x_0, t.expand(len(x_0)), eps, weight).mean() for t in times]
    return torch.stack(per_t)


# ---- the variational bound -------------------------------------------------------------------


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
    if first.is_cuda or first.any():  # likewise
        deviation = ((excess + column(low)) / 2).exp()
        decoder = -_log_p(x_0.double(), x_0_hat.double(), deviation.double()).to(kl.dtype)
        nats = torch.where(first[:, None, None, None], decoder, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def prior_term(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I)) in bits per dim, [B] [DDPM eq. 5]."""
    alpha_bar = float(schedule.alpha_bar[-1])
    nats = (alpha_bar * (x_0.double().square() - 1) - math.log1p(-alpha_bar)) / 2
    return nats.flatten(1).mean(1) / math.log(2)


def _log_p(x_0: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """log of N(mean, deviation^2)'s mass in the bin of x_0; -1 and 1 take all beyond them."""
    above = torch.special.ndtr((x_0 + _HALF_BIN - mean) / deviation)
    below = torch.special.ndtr((x_0 - _HALF_BIN - mean) / deviation)
    above = torch.where(x_0 > 0.999, 1.0, above)
    below = torch.where(x_0 < -0.999, 0.0, below)
    return (above - below).clamp(min=_SMALLEST_P).log()


def _squared_error(
    denoiser: Denoiser, output: Tensor, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None
) -> Tensor:
    error = (output - denoiser.target(x_0, eps, t)).square().flatten(1).mean(1)
    return implied_weight(weight, denoiser.prediction, denoiser.schedule, t) * error


def _x_0_hat(denoiser: Denoiser, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Unclipped: a clipped pixel would learn nothing."""
    return predictions.solve(denoiser.prediction, output, x_t, *denoiser.schedule(t))[0]


def _draw(
    denoiser: Denoiser, x_0: Tensor, generator: torch.Generator | rng.Rows | None
) -> tuple[Tensor, Tensor]:
    t = rng.integers(1, denoiser.schedule.num_timesteps + 1, len(x_0), generator, x_0.device)
    return t, rng.normal(x_0.shape, generator, x_0.device)
