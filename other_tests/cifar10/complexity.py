"""How complex is a data set?  Chosen before any run of `complexity.json` was trained.

    python -m other_tests.cifar10.complexity

The measure is the number of bits that a lossless coder needs for a picture: 1,000 test images, laid
side by side in one sheet, as lossless WebP.  It is a bound on their entropy from a coder that knows
nothing of diffusion models, it sees structure in space and between colors, and it counts a whole
picture, as a network has to predict a whole one: bits for a pixel would call color photographs
simpler than gray ones.  Writes complexity.bits.json.

The yardstick of the gap was chosen at the same time: the base-2 logarithm of how many times the
held-out error of v_hat, averaged over t, is larger with a network that predicts x_0 than with one
that predicts eps.  v lies between the two predictions at every t, and a ratio needs no unit that
data sets would have to share.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from diffusion_lib import compare, config, data, evaluation
from diffusion_lib.metrics import Interval
from diffusion_lib.system import files
from diffusion_lib.system.torchvision import utils
from other_tests import common
from other_tests.common import Answer

DATASETS = (data.mnist, data.fashion_mnist, data.cifar10_jpeg_grey, data.cifar10_jpeg)
BITS = Path(__file__).with_name("complexity.bits.json")
STEPS, IMAGES, COLUMNS = 1000, 1000, 40
YARDSTICK = "v error"
MIDDLE = (300, 600)  # times; later ones hold most of the yardstick, and x_0_hat is clipped there


def bits() -> dict[str, float]:
    """Read the bits of a picture of each data set."""
    return common.load(BITS)["bits"]


def bits_per_image(images: Tensor) -> float:
    """Return the bits of a lossless sheet for each of its images.

    Args:
        images: uint8 [N, C, H, W].
    """
    sheet = utils.make_grid(images, nrow=COLUMNS, padding=0)[: images.shape[1]]
    file = io.BytesIO()
    pixels = sheet.permute(1, 2, 0).squeeze(-1).numpy()
    Image.fromarray(pixels).save(file, format="WEBP", lossless=True, quality=100, method=6)
    return 8 * len(file.getvalue()) / len(images)


def gaps(record: Mapping[str, Any], arm: str) -> dict[str, list[float]]:
    """Return log2 of the yardstick with an arm over that with eps, by data set and seed.

    Args:
        record: record of the study.
        arm: prediction and weight, such as "x_0, snr".
    """
    result = {}
    for dataset in DATASETS:
        name = config.label(dataset)
        one, other = (
            compare.values(record, YARDSTICK, f"{name}, {which}", STEPS)
            for which in (arm, "eps, snr")
        )
        result[name] = [math.log2(a / b) for a, b in zip(one, other, strict=True)]
    return result


def slope(record: Mapping[str, Any], bits: Mapping[str, float], arm: str) -> compare.Difference:
    """Fit the rise of the gap for each doubling of the bits, a line for each seed.

    The interval is over seeds.  It says nothing of other data sets: there are four.

    Args:
        record: record of the study.
        bits: bits of a picture of each data set.
        arm: as in `gaps`.
    """
    by_set = gaps(record, arm)
    x = torch.tensor([math.log2(bits[name]) for name in by_set], dtype=torch.float64)
    x = x - x.mean()
    y = torch.tensor(list(by_set.values()), dtype=torch.float64)  # [data sets, seeds]
    slopes = ((x[:, None] * y).sum(0) / x.square().sum()).tolist()
    return compare.paired(slopes, [0.0] * len(slopes))


def slope_over_sets(
    record: Mapping[str, Any], bits: Mapping[str, float], arm: str
) -> compare.Difference:
    """Fit the same rise with the interval that the scatter of the data sets around a line leaves.

    One point a data set, its mean over seeds; the interval is that of least squares.  Added after
    the gaps were seen not to lie on a line.

    Args:
        record: record of the study.
        bits: bits of a picture of each data set.
        arm: as in `gaps`.
    """
    by_set = gaps(record, arm)
    x = [math.log2(bits[name]) for name in by_set]
    line: Any = stats.linregress(x, [fmean(values) for values in by_set.values()])
    slope, error, n = float(line.slope), float(line.stderr), len(x)
    margin = float(stats.t.ppf(0.975, n - 2)) * error
    return compare.Difference(slope, slope - margin, slope + margin, error, error, n)


def mean_gap(record: Mapping[str, Any], name: str, arm: str) -> Interval:
    """Return the mean gap of a data set, over seeds.

    Args:
        record: record of the study.
        name: label of the data set.
        arm: as in `gaps`.
    """
    return Interval.student_t(gaps(record, arm)[name])


def middle_gap(record: Mapping[str, Any], name: str, arm: str) -> float:
    """Return the gap of a data set over the times of MIDDLE alone, of means over seeds.

    Added after the gap over all times was seen to be that of the noisiest.

    Args:
        record: record of the study.
        name: label of the data set.
        arm: as in `gaps`.
    """
    sums = []
    for which in (arm, "eps, snr"):
        times, errors = compare.errors(record, "v", f"{name}, {which}", STEPS)
        first, last = MIDDLE
        sums.append(sum(e for t, e in zip(times, errors, strict=True) if first <= t <= last))
    return math.log2(sums[0] / sums[1])


def answers(record: Mapping[str, Any], bits: Mapping[str, float]) -> list[Answer]:
    """Answer whether the gap of x_0 to eps rises with the complexity of the data.

    Not whether x_0 does worse: nearly all of the gap is at times whose x_0_hat is clipped.

    Args:
        record: record of the study.
        bits: bits of a picture of each data set.
    """
    result = []
    for name, arm in (("unweighted", "x_0, uniform"), ("with DDPM's weight", "x_0, snr")):
        gaps = [
            f"{label.replace('_', ' ')} {mean_gap(record, label, arm).value:.2f} "
            f"({middle_gap(record, label, arm):.2f})"
            for label in bits
        ]
        question = (
            f"Does the gap, log2(error of $x_0$, {name}, / error of $\\epsilon$), rise with the "
            "bits of a picture?"
        )
        over_seeds = slope(record, bits, arm)
        over_sets = slope_over_sets(record, bits, arm)
        answer, in_general = (
            common.decide(effect, "it falls", "it rises") for effect in (over_seeds, over_sets)
        )
        result += [
            Answer(
                f"{question} Over seeds, on these four data sets",
                answer,
                "rise of the gap, of errors in $v$, for each doubling of the bits; below 0 $x_0$ "
                "leads, and a rise makes its lead smaller. The gap over all times, and in "
                f"parentheses over t = {MIDDLE[0]} to {MIDDLE[1]} alone: {', '.join(gaps)} "
                "(CIFAR-10 as a JPEG copy)",
                over_seeds,
            ),
            Answer(
                f"{question} Over data sets",
                in_general,
                "the same; the interval is that of a line through four data sets",
                replace(over_sets, n=over_seeds.n),
                f", {over_sets.n} data sets",
                chosen="added",
                degrees=over_sets.n - 2,
            ),
        ]
    return result


def main() -> None:
    options = common.parser(__doc__).parse_args()
    measured = {}
    for dataset in DATASETS:
        images, name = dataset(options.data, False).images, config.label(dataset)
        chosen = evaluation.random_subset(images, IMAGES)
        bits = measured[name] = round(bits_per_image(chosen), 1)
        print(f"{name}: {bits} bits an image, {bits / images[0].numel():.3f} a dim")
    files.write_json(BITS, {"images": IMAGES, "bits": measured})


if __name__ == "__main__":
    main()
