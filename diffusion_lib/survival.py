"""Predict which labels survive noise, without a network: how far may an edit go?

DDPM with a perfect denoiser and all of its steps, from x_t = signal * x_0 + noise * eps, draws an
image of a class with probability p(class | x_t).  So the mean of p(class of x_0 | x_t) is the share
of the labels that `editing.edit` keeps, and any model of the images of each class predicts it:
Gaussians (`how_far`, `label_curve`) or the training images themselves (`empirical_posterior`).

Images are vectors [N, D] here: pixels in [-1, 1], or coordinates along `principal_axes`, in which
eps is standard normal too.  Times lie in 1..T; `times` is a list of them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_lib import data, rng
from diffusion_lib.metrics.intervals import Interval
from diffusion_lib.rng import MeasurementStream
from diffusion_lib.schedules import NoiseSchedule

Component = tuple[int, float, Tensor, Tensor]  # class, weight, mean [D], covariance [D, D]

_FEWEST = 20  # images of a class
_RESAMPLES = 1000


def class_posterior(
    components: Sequence[Component],
    x_0: Tensor,
    eps: Tensor,
    schedule: NoiseSchedule,
    times: Sequence[int],
) -> Tensor:
    """Compute p(class | x_t) of a mixture of Gaussians, float64 [len(times), N, classes].

    p(x_t | component) = N(x_t; signal mean, signal^2 covariance + noise^2 I).  The eigenvectors of
    the covariance are those of every t, so x_0 and eps [N, D] are projected on them only once.
    """
    classes = 1 + max(label for label, *_ in components)
    log_p = torch.full((len(times), len(x_0), classes), -torch.inf, dtype=torch.float64)
    tables = schedule.alpha_bar, schedule.noise_variance
    signal_2, noise_2 = (table[list(times)][:, None] for table in tables)
    for label, weight, mean, covariance in components:
        variances, axes = torch.linalg.eigh(covariance.double())
        a, e = ((x.double() @ axes).T for x in (x_0 - mean, eps))  # [D, N]
        variance = signal_2 * variances.clamp(min=0) + noise_2
        # The squares of signal * a + noise * e over the variance, for all t in three products.
        log = variance.log().sum(1, keepdim=True) + signal_2 / variance @ a.square()
        log += 2 * (signal_2 * noise_2).sqrt() / variance @ (a * e) + noise_2 / variance @ e**2
        log_p[..., label] = torch.logaddexp(log_p[..., label], math.log(weight) - log / 2)
    return log_p.softmax(-1)


def empirical_posterior(
    points: tuple[Tensor, Tensor],
    x_0: Tensor,
    eps: Tensor,
    schedule: NoiseSchedule,
    times: Sequence[int],
) -> Tensor:
    """Compute p(class | x_t) as if the training images were all images, as `class_posterior` does.

    p(point i | x_t) is proportional to exp(-|x_t - signal point_i|^2 / (2 noise^2)).  `points` are
    training images [M, D] and their labels; an image x_0 among them would recognize itself.
    """
    images, labels = points[0].double(), points[1]
    products, noise_products = (x.double() @ images.T for x in (x_0, eps))
    half_squares, posteriors = images.square().sum(1) / 2, []
    for signal, noise in map(schedule.scales, times):
        log_p = signal * (products - half_squares) + noise * noise_products
        p = (signal / noise**2 * log_p).softmax(1)
        posteriors.append(p.new_zeros(len(p), int(labels.max()) + 1).index_add(1, labels, p))
    return torch.stack(posteriors)


def fit(
    x_0: Tensor, labels: Tensor, count: int = 16, prior: float = 50.0, seed: int = 0
) -> list[Component]:
    """Fit `count` Gaussians to each class of images [N, D], at clusters of its images.

    Few images give a poor covariance.  So that of a cluster is averaged with that of its class,
    which counts as `prior` images, and that of a class with that within all classes.
    """
    components: list[Component] = []
    x_0 = x_0.double()
    within = _covariance(x_0 - _class_means(x_0, labels))
    for label in labels.unique().tolist():
        x = x_0[labels == label]
        shape, cluster = _covariance(x, within, prior), _clusters(x, count, seed)
        for part in (x[cluster == k] for k in cluster.unique()):
            covariance = _covariance(part, shape, prior)
            components.append((label, len(part) / len(x_0), part.mean(0), covariance))
    return components


def _covariance(x: Tensor, shape: Tensor | float = 0.0, prior: float = 0.0) -> Tensor:
    x = x - x.mean(0)
    return (x.T @ x + prior * shape) / (len(x) + prior)


def _class_means(x: Tensor, labels: Tensor) -> Tensor:
    """Replace each image [N, D] by the mean of its class."""
    sums = x.new_zeros(int(labels.max()) + 1, x.shape[1]).index_add(0, labels, x)
    return (sums / labels.bincount()[:, None])[labels]


def _clusters(x: Tensor, count: int, seed: int) -> Tensor:
    """Assign images [N, D] to at most `count` clusters by k-means, int64 [N]."""
    centers = x[rng.permutation(len(x), seed)[:count]]
    cluster = torch.cdist(x, centers).argmin(1)
    for _ in range(15):
        centers = torch.stack([x[cluster == k].mean(0) for k in cluster.unique()])
        cluster = torch.cdist(x, centers).argmin(1)
    return cluster


def principal_axes(x_0: Tensor, count: int = 100) -> Tensor:
    """Compute the axes of largest variance, which noise hides last: orthonormal, [D, count]."""
    return torch.linalg.svd(x_0 - x_0.mean(0), full_matrices=False).Vh[:count].T


def speciation(x_0: Tensor, labels: Tensor) -> tuple[float, float]:
    """Compute the log2 SNR at which SNR * Lambda = 1, where noise hides the largest differences.

    Lambda is the largest eigenvalue of the covariance of all images, as in [Biroli 2024], and of
    the means of their classes.  With their alpha_bar * Lambda = 1 it is the same if Lambda >> 1.
    """
    x_0 = x_0.double()
    spreads = (_covariance(x) for x in (x_0, _class_means(x_0, labels)))
    total, between = (-torch.linalg.eigvalsh(spread)[-1].log2().item() for spread in spreads)
    return total, between


def label_curve(
    images: Tensor, labels: Tensor, schedule: NoiseSchedule, times: Sequence[int], seed: int = 0
) -> Tensor:
    """Compute p(class of x_0 | x_t) of held-out images by Gaussians of the others.

    Of images, uint8 [N, C, H, W] with labels int64 [N], about 2,000 of all classes are held out,
    or half: M.  Returns float64 [len(times), M].  All is along 100 principal axes.

    Raises:
        TypeError, ValueError: as of `data.check` and `data.check_labels`; one class, or one of
            fewer than 20 images.
    """
    images = data.check(images)
    labels = data.check_labels(labels, 1_000_000, len(images))
    classes, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    fewest = int(counts.min())
    if len(classes) < 2 or fewest < _FEWEST:
        raise ValueError(
            f"at least two classes of at least {_FEWEST} images are needed; got {len(classes)}, of "
            f"which {int(classes[counts.argmin()])} has {fewest}: leave out small classes"
        )
    x_0 = data.to_float(images).flatten(1)
    order = rng.permutation(len(x_0), seed, MeasurementStream.HALVES)
    by_class = order[labels[order].argsort(stable=True)]
    out = by_class[:: max(2, len(x_0) // 2000)]
    rest = order[~torch.isin(order, out)]
    axes = principal_axes(x_0[rest[:2000]])
    components = fit(x_0[rest] @ axes, labels[rest], seed=seed)
    eps = rng.normal((len(out), axes.shape[1]), rng.generator(seed, MeasurementStream.NOISE))
    p = class_posterior(components, x_0[out] @ axes, eps, schedule, times)
    return p[:, torch.arange(len(out)), labels[out]]


def how_far(
    images: Tensor, labels: Tensor, schedule: NoiseSchedule, keep: float = 0.95, seed: int = 0
) -> Interval:
    """Predict the largest t at which an edit keeps a share of the labels, with its interval.

    Arguments as of `label_curve`; `keep` is the share.  The interval is over the held-out images.
    A network, and a sampler that draws no noise, keep more or fewer than p(x_0 | x_t) says.

    Raises:
        TypeError, ValueError: as of `label_curve`; `keep` not above what pure noise keeps, or above
            what the Gaussians recognize almost without noise.
    """
    times = schedule.timesteps(min(100, schedule.num_timesteps))[-2::-1]
    own = label_curve(images, labels, schedule, times, seed)
    weights = torch.as_tensor(labels).unique(return_counts=True)[1] / len(labels)
    chance, best = weights.square().sum().item(), own.mean(1).max().item()
    if not chance < keep <= best:
        raise ValueError(
            f"keep must lie between {chance:.3f}, the share of the labels that pure noise keeps, "
            f"and {best:.3f}, that which Gaussians recognize almost without noise; got "
            f"{keep!r:.99}. A network may keep more, but how much is unknown here. "
            f"{0.95 * best:.3f} is 95 % of what they recognize"
        )
    n = own.shape[1]
    drawn = rng.integers(0, n, _RESAMPLES * n, rng.generator(seed, MeasurementStream.RESAMPLE))
    drawn = torch.cat([torch.arange(n), drawn]).view(-1, n)
    counts = own.new_zeros(drawn.shape).scatter_add(1, drawn, own.new_ones(drawn.shape))
    shares = torch.cat([own.new_ones(1, len(drawn)), own @ counts.T / n])  # all of them at t = 0
    t = torch.tensor([0, *times])
    last = ((shares >= keep) * torch.arange(len(t))[:, None]).amax(0).clamp(max=len(times) - 1)
    high, low = shares.gather(0, torch.stack([last, last + 1]))
    fraction = ((high - keep) / (high - low)).clamp(0, 1)
    return Interval.bootstrap((t[last] + fraction * (t[last + 1] - t[last])).floor())
