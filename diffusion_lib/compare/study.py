"""Train and measure the arms of a study over shared seeds."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import config, data, evaluation, metrics, runs
from diffusion_lib.compare.record import FORMAT, NUM_SAMPLES, Study, describe, sheet, to_png
from diffusion_lib.config import Experiment
from diffusion_lib.data import Dataset
from diffusion_lib.evaluation import Conditions
from diffusion_lib.evaluation import record as records
from diffusion_lib.metrics import features
from diffusion_lib.runs import Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar

_POLL_SECONDS = 1.0  # seconds between looks at what other processes have done

ERRORS = ("x_0 error", "eps error", "v error")
"""Held-out mean squared errors a pixel, averaged over t: those of every arm on one yardstick."""


def compare(
    arms: Mapping[str, Experiment],
    seeds: Sequence[int],
    steps: Sequence[int],
    conditions: Conditions,
    root: str | Path | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Train and measure what is missing of a study; return its record.

    Shows a progress bar over the whole study.  Stopped at any moment and called again, it goes on,
    and ends with the same record.

    Args:
        arms: by name; `train.seed` and `train.num_steps` of an arm are replaced by the study's.
        seeds: random seeds of the trainings, at least 2.
        steps: numbers of training steps at which every arm is measured.  A longer training goes on
            from a shorter one.
        conditions: how to measure; n = 0 samples nothing, for data sets without features.
        root: folder of the data sets, None for `config.data_root()`.
        device: None takes the GPU if there is one.

    Returns:
        {"arms", "seeds", "steps", "conditions", "devices", "floor", "measured": one for each arm,
        seed and number of steps, in this order}: plain values, for JSON.

    Raises:
        ValueError: fewer than 2 arms or seeds, a seed or number of steps twice; conditions that an
            arm cannot be measured under (all before anything is trained); what `runs.train`
            refuses.
        FloatingPointError: an arm diverged; the message names it.
    """
    study = Study(dict(arms), tuple(seeds), tuple(sorted(steps)), conditions)
    return _Comparison(study, root or config.data_root(), device or config.device()).run()


class _DataSet:
    """The images of a data set, and what is computed of them once."""

    def __init__(self, dataset: Dataset, root: str | Path) -> None:
        self.name = config.label(dataset)
        self.train, self.test = (data.load(dataset, root, part) for part in (True, False))
        self.digest, self.test_digest = (
            runs.fingerprint(part.images) for part in (self.train, self.test)
        )

    @cached_property
    def network(self) -> features.Classifier:
        return features.load(self.name)

    @cached_property
    def reference(self) -> Tensor:
        return self.network.extract_features(self.test.images).features

    def quality(self, images: Tensor) -> dict[str, float]:
        """Compare images with the test split; a study's intervals are over seeds instead."""
        return metrics.point_estimates(self.network.extract_features(images), self.reference)

    def floor(self, n: int) -> dict[str, float]:
        """Measure n real training images in place of samples."""
        images = evaluation.random_subset(self.train.images, n, "training images for the floor")
        return {name: _short(value) for name, value in self.quality(images).items()}


class _Comparison:
    """A study whose arms can be trained and measured: others are refused here.

    Args:
        study: arms, seeds, numbers of steps, conditions.
        root: folder of the data sets.
        device: device of the trainings and the measurements.
    """

    def __init__(self, study: Study, root: str | Path, device: torch.device) -> None:
        self.study, self.device = study, device
        self.data_sets: dict[Dataset, _DataSet] = {}
        if len(study.arms) < 2:
            raise ValueError(f"a comparison needs at least 2 arms; got {list(study.arms)}")
        for what, numbers, least in (("seeds", study.seeds, 2), ("steps", study.steps, 1)):
            if len(numbers) < least or len(set(numbers)) < len(numbers):
                raise ValueError(
                    f"{what} must be at least {least} and all different; got {[*numbers]}"
                )
        for name, arm in study.arms.items():
            try:
                for seed in study.seeds:
                    _with_seed_and_steps(arm, seed, study.steps[0]).build()
                if arm.dataset not in self.data_sets:
                    self.data_sets[arm.dataset] = _DataSet(arm.dataset, root)
                self.check_conditions(arm)
            except (TypeError, ValueError) as error:
                raise ValueError(f"arm {name!r}: {error}") from error

    def check_conditions(self, arm: Experiment) -> None:
        """Refuse conditions that an arm cannot be measured under."""
        images, conditions = self.data_sets[arm.dataset], self.study.conditions
        for part in (images.train, images.test):
            data.check(part.images, arm.network.image_shape)
        test_images = "test images for the likelihood"
        evaluation.check_enough(images.test.images, conditions.n_likelihood, test_images)
        if conditions.n:
            if images.name not in features.RELEASED:
                raise ValueError(
                    f"no feature network is released for the data set {images.name!r}, so that "
                    'samples of it cannot be measured: use the conditions {"n": 0}'
                )
            metrics.check_count(conditions.n, images.network.classify.in_features, "samples")
            floor_images = "training images for the floor"
            evaluation.check_enough(images.train.images, conditions.n, floor_images)
            arm.schedule(arm.T).timesteps(conditions.steps or arm.T)  # refuses more than T

    def run(self) -> dict[str, Any]:
        """Train and measure what is missing; return the record."""
        jobs = [(name, seed) for seed in self.study.seeds for name in self.study.arms]
        measured = {job: measures for job in jobs if (measures := self.read_job(*job))}
        longest = self.study.steps[-1]
        total, done = len(jobs) * longest, len(measured) * longest
        # smoothing=0 shows the mean rate, because arms differ in cost.
        with Bar(None, "study", total, done, " steps", smoothing=0) as bar:
            while len(measured) < len(jobs):
                for name, seed in [job for job in jobs if job not in measured]:
                    bar.note(f"{name}, seed {seed}")
                    with self.claim(name, seed) as is_free:
                        # Of what another process holds, it may just have written the last measure.
                        measures = (self.run_job if is_free else self.read_job)(name, seed)
                    if measures:
                        measured[name, seed] = measures
                        bar.update(longest)
                        break  # look first at what other processes have finished meanwhile
                else:
                    time.sleep(_POLL_SECONDS)  # they hold all that is left
        return self.record(measured)

    def experiments(self, name: str, seed: int) -> list[Experiment]:
        """Return an arm with one seed at every number of steps."""
        arm = self.study.arms[name]
        return [_with_seed_and_steps(arm, seed, steps) for steps in self.study.steps]

    def folder(self, experiment: Experiment) -> Path:
        return config.runs_root() / experiment.name(self.data_sets[experiment.dataset].digest)

    def conditions(self, dataset: Dataset) -> dict[str, Any]:
        """Return all that the measurements of a run depend on, but for the run and the device."""
        images = self.data_sets[dataset]
        conditions = asdict(self.study.conditions) | {"test images": images.test_digest}
        if self.study.conditions.n:
            conditions["features sha256"] = features.released(images.name)[1]
        return conditions

    def measures_path(self, experiment: Experiment) -> Path:
        digest = records.digest(self.conditions(experiment.dataset))
        return self.folder(experiment) / f"compared-{digest}.json"

    def read_measures(self, experiment: Experiment) -> dict[str, Any] | None:
        """Read what was measured of a run under the study's conditions, if anything was."""
        conditions = {"conditions": self.conditions(experiment.dataset)}
        return records.read_if(self.measures_path(experiment), conditions)

    def read_job(self, name: str, seed: int) -> list[dict[str, Any]] | None:
        """Read the measurements of an arm with one seed; None where one is missing."""
        measures = [
            record for run in self.experiments(name, seed) if (record := self.read_measures(run))
        ]
        return measures if len(measures) == len(self.study.steps) else None

    @contextmanager
    def claim(self, name: str, seed: int) -> Iterator[bool]:
        """Lock an arm with one seed; yields whether this process holds the lock."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a warm-up longer than 1 step, which nothing trains
            folder = self.folder(_with_seed_and_steps(self.study.arms[name], seed, 1))
        path = folder.with_name(f".{folder.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise files.write_error(path, error) from error
        with files.lock(path) as is_free:
            yield is_free

    def run_job(self, name: str, seed: int) -> list[dict[str, Any]]:
        """Train and measure an arm with one seed, at every number of steps."""
        images = self.data_sets[self.study.arms[name].dataset]
        measurements, start = [], None
        for experiment in self.experiments(name, seed):
            folder = self.folder(experiment)
            measures = self.read_measures(experiment)
            if measures is None:
                try:
                    run = runs.train(
                        experiment, images.train, images.test, folder, self.device, start
                    )
                    measures = self.measure(run, experiment)
                except (ValueError, FloatingPointError) as error:
                    error.add_note(f"This was arm {name!r}, seed {seed}.")
                    raise
            measurements.append(measures)
            # A learning rate that has fallen at the end cannot be resumed: train from step 0.
            start = folder if experiment.train.cooldown == 0 else None
        return measurements

    def measure(self, run: Run, experiment: Experiment) -> dict[str, Any]:
        """Measure a run, and write that into its folder, or return it with a warning."""
        images, train = self.data_sets[experiment.dataset], experiment.train
        measured = evaluation.measure(
            run, self.study.conditions, images.test.images, images.quality
        )
        errors = measured.errors
        measures = {"bits per dim": measured.bound.total.mean, "L_0": measured.bound.L_0}
        for name, values in zip(ERRORS, (errors.x_0, errors.eps, errors.v), strict=True):
            measures[name] = fmean(values[1:] or values)  # t = 1 is not one of those evenly spaced
        description = run.describe()
        training = ", ".join(description[name] for name in ("device", "precision", "memory layout"))
        describers = (hardware.name, hardware.precision, hardware.layout)
        measuring = ", ".join(describer(self.device) for describer in describers)
        record: dict[str, Any] = {
            "conditions": self.conditions(experiment.dataset),
            "device": training + (f"; measured on {measuring}" if measuring != training else ""),
            "images seen": train.num_steps * train.batch_size,
            "errors": {name: [*map(_short, values)] for name, values in errors._asdict().items()},
        }
        if measured.samples is not None:
            record["samples"] = to_png(measured.samples[:NUM_SAMPLES])
        measures |= measured.quality
        record["measures"] = {name: _short(value) for name, value in measures.items()}
        state = f"measures of {run.folder} are in the study's record, but not kept beside the run"
        way = "A study that is stopped measures it again."
        records.write_or_warn(self.measures_path(experiment), record, state, way, 6)
        return record

    def record(self, measured: Mapping[tuple[str, int], list[dict[str, Any]]]) -> dict[str, Any]:
        """Build the study's record from the measurements of each arm and seed."""
        study, rows, devices = self.study, [], set()
        for name in study.arms:
            for seed in study.seeds:
                for steps, run in zip(study.steps, measured[name, seed], strict=True):
                    devices.add(run["device"])
                    numbers = {key: run[key] for key in ("images seen", "errors", "measures")}
                    rows.append({"arm": name, "seed": seed, "steps": steps, **numbers})
        record: dict[str, Any] = {
            "format": FORMAT,
            "arms": {name: describe(arm) for name, arm in study.arms.items()},
            "seeds": list(study.seeds),
            "steps": list(study.steps),
            "conditions": {
                images.name: self.conditions(dataset) for dataset, images in self.data_sets.items()
            },
            "devices": sorted(devices),
            "floor": {},
        }
        if n := study.conditions.n:
            record["floor"] = {images.name: images.floor(n) for images in self.data_sets.values()}
            first = study.seeds[0]  # the pictures of one seed are enough
            record["samples"] = sheet(
                [[run["samples"] for run in measured[name, first]] for name in study.arms]
            )
        return record | {"measured": rows}


def _with_seed_and_steps(arm: Experiment, seed: int, steps: int) -> Experiment:
    return replace(arm, train=replace(arm.train, seed=seed, num_steps=steps))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
