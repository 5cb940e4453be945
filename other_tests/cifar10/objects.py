"""What does the released network of photographs draw, and does it draw what it was trained on?

    python -m other_tests.cifar10.objects [RUN]

Samples `runs.released("cifar10")`, or a run of your own with labels, as each of SETTINGS says, and
holds 1,000 samples against the test images by both feature networks of `time_to_objects`, and
against the training images.  Writes objects.json, 100 guided samples that nobody selected
(objects.png, a class a column), and ten of them above their nearest training images
(objects.nearest.png).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import time_to_objects
from benchmarks.time_to_objects import FIRST, SURE, Judge
from diffusion_lib import config, data, evaluation, metrics, runs, samplers, viz
from diffusion_lib.data import Images
from diffusion_lib.metrics import Interval, features
from diffusion_lib.runs import Run
from diffusion_lib.samplers import SampleStep
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from other_tests import common

RECORD = Path(__file__).with_suffix(".json")
GRID, NEAREST = RECORD.with_suffix(".png"), RECORD.with_suffix(".nearest.png")
N, SEED = 1000, 0


class Setting(NamedTuple):
    """How samples are drawn."""

    guidance: float  # 1 for labels alone, 0 for neither
    sampler: Callable[..., Iterator[SampleStep]]
    num_steps: int


GUIDED = "guidance 2"
SETTINGS = {
    "no labels": Setting(0.0, samplers.ddpm, 50),
    "labels": Setting(1.0, samplers.ddpm, 50),
    "guidance 1.5": Setting(1.5, samplers.ddpm, 50),
    GUIDED: Setting(2.0, samplers.ddpm, 50),
    "guidance 3": Setting(3.0, samplers.ddpm, 50),
    "guidance 2, DPM-Solver in 20 steps": Setting(2.0, samplers.dpm_solver, 20),
    "guidance 2, DPM-Solver in 10 steps": Setting(2.0, samplers.dpm_solver, 10),
}
FORMS = time_to_objects.COLUMNS | {"nearest training image": ".1f", "copies": ".1%"}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run (default: the release)")
    options = parser.parse_args()
    run = runs.load(options.run) if options.run else runs.released("cifar10")
    train, test = data.load_splits(data.cifar10_jpeg, options.data)
    files.write_json(RECORD, measure(run, train, test))


def measure(run: Run, train: Images, test: Images) -> dict[str, Any]:
    """Measure a run at all settings, and draw its samples at GUIDED.

    Args:
        run: run whose network knows labels.
        train: images that it was trained on.
        test: images that it was not trained on, of the same classes.
    """
    judge, num_classes = Judge(test.images), run.denoiser.config.classes
    held_out = metrics.nearest_distances(test.images[:N], train.images)

    def measured(images: Tensor, classes: int) -> dict[str, list[float]]:
        distances = metrics.nearest_distances(images, train.images)
        copies = metrics.memorization(distances, held_out)
        return judge.measure(images, classes) | {k: [*interval] for k, interval in copies.items()}

    floor = judge.measure(evaluation.random_subset(train.images, N))
    rows = {}
    for name, (scale, sampler, num_steps) in SETTINGS.items():
        guided = run.guided(range(num_classes), scale)
        images = runs.sample(guided, N, SEED, sampler, num_steps, batch_size=125)
        rows[name] = measured(images, num_classes if scale else 0)
        if name == GUIDED:
            viz.grid(images[:100], columns=num_classes).save(GRID)
            pairs = torch.stack([images[:10], train.images[nearest(images[:10], train.images)]])
            viz.grid(pairs.flatten(0, 1), columns=10).save(NEAREST)
    return common.provenance(run) | {
        "n": N,
        "seed": SEED,
        "reference": len(test.images),
        "precision": hardware.precision(config.device()),
        "features sha256": [features.released(name)[1] for name in time_to_objects.JUDGES.values()],
        "floor": floor,
        "settings": rows,
    }


def nearest(images: Tensor, training: Tensor) -> Tensor:
    """Return the index of the training image that is nearest to each image, [N]."""
    x, y = (batch.flatten(1).float() for batch in (images, training))
    return torch.cdist(x, y).argmin(1)


def rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """Make the rows of a table: each setting, and real images.

    Args:
        record: record of `measure`.
    """
    every = record["settings"] | {"real images: the floor": record["floor"]}
    return [
        {"samples": name}
        | {
            column.replace(FIRST, " (first features)").replace(SURE, "sure"): (
                f"{Interval(*measured[column]):{form}}" if column in measured else ""
            )
            for column, form in FORMS.items()
        }
        for name, measured in every.items()
    ]


if __name__ == "__main__":
    main()
