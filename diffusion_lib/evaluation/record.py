"""The record of a run's measurements: written once, compared only where the conditions agree."""

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import config, data, metrics, runs, samplers
from diffusion_lib.data import Dataset
from diffusion_lib.evaluation.measurement import (
    _TOLD,
    Conditions,
    _dataset,
    _experiment,
    _variance,
    _weights_digest,
    load_splits,
    measure_samples,
    random_subset,
    resolve_conditions,
)
from diffusion_lib.metrics import Interval, features
from diffusion_lib.runs import GuidedRun, Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files, parallel

_FORMAT = "diffusion_lib metrics 1"

_COMPARED = ("Frechet distance", "kernel distance", "precision", "recall", "confidence > 0.9")


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
    described = _experiment(run)
    samples = None if samples is None else data.check(samples, run.image_shape)
    record: dict[str, Any] = {
        "format": _FORMAT,
        "run": run.folder.name,
        "experiment": {name: described.get(name) for name in _TOLD},
        "weights sha256": _weights_digest(run.denoiser),
        "variance": _variance(run, conditions, samples),
        "conditions": resolve_conditions(run, conditions, root, samples, dataset),
    }
    path = run.folder / "metrics.json"
    if isinstance(run, GuidedRun):
        asked = json.dumps([record["conditions"]["labels"], run.scale])
        path = run.folder / f"metrics-{hashlib.sha256(asked.encode()).hexdigest()[:8]}.json"
    if samples is not None:
        record["samples sha256"] = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
        path = run.folder / f"metrics-{record['samples sha256'][:8]}.json"
    told = ("weights sha256", "conditions", "samples sha256")
    parallel.assert_same_on_all_ranks("weights", record["weights sha256"])

    def measured() -> dict[str, Any] | None:
        found = _load_if_whole(path) or {}
        return found if all(found.get(name) == record.get(name) for name in told) else None

    if found := parallel.on_rank_zero(measured):
        return found
    dataset = dataset or _dataset(run)
    name, n = config.label(dataset), record["conditions"]["n"]
    train, test = (part.images for part in load_splits(dataset, root or config.data_root()))
    if conditions.n and not n and parallel.rank() == 0:
        warnings.warn(
            f"no feature network is released for the data set {name!r}: its samples are not "
            "measured, only the likelihood and the errors",
            stacklevel=2,
        )
    clocks = {"": time.monotonic()}
    if n:
        if samples is None:
            sampler = config.resolve(conditions.sampler, samplers, "sampler")
            samples = runs.sample(run, n, conditions.seed, sampler, conditions.steps)
        clocks["sampling"] = time.monotonic()
        record |= measure_samples(samples, train, test, features.load(name), conditions.seed)
        clocks["metrics of samples"] = time.monotonic()
    images = random_subset(test, conditions.n_likelihood, "test images for the likelihood")
    times = min(conditions.num_times, run.denoiser.schedule.num_timesteps)
    bound = metrics.bits_per_dim(run.denoiser, images, times, seed=conditions.seed)
    record["likelihood"] = {
        "bits per dim": asdict(bound.total.interval),
        "bits per image": bound.total.bits_per_image,
        "standard error": bound.total.standard_error,
        "per image": [round(bits, 6) for bits in bound.total.per_image.tolist()],
        "L_T": bound.L_T,
        "L_0": bound.L_0,
        "times": bound.times,
        "L_t": bound.L_t,
    }
    errors = metrics.errors_per_t(run.denoiser, images, seed=conditions.seed)
    record["errors"] = errors._asdict()
    clocks["likelihood and errors"] = time.monotonic()
    record["seconds"] = {
        part: round(clocks[part] - clocks[before], 1) for before, part in pairwise(clocks)
    }
    device = run.denoiser.schedule.signal.device
    record |= {"device": hardware.name(device), **hardware.conditions(device)}
    parallel.on_rank_zero(lambda: _write(path, record))
    return record


def _write(path: Path, record: dict[str, Any]) -> None:
    """Write a record, or warn: what took minutes to measure is not lost with its file."""
    try:
        files.write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        warnings.warn(
            f"the record of {path.parent} is returned, but not kept ({error}). To keep it, write "
            "what evaluation.evaluate returns to another place, or measure a copy of the run in a "
            "folder that can be written.",
            stacklevel=5,
        )


def _load_if_whole(path: Path) -> dict[str, Any] | None:
    try:
        return load(path)
    except (FileNotFoundError, ValueError):
        return None  # a damaged record is measured again


def table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows for `viz.table`: each measurement of each run with its interval, and the floor.

    Records without samples, see `evaluate`, have the rows of the likelihood and the errors alone.

    Raises:
        ValueError: records made under different conditions.
    """
    check_same_conditions(records)
    names = distinguishing_labels(records)
    likelihood = [record["likelihood"] for record in records]
    rows = []
    for metric, floor in records[0].get("floor", {}).items():
        cells = [f"{Interval(**record['samples'][metric]):.4g}" for record in records]
        rows.append(_row(metric, names, cells, f"{Interval(**floor):.4g}"))
    cells = [f"{Interval(**bits['bits per dim']):.4g}" for bits in likelihood]
    rows.append(_row("bits per dim (bound)", names, cells, ""))
    for part in ("bits per image", "L_0", "L_T"):
        rows.append(_row(part, names, [f"{bits[part]:.4g}" for bits in likelihood], ""))
    errors = [record["errors"] for record in records]
    for part in ("x_0", "eps", "v"):
        cells = [f"{sum(error[part]) / len(error[part]):.4g}" for error in errors]
        rows.append(_row(f"mean squared error of {part}", names, cells, ""))
    cells = [f"{sum(record['seconds'].values()):.0f}" for record in records]
    return [*rows, _row("seconds to evaluate", names, cells, "")]


def verdicts(record: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows for `viz.table`: what one run has that another has not, and whether that is noise.

    A difference of sample metrics adds the two intervals in quadrature; that of the bits per dim
    is taken image by image.  The intervals hold the spread over samples and test images.  They do
    not hold that over trainings: another seed is another run.

    Raises:
        ValueError: records made under different conditions.
    """
    check_same_conditions([record, other])
    here, there = distinguishing_labels([record, other])
    rows = []
    compared = [name for name in _COMPARED if "samples" in record and "samples" in other]
    for metric in (*compared, "bits per dim"):
        if metric in _COMPARED:
            a, b = (Interval(**r["samples"][metric]) for r in (record, other))
            difference = a - b  # they share a reference, so it is wider than need be
        else:
            a, b = (Interval(**r["likelihood"]["bits per dim"]) for r in (record, other))
            one, two = (torch.tensor(r["likelihood"]["per image"]) for r in (record, other))
            difference = metrics.Bits(one.double() - two.double(), 1).interval
        rows.append(
            {
                "": metric,
                here: f"{a:.4g}",
                there: f"{b:.4g}",
                "difference": f"{difference:.4g}",
                "verdict": "not distinguishable" if 0 in difference else "different",
            }
        )
    return rows


def check_same_conditions(records: Sequence[Mapping[str, Any]]) -> None:
    """Refuse records that say different things by the same name.

    Raises:
        ValueError: conditions that differ, each with its values.
    """
    first = records[0]["conditions"]
    for record in records[1:]:
        other = record["conditions"]
        different = [
            f"{name}: {first.get(name)!r} and {other.get(name)!r}"
            for name in first | other
            if first.get(name) != other.get(name)
        ]
        if different:
            raise ValueError(
                f"{records[0]['run']} and {record['run']} were measured under different "
                f"conditions, so their numbers cannot be compared: {'; '.join(different)}. "
                "Give evaluate the same options for both; what was trained differently (images "
                "seen) can only be measured apart."
            )


def load(path: str | Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        FileNotFoundError, ValueError: no such file; not a record.
    """
    if not Path(path).is_file():
        missing = "is a folder" if Path(path).is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{path} {missing}: give the file of a record, such as metrics.json"
        )
    try:
        record = json.loads(Path(path).read_text())
        found = record.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a record of measurements ({error})") from error
    if found != _FORMAT:
        raise ValueError(f"{path} is not a record of measurements: its format is {found!r:.99}")
    return record


def _row(metric: str, names: Sequence[str], cells: Sequence[str], floor: str) -> dict[str, str]:
    return {"": metric, **dict(zip(names, cells, strict=True)), "floor": floor}


def distinguishing_labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each run apart: the parts of its experiment in which the records differ."""
    differ = [
        name
        for name in _TOLD
        if len({json.dumps(record["experiment"][name]) for record in records}) > 1
    ]
    found: list[str] = []
    for record in records:
        told = [record["experiment"][name] for name in differ]
        title = ", ".join(str(part) for part in told if part is not None) or record["run"]
        if title in found:
            title = f"{title} ({record['run']})"
        if title in found:
            title = f"{title} ({len(found) + 1})"
        found.append(title)
    return found
