"""Measure a run under stated conditions."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_lib import config, data, metrics, rng, runs, samplers
from diffusion_lib.data import Dataset, load_splits, sets
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.evaluation import record as records
from diffusion_lib.evaluation.tables import EXPERIMENT_FIELDS
from diffusion_lib.metrics import features
from diffusion_lib.runs import GuidedRun, Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import parallel


@dataclass(frozen=True)
class Conditions:
    """How to measure a run.

    Args:
        n: number of images to sample; 0 measures only the likelihood and the errors.
        sampler: name of one of `samplers`.
        steps: number of steps of the sampler, None for all T.
        seed: random seed of the samples and of the draws of the measurements.
        n_likelihood: number of test images for the bound and the errors per t.
        num_times: network evaluations of each of them for the bound, or T where that is less.

    Raises:
        ValueError: a number too small to measure anything, or no such sampler.
    """

    n: int = 1000
    sampler: str = "ddpm"
    steps: int | None = 100
    seed: int = 0
    n_likelihood: int = 500
    num_times: int = 100

    def __post_init__(self) -> None:
        config.lookup(self.sampler, samplers, "sampler")
        least = {"n": 0, "steps": 1, "seed": 0, "n_likelihood": 2, "num_times": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is None and name == "steps":
                continue
            if type(value) is not int:
                raise ValueError(f"{name} must be a whole number; got {value!r:.99}")
            if value < smallest:
                raise ValueError(f"{name} must be at least {smallest}; got {value}")


BUDGETS = {
    "smoke": Conditions(n=70, steps=2, n_likelihood=4, num_times=4),
    "quick": Conditions(n=200, steps=50, n_likelihood=50, num_times=50),
    "full": Conditions(),
}
"""What the notebooks measure in each of `config.BUDGETS`."""


class Measurements(NamedTuple):
    """What `measure` returns."""

    samples: Tensor | None  # uint8 [n, C, H, W]
    quality: dict[str, Any]  # of the samples
    bound: metrics.Bound
    errors: metrics.Errors
    seconds: dict[str, float]


def measure(
    run: Run,
    conditions: Conditions,
    test: Tensor,
    assess: Callable[[Tensor], dict[str, Any]],
    samples: Tensor | None = None,
) -> Measurements:
    """Sample a run, assess the samples, and measure its likelihood and errors on test images.

    Args:
        run: trained run.
        conditions: what to measure; with n = 0 nothing is sampled.
        test: held-out images, uint8 [N, C, H, W].
        assess: function from samples to their quality.
        samples: images made from the run earlier, uint8 [n, C, H, W]; None draws new ones.
    """
    quality: dict[str, Any] = {}
    clocks = {"": time.monotonic()}
    if conditions.n:
        if samples is None:
            sampler = config.lookup(conditions.sampler, samplers, "sampler")
            samples = runs.sample(run, conditions.n, conditions.seed, sampler, conditions.steps)
        clocks["sampling"] = time.monotonic()
        quality = assess(samples)
        clocks["metrics of samples"] = time.monotonic()
    images = random_subset(test, conditions.n_likelihood, "test images for the likelihood")
    times = min(conditions.num_times, run.denoiser.schedule.num_timesteps)
    bound = metrics.bits_per_dim(run.denoiser, images, times, seed=conditions.seed)
    errors = metrics.errors_per_t(run.denoiser, images, seed=conditions.seed)
    clocks["likelihood and errors"] = time.monotonic()
    seconds = {part: clocks[part] - clocks[before] for before, part in pairwise(clocks)}
    return Measurements(samples, quality, bound, errors, seconds)


def evaluate(
    run: Run,
    conditions: Conditions,
    root: str | Path | None = None,
    samples: Tensor | None = None,
    dataset: Dataset | None = None,
) -> dict[str, Any]:
    """Measure a run and write `metrics.json` into its folder; load it where it is there already.

    Samples are compared with the whole test split; the floor compares as many training images
    with it.  Where no feature network is released for the data set, and with n = 0, the record has
    no "samples" and no "floor": only the likelihood and the errors are measured.

    Where the record cannot be written, a warning says so, and it is returned all the same.

    Args:
        run: trained run.
        conditions: what to measure.
        root: folder of the data sets, None for `config.data_root()`.
        samples: images made from the run earlier, uint8 [N, C, H, W], in place of the n that the
            conditions would have sampled; their record is `metrics-DIGEST.json`.
        dataset: function (root, train) -> Images, None for the one of `data` that the run's
            experiment.json names.

    Raises:
        ValueError: a data set that is none of `data` without `dataset`; samples of one without a
            feature network; a data set smaller than n or n_likelihood; n not above the features'
            dimension; more steps than T.
    """
    name, experiment, train, test, samples, resolved = plan(run, conditions, root, samples, dataset)
    identity = {
        "format": records.FORMAT,
        "weights sha256": _weights_digest(run.denoiser),
        "conditions": resolved,
        "samples sha256": None,
    }
    path = run.folder / "metrics.json"
    if isinstance(run, GuidedRun):
        path = run.folder / f"metrics-{records.digest([resolved['labels'], run.scale])}.json"
    if samples is not None:
        sha256 = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
        identity["samples sha256"] = sha256
        path = run.folder / f"metrics-{sha256[:8]}.json"
    parallel.assert_same_on_all_ranks("weights", identity["weights sha256"])
    if former := parallel.on_rank_zero(lambda: records.read_if(path, identity)):
        return former
    n = resolved["n"]
    if conditions.n and not n and parallel.rank() == 0:
        warnings.warn(
            f"no feature network is released for the data set {name!r}: its samples are not "
            "measured, only the likelihood and the errors",
            stacklevel=2,
        )

    def assess(images: Tensor) -> dict[str, Any]:
        return measure_samples(images, train, test, features.load(name), conditions.seed)

    measured = measure(run, replace(conditions, n=n), test, assess, samples)
    bound, device = measured.bound, run.denoiser.schedule.signal.device
    record = {
        "format": records.FORMAT,
        "run": run.folder.name,
        "experiment": {field: experiment.get(field) for field in EXPERIMENT_FIELDS},
        "weights sha256": identity["weights sha256"],
        "variance": _variance(run, conditions, samples),
        **{key: value for key, value in identity.items() if value is not None},
        **measured.quality,
        "likelihood": {
            "bits per dim": asdict(bound.total.interval),
            "bits per image": bound.total.bits_per_image,
            "standard error": bound.total.standard_error,
            "per image": [round(bits, 6) for bits in bound.total.per_image.tolist()],
            "L_T": bound.L_T,
            "L_0": bound.L_0,
            "times": bound.times,
            "L_t": bound.L_t,
        },
        "errors": measured.errors._asdict(),
        "seconds": {part: round(seconds, 1) for part, seconds in measured.seconds.items()},
        "device": hardware.name(device),
        **hardware.conditions(device),
    }
    state = f"the record of {run.folder} is returned, but not kept"
    way = (
        "To keep it, write what evaluation.evaluate returns to another place, or measure a copy of "
        "the run in a folder that can be written."
    )
    parallel.on_rank_zero(lambda: records.write_or_warn(path, record, state, way, 5))
    return record


class Plan(NamedTuple):
    """What `evaluate` is going to measure."""

    name: str  # of the data set
    experiment: dict[str, Any]
    train: Tensor  # uint8 [N, C, H, W]
    test: Tensor
    samples: Tensor | None
    conditions: dict[str, Any]  # as the record has them


def plan(
    run: Run,
    conditions: Conditions,
    root: str | Path | None = None,
    samples: Tensor | None = None,
    dataset: Dataset | None = None,
) -> Plan:
    """Check what `evaluate` would measure with the same arguments; nothing is measured.

    Raises:
        ValueError: as `evaluate` does.
    """
    experiment = _experiment(run)
    samples = None if samples is None else data.check(samples, run.image_shape)
    try:
        source: Dataset = dataset or config.lookup(experiment["dataset"], sets, "data set")
    except ValueError as error:
        raise ValueError(
            f"{run.folder / 'experiment.json'}: {error} For a data set of your own give its "
            "function, evaluate(..., dataset=photos), or on the command line a folder of its test "
            "pictures, --images FOLDER."
        ) from error
    name, T = config.label(source), run.denoiser.schedule.num_timesteps
    steps = T if conditions.steps is None else conditions.steps
    train, test = (part.images for part in load_splits(source, root or config.data_root()))
    data.check(test, run.image_shape)
    n = conditions.n if name in features.RELEASED else 0
    n = n if samples is None else len(samples)
    features_sha256 = "none is released"
    if n or name in features.RELEASED:
        _, features_sha256 = features.released(name)
    if n:
        metrics.check_count(n, features.load(name).classify.in_features, "samples")
        if samples is None:
            run.denoiser.schedule.timesteps(steps)
    most = min(len(train), len(test))
    if n > most:
        raise ValueError(
            f"{n} samples, but the floor needs as many {name} images, and there are {len(train)} "
            f"to train and {len(test)} to test on: measure at most {most} (n of Conditions, --n of "
            "the command), or none with 0"
        )
    if conditions.n_likelihood > len(test):
        raise ValueError(
            f"{conditions.n_likelihood} {name} test images for the likelihood were asked for, but "
            f"there are {len(test)}: measure at most {len(test)} (n_likelihood of Conditions, "
            "--n-likelihood of the command)"
        )
    times = min(conditions.num_times, T)
    reference = f"{name} test, {len(test)} images"
    if source is not getattr(sets, name, None):  # a name of the user's own may stand for anything
        reference = f"{name} test, {runs.fingerprint(test)}"
    resolved: dict[str, Any] = {
        "n": n,
        "reference": reference,
        "training images": len(train),
        "features sha256": features_sha256,
        "sampler": conditions.sampler,
        "steps": steps,
        "weights": "EMA",
        "seed": conditions.seed,
        "images seen": (run.series("loss")[0] or [0])[-1] * experiment["train"]["batch_size"],
        "likelihood": f"{conditions.n_likelihood} test images, {times} times",
    }
    if isinstance(run, GuidedRun):
        resolved |= {"labels": run.labels.tolist(), "guidance": run.scale}
    if samples is not None:
        resolved |= {"sampler": "given", "steps": None}
    if not n:  # nothing is sampled, nor compared with training images
        resolved |= {"sampler": None, "steps": None, "training images": None}
    return Plan(name, experiment, train, test, samples, resolved)


def _variance(run: Run, conditions: Conditions, samples: Tensor | None) -> str | None:
    """Name the variance of the sampler's noise; runs that differ in it may be compared."""
    if samples is not None:
        return None
    if conditions.sampler != samplers.ddpm.__name__:
        return "none: the sampler is deterministic"
    return "learned" if run.network.config.outputs == 2 else "beta_tilde"


def _experiment(run: Run) -> dict[str, Any]:
    path = run.folder / "experiment.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist, and it alone says what was trained: copy it from the run's "
            "first place"
        )
    try:
        experiment = json.loads(path.read_text())
        _ = experiment["dataset"], experiment["train"]["batch_size"] + 0
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): it must say what was trained") from error
    return experiment


def _weights_digest(denoiser: Denoiser) -> str:
    """Return the SHA-256 of the weights measured; the checkpoint file may be newer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(denoiser.network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def measure_samples(
    samples: Tensor, train: Tensor, test: Tensor, network: features.Classifier, seed: int = 0
) -> dict[str, Any]:
    """Measure the quality of samples, and that of as many real images: the floor.

    Args:
        samples: uint8 [N, C, H, W].
        train: training images, uint8; N of them make the floor.
        test: reference, uint8; N of them are the held-out images whose distances to the training
            images those of the samples are compared with.
        network: classifier in whose features images are compared.
        seed: random seed of the intervals.

    Returns:
        {"samples": {name: {value, low, high}}, "floor": the same names}.

    Raises:
        TypeError, ValueError: images of another dtype or shape; fewer than N real ones.
    """
    samples, train, test = map(data.check, (samples, train, test))
    n = len(samples)
    # Drawn at random: in MNIST's order the first writers differ from the last.
    real = random_subset(train, n, "training images for the floor")
    held_out = random_subset(test, n, "test images for the distances to the training images")
    reference = network.extract_features(test)
    usual = metrics.nearest_distances(held_out, train)
    distances = {"samples": metrics.nearest_distances(samples, train), "floor": usual}
    record = {}
    for name, images in (("samples", samples), ("floor", real)):
        estimates = metrics.quality(network.extract_features(images), reference, seed)
        estimates |= metrics.memorization(distances[name], usual, seed)
        record[name] = {key: asdict(interval) for key, interval in estimates.items()}
    return record


def random_subset(images: Tensor, n: int, what: str) -> Tensor:
    """Return n of the images, the same ones for every run.

    Args:
        images: uint8 [N, C, H, W].
        n: number of images, at most N.
        what: name of the images, for messages.

    Raises:
        ValueError: there are fewer.
    """
    check_enough(images, n, what)
    return images[torch.randperm(len(images), generator=rng.generator(0))[:n]]


def check_enough(images: Tensor, n: int, what: str) -> None:
    """Refuse to measure with fewer than n images; `what` is their name."""
    if len(images) < n:
        raise ValueError(f"{n} {what} were asked for, but there are {len(images)}")
