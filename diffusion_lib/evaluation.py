"""A run's record: every measurement of `metrics`, with the conditions under which it was made.

Records are plain JSON.  Two are only compared where their conditions are the same: distances
depend on the number of images, the reference, the features and the sampler.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import config, data, features, files, metrics, rng, runs, samplers
from diffusion_lib.metrics import Estimate
from diffusion_lib.runs import Run

_FORMAT = "diffusion_lib metrics 1"
_FILE = "metrics.json"
_COMPARED = ("Frechet distance", "kernel distance", "precision", "recall", "confidence > 0.9")
_TOLD = ("dataset", "schedule", "T", "prediction", "weight", "loss")  # of an experiment


@dataclass(frozen=True)
class Conditions:
    """How to measure a run.

    Args:
        n: images to sample.
        sampler: name of one of `samplers`.
        steps: of the sampler, None for all T.
        seed: of the samples and of the measurements' draws.
        n_likelihood: test images for the bound and the errors per t.
        num_times: network evaluations of each for the bound.
    """

    n: int = 1000
    sampler: str = "ddpm"
    steps: int | None = 250
    seed: int = 0
    n_likelihood: int = 500
    num_times: int = 100


# How much the notebooks measure in each of `config.BUDGETS`.
BUDGETS = {
    "smoke": Conditions(n=70, steps=2, n_likelihood=4, num_times=4),
    "quick": Conditions(n=200, steps=50, n_likelihood=50, num_times=50),
    "full": Conditions(),
}


def evaluate(
    run: Run,
    conditions: Conditions,
    root: str | Path | None = None,
    samples: Tensor | None = None,
) -> dict[str, Any]:
    """Measure a run and write `metrics.json` into its folder; load it where it is there already.

    Samples are compared with the whole test split; the floor compares as many training images
    with it.

    Args:
        root: folder of the data sets, None for `config.data_root()`.
        samples: images made from the run earlier, uint8 [N, C, H, W], in place of the n that the
            conditions would have sampled.

    Raises:
        ValueError: no feature network for the data set; a data set smaller than asked for; n not
            above the features' dimension; no such sampler, or more steps than T.
        OSError: the record could not be written.
    """
    sampler = config.resolve(conditions.sampler, samplers, "sampler")
    schedule = run.denoiser.schedule
    schedule.timesteps(steps := conditions.steps or schedule.num_timesteps)
    described = json.loads((run.folder / "experiment.json").read_text())
    dataset = described["dataset"]
    network = features.load(dataset)
    load_split = config.resolve(dataset, data, "data set")
    train, test = (load_split(root or config.data_root(), part).images for part in (True, False))
    record: dict[str, Any] = {
        "format": _FORMAT,
        "run": run.folder.name,
        "experiment": {name: described.get(name) for name in _TOLD},
        "weights sha256": features.sha256(run.folder / "ema.safetensors"),
        "conditions": {
            "n": conditions.n,
            "reference": f"{dataset} test, {len(test)} images",
            "training images": len(train),
            "features sha256": features.RELEASED[dataset][1],
            "sampler": conditions.sampler,
            "steps": steps,
            "variance": "learned, else beta_tilde",
            "weights": "EMA",
            "seed": conditions.seed,
            "images seen": (run.series("loss")[0] or [0])[-1] * described["train"]["batch_size"],
            "likelihood": f"{conditions.n_likelihood} test images, {conditions.num_times} times",
        },
    }
    if samples is not None:
        digest = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
        given = {"n": len(samples), "sampler": f"given, sha256 {digest[:16]}", "steps": None}
        record["conditions"] |= given | {"seed": None}
    path = run.folder / _FILE
    if path.exists():
        found = load(path)
        if all(found.get(name) == record[name] for name in ("conditions", "weights sha256")):
            return found
    metrics.check_count(record["conditions"]["n"], network.classify.in_features, "samples")
    _enough(test, conditions.n_likelihood, f"{dataset} test images for the likelihood")
    _enough(train, record["conditions"]["n"], f"{dataset} training images for the floor")
    clocks = [time.monotonic()]
    if samples is None:
        samples = runs.sample(run, conditions.n, conditions.seed, sampler, steps)
    clocks.append(time.monotonic())
    record |= measure_samples(samples, train, test, network, conditions.seed)
    clocks.append(time.monotonic())
    images = _some(test, conditions.n_likelihood)
    bound = metrics.bits_per_dim(
        run.denoiser, images, min(conditions.num_times, schedule.num_timesteps)
    )
    record["likelihood"] = {
        "bits per dim": bound.total.estimate._asdict(),
        "bits per image": bound.total.bits_per_image,
        "standard error": bound.total.standard_error,
        "per image": [round(bits, 6) for bits in bound.total.per_image.tolist()],
        "L_T": bound.L_T,
        "L_0": bound.L_0,
        "times": bound.times,
        "L_t": bound.L_t,
    }
    record["errors"] = metrics.errors_per_t(run.denoiser, images)._asdict()
    clocks.append(time.monotonic())
    names = ("sampling", "metrics of samples", "likelihood and errors")
    spent = [round(after - before, 1) for before, after in pairwise(clocks)]
    record["seconds"] = dict(zip(names, spent, strict=True))
    record["device"] = runs.device_name(schedule.signal.device)
    files.write_text(path, json.dumps(record, indent=1) + "\n")
    return record


def measure_samples(
    samples: Tensor,
    train: Tensor,
    test: Tensor,
    network: features.Classifier,
    seed: int = 0,
) -> dict[str, Any]:
    """Quality of samples beside the test split, and the floor: the same of real images.

    Args:
        samples: uint8 [N, C, H, W].
        train, test: uint8; N training images make the floor, N test images are those held out
            with which the distances to the nearest training image are compared.

    Returns:
        {"samples": {name: {value, low, high}}, "floor": the same names}.

    Raises:
        TypeError, ValueError: images of another dtype or shape; fewer than N real ones.
    """
    n = len(samples)
    _enough(train, n, "training images for the floor")
    _enough(test, n, "test images for the distances to the training images")
    # Drawn at random: in MNIST's order the first writers differ from the last.
    real, held_out = _some(train, n), _some(test, n)
    reference = network.describe_images(test)
    found = {}
    for name, images, unseen in (
        ("samples", samples, samples),
        ("floor", real, held_out),
    ):
        estimates = metrics.quality(network.describe_images(images), reference, seed)
        nearest = metrics.nearest_distances(unseen, train)
        estimates["nearest training image"] = metrics.median(nearest, seed)
        found[name] = {key: estimate._asdict() for key, estimate in estimates.items()}
    return found


def read_samples(path: str | Path, image_shape: Sequence[int]) -> Tensor:
    """Images from an .npz file such as `sample --out` writes, uint8 [N, C, H, W].

    Raises:
        FileNotFoundError, ValueError: no such file; not an .npz; an array of another name, dtype
            or shape.  Pickled arrays are never loaded.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    c, h, w = image_shape
    wanted = f"an array arr_0 of uint8 [N, {h}, {w}, {c}], as `sample --out x.npz` writes it"
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
    except (ValueError, OSError, KeyError, EOFError, BadZipFile, AttributeError) as error:
        raise ValueError(f"{path} does not hold {wanted} ({error})") from error
    if images.dtype != np.uint8 or images.shape[1:] != (h, w, c) or len(images) == 0:
        found = f"{images.dtype} {list(images.shape)}"
        if images.dtype.kind == "f" and images.size:
            finite = np.isfinite(images).all()
            values = f"values {images.min():g} to {images.max():g}" if finite else "NaN or infinity"
            found += f" with {values}"
        raise ValueError(f"{path} holds {found}; expected {wanted}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows for `viz.table`: each measurement of each run with its interval, and the floor.

    Raises:
        ValueError: records made under different conditions.
    """
    check_alike(records)
    names = [_title(record, records) for record in records]
    likelihood = [record["likelihood"] for record in records]
    rows = []
    for metric, floor in records[0]["floor"].items():
        cells = [interval(record["samples"][metric]) for record in records]
        rows.append(_row(metric, names, cells, interval(floor)))
    cells = [interval(bits["bits per dim"]) for bits in likelihood]
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
    check_alike([record, other])
    here, there = (_title(r, (record, other)) for r in (record, other))
    rows = []
    for metric in (*_COMPARED, "bits per dim"):
        if metric in _COMPARED:
            a, b = record["samples"][metric], other["samples"][metric]
            found = _difference(Estimate(**a), Estimate(**b))
        else:
            a, b = (r["likelihood"]["bits per dim"] for r in (record, other))
            one, two = (torch.tensor(r["likelihood"]["per image"]) for r in (record, other))
            found = metrics.Bits(one.double() - two.double(), 1).estimate
        told = "not distinguishable" if found.low <= 0 <= found.high else "different"
        rows.append(
            {
                "": metric,
                here: interval(a),
                there: interval(b),
                "difference": interval(found._asdict()),
                "verdict": told,
            }
        )
    return rows


def _difference(one: Estimate, other: Estimate) -> Estimate:
    """one - other, of independent errors."""
    value = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, value - below, value + above)


def check_alike(records: Sequence[Mapping[str, Any]]) -> None:
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
                "Evaluate them with the same options."
            )


def interval(estimate: Mapping[str, float]) -> str:
    """`value [low, high]`, to four digits."""
    value, low, high = (estimate[part] for part in Estimate._fields)
    return f"{value:.4g} [{low:.4g}, {high:.4g}]"


def load(path: str | Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        FileNotFoundError, ValueError: no such file; not a record.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        record = json.loads(Path(path).read_text())
        found = record.get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of measurements ({error})") from error
    if found != _FORMAT:
        raise ValueError(f"{path} is not a record of measurements: its format is {found!r}")
    return record


def _row(metric: str, names: Sequence[str], cells: Sequence[str], floor: str) -> dict[str, str]:
    return {"": metric, **dict(zip(names, cells, strict=True)), "floor": floor}


def _title(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """What sets a run apart: the parts of its experiment in which the records differ."""
    told = [
        record["experiment"][name]
        for name in _TOLD
        if len({json.dumps(other["experiment"][name]) for other in records}) > 1
    ]
    return ", ".join(str(part) for part in told if part is not None) or record["run"]


def _some(images: Tensor, n: int) -> Tensor:
    """n of the images, the same ones for every run."""
    return images[torch.randperm(len(images), generator=rng.generator(0))[:n]]


def _enough(images: Tensor, n: int, what: str) -> None:
    if len(images) < n:
        raise ValueError(f"{n} {what} were asked for, but there are {len(images)}")
