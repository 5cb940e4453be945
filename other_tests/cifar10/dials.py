"""Does clean prediction fall behind as data grows complex?  One property of it at a time.

    python -m other_tests.cifar10.dials

Four data sets differ in size, color and content besides (`complexity.json`).  A dial changes one
property of one of them in six levels: the low frequencies that are left of CIFAR-10 (its JPEG
copy), the number of its classes, the gray levels of MNIST, the share of a photograph in a mix with
a digit.  At each level two networks differ in what they predict, eps or x_0, and in nothing else.
See REGISTRATION.md, hypothesis 7; `slopes` states it.  Goes on where it was stopped, and
writes dials.levels.json, how complex the levels are, and a dials.NAME.record.json for each dial.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lib import compare, config, data, evaluation, losses, predictions, schedules
from diffusion_lib.data import Dataset, Images
from diffusion_lib.evaluation import Conditions
from diffusion_lib.networks import UNetConfig
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar
from other_tests import common
from other_tests.cifar10 import complexity

FOLDER = Path(__file__).parent
SIZES = {True: 5000, False: 1000}  # pictures to train and to test on that every level has
POINTS = 2000  # training pictures for the intrinsic dimension; a level has too few to test on
SEEDS, STEPS = (20, 21, 22), 1000
CONDITIONS = Conditions(n=0, n_likelihood=200, num_times=25)
SCHEDULE = schedules.cosine
TRAIN = replace(
    config.MNIST.train, batch_size=64, learning_rate=1e-3, warmup_steps=100, ema_decay=0.995
)
SKIPS, NARROW = "with skips", "bottleneck"


def low_pass(root: str | Path, train: bool = True, *, cutoff: float) -> Images:
    """Load CIFAR-10 without the frequencies above `cutoff`, in cycles a picture; 23 keeps all."""
    images, labels = data.cifar10_jpeg(root, train)
    _check_count(len(images), SIZES[train], "low_pass", train)
    height, width = images.shape[2:]
    rows, columns = torch.fft.fftfreq(height, 1 / height), torch.fft.rfftfreq(width, 1 / width)
    passes = torch.hypot(rows[:, None], columns) <= cutoff
    filtered = [
        _round(torch.fft.irfft2(torch.fft.rfft2(part.float()) * passes, s=(height, width)))
        for part in Bar(images.split(1000), f"low-pass {cutoff}")
    ]
    return Images(torch.cat(filtered), labels)


def few_classes(root: str | Path, train: bool = True, *, count: int) -> Images:
    """Load the first `count` classes of CIFAR-10, evenly, as many pictures whatever the count."""
    images = data.cifar10_jpeg(root, train)
    if not 1 <= count <= len(images.classes):
        raise ValueError(f"count must lie in 1..{len(images.classes)}, the classes; got {count}")
    rows = []
    for label, name in enumerate(images.classes[:count]):
        own = (images.labels == label).nonzero().flatten()
        share = SIZES[train] // count + (label < SIZES[train] % count)
        _check_count(len(own), share, f"few_classes(count={count})", train, f" of {name}")
        rows.append(own[:share])
    chosen = torch.cat(rows).sort().values  # the order of the whole, which mixes the classes
    return Images(images.images[chosen], images.labels[chosen])


def gray_levels(root: str | Path, train: bool = True, *, count: int) -> Images:
    """Load MNIST at 32 x 32 with `count` evenly spaced values; 256 keeps all."""
    if not 2 <= count <= 256:
        raise ValueError(f"count must lie in 2..256, the values of a pixel; got {count}")
    images, labels = data.mnist(root, train)
    _check_count(len(images), SIZES[train], "gray_levels", train)
    step = 255 / (count - 1)
    return Images(_round((_pad(images) / step).round() * step), labels)


def mixed(root: str | Path, train: bool = True, *, share: float) -> Images:
    """Load mixes of a gray photograph of CIFAR-10, times `share`, and a digit, times the rest.

    A photograph is mixed with the digit of its number, [N, 1, 32, 32] with N the smaller of the
    two data sets; labels are the digits'.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1]; got {share}")
    photographs = data.cifar10_jpeg_grey(root, train).images
    digits, labels = data.mnist(root, train)
    n = min(len(photographs), len(digits))
    _check_count(n, SIZES[train], "mixed", train, " of each kind")
    return Images(_round(share * photographs[:n] + (1 - share) * _pad(digits[:n])), labels[:n])


def _pad(digits: Tensor) -> Tensor:
    return F.pad(digits, (2, 2, 2, 2))


def _round(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _check_count(n: int, least: int, dial: str, train: bool, which: str = "") -> None:
    if n < least:
        raise ValueError(
            f"{dial} needs {least:,} pictures{which} to {'train' if train else 'test'} on, but "
            f"there are {n:,}: put the whole data set into the data folder, or leave this dial out "
            "with --dials"
        )


class Dial(NamedTuple):
    """A property of a data set in six levels, and the networks that are trained on them."""

    dataset: Callable[..., Images]
    setting: str  # the argument that the levels are values of
    levels: tuple[float, ...]
    channels: int
    narrow_patch: int = 0  # side of the patches of a bottleneck: 64 numbers for more pixels

    def datasets(self) -> dict[str, Dataset]:
        """Return the data set of each level, such as "low_pass 4"; equal ones at every call."""
        name = self.dataset.__name__
        return {
            f"{name} {level}": config.lookup(
                f"{name}({self.setting}={level})", {name: self.dataset}, "dataset"
            )
            for level in self.levels
        }

    def networks(self) -> dict[str, UNetConfig]:
        """Return the networks by name."""
        sizes = {"num_blocks": 1, "attention": (), "dropout": 0.0}
        shape = (self.channels, 32, 32)
        made = {SKIPS: UNetConfig(shape, 16, (1, 2), patch=2, **sizes)}
        if self.narrow_patch:
            made[NARROW] = UNetConfig(shape, 64, (1,), patch=self.narrow_patch, **sizes)
        return made


DIALS = {
    "low_pass": Dial(low_pass, "cutoff", (1, 2, 4, 6, 9, 23), 3, narrow_patch=8),
    "few_classes": Dial(few_classes, "count", (1, 2, 3, 5, 7, 10), 3),
    "gray_levels": Dial(gray_levels, "count", (2, 3, 4, 8, 16, 256), 1),
    "mixed": Dial(mixed, "share", (0, 0.2, 0.4, 0.6, 0.8, 1), 1, narrow_patch=16),
}


def arms(name: str) -> dict[str, config.Experiment]:
    """Return the arms of a dial: each level with each network, which predicts eps or x_0."""
    base = replace(config.MNIST, schedule=SCHEDULE, weight=losses.min_snr, train=TRAIN)
    return {
        f"{level}, {kind}, {prediction.__name__}": replace(
            base, dataset=dataset, network=network, prediction=prediction
        )
        for level, dataset in DIALS[name].datasets().items()
        for kind, network in DIALS[name].networks().items()
        for prediction in (predictions.eps, predictions.x_0)
    }


def measure(dataset: Dataset, root: str | Path) -> dict[str, float]:
    """Measure the coded bits of a picture and the intrinsic dimension by two estimators."""
    try:
        import skdim  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "the intrinsic dimension is estimated by scikit-dimension, which is not installed: "
            "pip install scikit-dimension==0.5.0"
        ) from error
    train, test = (dataset(root, part).images for part in (True, False))
    bits = complexity.bits_per_image(evaluation.random_subset(test, complexity.IMAGES))
    points = evaluation.random_subset(train, POINTS).flatten(1).double().numpy()
    estimators = {"TwoNN": skdim.id.TwoNN(), "MLE": skdim.id.MLE()}
    dimensions = {name: float(e.fit(points).dimension_) for name, e in estimators.items()}
    return {"bits": round(bits, 1)} | {name: round(d, 2) for name, d in dimensions.items()}


def levels(names: Sequence[str], root: str | Path) -> dict[str, dict[str, float]]:
    """Read how complex the levels of some dials are; measure and write what is missing."""
    path = FOLDER / "dials.levels.json"
    measured = common.load(path)["levels"] if path.exists() else {}
    datasets = {level: d for name in names for level, d in DIALS[name].datasets().items()}
    for level in Bar([level for level in datasets if level not in measured], "complexity"):
        measured[level] = measure(datasets[level], root)
        about = {"images": complexity.IMAGES, "points": POINTS}
        about |= {"scikit-dimension": metadata.version("scikit-dimension")}
        files.write_json(path, about | {"levels": measured})
    return measured


def record_file(name: str) -> Path:
    """Return the file of the record of a dial."""
    return FOLDER / f"dials.{name}.record.json"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--dials", nargs="+", choices=DIALS, default=[*DIALS], help="some of them")
    options = parser.parse_args()
    levels(options.dials, options.data)
    for name in options.dials:  # one at a time: all data sets of a comparison are in memory
        study = compare.Study(arms(name), SEEDS, (STEPS,), CONDITIONS)
        common.run_study(study, options.data, record_file(name))


if __name__ == "__main__":
    main()
