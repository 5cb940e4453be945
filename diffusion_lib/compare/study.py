"""Train and measure the arms of a study over shared seeds."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_lib import config, data, evaluation, metrics, runs
from diffusion_lib.compare.record import FORMAT, NUM_SAMPLES, Study, described, sheet, to_png
from diffusion_lib.config import Experiment
from diffusion_lib.data import Dataset, Images
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
    context = _Context(str(root or config.data_root()), device or config.device())
    _check(study, context)
    jobs = [(name, seed) for seed in study.seeds for name in study.arms]
    measured = {
        job: job_rows for job in jobs if (job_rows := _load_measurements(*job, study, context))
    }
    longest = study.steps[-1]
    total, done = len(jobs) * longest, len(measured) * longest
    # smoothing=0 shows the mean rate, because arms differ in cost.
    with Bar(None, "study", total, done, " steps", smoothing=0) as bar:
        while len(measured) < len(jobs):
            for name, seed in [job for job in jobs if job not in measured]:
                bar.note(f"{name}, seed {seed}")
                with _claim(name, seed, study, context) as is_free:
                    # Of what another process holds, it may just have written the last measure.
                    job_rows = (_train_and_measure if is_free else _load_measurements)(
                        name, seed, study, context
                    )
                if job_rows:
                    measured[name, seed] = job_rows
                    bar.update(longest)
                    break  # look first at what other processes have finished meanwhile
            else:
                time.sleep(_POLL_SECONDS)  # they hold all that is left
    return _record(study, measured, context)


class _Context(NamedTuple):
    """Folder of the data sets and device of a study."""

    root: str
    device: torch.device

    def folder(self, experiment: Experiment) -> Path:
        return config.runs_root() / experiment.name(_fingerprint(experiment.dataset, self.root))


def _check(study: Study, context: _Context) -> None:
    """Refuse arms that cannot be trained or measured before hours are spent on the others."""
    if len(study.arms) < 2:
        raise ValueError(f"a comparison needs at least 2 arms; got {list(study.arms)}")
    for what, given, least in (("seeds", study.seeds, 2), ("steps", study.steps, 1)):
        if len(given) < least or len(set(given)) < len(given):
            raise ValueError(f"{what} must be at least {least} and all different; got {[*given]}")
    for name, arm in study.arms.items():
        try:
            for seed in study.seeds:
                _with_seed_and_steps(arm, seed, study.steps[0]).build()
            _check_conditions(arm, study.conditions, context)
        except (TypeError, ValueError) as error:
            raise ValueError(f"arm {name!r}: {error}") from error


def _check_conditions(arm: Experiment, conditions: Conditions, context: _Context) -> None:
    train, test = (_split(arm.dataset, context.root, part) for part in (True, False))
    for images in (train, test):
        data.check(images, arm.network.image_shape)
    evaluation.check_enough(test, conditions.n_likelihood, "test images for the likelihood")
    if conditions.n:
        name = config.label(arm.dataset)
        if name not in features.RELEASED:
            raise ValueError(
                f"no feature network is released for the data set {name!r}, so that samples of it "
                'cannot be measured: use the conditions {"n": 0}'
            )
        network = features.load(name)
        metrics.check_count(conditions.n, network.classify.in_features, "samples")
        evaluation.check_enough(train, conditions.n, "training images for the floor")
        schedule = arm.schedule(arm.T)
        schedule.timesteps(conditions.steps or arm.T)  # refuses more sampling steps than T


def _with_seed_and_steps(arm: Experiment, seed: int, steps: int) -> Experiment:
    """Return an arm with this seed and number of steps."""
    return replace(arm, train=replace(arm.train, seed=seed, num_steps=steps))


def _chain(name: str, seed: int, study: Study) -> list[Experiment]:
    """Return an arm with one seed at every number of steps."""
    return [_with_seed_and_steps(study.arms[name], seed, steps) for steps in study.steps]


def _load_measurements(
    name: str, seed: int, study: Study, context: _Context
) -> list[dict[str, Any]] | None:
    """Read the measurements of an arm with one seed; None where one is missing."""
    measurements = []
    for experiment in _chain(name, seed, study):
        measures = _read_measures(experiment, study, context)
        if measures is None:
            return None
        measurements.append(measures)
    return measurements


@contextmanager
def _claim(name: str, seed: int, study: Study, context: _Context) -> Iterator[bool]:
    """Lock an arm with one seed; yields whether this process holds the lock."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a warm-up longer than 1 step, which nothing trains
        folder = context.folder(_with_seed_and_steps(study.arms[name], seed, 1))
    claim = folder.with_name(f".{folder.name}.lock")
    try:
        claim.parent.mkdir(parents=True, exist_ok=True)
        claim.touch()
    except OSError as error:
        raise files.write_error(claim, error) from error
    with files.lock(claim) as is_free:
        yield is_free


def _train_and_measure(
    name: str, seed: int, study: Study, context: _Context
) -> list[dict[str, Any]]:
    """Train and measure one arm with one seed, at every number of steps."""
    dataset = study.arms[name].dataset
    train, test = (_labelled(dataset, context.root, part) for part in (True, False))
    measurements, start = [], None
    for experiment in _chain(name, seed, study):
        folder = context.folder(experiment)
        measures = _read_measures(experiment, study, context)
        if measures is None:
            try:
                run = runs.train(experiment, train, test, folder, context.device, start)
                measures = _measure(run, experiment, study, context)
            except (ValueError, FloatingPointError) as error:
                error.add_note(f"This was arm {name!r}, seed {seed}.")
                raise
        measurements.append(measures)
        # A learning rate that has fallen at the end is not gone on from: that trains from step 0.
        start = folder if experiment.train.cooldown == 0 else None
    return measurements


def _split(dataset: Dataset, root: str, train: bool) -> Tensor:
    return _labelled(dataset, root, train).images


@cache
def _labelled(dataset: Dataset, root: str, train: bool) -> Images:
    return data.load(dataset, root, train)


@cache
def _fingerprint(dataset: Dataset, root: str, train: bool = True) -> str:
    return runs.fingerprint(_split(dataset, root, train))


def _conditions(experiment: Experiment, study: Study, context: _Context) -> dict[str, Any]:
    """Return all that the measurements of a run depend on, but for the run and the device."""
    dataset = experiment.dataset
    conditions: dict[str, Any] = {"test images": _fingerprint(dataset, context.root, False)}
    if study.conditions.n:
        conditions["features sha256"] = features.released(config.label(dataset))[1]
    return asdict(study.conditions) | conditions


def _read_measures(
    experiment: Experiment, study: Study, context: _Context
) -> dict[str, Any] | None:
    """Read what was measured of a run under the study's conditions, if anything was."""
    path, conditions = _measures_file(experiment, study, context)
    return records.read_if(path, {"conditions": conditions})


def _measures_file(
    experiment: Experiment, study: Study, context: _Context
) -> tuple[Path, dict[str, Any]]:
    """Return the file in the run's folder, and its conditions, whose digest is in its name."""
    conditions = _conditions(experiment, study, context)
    return context.folder(experiment) / f"compared-{records.digest(conditions)}.json", conditions


def _measure(run: Run, experiment: Experiment, study: Study, context: _Context) -> dict[str, Any]:
    """Measure a run, and write that into its folder, or return it with a warning."""
    dataset, train = experiment.dataset, experiment.train
    measured = evaluation.measure(
        run,
        study.conditions,
        _split(dataset, context.root, False),
        lambda images: _quality(images, dataset, context),
    )
    errors = measured.errors
    measures = {"bits per dim": measured.bound.total.mean, "L_0": measured.bound.L_0}
    for name, values in zip(ERRORS, (errors.x_0, errors.eps, errors.v), strict=True):
        measures[name] = fmean(values[1:] or values)  # t = 1 is not one of the evenly spaced times
    path, conditions = _measures_file(experiment, study, context)
    record: dict[str, Any] = {
        "conditions": conditions,
        "device": _devices(run, context.device),
        "images seen": train.num_steps * train.batch_size,
        "errors": {
            name: [_short(value) for value in values] for name, values in errors._asdict().items()
        },
    }
    if measured.samples is not None:
        record["samples"] = to_png(measured.samples[:NUM_SAMPLES])
    measures |= measured.quality
    record["measures"] = {name: _short(value) for name, value in measures.items()}
    state = f"the measures of {run.folder} are in the study's record, but not kept beside the run"
    records.write_or_warn(path, record, state, "A study that is stopped measures it again.")
    return record


def _devices(run: Run, device: torch.device) -> str:
    """Describe where a run was trained and, if that is another device, measured."""
    described = run.describe()
    trained = ", ".join(described[name] for name in ("device", "precision", "memory layout"))
    measured = f"{hardware.name(device)}, {hardware.precision(device)}, {hardware.layout(device)}"
    return trained if trained == measured else f"{trained}; measured on {measured}"


def _quality(images: Tensor, dataset: Dataset, context: _Context) -> dict[str, float]:
    """Compare images with the test split, without intervals: those of a study are over seeds."""
    network = features.load(config.label(dataset))
    return metrics.point_estimates(
        network.extract_features(images), _reference(dataset, context.root)
    )


@cache
def _reference(dataset: Dataset, root: str) -> Tensor:
    network = features.load(config.label(dataset))
    return network.extract_features(_split(dataset, root, False)).features


def _floor(dataset: Dataset, n: int, context: _Context) -> dict[str, float]:
    """Measure n real training images in place of samples."""
    train = _split(dataset, context.root, True)
    images = evaluation.random_subset(train, n, "training images for the floor")
    return {name: _short(value) for name, value in _quality(images, dataset, context).items()}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _record(
    study: Study, measured: Mapping[tuple[str, int], list[dict[str, Any]]], context: _Context
) -> dict[str, Any]:
    rows, devices, strips = [], set(), []
    for name in study.arms:
        strips.append([])
        for seed in study.seeds:
            for steps, measures in zip(study.steps, measured[name, seed], strict=True):
                row = {"arm": name, "seed": seed, "steps": steps, **measures}
                del row["conditions"]
                picture = row.pop("samples", None)
                if picture and seed == study.seeds[0]:  # those of one seed are enough
                    strips[-1].append(picture)
                devices.add(row.pop("device"))
                rows.append(row)
    sets = {config.label(arm.dataset): arm for arm in study.arms.values()}
    floors = {}
    if study.conditions.n:
        floors = {
            label: _floor(arm.dataset, study.conditions.n, context) for label, arm in sets.items()
        }
    return {
        "format": FORMAT,
        "arms": {name: described(arm) for name, arm in study.arms.items()},
        "seeds": list(study.seeds),
        "steps": list(study.steps),
        "conditions": {label: _conditions(arm, study, context) for label, arm in sets.items()},
        "devices": sorted(devices),
        "floor": floors,
        **({"samples": sheet(strips)} if study.conditions.n else {}),
        "measured": rows,
    }
