"""Train and measure the arms of a study over shared seeds."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from operator import contains
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import config, data, evaluation, metrics, runs
from diffusion_lib.compare.record import (
    FORMAT,
    NUM_SAMPLES,
    Study,
    describe,
    sheet,
    stored_samples,
    to_png,
)
from diffusion_lib.config import Experiment
from diffusion_lib.data import Dataset
from diffusion_lib.evaluation import record as records
from diffusion_lib.metrics import features
from diffusion_lib.runs import Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files, interrupts
from diffusion_lib.system.progress import Bar

_OF_A_ROW = ("images seen", "seconds", "processor", "errors", "measures")
_POLL_SECONDS = 1.0  # seconds between looks at what other processes have done

ERRORS = ("x_0 error", "eps error", "v error")
"""Held-out mean squared errors a pixel, averaged over t: those of every arm on one yardstick."""


@interrupts.explain_stop("The study is saved as far as it is. Run this again to go on.")
def compare(
    study: Study,
    root: str | Path | None = None,
    device: torch.device | None = None,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and measure what is missing of a study; return its record.

    Shows a progress bar over the whole study.  Stopped at any moment and called again, it goes on,
    and ends with the same record, but for the seconds of the trainings.

    Args:
        study: at least 2 arms and 2 seeds.  A longer training goes on from a shorter one.
        root: folder of the data sets, None for `config.data_root()`.
        device: None takes the GPU if there is one.
        start: record of a former run of the study on the same images, with fewer arms or seeds:
            what it holds is not measured again.

    Returns:
        {"arms", "seeds", "steps", "conditions", "devices", "floor", "measured": one for each arm,
        seed and number of steps, in this order}: plain values, for JSON.

    Raises:
        ValueError: too few arms, seeds or steps; conditions that an arm cannot be measured under;
            a `start` with other settings (before anything is trained).
        FloatingPointError: an arm diverged; a note names it.
    """
    comparison = _Comparison(study, root or config.data_root(), device or config.device())
    if start:
        comparison.go_on_from(start)
    return comparison.run()


class _DataSet:
    """The images of a data set, and what is computed of them once."""

    def __init__(self, dataset: Dataset, root: str | Path) -> None:
        self.name = config.label(dataset)
        self.train, self.test = data.load_splits(dataset, root)
        self.digest = runs.fingerprint(self.train.images)
        self.test_digest = runs.fingerprint(self.test.images)

    @cached_property
    def reference(self) -> Tensor:
        return features.load(self.name).extract_features(self.test.images).features

    def quality(self, images: Tensor) -> dict[str, float]:
        """Compare images with the test split; a study's intervals are over seeds instead."""
        described = features.load(self.name).extract_features(images)
        return metrics.point_estimates(described, self.reference)

    def floor(self, n: int) -> dict[str, float]:
        """Measure n real training images in place of samples."""
        return _shortened(self.quality(evaluation.random_subset(self.train.images, n)))


class _Comparison:
    """A study whose arms can be trained and measured: others are refused here.

    Args:
        study: arms, seeds, numbers of steps, conditions.
        root: folder of the data sets.
        device: device of the trainings and the measurements.
    """

    def __init__(self, study: Study, root: str | Path, device: torch.device) -> None:
        if len(study.arms) < 2:
            raise ValueError(f"a comparison needs at least 2 arms; got {list(study.arms)}")
        for what, numbers, least in (("seeds", study.seeds, 2), ("steps", study.steps, 1)):
            are_whole = all(type(number) is int for number in numbers)
            if not are_whole or len(numbers) < least or len(set(numbers)) < len(numbers):
                raise ValueError(
                    f"{what} must be a list of whole numbers, at least {least} and all different; "
                    f"got {[*numbers]}"
                )
        self.study, self.device = study._replace(steps=sorted(study.steps)), device
        self.data_sets: dict[Dataset, _DataSet] = {}
        self.former: dict[tuple[str, int, int], dict[str, Any]] = {}  # by arm, seed, steps
        self.devices: set[str] = set()
        for name, arm in study.arms.items():
            try:
                for seed in study.seeds:
                    self.experiments(name, seed)[0].build()
                if arm.dataset not in self.data_sets:
                    self.data_sets[arm.dataset] = _DataSet(arm.dataset, root)
                images = self.data_sets[arm.dataset]
                splits = images.train.images, images.test.images
                shape, schedule = arm.network.image_shape, arm.schedule(arm.T)
                study.conditions.check(shape, schedule, images.name, *splits)
            except (TypeError, ValueError) as error:
                raise ValueError(f"arm {name!r}: {error}") from error

    def go_on_from(self, start: Mapping[str, Any]) -> None:
        """Take over what a record holds of this study."""
        for name, arm in self.study.arms.items():
            label = self.data_sets[arm.dataset].name
            pairs = [(describe(arm), start["arms"].get(name))]
            pairs += [(self.conditions(arm.dataset), start["conditions"].get(label))]
            for own, former in pairs:
                if other := [key for key in own if former and own[key] != former.get(key)]:
                    raise ValueError(
                        f"arm {name!r}: the record to start from has another {', '.join(other)}; "
                        "start from a record of the same settings, or from none"
                    )
        first = self.study.seeds[0]  # its samples are in the record, so they must be at hand
        has_samples = start["seeds"][0] == first and "samples" in start
        of_study = self.study.arms, self.study.seeds, self.study.steps
        for row in start["measured"]:
            job, pictures = (row["arm"], row["seed"], row["steps"]), {}
            if "errors" not in row or not all(map(contains, of_study, job)):
                continue
            if self.study.conditions.n and row["seed"] == first:
                if not has_samples:
                    continue
                pictures["samples"] = to_png(stored_samples(start, row["arm"], row["steps"]))
            self.former[job] = row | pictures
        self.devices = {*start["devices"]} if self.former else set()

    def run(self) -> dict[str, Any]:
        """Train and measure what is missing; return the record."""
        jobs = [(name, seed) for seed in self.study.seeds for name in self.study.arms]
        measured = {job: measures for job in jobs if (measures := self.run_job(*job, False))}
        longest = self.study.steps[-1]
        total, done = len(jobs) * longest, len(measured) * longest
        # smoothing=0 shows the mean rate, because arms differ in cost.
        with Bar(None, "study", total, done, " steps", smoothing=0) as bar:
            while len(measured) < len(jobs):
                for name, seed in [job for job in jobs if job not in measured]:
                    bar.note(f"{name}, seed {seed}")
                    with files.lock(self.lock_file(name, seed)) as is_free:
                        # Of what another process holds, it may just have written the last measure.
                        measures = self.run_job(name, seed, is_free)
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
        return [
            replace(arm, train=replace(arm.train, seed=seed, num_steps=steps))
            for steps in self.study.steps
        ]

    def conditions(self, dataset: Dataset) -> dict[str, Any]:
        """Return all that the measurements of a run depend on, but for the run and the device."""
        images = self.data_sets[dataset]
        conditions = asdict(self.study.conditions) | {"test images": images.test_digest}
        if self.study.conditions.n:
            conditions["features sha256"] = features.released(images.name)[1]
        return conditions

    def lock_file(self, name: str, seed: int) -> Path:
        """Create the file that is locked while an arm is trained with a seed."""
        job = [describe(self.study.arms[name]), seed]
        path = config.runs_root() / f".{records.digest(job)}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise files.write_error(path, error) from error
        return path

    def run_job(self, name: str, seed: int, is_free: bool) -> list[dict[str, Any]] | None:
        """Read the measurements of an arm with one seed; make what is missing, if it is free."""
        images = self.data_sets[self.study.arms[name].dataset]
        conditions = self.conditions(self.study.arms[name].dataset)
        measurements, start = [], None
        for experiment in self.experiments(name, seed):
            folder = config.runs_root() / experiment.name(images.digest)
            path = folder / f"compared-{records.digest(conditions)}.json"
            measures = records.read_if(path, {"conditions": conditions})
            measures = measures or self.former.get((name, seed, experiment.train.num_steps))
            if measures is None:
                if not is_free:
                    return None
                try:
                    run = runs.train(
                        experiment, images.train, images.test, folder, self.device, start
                    )
                    measures = self.measure(run, images)
                except (ValueError, FloatingPointError) as error:
                    error.add_note(f"This was arm {name!r}, seed {seed}.")
                    raise
                measures["images seen"] = experiment.train.num_steps * experiment.train.batch_size
                measures["conditions"] = conditions
                records.write_or_warn(path, measures)
            measurements.append(measures)
            # A learning rate that has fallen at the end cannot be resumed: train from step 0.
            is_there = (folder / "training.safetensors").is_file()  # not of a run of another place
            start = folder if is_there and experiment.train.cooldown == 0 else None
        return measurements

    def measure(self, run: Run, images: _DataSet) -> dict[str, Any]:
        """Measure a run."""
        conditions, pictures = self.study.conditions, {}
        measured = evaluation.measure_likelihood(run, conditions, images.test.images)
        likelihood, errors = measured["likelihood"], measured["errors"]
        measures = {"bits per dim": likelihood["bits per dim"]["value"], "L_0": likelihood["L_0"]}
        for name in ERRORS:
            values = errors[name.removesuffix(" error")]
            measures[name] = fmean(values[1:] or values)  # t = 1 is not one of those evenly spaced
        if conditions.n:
            samples = evaluation.sample(run, conditions)
            pictures["samples"] = to_png(samples[:NUM_SAMPLES])
            measures |= images.quality(samples)
        description = run.describe()
        training = ", ".join(description[name] for name in ("device", "precision", "memory layout"))
        processors = dict.fromkeys(start["processor"] for start in run.log if "processor" in start)
        describers = (hardware.name, hardware.precision, hardware.layout)
        measuring = ", ".join(describer(self.device) for describer in describers)
        return pictures | {
            "device": training + (f"; measured on {measuring}" if measuring != training else ""),
            "seconds": round(60 * description["minutes of training"], 1),
            "processor": ", then ".join(processors),
            "errors": {name: [*map(_short, values)] for name, values in errors.items()},
            "measures": _shortened(measures),
        }

    def record(self, measured: Mapping[tuple[str, int], list[dict[str, Any]]]) -> dict[str, Any]:
        """Build the study's record from the measurements of each arm and seed."""
        study, pictures = self.study, {}
        rows = [
            {"arm": name, "seed": seed, "steps": steps}
            | {key: run[key] for key in _OF_A_ROW if key in run}
            for name in study.arms
            for seed in study.seeds
            for steps, run in zip(study.steps, measured[name, seed], strict=True)
        ]
        all_runs = [run for job in measured.values() for run in job]
        devices = {run["device"] for run in all_runs if "device" in run}
        if n := study.conditions.n:
            first = study.seeds[0]  # the pictures of one seed are enough
            strips = [[run["samples"] for run in measured[name, first]] for name in study.arms]
            pictures["samples"] = sheet(strips)
        return {
            "format": FORMAT,
            "arms": {name: describe(arm) for name, arm in study.arms.items()},
            "seeds": list(study.seeds),
            "steps": list(study.steps),
            "conditions": {s.name: self.conditions(key) for key, s in self.data_sets.items()},
            "devices": sorted(self.devices | devices),
            "floor": {s.name: s.floor(n) for s in self.data_sets.values() if n},
            **pictures,
            "measured": rows,
        }


def _shortened(measures: Mapping[str, float]) -> dict[str, float]:
    return {name: _short(value) for name, value in measures.items()}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
