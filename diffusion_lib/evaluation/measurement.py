"""Measure a run under stated conditions."""

import hashlib
import time
import warnings
from collections.abc import Sequence
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
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import device as hardware
from diffusion_lib.system import interrupts, parallel


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
            if (name, value) != ("steps", None) and (type(value) is not int or value < smallest):
                raise ValueError(
                    f"{name} must be a whole number, at least {smallest}; got {value!r:.99}"
                )

    def check(
        self,
        image_shape: Sequence[int],
        schedule: NoiseSchedule,
        dataset: str,
        train: Tensor,
        test: Tensor,
    ) -> None:
        """Refuse a run and a data set of that name that cannot be measured so.

        That is where there are too few images, uint8 [N, C, H, W], images of another shape, no
        features, or fewer times than steps.
        """
        for images in (train, test):
            data.check(images, image_shape)
        if self.n:
            metrics.check_count(self.n, features.load(dataset).classify.in_features, "samples")
            schedule.timesteps(self.steps or schedule.num_timesteps)
        most = {"n": min(len(train), len(test)), "n_likelihood": len(test)}
        for name, largest in most.items():
            if (value := getattr(self, name)) > largest:
                raise ValueError(
                    f"{name} is {value}, but {dataset} has {len(train)} images to train and "
                    f"{len(test)} to test on: it must be at most {largest}"
                )


BUDGETS = {
    "smoke": Conditions(n=70, steps=2, n_likelihood=4, num_times=4),
    "quick": Conditions(n=200, steps=50, n_likelihood=50, num_times=50),
    "full": Conditions(),
}
"""What the notebooks measure in each of `config.BUDGETS`."""


def sample(run: Run, conditions: Conditions) -> Tensor:
    """Sample the images that are measured, uint8 [n, C, H, W]."""
    sampler = config.lookup(conditions.sampler, samplers, "sampler")
    return runs.sample(run, conditions.n, conditions.seed, sampler, conditions.steps)


def measure_likelihood(run: Run, conditions: Conditions, test: Tensor) -> dict[str, dict[str, Any]]:
    """Measure the likelihood and the errors of a run on test images, uint8 [N, C, H, W].

    Returns:
        {"likelihood": ..., "errors": ...}, as the record of a run has them.
    """
    images = random_subset(test, conditions.n_likelihood)
    times = min(conditions.num_times, run.denoiser.schedule.num_timesteps)
    bound = metrics.bits_per_dim(run.denoiser, images, times, seed=conditions.seed)
    errors = metrics.errors_per_t(run.denoiser, images, seed=conditions.seed)
    likelihood = {
        "bits per dim": asdict(bound.total.interval),
        "bits per image": bound.total.bits_per_image,
        "standard error": bound.total.standard_error,
        "per image": [round(bits, 6) for bits in bound.total.per_image.tolist()],
        "L_T": bound.L_T,
        "L_0": bound.L_0,
        "times": bound.times,
        "L_t": bound.L_t,
    }
    return {"likelihood": likelihood, "errors": errors._asdict()}


@interrupts.explain_stop("The measurements are not saved. Run this again to measure anew.")
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
    """
    name, experiment, train, test, samples, resolved = plan(run, conditions, root, samples, dataset)
    weights = _weights_digest(run.denoiser)
    identity = {"format": records.FORMAT, "weights sha256": weights, "conditions": resolved}
    path = run.folder / "metrics.json"
    if isinstance(run, GuidedRun):
        path = run.folder / f"metrics-{records.digest([resolved['labels'], run.scale])}.json"
    if samples is not None:
        sha256 = identity["samples sha256"] = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
        path = run.folder / f"metrics-{sha256[:8]}.json"
    parallel.assert_same_on_all_ranks("weights", weights)
    if former := parallel.on_rank_zero(lambda: records.read_if(path, identity)):
        return former
    if conditions.n and not resolved["n"] and parallel.rank() == 0:
        warnings.warn(
            f"no feature network is released for the data set {name!r}: its samples are not "
            "measured, only the likelihood and the errors",
            stacklevel=2,
        )
    record = {
        "format": records.FORMAT,
        "run": run.folder.name,
        "experiment": {field: experiment.get(field) for field in EXPERIMENT_FIELDS},
        "weights sha256": weights,
        "variance": _variance(run, conditions, samples),
        **identity,
    }
    clocks = {"": time.monotonic()}
    if resolved["n"]:
        samples = sample(run, conditions) if samples is None else samples
        clocks["sampling"] = time.monotonic()
        record |= measure_samples(samples, train, test, features.load(name), conditions.seed)
        clocks["metrics of samples"] = time.monotonic()
    record |= measure_likelihood(run, conditions, test)
    clocks["likelihood and errors"] = time.monotonic()
    device = run.denoiser.schedule.signal.device
    seconds = {part: round(clocks[part] - clocks[former], 1) for former, part in pairwise(clocks)}
    record |= {"seconds": seconds, "device": hardware.name(device), **hardware.conditions(device)}
    if parallel.rank() == 0:
        records.write_or_warn(path, record)
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
    """Check what `evaluate` would measure with the same arguments; nothing is measured."""
    path, schedule = run.folder / "experiment.json", run.denoiser.schedule
    experiment = records.read(path, "the experiment of a run")
    try:
        source: Dataset = dataset or config.lookup(experiment.get("dataset"), sets, "data set")
    except ValueError as error:
        raise ValueError(
            f"{path}: {error} For a data set of your own give its function, evaluate(..., "
            "dataset=photos), or on the command line a folder of its test pictures, "
            "--images FOLDER."
        ) from error
    name = config.label(source)
    train, test = (part.images for part in load_splits(source, root or config.data_root()))
    trained_on = str(experiment.get("images")).partition(", of labels")[0]
    if dataset is None and "(" in name and runs.fingerprint(train) != trained_on:
        raise ValueError(
            f"{name} no longer holds the pictures that {run.folder} was trained on, so those held "
            "out are not known: measure on others with --images FOLDER, or dataset="
        )
    if samples is not None:
        samples = data.check(samples, run.image_shape)
        conditions = replace(conditions, n=len(samples), steps=None)
    elif name not in features.RELEASED:
        conditions = replace(conditions, n=0)
    conditions.check(run.image_shape, schedule, name, train, test)
    reference = f"{name} test, {len(test)} images"
    if source is not getattr(sets, name, None):  # a name of the user's own may stand for anything
        reference = f"{name} test, {runs.fingerprint(test)}"
    times = min(conditions.num_times, schedule.num_timesteps)
    resolved: dict[str, Any] = {
        "n": conditions.n,
        "reference": reference,
        "training images": len(train),
        "features sha256": features.RELEASED.get(name, ("", "none is released"))[1],
        "sampler": conditions.sampler,
        "steps": conditions.steps or schedule.num_timesteps,
        "weights": "EMA",
        "seed": conditions.seed,
        "images seen": (run.series("loss")[0] or [0])[-1] * experiment["train"]["batch_size"],
        "likelihood": f"{conditions.n_likelihood} test images, {times} times",
    }
    if isinstance(run, GuidedRun):
        resolved |= {"labels": run.labels.tolist(), "guidance": run.scale}
    if samples is not None:
        resolved |= {"sampler": "given", "steps": None}
    if not conditions.n:  # nothing is sampled, nor compared with training images
        resolved |= {"sampler": None, "steps": None, "training images": None}
    return Plan(name, experiment, train, test, samples, resolved)


def dataset_name(run: Run) -> str:
    """Name the data set that a run was trained on."""
    return str(records.read(run.folder / "experiment.json", "the experiment").get("dataset"))


def _variance(run: Run, conditions: Conditions, samples: Tensor | None) -> str | None:
    """Name the variance of the sampler's noise; runs that differ in it may be compared."""
    if samples is not None:
        return None
    sampler, _, settings = conditions.sampler.partition("(")
    if settings:
        return conditions.sampler
    if sampler != samplers.ddpm.__name__:
        return "none: the sampler is deterministic"
    return "learned" if run.denoiser.config.outputs == 2 else "beta_tilde"


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
    """
    samples, train, test = map(data.check, (samples, train, test))
    n = len(samples)
    # Drawn at random: in MNIST's order the first writers differ from the last.
    real, held_out = random_subset(train, n), random_subset(test, n)
    reference = network.extract_features(test)
    usual = metrics.nearest_distances(held_out, train)
    distances = {"samples": metrics.nearest_distances(samples, train), "floor": usual}
    record = {}
    for name, images in (("samples", samples), ("floor", real)):
        estimates = metrics.quality(network.extract_features(images), reference, seed)
        estimates |= metrics.memorization(distances[name], usual, seed)
        record[name] = {key: asdict(interval) for key, interval in estimates.items()}
    return record


def random_subset(images: Tensor, n: int) -> Tensor:
    """Return n of the images, uint8 [N, C, H, W], the same ones for every run."""
    if n > len(images):
        raise ValueError(f"{n} images were asked for, but there are {len(images)}")
    return images[torch.randperm(len(images), generator=rng.generator(0))[:n]]
