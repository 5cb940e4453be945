"""Measurements that mean the same for every schedule, prediction and sampler.

Likelihood     `bits_per_dim`, the variational bound; `ode_bits_per_dim`, the probability flow
Errors         `errors_per_t`: of x_0_hat, eps_hat and v_hat, on fixed draws
Samples        `quality` of a set beside a reference, in the features of a small classifier:
               Frechet and kernel distance, precision and recall, classes, confidence
Memorisation   `nearest_distances` to the training images
Labels         `obedience`: how many samples show what they were asked for, and how diverse they
               are

An `Estimate` is a number with a 95 % interval.  For the bits it is 1.96 standard errors to each
side.  For distances and shares it comes from a bootstrap: images are drawn again with replacement,
200 times, and the middle 95 % of what comes out is the interval.  Precision and recall would not
survive that, as an image drawn twice is its own nearest neighbour: there random halves stand in.

A distance between finite sets is not 0 even where both come from one distribution: hold every
distance against its floor, the same measurement of real images, as many of them.  Near that floor
the bootstrap's intervals of distances are too wide, as drawing images again moves two nearly equal
sets apart by as much as they are apart already: verdicts there say "not distinguishable" too often,
and "different" hardly ever wrongly.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lib import bound, data, rng
from diffusion_lib.features import Described
from diffusion_lib.posterior import Variance
from diffusion_lib.rng import MeasurementStream
from diffusion_lib.samplers import DenoiserLike
from diffusion_lib.system.progress import Bar

CONFIDENT = 0.9
"""Probability above which a classifier counts as sure of a class."""

_BATCH = 100  # images at a time; part of the draws, so not to be chosen
_ROWS = 1000  # of a matrix of pairs held at a time
_RESAMPLES = 200
_HALVES = 40  # of both sets, for the spread of precision and recall
_NEIGHBOURS = 3  # [Kynkaanniemi 2019]


class Estimate(NamedTuple):
    """A measured number and its 95 % interval."""

    value: float
    low: float
    high: float


# ---- likelihood ------------------------------------------------------------------------------


class Bits(NamedTuple):
    """Negative log-likelihood of images, or a bound above it, in bits.

    `per_image` [N] holds bits per dim of each image; the mean of one image's bits over its pixels
    is `mean`, and times the pixels `bits_per_image`.
    """

    per_image: Tensor
    dims: int

    @property
    def mean(self) -> float:
        """Bits per dim."""
        return self.per_image.mean().item()

    @property
    def standard_error(self) -> float:
        """Of `mean`, from the spread over images, their times and their noise."""
        return (self.per_image.std() / len(self.per_image) ** 0.5).item()

    @property
    def bits_per_image(self) -> float:
        """Bits for a whole image: does not change when images are padded with zeros."""
        return self.mean * self.dims

    @property
    def estimate(self) -> Estimate:
        """Bits per dim, 1.96 standard errors to each side."""
        margin = 1.96 * self.standard_error
        return Estimate(self.mean, self.mean - margin, self.mean + margin)


class Bound(NamedTuple):
    """The variational bound, L_T + L_{T-1} + ... + L_0, in bits per dim [DDPM eq. 5]."""

    total: Bits
    L_T: float
    L_0: float
    times: list[float]  # centres of the strata of t > 1
    L_t: list[float]  # mean term of a step in each


@torch.no_grad()
def bits_per_dim(
    denoiser: DenoiserLike,
    images: Tensor,
    num_times: int | None = None,
    variance: Variance | None = None,
    seed: int = 0,
) -> Bound:
    """The discrete variational bound on the negative log-likelihood of images [DDPM section 3.3].

    With fewer than T times a sum over t is estimated without bias: 1..T is cut into strata that
    widen with t, since the first terms are the largest, and each image draws one t in each.  The
    first stratum is t = 1 alone.  The noise of (seed, image, stratum) is always the same.

    Args:
        denoiser: what a sampler sees, so with its clipping.
        images: uint8 [N, C, H, W], N >= 2, not trained on.
        num_times: network evaluations an image, 2 to T; None for all T.
        variance: of the reverse steps, one of `posterior`; None is the learned one where there is
            one, and else beta_tilde.

    Raises:
        TypeError, ValueError: other images; num_times outside 2..T; fewer than 2 images; NaN from
            the denoiser.
    """
    images = _check_images(images)
    schedule = denoiser.schedule
    T = schedule.num_timesteps
    if num_times is not None and not min(2, T) <= num_times <= T:
        raise ValueError(f"num_times must lie in {min(2, T)}..{T}, T; got {num_times}")
    edges = _edges(T, num_times or T)
    widths = edges.diff()
    terms, prior = [], []
    for x_0, key in _batches(images, schedule.signal.device, "bits per dim"):
        terms.append(torch.empty(len(x_0), len(widths), dtype=torch.float64, device="cpu"))
        prior.append(bound.prior_term(schedule, x_0).cpu())
        for k, width in enumerate(widths.tolist()):
            inside = torch.randint(
                width,
                (len(x_0),),
                generator=rng.generator(seed, MeasurementStream.TIMES, key, k),
                device="cpu",
            )
            t = (edges[k] + inside).to(x_0.device)
            eps = rng.normal(
                x_0.shape, rng.generator(seed, MeasurementStream.NOISE, key, k), x_0.device
            )
            found = denoiser(schedule.add_noise(x_0, t, eps), t)
            spread = found.variance_share if variance is None else variance
            terms[-1][:, k] = bound.bound_term(schedule, x_0, found.x_0, t, spread).cpu()
    steps, L_T = torch.cat(terms), torch.cat(prior)
    _check_finite(steps)
    means = steps.mean(0).tolist()
    return Bound(
        total=Bits((steps * widths).sum(1) + L_T, images[0].numel()),
        L_T=L_T.mean().item(),
        L_0=means[0],
        times=((edges[1:-1] + edges[2:] - 1) / 2).tolist(),
        L_t=means[1:],
    )


def ode_bits_per_dim(
    denoiser: DenoiserLike, images: Tensor, num_steps: int = 100, seed: int = 0
) -> Bits:
    """Negative log-likelihood under the probability-flow ODE [Song 2021, section 4.3].

    With signal = cos(phi) and noise = sin(phi) the flow is dx / dphi = v_hat(x, phi), so

        log p(x_1) = log N(x_T; 0, I) + integral of div v_hat dphi,  from t = 1 to T.

    The dequantised image stands for x_1, as the network has seen no less noise.  What that costs is
    part of the result: linear's noise_1 = 0.01 puts 1.7 bits on a pixel that never varies.

    Steps are Heun's, at times that grow in equal ratios.  The divergence is Hutchinson's with one
    Rademacher probe an image; it falls as 1 / noise, so its sum runs over log tan(phi / 2), whose
    derivative is 1 / noise.  Pixels are dequantised uniformly within their bins of width 2 / 255.
    It is an estimate of the density of the flow, not a bound.

    Args:
        images: uint8 [N, C, H, W], N >= 2.
        num_steps: of two network evaluations each, 2 to T - 1: double it to see what it leaves.

    Raises:
        TypeError, ValueError: other images; num_steps outside 2..T - 1; fewer than 2 images; NaN
            from the denoiser.
    """
    images = _check_images(images)
    schedule = denoiser.schedule
    last = schedule.num_timesteps - 1
    if not 2 <= num_steps <= last:
        raise ValueError(f"num_steps must lie in 2..{last}, T - 1; got {num_steps}")
    times = _edges(last, num_steps).tolist()
    angles = torch.atan2((1 - schedule.alpha_bar).sqrt(), schedule.alpha_bar.sqrt())
    found = []
    for x_0, key in _batches(images, schedule.signal.device, "probability flow"):
        uniform = torch.rand(
            x_0.shape,
            generator=rng.generator(seed, MeasurementStream.DEQUANTIZE, key),
            device="cpu",
        )
        x = x_0 + (2 * uniform.to(x_0.device) - 1) / 255
        coin = (
            torch.rand(
                x_0.shape, generator=rng.generator(seed, MeasurementStream.PROBE, key), device="cpu"
            )
            < 0.5
        )
        probe = (2.0 * coin - 1).to(x_0.device)
        nats = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for t, s in pairwise(times):
            step = float(angles[s] - angles[t])
            stretch = float((angles[s] / 2).tan().log() - (angles[t] / 2).tan().log())
            v, div = _v_and_divergence(denoiser, x, t, probe)
            v_ahead, div_ahead = _v_and_divergence(denoiser, x + step * v, s, probe)
            x = x + step * (v + v_ahead) / 2
            ends = angles[t].sin() * div.double() + angles[s].sin() * div_ahead.double()
            nats -= stretch * ends / 2
        squares = x.double().square().flatten(1).sum(1)
        nats += (squares + x[0].numel() * math.log(2 * math.pi)) / 2
        found.append(nats.cpu() / x[0].numel() / math.log(2) + math.log2(255 / 2))
    bits = torch.cat(found)
    _check_finite(bits)
    return Bits(bits, images[0].numel())


def _v_and_divergence(
    denoiser: DenoiserLike, x: Tensor, t: int, probe: Tensor
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        at = torch.full((len(x),), t, device=x.device)
        found = denoiser(x, at)
        signal, noise = denoiser.schedule(at)
        v = signal * found.eps - noise * found.x_0
        (product,) = torch.autograd.grad((v * probe).sum(), x)
    return v.detach(), (product * probe).flatten(1).sum(1)


def _edges(last: int, parts: int) -> Tensor:
    """1, 2, ..., last + 1: the edges of `parts` strata of 1..last that widen in equal ratios.

    The first stratum is 1 alone, unless it is the only one.
    """
    edges = [1] if parts == 1 else [1, 2]
    while len(edges) <= parts:
        ratio = ((last + 1) / edges[-1]) ** (1 / (parts + 1 - len(edges)))
        edges.append(max(edges[-1] + 1, round(edges[-1] * ratio)))
    return torch.tensor(edges, device="cpu")


# ---- errors on one yardstick -----------------------------------------------------------------


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
    """How far x_0_hat, eps_hat and v_hat are off, whichever of them the network predicts.

    All times see the same images with the same noise, and so do all denoisers.

    Args:
        denoiser: what a sampler sees, so with its clipping.
        images: uint8 [N, C, H, W], N >= 2, not trained on.
        times: each in 1..T; None is 1 and 20 more, evenly spread.

    Raises:
        TypeError, ValueError: other images; a time outside 1..T; NaN from the denoiser.
    """
    images = _check_images(images)
    schedule = denoiser.schedule
    T = schedule.num_timesteps
    if times is None:
        times = sorted({1, *schedule.timesteps(min(20, T))[:-1]})
    if not times or min(times) < 1 or max(times) > T:
        raise ValueError(f"times must lie in 1..{T}; got {list(times)}")
    sums = torch.zeros(len(times), 4, dtype=torch.float64, device="cpu")
    for x_0, key in _batches(images, schedule.signal.device, "errors per t"):
        eps = rng.normal(x_0.shape, rng.generator(seed, MeasurementStream.NOISE, key), x_0.device)
        for row, time in zip(sums, times, strict=True):
            t = torch.full((len(x_0),), time, device=x_0.device)
            found = denoiser(schedule.add_noise(x_0, t, eps), t)
            signal, noise = schedule(t)
            off, eps_off = found.x_0 - x_0, found.eps - eps
            v_off = signal * eps_off - noise * off
            term = bound.bound_term(schedule, x_0, found.x_0, t, found.variance_share)
            means = [error.square().flatten(1).mean(1) for error in (off, eps_off, v_off)]
            row += torch.stack([*means, term]).double().sum(1).cpu()
    _check_finite(sums)
    x_0s, epses, vs, bounds = (sums / len(images)).T.tolist()
    return Errors(list(times), x_0s, epses, vs, bounds)


def _batches(images: Tensor, device: torch.device, name: str) -> Iterator[tuple[Tensor, int]]:
    """(x_0, key) of each batch, with a progress bar; the key makes the batch's random numbers."""
    with Bar(description=name, total=len(images)) as bar:
        for key, batch in enumerate(images.split(_BATCH)):
            yield data.to_float(batch).to(device), key
            bar.update(len(batch))


def _check_images(images: Tensor) -> Tensor:
    images = data.check(images)
    if len(images) < 2:
        raise ValueError(f"a standard error needs at least 2 images; got {len(images)}")
    return images


def _check_finite(values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(
            "the denoiser returned NaN or infinity for some images: its training has diverged, or "
            "its weights are damaged"
        )


# ---- quality of samples ----------------------------------------------------------------------


def quality(samples: Described, reference: Described, seed: int = 0) -> dict[str, Estimate]:
    """How alike two sets of images are, in a classifier's features.

    Returns:
        "Frechet distance": of the normal distributions fitted to both [Heusel 2017].
        "kernel distance": squared, with the kernel (x y / D + 1)^3, without bias [Binkowski 2018].
        "precision": share of the samples within the reference's neighbourhoods, and "recall":
            share of the reference within the samples' [Kynkaanniemi 2019, k = 3].
        "confidence > 0.9": share of the samples of which the classifier is so sure.
        "class 0", ...: share of the samples in each class.

    Raises:
        ValueError: features of other dimensions or not finite; no more images than dimensions.
    """
    _check(samples.features, reference.features)
    n, m = len(samples.features), len(reference.features)
    mine = _resample(n, rng.generator(seed, MeasurementStream.RESAMPLE, 0))
    theirs = _resample(m, rng.generator(seed, MeasurementStream.RESAMPLE, 1))
    sure = (samples.probabilities.max(1).values > CONFIDENT).double()
    classes = samples.probabilities.argmax(1)
    distances = {
        "Frechet distance": _frechet(samples.features, reference.features, mine, theirs),
        "kernel distance": _kernel(samples.features, reference.features, mine, theirs),
    }
    shares = {f"confidence > {CONFIDENT}": mine @ sure / n}
    for k in range(samples.probabilities.shape[1]):
        shares[f"class {k}"] = mine @ (classes == k).double() / n
    found = {name: _around(values) for name, values in distances.items()}
    precision, recall = _halves(samples.features, reference.features, seed)
    found |= {"precision": _share(precision, n), "recall": _share(recall, m)}
    return found | {name: _share(_estimate(values), n) for name, values in shares.items()}


def obedience(samples: Described, labels: Tensor, reference: Described) -> dict[str, Estimate]:
    """Do samples show what they were asked for, and does that cost diversity?

    Args:
        labels: what each sample was asked to show, int64 [N].
        reference: real images, at least 2 of each label.

    Returns:
        "accuracy": share of the samples that the classifier takes for what was asked for.
        "spread": mean squared distance of the features from their mean within a label, averaged
            over the labels, as a share of that of the real images, each in the class that the
            classifier sees: 1 is as diverse as they are.

    Raises:
        ValueError: not one label for each sample; a label with fewer than 2 samples.
    """
    n = len(samples.features)
    if labels.shape != (n,) or (labels.bincount() == 1).any():
        raise ValueError(
            f"{n} samples need one label each, and each label 2 samples or more; got labels of "
            f"shape {list(labels.shape)}, of {labels.bincount().tolist()} samples"
        )
    seen = reference.probabilities.argmax(1)
    right = (samples.probabilities.argmax(1) == labels).double()
    accuracy, spread = torch.zeros(2, _RESAMPLES + 1, dtype=torch.float64, device="cpu")
    for label in labels.unique().tolist():  # drawn again within each, so that none is left out
        own = labels == label
        counts = _resample(int(own.sum()), rng.generator(0, MeasurementStream.RESAMPLE, label))
        real = reference.features[seen == label].double().var(0).sum()
        accuracy += counts @ right[own] / n
        spread += _variance(samples.features[own].double(), counts) / real
    found = _estimate(spread / len(labels.unique()))
    return {"accuracy": _share(_estimate(accuracy), n), "spread": found}


def _variance(x: Tensor, counts: Tensor) -> Tensor:
    """Sum over the dimensions of the variance of x [N, D], row i taken counts[:, i] times: [R]."""
    n = counts.sum(1)
    mean = counts @ x / n[:, None]
    total = counts @ x.square().sum(1) - n * mean.square().sum(1)
    # Without bias: rows drawn once more have once more (N - 1) / N of the variance.
    unbiased = torch.full_like(n, len(x) / (len(x) - 1)).square()
    unbiased[0] = unbiased[0].sqrt()
    return total / n * unbiased


def values(samples: Described, reference: Tensor) -> dict[str, float]:
    """The numbers of `quality` without intervals, for those who repeat the whole measurement.

    Args:
        reference: features of the reference, [M, D].
    """
    precision, recall = precision_recall(samples.features, reference)
    sure = samples.probabilities.max(1).values > CONFIDENT
    return {
        "Frechet distance": frechet_distance(samples.features, reference),
        "kernel distance": kernel_distance(samples.features, reference),
        "precision": precision,
        "recall": recall,
        f"confidence > {CONFIDENT}": sure.double().mean().item(),
    }


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """|mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two sets of features, [N, D] and [M, D].

    Raises:
        ValueError: features of other dimensions or not finite; no more images than dimensions.
    """
    _check(features, reference)
    ones = [x.new_ones(1, len(x), dtype=torch.float64) for x in (features, reference)]
    return _frechet(features.double(), reference.double(), *ones)[0].item()


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x y / D + 1)^3, without bias.

    Raises:
        ValueError: as `frechet_distance`.
    """
    _check(features, reference)
    ones = [x.new_ones(1, len(x), dtype=torch.float64) for x in (features, reference)]
    return _kernel(features.double(), reference.double(), *ones)[0].item()


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Share of each set that lies within the other's k-nearest-neighbour balls, k = 3.

    Raises:
        ValueError: as `frechet_distance`.
    """
    _check(features, reference)
    inside, covered = _precision_recall(features.double(), reference.double())
    return inside.mean().item(), covered.mean().item()


def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """Distance of each image to the nearest training image, root mean square a pixel: [N].

    Of samples it shows memorisation where it is smaller than that of images that were held out.

    Args:
        images, training: uint8 [N, C, H, W] and [M, C, H, W]; distances are of pixels in 0..255.

    Raises:
        TypeError, ValueError: images of another dtype or shape.
    """
    training = data.check(training)
    images = data.check(images, training.shape[1:])
    x, y = (batch.flatten(1).float() for batch in (images, training))
    nearest = [torch.cdist(rows, y).min(1).values for rows in x.split(_ROWS)]
    return torch.cat(nearest).double() / x.shape[1] ** 0.5


def memorisation(distances: Tensor, held_out: Tensor, seed: int = 0) -> dict[str, Estimate]:
    """How near images are to the training images, against images that were held out.

    Args:
        distances, held_out: `nearest_distances` of the images and of held-out ones, [N] and [M].

    Returns:
        "nearest training image": the median distance.
        "copies": share that is nearer than 99 % of the held-out images are, so 0.01 without
            memorisation; a few copies among many samples leave the median where it is.
    """
    n = len(distances)
    counts = _resample(n, rng.generator(seed, MeasurementStream.RESAMPLE, 2))
    near = (distances < held_out.quantile(0.01)).double()
    order = distances.argsort()
    # The median of each resampling is where its counts, in this order, reach one half.
    middle = (counts[:, order].cumsum(1) < n / 2).sum(1)
    return {
        "nearest training image": _estimate(distances[order][middle]),
        "copies": _share(_estimate(counts @ near / n), n),
    }


def inception_fid(samples: Tensor, reference: Tensor) -> float:
    """The usual FID, on Inception features, through torchmetrics; needs a download once.

    Args:
        samples, reference: uint8 [N, C, H, W] and [M, C, H, W], more than 2048 of each.

    Raises:
        ValueError: too few images for a covariance of 2048 dimensions.
        RuntimeError: torchmetrics or the Inception weights are not to be had here.
    """
    for images in (samples, reference):
        data.check(images, samples.shape[1:])
        if len(images) <= 2048:
            raise ValueError(
                f"Inception features have 2048 dimensions: more images are needed; got "
                f"{len(images)}"
            )
    try:
        from torchmetrics.image.fid import (  # pyright: ignore[reportMissingImports]
            FrechetInceptionDistance,
        )

        fid = FrechetInceptionDistance().set_dtype(torch.float64)
    except (ImportError, OSError) as error:  # a failed download is an OSError
        raise RuntimeError(
            f"Inception FID cannot be had here ({type(error).__name__}: {error}). It needs "
            '`pip install "torchmetrics[image]"` and, once, a network to fetch the Inception '
            "weights. metrics.quality needs neither."
        ) from error
    for images, real in ((samples, False), (reference, True)):
        for batch in Bar(images.split(_BATCH), "Inception"):
            fid.update(batch.expand(-1, 3, -1, -1), real=real)
    return fid.compute().item()


def check_count(n: int, dims: int, name: str) -> None:
    """Refuse too few images for a covariance.

    Raises:
        ValueError: n is not above the features' dimension.
    """
    if n <= dims:
        raise ValueError(
            f"{n} {name}, but the features have {dims} dimensions: a covariance needs more images "
            "than dimensions"
        )


def _check(features: Tensor, reference: Tensor) -> None:
    for name, x in (("samples", features), ("reference", reference)):
        if x.ndim != 2 or x.shape[1] != reference.shape[-1]:
            raise ValueError(
                f"features must be [N, D] and [M, D]; got {list(features.shape)} and "
                f"{list(reference.shape)}"
            )
        if not x.isfinite().all():
            raise ValueError(f"the features of the {name} are not all finite: NaN images?")
        check_count(len(x), x.shape[1], name)


def _resample(n: int, generator: torch.Generator) -> Tensor:
    """How often each of n images counts: once in the first row, as drawn in the others."""
    drawn = torch.randint(n, (_RESAMPLES, n), generator=generator, device="cpu")
    counts = drawn.new_zeros(_RESAMPLES, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return torch.cat([counts.new_ones(1, n), counts])


def _estimate(values: Tensor) -> Estimate:
    """The first value, and the middle 95 % of the others."""
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975], device="cpu").double())
    return Estimate(values[0].item(), low.item(), high.item())


def _share(share: Estimate, n: int) -> Estimate:
    """The interval of a share of n, widened where it is nearly 0 or 1 and so no image differs.

    By Wilson's: that of 0 of n reaches z^2 / (n + z^2), z = 1.96.
    """
    least = 1.96**2 / (n + 1.96**2)
    low = share.value - max(share.value - share.low, min(least, share.value))
    high = share.value + max(share.high - share.value, min(least, 1 - share.value))
    return Estimate(share.value, max(low, 0.0), min(high, 1.0))


def _around(distances: Tensor) -> Estimate:
    """The first value, with the spread of the others laid around it.

    Images drawn twice put a distance up, so the others lie above the first one as a whole.
    """
    return _estimate(
        torch.cat([distances[:1], distances[1:] - distances[1:].mean() + distances[0]])
    )


def _frechet(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    """For each row of counts [R, N] and [R, M]: [R]."""
    found = []
    for counts, other in zip(x_counts, y_counts, strict=True):
        (mean, cov), (other_mean, other_cov) = _moments(x, counts), _moments(y, other)
        values, vectors = torch.linalg.eigh(cov)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        # tr (C C')^(1/2) is that of the symmetric C^(1/2) C' C^(1/2): no complex numbers.
        product = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum()
        distance = (mean - other_mean).square().sum() + cov.trace() + other_cov.trace()
        found.append((distance - 2 * product).clamp(min=0))
    return torch.stack(found)


def _moments(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    n = counts.sum()
    mean = counts @ x / n
    centred = x - mean
    return mean, (centred * counts[:, None]).T @ centred / (n - 1)


def _kernel(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    """For each row of counts [R, N] and [R, M]: [R]."""
    within = _within(x, x_counts) + _within(y, y_counts)
    across = _pair_sum(x, y, x_counts, y_counts) / (x_counts.sum(1) * y_counts.sum(1))
    return within - 2 * across


def _within(x: Tensor, counts: Tensor) -> Tensor:
    """Mean kernel of the pairs of different images."""
    itself = counts.square() @ (x.square().mean(1) + 1) ** 3
    pairs = counts.sum(1).square() - counts.square().sum(1)
    return (_pair_sum(x, x, counts, counts) - itself) / pairs


def _pair_sum(x: Tensor, y: Tensor, x_counts: Tensor, y_counts: Tensor) -> Tensor:
    total = x_counts.new_zeros(len(x_counts))
    for rows, counts in zip(x.split(_ROWS), x_counts.split(_ROWS, 1), strict=True):
        kernel = (rows @ y.T / x.shape[1] + 1) ** 3
        total += ((counts @ kernel) * y_counts).sum(1)
    return total


def _halves(x: Tensor, y: Tensor, seed: int) -> tuple[Estimate, Estimate]:
    """Precision and recall, with the spread of those of random halves laid around them.

    The variance between halves drawn without replacement is that of the whole [Politis 1994].
    """
    found = []
    for k in range(_HALVES):
        # float32: these give a spread alone.
        halves = [
            z[rng.permutation(len(z), seed, MeasurementStream.HALVES, k, side)[: len(z) // 2]]
            for side, z in enumerate((x.float(), y.float()))
        ]
        found.append([share.mean() for share in _precision_recall(*halves)])
    margins = 1.96 * torch.tensor(found, dtype=torch.float64, device="cpu").std(0)
    values = [share.mean().item() for share in _precision_recall(x, y)]
    precision, recall = (
        Estimate(value, max(0.0, value - margin), min(1.0, value + margin))
        for value, margin in zip(values, margins.tolist(), strict=True)
    )
    return precision, recall


def _precision_recall(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which of x lie in a ball of y, and which of y in a ball of x, as 0 and 1."""
    x_radii, y_radii = _radii(x), _radii(y)
    inside = x.new_zeros(len(x), dtype=torch.bool)
    covered = y.new_zeros(len(y), dtype=torch.bool)
    for first in range(0, len(x), _ROWS):
        rows = slice(first, first + _ROWS)
        distances = torch.cdist(x[rows], y)
        inside[rows] = (distances <= y_radii).any(1)
        covered |= (distances <= x_radii[rows, None]).any(0)
    return inside.double(), covered.double()


def _radii(x: Tensor) -> Tensor:
    """Distance of each row to its k-th nearest other one."""
    nearest = [
        torch.cdist(rows, x).topk(min(_NEIGHBOURS + 1, len(x)), largest=False).values[:, -1]
        for rows in x.split(_ROWS)
    ]
    return torch.cat(nearest)
