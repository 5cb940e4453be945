"""What does a network of photographs draw, and is it near to what it was trained on?

    python -m other_tests.cifar10.objects RUN

Samples a run on CIFAR-10's JPEG copy that knows labels as each of SETTINGS says, and holds 1,000
samples against the test images by both feature networks of `time_to_objects`, and against the
training images.  About five minutes of a core for each setting.  Writes objects.json, to which it
adds what is missing, 100 guided samples that nobody selected (objects.png, a class a column), and
ten of them above their nearest training images (objects.nearest.png).
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import common as benchmarks
from benchmarks import time_to_objects
from benchmarks.time_to_objects import FIRST, Judge
from diffusion_lib import config, data, metrics, runs, samplers, viz
from diffusion_lib.data import Images
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

    guidance: float  # its scale: 1 for the label without guidance, 0 for no label
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
    "guidance 2.5, DPM-Solver in 20 steps": Setting(2.5, samplers.dpm_solver, 20),
    "guidance 3, DPM-Solver in 20 steps": Setting(3.0, samplers.dpm_solver, 20),
}
FORMS = time_to_objects.COLUMNS | {"nearest training image": ".1f", "copies": ".1%"}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    options = parser.parse_args()
    run = runs.load(options.run)
    train, test = data.load_splits(data.cifar10_jpeg, options.data)
    measure(RECORD, run, train, test)


def measure(path: Path, run: Run, train: Images, test: Images) -> None:
    """Measure a run at the settings that a record lacks, and draw its samples at GUIDED.

    Args:
        path: file of the record.
        run: run whose network knows labels.
        train: images that it was trained on.
        test: images that it was not trained on, of the same classes.

    Raises:
        ValueError: the run was trained on other images.
        SystemExit: the record is of another run, or was made under other conditions.
    """
    own = json.loads((run.folder / "experiment.json").read_text())["images"]
    if not own.startswith(runs.fingerprint(train.images)):
        raise ValueError(
            f"{run.folder} was trained on other images than the {len(train.images):,} of the JPEG "
            "copy of CIFAR-10 in the data folder: measure a run of those (--data FOLDER)"
        )
    judge, num_classes = Judge(test.images), run.denoiser.config.classes
    present = common.provenance(run) | {"n": N, "seed": SEED, "reference": judge.count}
    present |= {
        "training": common.training(run),
        "precision": hardware.precision(config.device()),
        "features sha256": judge.digests(),
    }
    record = benchmarks.resume(path, present)
    if "floor" not in record:
        record |= {"floor": judge.measure(judge.held_out), "settings": {}}
    held_out = metrics.nearest_distances(judge.held_out, train.images)
    for name, (scale, sampler, num_steps) in SETTINGS.items():
        if name in record["settings"]:
            continue
        guided = run.guided(range(num_classes), scale)
        images = runs.sample(guided, N, SEED, sampler, num_steps, batch_size=125)
        distances = metrics.nearest_distances(images, train.images)
        copies = metrics.memorization(distances, held_out)
        measured = judge.measure(images, num_classes if scale else 0)
        measured |= {k: benchmarks.rounded(interval) for k, interval in copies.items()}
        if name == GUIDED:
            viz.grid(images[:100], columns=num_classes).save(GRID)
            pairs = torch.stack([images[:10], train.images[nearest(images[:10], train.images)]])
            viz.grid(pairs.flatten(0, 1), columns=10).save(NEAREST)
        record["settings"][name] = measured
        files.write_json(path, record)


def nearest(images: Tensor, training: Tensor) -> Tensor:
    """Return the index of the training image that is nearest to each image, [N]."""
    x, y = (batch.flatten(1).float() for batch in (images, training))
    return torch.cdist(x, y).argmin(1)


def rows(record: dict[str, Any]) -> list[dict[str, str]]:
    """Make the rows of a table: each setting, and real images.

    Args:
        record: record of `measure`.
    """
    done = {name: record["settings"][name] for name in SETTINGS if name in record["settings"]}
    every = done | {"real images: the floor": record["floor"]}
    return [
        {"samples": name}
        | {
            column.replace(FIRST, " (first features)"): text
            for column, text in time_to_objects.cells(measured, FORMS).items()
        }
        for name, measured in every.items()
    ]


def summary(record: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """Make the table and its conditions, for a README.

    Args:
        record: record of `measure`.
    """
    trained, networks = record["training"], record["features sha256"]
    settings = record["experiment"]["train"]
    return rows(record), (
        f"{record['n']:,} samples of each by DDPM in 50 steps, or as named, beside "
        f"{record['reference']:,} held-out images, in the features of the released classifier "
        f"({networks[0][:8]}) and of the first one ({networks[1][:8]}). One training: "
        f"{trained['steps']} steps of {settings['batch_size']} images, "
        f"{trained['minutes of training'] / 60:.1f} hours, {trained['device']}, "
        f"{trained['precision']}, torch {trained['torch']} (`python -m other_tests.cifar10.objects "
        "RUN`)."
    )


if __name__ == "__main__":
    main()
