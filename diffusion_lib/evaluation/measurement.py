"""Measure a run under stated conditions."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import config, data, metrics, rng, runs, samplers
from diffusion_lib.data import Dataset, Images, sets
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.metrics import features
from diffusion_lib.runs import GuidedRun, Run
from diffusion_lib.system import parallel

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


def resolve_conditions(
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
    train, test = (part.images for part in load_splits(dataset, root or config.data_root()))
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
    if dataset is not getattr(sets, name, None):  # a name of the user's own may stand for anything
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
    if isinstance(run, GuidedRun):
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
        return config.resolve(_experiment(run)["dataset"], sets, "data set")
    except ValueError as error:
        raise ValueError(
            f"{run.folder / 'experiment.json'}: {error} For a data set of your own give its "
            "function, evaluate(..., dataset=photos), or on the command line a folder of its test "
            "pictures, --images FOLDER."
        ) from error


def load_splits(dataset: Dataset, root: str | Path) -> tuple[Images, Images]:
    """The images to train and to test on; of several processes the first may download them.

    Raises:
        TypeError: `dataset` returns something else than images with labels.
    """
    found: list[Images] = []

    def read() -> None:
        found.extend(data.load(dataset, root, part) for part in (True, False))

    parallel.on_rank_zero(read)
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


def measure_samples(
    samples: Tensor, train: Tensor, test: Tensor, network: features.Classifier, seed: int = 0
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
    real = random_subset(train, n, "training images for the floor")
    held_out = random_subset(test, n, "test images for the distances to the training images")
    reference = network.extract_features(test)
    usual = metrics.nearest_distances(held_out, train)
    distances = {"samples": metrics.nearest_distances(samples, train), "floor": usual}
    found = {}
    for name, images in (("samples", samples), ("floor", real)):
        estimates = metrics.quality(network.extract_features(images), reference, seed)
        estimates |= metrics.memorization(distances[name], usual, seed)
        found[name] = {key: asdict(interval) for key, interval in estimates.items()}
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


def random_subset(images: Tensor, n: int, what: str) -> Tensor:
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
