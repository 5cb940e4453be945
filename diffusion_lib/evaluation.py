"""A run's record: every measurement of `metrics`, with the conditions under which it was made.

Records are plain JSON.  Two are only compared where their conditions are the same: distances
depend on the number of images, the reference, the features and the sampler.
"""

import hashlib
import json
import math
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import config, data, features, metrics, rng, runs, samplers
from diffusion_lib.data import Dataset, Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.metrics import Estimate
from diffusion_lib.runs import Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files, parallel

_FORMAT = "diffusion_lib metrics 1"
# What a damaged file leads numpy, or the zipfile beneath it, to raise.
_DAMAGED = (
    ValueError,
    TypeError,
    OSError,
    KeyError,
    IndexError,
    EOFError,
    AttributeError,
    MemoryError,  # a header that speaks of more numbers than any memory holds
    NotImplementedError,  # zipfile: a compression that it does not know
    BadZipFile,
    zlib.error,
)
_COMPARED = ("Frechet distance", "kernel distance", "precision", "recall", "confidence > 0.9")
_TOLD = ("dataset", "schedule", "T", "prediction", "weight", "loss")  # of an experiment


@dataclass(frozen=True)
class Conditions:
    """How to measure a run.

    Args:
        n: images to sample; 0 measures no samples, only the likelihood and the errors.
        sampler: name of one of `samplers`.
        steps: of the sampler, None for all T.
        seed: of the samples and of the measurements' draws.
        n_likelihood: test images for the bound and the errors per t.
        num_times: network evaluations of each for the bound, or T where that is less.

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
        config.resolve(self.sampler, samplers, "sampler")
        least = {"n": 0, "steps": 1, "seed": 0, "n_likelihood": 2, "num_times": 2}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is None and name == "steps":
                continue
            if type(value) is not int:
                raise ValueError(f"{name} must be a whole number; got {value!r:.99}")
            if value < smallest:
                raise ValueError(f"{name} must be at least {smallest}; got {value}")


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
        "conditions": measured_under(run, conditions, root, samples, dataset),
    }
    path = run.folder / "metrics.json"
    if run.labels is not None:
        asked = json.dumps([record["conditions"]["labels"], run.scale])
        path = run.folder / f"metrics-{hashlib.sha256(asked.encode()).hexdigest()[:8]}.json"
    if samples is not None:
        record["samples sha256"] = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
        path = run.folder / f"metrics-{record['samples sha256'][:8]}.json"
    told = ("weights sha256", "conditions", "samples sha256")
    parallel.check_alike("weights", record["weights sha256"])

    def measured() -> dict[str, Any] | None:
        found = _load_if_whole(path) or {}
        return found if all(found.get(name) == record.get(name) for name in told) else None

    if found := parallel.first(measured):
        return found
    dataset = dataset or _dataset(run)
    name, n = config.label(dataset), record["conditions"]["n"]
    train, test = (part.images for part in splits(dataset, root or config.data_root()))
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
    images = some(test, conditions.n_likelihood, "test images for the likelihood")
    times = min(conditions.num_times, run.denoiser.schedule.num_timesteps)
    bound = metrics.bits_per_dim(run.denoiser, images, times, seed=conditions.seed)
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
    errors = metrics.errors_per_t(run.denoiser, images, seed=conditions.seed)
    record["errors"] = errors._asdict()
    clocks["likelihood and errors"] = time.monotonic()
    record["seconds"] = {
        part: round(clocks[part] - clocks[before], 1) for before, part in pairwise(clocks)
    }
    device = run.denoiser.schedule.signal.device
    record |= {"device": hardware.name(device), **hardware.conditions(device)}
    parallel.first(lambda: _write(path, record))
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


def measured_under(
    run: Run,
    conditions: Conditions,
    root: str | Path | None = None,
    samples: Tensor | None = None,
    dataset: Dataset | None = None,
) -> dict[str, Any]:
    """The conditions as a record has them; cheap, so that runs can be told apart beforehand.

    Refuses all that `evaluate` cannot measure, before it takes its time.

    Raises:
        ValueError: as `evaluate` does.
    """
    described = _experiment(run)
    samples = None if samples is None else data.check(samples, run.image_shape)
    dataset = dataset or _dataset(run)
    name, T = config.label(dataset), run.denoiser.schedule.num_timesteps
    steps = T if conditions.steps is None else conditions.steps
    train, test = (part.images for part in splits(dataset, root or config.data_root()))
    data.check(test, run.image_shape)
    n = conditions.n if name in features.RELEASED else 0
    n = n if samples is None else len(samples)
    features_sha256 = "none is released"
    if n or name in features.RELEASED:
        _, features_sha256 = features.released(name)
    if n and samples is None:
        run.denoiser.schedule.timesteps(steps)
    if n:
        metrics.check_count(n, features.load(name).classify.in_features, "samples")
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
    if dataset is not getattr(data, name, None):  # a name of the user's own may stand for anything
        reference = f"{name} test, {runs.fingerprint(test)}"
    found: dict[str, Any] = {
        "n": n,
        "reference": reference,
        "training images": len(train),
        "features sha256": features_sha256,
        "sampler": conditions.sampler,
        "steps": steps,
        "weights": "EMA",
        "seed": conditions.seed,
        "images seen": (run.series("loss")[0] or [0])[-1] * described["train"]["batch_size"],
        "likelihood": f"{conditions.n_likelihood} test images, {times} times",
    }
    if run.labels is not None:
        found |= {"labels": run.labels.tolist(), "guidance": run.scale}
    if samples is not None:
        found |= {"sampler": "given", "steps": None}
    if not n:  # nothing is sampled, nor compared with training images
        found |= {"sampler": None, "steps": None, "training images": None}
    return found


def _variance(run: Run, conditions: Conditions, samples: Tensor | None) -> str | None:
    """Of the noise that the sampler added; runs that differ in it may be compared."""
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
        described = json.loads(path.read_text())
        _ = described["dataset"], described["train"]["batch_size"] + 0
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): it must say what was trained") from error
    return described


def _dataset(run: Run) -> Dataset:
    """The function of `data` that the run's experiment.json names."""
    try:
        return config.resolve(_experiment(run)["dataset"], data, "data set")
    except ValueError as error:
        raise ValueError(
            f"{run.folder / 'experiment.json'}: {error} For a data set of your own give its "
            "function, evaluate(..., dataset=photos), or on the command line a folder of its test "
            "pictures, --images FOLDER."
        ) from error


def splits(dataset: Dataset, root: str | Path) -> tuple[Images, Images]:
    """The images to train and to test on; of several processes the first may download them.

    Raises:
        TypeError: `dataset` returns something else than images with labels.
    """
    found: list[Images] = []

    def read() -> None:
        found.extend(data.load(dataset, root, part) for part in (True, False))

    parallel.first(read)
    if not found:  # in another process than the first
        read()
    train, test = found
    return train, test


def _weights_digest(denoiser: Denoiser) -> str:
    """Of the numbers that are measured: a file may be of a later moment of a training."""
    digest = hashlib.sha256()
    for name, tensor in sorted(denoiser.network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load_if_whole(path: Path) -> dict[str, Any] | None:
    try:
        return load(path)
    except (FileNotFoundError, ValueError):
        return None  # a damaged record is measured again


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
    samples, train, test = map(data.check, (samples, train, test))
    n = len(samples)
    # Drawn at random: in MNIST's order the first writers differ from the last.
    real = some(train, n, "training images for the floor")
    held_out = some(test, n, "test images for the distances to the training images")
    reference = network.describe_images(test)
    usual = metrics.nearest_distances(held_out, train)
    distances = {"samples": metrics.nearest_distances(samples, train), "floor": usual}
    found = {}
    for name, images in (("samples", samples), ("floor", real)):
        estimates = metrics.quality(network.describe_images(images), reference, seed)
        estimates |= metrics.memorisation(distances[name], usual, seed)
        found[name] = {key: estimate._asdict() for key, estimate in estimates.items()}
    return found


def read_samples(path: str | Path, image_shape: Sequence[int]) -> Tensor:
    """Images from an .npz file such as `sample --out` writes, uint8 [N, C, H, W].

    Raises:
        FileNotFoundError, ValueError: no such file; not an .npz; an array of another name, dtype
            or shape.  Pickled arrays are never loaded.
    """
    c, h, w = image_shape
    wanted = f"an array arr_0 of uint8 [N, {h}, {w}, {c}], as `sample --out x.npz` writes it"
    if not Path(path).is_file():
        missing = "is a folder" if Path(path).is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {missing}: give an .npz file that holds {wanted}")
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
    except _DAMAGED as error:
        is_npy = Path(path).suffix.lower() == ".npy"
        hint = f". np.savez('x.npz', np.load({str(path)!r})) makes one" if is_npy else ""
        # numpy takes any other file for a pickle, and says how to load that.
        reason = error if is_npy or is_zipfile(path) else "it is not an .npz file"
        raise ValueError(f"{path} does not hold {wanted} ({reason}){hint}") from error
    if not isinstance(images, np.ndarray):
        raise ValueError(f"{path} does not hold {wanted}, but raw bytes of that name")
    if images.dtype != np.uint8 or images.shape[1:] != (h, w, c) or len(images) == 0:
        found = f"{images.dtype} {list(images.shape)}"
        if images.dtype.kind == "f" and images.size:
            finite = np.isfinite(images).all()
            values = f"values {images.min():g} to {images.max():g}" if finite else "NaN or infinity"
            found += f" with {values}"
        raise ValueError(f"{path} holds {found}; expected {wanted}")
    if images.max() <= 1:
        raise ValueError(
            f"{path} holds values 0 to {images.max()}; expected {wanted}, pixels being 0..255"
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows for `viz.table`: each measurement of each run with its interval, and the floor.

    Records without samples, see `evaluate`, have the rows of the likelihood and the errors alone.

    Raises:
        ValueError: records made under different conditions.
    """
    check_alike(records)
    names = titles(records)
    likelihood = [record["likelihood"] for record in records]
    rows = []
    for metric, floor in records[0].get("floor", {}).items():
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
    here, there = titles([record, other])
    rows = []
    compared = [name for name in _COMPARED if "samples" in record and "samples" in other]
    for metric in (*compared, "bits per dim"):
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
    """one - other, as if their errors were independent: they share a reference, so it is wide."""
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
                "Give evaluate the same options for both; what was trained differently (images "
                "seen) can only be measured apart."
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


def titles(records: Sequence[Mapping[str, Any]]) -> list[str]:
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


def some(images: Tensor, n: int, what: str) -> Tensor:
    """n of the images, the same ones for every run.

    Raises:
        ValueError: there are fewer; the message says `what` they were asked for.
    """
    check_enough(images, n, what)
    return images[torch.randperm(len(images), generator=rng.generator(0))[:n]]


def check_enough(images: Tensor, n: int, what: str) -> None:
    """Refuse to measure with fewer images than asked for; `what` is what they are."""
    if len(images) < n:
        raise ValueError(f"{n} {what} were asked for, but there are {len(images)}")
