"""Quality of a set of samples beside a reference, in the features of a classifier."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import data, rng
from diffusion_lib.metrics.features import ClassifierOutput
from diffusion_lib.metrics.intervals import Interval
from diffusion_lib.rng import MeasurementStream

CONFIDENT = 0.9
"""Probability above which a classifier counts as sure of a class."""

_ROWS = 1000  # of a matrix of pairs held at a time
_RESAMPLES = 200  # of a bootstrap
_HALVES = 40  # of both sets, for the spread of precision and recall
_NEIGHBORS = 3  # [Kynkaanniemi 2019]


def quality(
    samples: ClassifierOutput, reference: ClassifierOutput, seed: int = 0
) -> dict[str, Interval]:
    """Measure the distance of two sets of images in a classifier's features.

    Returns:
        "Frechet distance": of the normal distributions fitted to both [Heusel 2017].
        "kernel distance": squared, with the kernel (x y / D + 1)^3, without bias [Binkowski 2018].
        "precision": share of the samples within the reference's neighborhoods, and "recall":
            share of the reference within the samples' [Kynkaanniemi 2019, k = 3].
        "confidence > 0.9": share of the samples of which the classifier is so sure; of noise, too.
        "class 0", ...: share of the samples in each class.
    """
    x, y = _check(samples.features, reference.features)
    n, m = len(x), len(y)
    x_counts, y_counts = (
        _resample(size, rng.generator(seed, MeasurementStream.RESAMPLE, side))
        for side, size in enumerate((n, m))
    )
    frechet = torch.stack([*map(_frechet, _draws(x, x_counts), _draws(y, y_counts))])
    precision, recall = _halves(x, y, seed)
    intervals = {
        "Frechet distance": Interval.centered_bootstrap(frechet),
        "kernel distance": Interval.centered_bootstrap(_kernel(x, y, x_counts, y_counts)),
        "precision": precision.widened_to_wilson(n),
        "recall": recall.widened_to_wilson(m),
    }
    confidence, classes = samples.probabilities.max(1)
    shares = {f"confidence > {CONFIDENT}": confidence > CONFIDENT}
    shares |= {f"class {k}": classes == k for k in range(samples.probabilities.shape[1])}
    for name, share in shares.items():
        intervals[name] = Interval.bootstrap(x_counts @ share.double() / n).widened_to_wilson(n)
    return intervals


def label_accuracy_and_diversity(
    samples: ClassifierOutput, labels: Tensor, reference: ClassifierOutput
) -> dict[str, Interval]:
    """Measure how many samples show their label, and how diverse they are within it.

    Args:
        samples: classifier output for the samples.
        labels: label that each sample was drawn for, int64 [N].
        reference: real images, at least 2 of each label.

    Returns:
        "accuracy": share of the samples that the classifier sees as their label.
        "spread": mean squared distance of the features from their mean within a label, averaged
            over the labels, as a share of that of the real images, each in the class that the
            classifier sees: 1 is as diverse as they are.
    """
    n = len(samples.features)
    if labels.shape != (n,) or (labels.bincount() == 1).any():
        raise ValueError(
            f"{n} samples need one label each, and each label 2 samples or more; got labels of "
            f"shape {list(labels.shape)}, of {labels.bincount().tolist()} samples"
        )
    classes = reference.probabilities.argmax(1)
    right = (samples.probabilities.argmax(1) == labels).double()
    accuracy, spread = torch.zeros(2, _RESAMPLES + 1, dtype=torch.float64, device="cpu")
    for label in labels.unique().tolist():  # drawn again within each, so that none is left out
        own = labels == label
        size = int(own.sum())
        counts = _resample(size, rng.generator(0, MeasurementStream.RESAMPLE, label))
        accuracy += counts @ right[own] / n
        drawn = _draws(samples.features[own].double(), counts)
        variance = torch.stack([features.var(0).sum() for features in drawn])
        variance[1:] *= size / (size - 1)  # drawn from `size` images, not from all that may be
        real = reference.features[classes == label].double()
        # As `var`, which warns where a reference of random pictures has no second one: NaN.
        spread += variance * (len(real) - 1) / (real - real.mean(0)).square().sum()
    spread /= len(labels.unique())
    share = Interval.bootstrap(accuracy).widened_to_wilson(n)
    return {"accuracy": share, "spread": Interval.bootstrap(spread)}


def _resample(n: int, generator: torch.Generator) -> Tensor:
    """Count how often each of n images is drawn: once in row 0, at random in 200 others."""
    draws = torch.randint(n, (_RESAMPLES, n), generator=generator, device="cpu")
    counts = [draw.bincount(minlength=n) for draw in draws]
    return torch.stack([draws.new_ones(n), *counts]).double()


def _draws(x: Tensor, counts: Tensor) -> Iterator[Tensor]:
    """For each row of counts, yield x [N, D] with row i as often as it says."""
    return (x.repeat_interleave(row, 0) for row in counts.long())


def point_estimates(samples: ClassifierOutput, reference: Tensor) -> dict[str, float]:
    """Return the numbers of `quality` without intervals; `reference` are features [M, D]."""
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
    """Return |mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)) of features [N, D] and [M, D]; N, M > D."""
    return _frechet(*_check(features, reference)).item()


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Return the squared maximum mean discrepancy with the kernel (x y / D + 1)^3, without bias."""
    x, y = _check(features, reference)
    return _kernel(x, y, x.new_ones(1, len(x)), y.new_ones(1, len(y))).item()


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the share of each set that lies within the other's k-nearest-neighbor balls, k = 3."""
    return _precision_recall(*_check(features, reference))


def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """Return the distance of each image to its nearest training image, RMS per pixel: [N].

    Of samples it shows memorization where it is smaller than that of images that were held out.

    Args:
        images: uint8 [N, C, H, W]; distances are of pixels in 0..255.
        training: uint8 [M, C, H, W].
    """
    training = data.check(training)
    images = data.check(images, training.shape[1:])
    x, y = (batch.flatten(1).float() for batch in (images, training))
    nearest = [torch.cdist(rows, y).min(1).values for rows in x.split(_ROWS)]
    return torch.cat(nearest).double() / x.shape[1] ** 0.5


def memorization(distances: Tensor, held_out: Tensor, seed: int = 0) -> dict[str, Interval]:
    """Compare the distances of images to the training images with those of held-out images.

    Args:
        distances: `nearest_distances` of the images, [N].
        held_out: `nearest_distances` of held-out images, [M].
        seed: random seed of the bootstrap.

    Returns:
        "nearest training image": the median distance.
        "copies": share that is nearer than 99 % of the held-out images are, so 0.01 without
            memorization; a few copies among many samples leave the median where it is.
    """
    n = len(distances)
    counts = _resample(n, rng.generator(seed, MeasurementStream.RESAMPLE, 2))
    near = (distances < held_out.quantile(0.01)).double()
    medians = torch.stack([drawn.median() for drawn in _draws(distances, counts)])
    return {
        "nearest training image": Interval.bootstrap(medians),
        "copies": Interval.bootstrap(counts @ near / n).widened_to_wilson(n),
    }


def fidelity(
    samples: Tensor, reference: Tensor, feature_extractor: str = "inception-v3-compat"
) -> dict[str, float]:
    """Return torch-fidelity's FID, KID, precision and recall of two sets, uint8 [N, C, H, W].

    Gray becomes RGB.  The extractor, such as "dinov2-vit-s-14", downloads its weights once and
    scales images to its own size.  Published FIDs take 50,000 samples; with fewer they are larger.
    """
    from diffusion_lib.system import torchvision  # noqa: F401  (torch-fidelity imports it too)

    dataset: Any = torch.utils.data.ConcatDataset  # as torch-fidelity takes no bare tensor
    x, y = (dataset([data.check(z).cpu().expand(-1, 3, -1, -1)]) for z in (samples, reference))
    settings: dict[str, Any] = dict.fromkeys(("fid", "kid", "prc", "save_cpu_ram"), True)
    settings |= {"input1": x, "input2": y, "feature_extractor": feature_extractor}
    settings |= {"cuda": torch.cuda.is_available(), "kid_subset_size": min(1000, len(x), len(y))}
    try:
        from torch_fidelity import calculate_metrics

        return calculate_metrics(**settings)
    except (ImportError, OSError, RuntimeError) as error:
        offline = f"Without a connection, put its weights into {torch.hub.get_dir()}."
        install = "Install it with `pip install torch-fidelity`."
        error.add_note(install if isinstance(error, ImportError) else offline)
        raise


def check_count(n: int, dims: int, name: str) -> None:
    """Refuse too few images for a covariance of features."""
    if n <= dims:
        raise ValueError(
            f"{n} {name}, but the features have {dims} dimensions: a covariance needs more images "
            "than dimensions"
        )


def _check(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return two sets of features in float64, or refuse them."""
    if features.ndim != 2 or features.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"features must be [N, D] and [M, D]; got {list(features.shape)} and "
            f"{list(reference.shape)}"
        )
    for name, x in (("samples", features), ("reference", reference)):
        if not x.isfinite().all():
            raise ValueError(f"the features of the {name} are not all finite: NaN images?")
        check_count(len(x), x.shape[1], name)
    return features.double(), reference.double()


def _frechet(x: Tensor, y: Tensor) -> Tensor:
    cov, other_cov = x.T.cov(), y.T.cov()
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr (C C')^(1/2) is that of the symmetric C^(1/2) C' C^(1/2): no complex numbers.
    product = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + cov.trace() + other_cov.trace()
    return (distance - 2 * product).clamp(min=0)


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


def _halves(x: Tensor, y: Tensor, seed: int) -> list[Interval]:
    """Return precision and recall, with the spread of those of random halves laid around them.

    The variance among halves drawn without replacement is that of the whole [Politis 1994].
    """
    shares = []
    for k in range(_HALVES):
        # float32: these give a spread alone.
        halves = [
            z[rng.permutation(len(z), seed, MeasurementStream.HALVES, k, side)[: len(z) // 2]]
            for side, z in enumerate((x.float(), y.float()))
        ]
        shares.append(_precision_recall(*halves))
    spreads = torch.tensor(shares, dtype=torch.float64, device="cpu").std(0).tolist()
    return [Interval.normal(*pair) for pair in zip(_precision_recall(x, y), spreads, strict=True)]


def _precision_recall(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the share of x in balls of y, and of y in balls of x."""
    x_radii, y_radii = _radii(x), _radii(y)
    inside, covered = [], y.new_zeros(len(y), dtype=torch.bool)
    for rows, radii in zip(x.split(_ROWS), x_radii.split(_ROWS), strict=True):
        distances = torch.cdist(rows, y)
        inside.append((distances <= y_radii).any(1))
        covered |= (distances <= radii[:, None]).any(0)
    return torch.cat(inside).double().mean().item(), covered.double().mean().item()


def _radii(x: Tensor) -> Tensor:
    """Return the distance of each row to its k-th nearest other one."""
    k = min(_NEIGHBORS + 1, len(x))  # the nearest row is itself
    distances = (torch.cdist(rows, x) for rows in x.split(_ROWS))
    return torch.cat([rows.topk(k, largest=False).values[:, -1] for rows in distances])
