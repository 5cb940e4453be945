"""Likelihood and errors of a denoiser on held-out images."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lib import bound, data, rng
from diffusion_lib.metrics.intervals import Interval
from diffusion_lib.posterior import Variance
from diffusion_lib.rng import MeasurementStream
from diffusion_lib.samplers import DenoiserLike
from diffusion_lib.system.progress import Bar

_BATCH = 100  # images at a time; part of the draws, so not to be chosen


class Bits(NamedTuple):
    """Negative log-likelihood of images, or a bound above it, in bits per dim."""

    per_image: Tensor  # [N]
    dims: int  # numbers in an image

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return self.per_image.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`, from the spread over images, their times and their noise."""
        return (self.per_image.std() / len(self.per_image) ** 0.5).item()

    @property
    def bits_per_image(self) -> float:
        """Bits for a whole image: does not change when images are padded with zeros."""
        return self.mean * self.dims

    @property
    def interval(self) -> Interval:
        """The mean, 1.96 standard errors to each side."""
        return Interval.normal(self.mean, self.standard_error)


class Bound(NamedTuple):
    """The variational bound, L_T + L_{T-1} + ... + L_0, in bits per dim [DDPM eq. 5]."""

    total: Bits
    L_T: float
    L_0: float
    times: list[float]  # centers of the strata of t > 1
    L_t: list[float]  # mean term of a step in each


@torch.no_grad()
def bits_per_dim(
    denoiser: DenoiserLike,
    images: Tensor,
    num_times: int | None = None,
    variance: Variance | None = None,
    seed: int = 0,
) -> Bound:
    """Estimate the variational bound on the negative log-likelihood of images [DDPM section 3.3].

    With fewer than T times a sum over t is estimated without bias: 1..T is cut into strata that
    widen with t, since the first terms are the largest, and each image draws one t in each.  The
    first stratum is t = 1 alone.  The noise of (seed, image, stratum) is always the same.

    Args:
        denoiser: denoiser as a sampler sees it, with its clipping.
        images: uint8 [N, C, H, W], not trained on.
        num_times: network evaluations an image, 2 to T; None for all T.
        variance: variance of the reverse steps, one of `posterior`; None is the learned one where
            there is one, and else beta_tilde.
        seed: random seed of the times and the noise.
    """
    images, schedule = data.check(images), denoiser.schedule
    T = schedule.num_timesteps
    edges = _edges(T, T if num_times is None else num_times, "num_times")
    widths = edges.diff()
    terms, prior = [], []
    for key, batch in enumerate(Bar(images.split(_BATCH), "bits per dim")):
        x_0 = data.to_float(batch).to(schedule.signal.device)
        prior.append(bound.prior_term(schedule, x_0).cpu())
        terms.append(torch.empty(len(x_0), len(widths), dtype=torch.float64, device="cpu"))
        for k, width in enumerate(widths.tolist()):
            generator = rng.generator(seed, MeasurementStream.TIMES, key, k)
            inside = torch.randint(width, (len(x_0),), generator=generator, device="cpu")
            t = (edges[k] + inside).to(x_0.device)
            generator = rng.generator(seed, MeasurementStream.NOISE, key, k)
            eps = rng.normal(x_0.shape, generator, x_0.device)
            denoised = denoiser(schedule.add_noise(x_0, t, eps), t)
            spread = denoised.variance_fraction if variance is None else variance
            terms[-1][:, k] = bound.bound_term(schedule, x_0, denoised.x_0, t, spread).cpu()
    steps, L_T = _finite(torch.cat(terms)), torch.cat(prior)
    total = Bits((steps * widths).sum(1) + L_T, images[0].numel())
    L_0, *L_t = steps.mean(0).tolist()
    return Bound(total, L_T.mean().item(), L_0, ((edges[1:-1] + edges[2:] - 1) / 2).tolist(), L_t)


def ode_bits_per_dim(
    denoiser: DenoiserLike, images: Tensor, num_steps: int = 100, seed: int = 0
) -> Bits:
    """Estimate the negative log-likelihood under the probability-flow ODE [Song 2021, 4.3].

    In y = x / radius, with signal = radius cos(phi) and noise = radius sin(phi), the flow is
    dy / dphi = v_hat = cos(phi) eps_hat - sin(phi) x_0_hat, so from t = 1 to T

        log p(x_1) = log N(y_T; 0, I) + integral of div v_hat dphi - D log radius_1.

    The dequantized image stands for x_1, as the network has seen no less noise.  What that costs is
    part of the result: linear's noise_1 = 0.01 puts 1.7 bits on a pixel that never varies.

    Steps are Heun's, at times that grow in equal ratios.  The divergence is Hutchinson's with one
    Rademacher probe an image; it falls as 1 / noise, so its sum runs over log tan(phi / 2), whose
    derivative is 1 / noise.  Pixels are dequantized uniformly within their bins of width 2 / 255.
    It is an estimate of the density of the flow, not a bound.

    Args:
        denoiser: denoiser as a sampler sees it, with its clipping.
        images: uint8 [N, C, H, W].
        num_steps: number of steps of two network evaluations each, 2 to T - 1; double it to see
            the error of the discretization.
        seed: random seed of the dequantization and the probes.
    """
    images, schedule = data.check(images), denoiser.schedule
    last = schedule.num_timesteps - 1
    times = _edges(last, num_steps, "num_steps").tolist()
    angles = torch.atan2(schedule.noise_variance.sqrt(), schedule.alpha_bar.sqrt())
    radii = schedule.power.sqrt()
    parts = []
    for key, batch in enumerate(Bar(images.split(_BATCH), "probability flow")):
        x_0 = data.to_float(batch).to(schedule.signal.device)
        uniform, coin = (
            torch.rand(x_0.shape, generator=rng.generator(seed, stream, key), device="cpu").to(x_0)
            for stream in (MeasurementStream.DEQUANTIZE, MeasurementStream.PROBE)
        )
        y = (x_0 + (2 * uniform - 1) / 255) / float(radii[1])
        probe = 2.0 * (coin < 0.5) - 1
        nats = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        for t, s in pairwise(times):
            step = float(angles[s] - angles[t])
            stretch = float((angles[s] / 2).tan().log() - (angles[t] / 2).tan().log())
            v, div = _v_and_divergence(denoiser, y, t, probe)
            v_ahead, div_ahead = _v_and_divergence(denoiser, y + step * v, s, probe)
            y = y + step * (v + v_ahead) / 2
            ends = angles[t].sin() * div.double() + angles[s].sin() * div_ahead.double()
            nats -= stretch * ends / 2
        squares = y.double().square().flatten(1).sum(1)
        nats += (squares + y[0].numel() * math.log(2 * math.pi)) / 2
        scale = math.log2(255 / 2) + float(radii[1].log2())
        parts.append(nats.cpu() / y[0].numel() / math.log(2) + scale)
    return Bits(_finite(torch.cat(parts)), images[0].numel())


def _v_and_divergence(
    denoiser: DenoiserLike, y: Tensor, t: int, probe: Tensor
) -> tuple[Tensor, Tensor]:
    radius = math.sqrt(denoiser.schedule.power[t])
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        at = torch.full((len(y),), t, device=y.device)
        denoised = denoiser(radius * y, at)
        signal, noise = denoiser.schedule(at)
        v = (signal * denoised.eps - noise * denoised.x_0) / radius
        (product,) = torch.autograd.grad((v * probe).sum(), y)
    return v.detach(), (product * probe).flatten(1).sum(1)


def _edges(last: int, parts: int, name: str) -> Tensor:
    """Return the edges 1, 2, ..., last + 1 of `parts` strata that widen in equal ratios.

    The first stratum is 1 alone, unless it is the only one.
    """
    least = min(2, last)
    if not least <= parts <= last:
        raise ValueError(f"{name} must lie in {least}..{last}; got {parts}")
    edges = [1] if parts == 1 else [1, 2]
    while len(edges) <= parts:
        ratio = ((last + 1) / edges[-1]) ** (1 / (parts + 1 - len(edges)))
        edges.append(max(edges[-1] + 1, round(edges[-1] * ratio)))
    return torch.tensor(edges, device="cpu")


class Errors(NamedTuple):
    """Mean squared errors a pixel at each of `t`, and the bound's term there in bits per dim."""

    t: list[int]
    x_0: list[float]
    eps: list[float]
    v: list[float]
    bound: list[float]


@torch.no_grad()
def errors_per_t(
    denoiser: DenoiserLike, images: Tensor, times: Sequence[int] | None = None, seed: int = 0
) -> Errors:
    """Measure the errors of x_0_hat, eps_hat and v_hat, whichever the network predicts.

    All times see the same images with the same noise, and so do all denoisers.

    Args:
        denoiser: denoiser as a sampler sees it, with its clipping.
        images: uint8 [N, C, H, W], not trained on.
        times: values of t in 1..T; None is 1 and 20 more, evenly spread.
        seed: random seed of the noise.
    """
    images, schedule = data.check(images), denoiser.schedule
    T = schedule.num_timesteps
    if times is None:
        times = sorted({1, *schedule.timesteps(min(20, T))[:-1]})
    if not times or min(times) < 1 or max(times) > T:
        raise ValueError(f"times must lie in 1..{T}; got {list(times)}")
    sums = torch.zeros(len(times), 4, dtype=torch.float64, device="cpu")
    for key, batch in enumerate(Bar(images.split(_BATCH), "errors per t")):
        x_0 = data.to_float(batch).to(schedule.signal.device)
        eps = rng.normal(x_0.shape, rng.generator(seed, MeasurementStream.NOISE, key), x_0.device)
        for row, time in zip(sums, times, strict=True):
            t = torch.full((len(x_0),), time, device=x_0.device)
            denoised = denoiser(schedule.add_noise(x_0, t, eps), t)
            signal, noise = schedule(t)
            off, eps_off = denoised.x_0 - x_0, denoised.eps - eps
            v_off = signal * eps_off - noise * off
            term = bound.bound_term(schedule, x_0, denoised.x_0, t, denoised.variance_fraction)
            means = [error.square().flatten(1).mean(1) for error in (off, eps_off, v_off)]
            row += torch.stack([*means, term]).double().sum(1).cpu()
    x_0s, epses, vs, bounds = (_finite(sums) / len(images)).T.tolist()
    return Errors(list(times), x_0s, epses, vs, bounds)


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise ValueError(
            "the denoiser returned NaN or infinity for some images: its training has diverged, or "
            "its weights are damaged"
        )
    return values
