"""The training loss and its weights; `bound` has the losses of the variational bound.

    x_t = signal_t * x_0 + noise_t * eps
    loss = weight(SNR_t) * mean((x_0_hat - x_0)^2),  t drawn from `densities`  [DDPM algorithm 1]

A weight is a function of the signal-to-noise ratio and always acts on the error of x_0_hat, so
that it means the same whatever the network predicts.  As every prediction is a combination of x_0
and eps, (x_0_hat - x_0)^2 is the network's own squared error times `x_0_scale(signal, noise)`,
and the same weight acts on the errors of eps and v as

    weight / SNR * (eps_hat - eps)^2  =  weight / (SNR + 1) * (v_hat - v)^2.

(v with betas; velocity on `flow` has (1 + sqrt(SNR))^2.)  Without a weight (None) the loss is the
network's own squared error, as in the papers that introduced each prediction: `snr` for eps,
`uniform` for x_0, `snr_plus_1` for v; predictions without a weight differ in their weights too.

To add a weight, write one function of the signal-to-noise ratio and list it in `__all__`.  To add
a loss, write one function (denoiser, x_0, weight, generator) and list it in `config.LOSSES`; one
that draws by `rng.normal` and `rng.integers` can be divided among processes.
"""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

from diffusion_lib import densities, rng
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.densities import Density, draw
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule

__all__ = ["uniform", "snr", "truncated_snr", "snr_plus_1", "min_snr"]

Weight = Callable[[Tensor], Tensor]


class Loss(Protocol):
    """A loss at random times and noise, shape []."""

    __name__: str
    outputs: tuple[int, ...]  # numbers of network outputs it trains: 2 is a learned variance

    def __call__(
        self,
        denoiser: Denoiser,
        x_0: Tensor,
        weight: Weight | None = None,
        generator: torch.Generator | rng.Rows | None = None,
    ) -> Tensor: ...


def trains(*outputs: int) -> Callable[[Callable[..., Tensor]], Loss]:
    """Decorate a loss with the numbers of network outputs that it trains."""

    def decorate(loss: Callable[..., Tensor]) -> Loss:
        marked = cast(Loss, loss)
        marked.outputs = outputs
        return marked

    return decorate


# ---- weights: functions of the signal-to-noise ratio, on the error of x_0_hat ----------------


def uniform(snr: Tensor) -> Tensor:
    """Weight 1: the plain error of x_0_hat."""
    return torch.ones_like(snr)


def snr(snr: Tensor) -> Tensor:
    """Weight SNR: the plain error of eps_hat, L_simple [DDPM eq. 14]."""
    return snr


def truncated_snr(snr: Tensor) -> Tensor:
    """Weight max(SNR, 1): the larger of the errors of x_0_hat and eps_hat [Salimans & Ho 2022]."""
    return snr.clamp(min=1)


def snr_plus_1(snr: Tensor) -> Tensor:
    """Weight SNR + 1: the plain error of v_hat [Salimans & Ho 2022, section 4]."""
    return snr + 1


def min_snr(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight min(SNR, gamma): less for nearly clean images than `snr` [Hang 2023, section 3.4]."""
    return snr.clamp(max=gamma)


def x_0_scale(prediction: Prediction, signal: Tensor, noise: Tensor) -> Tensor:
    """Compute the factor from the squared error of a prediction to that of x_0_hat.

    1 for x_0, 1 / SNR for eps, 1 / (SNR + 1) for v.
    """
    c_x, c_eps = prediction(signal, noise)
    # With x_t fixed, an error d in x_0_hat is -signal / noise * d in eps_hat.
    return (noise / (c_x * noise - c_eps * signal)).square()


def implied_weight(
    weight: Weight | None, prediction: Prediction, schedule: NoiseSchedule, t: Tensor
) -> Tensor:
    """Convert a weight of x_0_hat's error to that of the prediction's own, [B], at times t [B].

    None gives 1.
    """
    if weight is None:
        return torch.ones_like(schedule.signal[t])
    return weight(schedule.snr(t)) * x_0_scale(prediction, schedule.signal[t], schedule.noise[t])


# ---- losses of given times and noise: [B], nothing drawn at random ---------------------------


def loss_at(
    denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None = None
) -> Tensor:
    """Compute the weighted squared error, [B], at given times and noise.

    Args:
        denoiser: denoiser to train.
        x_0: clean images, [B, C, H, W].
        t: times, [B] in 1..T.
        eps: noise to add, [B, C, H, W].
        weight: weight of x_0_hat's error; None is the plain error of the network's own prediction.
    """
    output, _ = denoiser.predict(denoiser.schedule.add_noise(x_0, t, eps), t)
    return weighted_error(denoiser, output, x_0, t, eps, weight)


def weighted_error(
    denoiser: Denoiser, output: Tensor, x_0: Tensor, t: Tensor, eps: Tensor, weight: Weight | None
) -> Tensor:
    """Compute the weighted squared error of a network's output, [B]; arguments as in `loss_at`."""
    error = (output - denoiser.target(x_0, eps, t)).square().flatten(1).mean(1)
    if weight is None:
        return error
    return implied_weight(weight, denoiser.prediction, denoiser.schedule, t) * error


# ---- losses of random times and noise: [] ----------------------------------------------------


@trains(1)
def diffusion_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    weight: Weight | None = None,
    generator: torch.Generator | rng.Rows | None = None,
    density: Density = densities.uniform,
) -> Tensor:
    """Average `loss_at` over random times and noise, shape [] [DDPM algorithm 1].

    Args:
        denoiser: denoiser to train.
        x_0: clean images, [B, C, H, W].
        weight: weight of x_0_hat's error; None is the plain error of the network's own prediction.
        generator: generator on the device of x_0; None is torch's global one, `rng.Rows` divides
            a batch among processes.
        density: density of t, one of `densities` or a function like those.
    """
    t, eps = draw(density, x_0, denoiser.schedule.num_timesteps, generator)
    return loss_at(denoiser, x_0, t, eps, weight).mean()


# ---- held-out errors: always the same draws --------------------------------------------------


@torch.no_grad()
def held_out_loss(denoiser: Denoiser, x_0: Tensor, weight: Weight | None = None) -> Tensor:
    """Average `loss_at` over times spread evenly over 1..T, shape [].

    Always the same times and noise, so that two denoisers, or two steps of a training, can be
    compared.  `x_0` [B, C, H, W] are images that were not trained on.
    """
    T = denoiser.schedule.num_timesteps
    t = torch.linspace(1, T, len(x_0), device=x_0.device).round().long()
    eps = rng.normal(x_0.shape, rng.generator(0), x_0.device)
    return loss_at(denoiser, x_0, t, eps, weight).mean()


@torch.no_grad()
def loss_per_t(
    denoiser: Denoiser, x_0: Tensor, times: Tensor, weight: Weight | None = None
) -> Tensor:
    """Average `loss_at` over images x_0 [B, C, H, W] at each of `times` [K]: [K].

    The noise is the same at all times.
    """
    eps = rng.normal(x_0.shape, rng.generator(0), x_0.device)
    per_t = [loss_at(denoiser, x_0, t.expand(len(x_0)), eps, weight).mean() for t in times]
    return torch.stack(per_t)
