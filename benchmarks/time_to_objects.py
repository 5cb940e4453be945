"""How good are photographs of objects after minutes of training on a CPU?

    python -m benchmarks.time_to_objects [--minutes 12 40] [--seeds 1] [--data FOLDER]

Three ways on all of CIFAR-10's JPEG copy, each budget a training of its own: ours with labels,
guided by 2, and without, with as many steps as fit into the time; and the loop that diffusers gives
as its example.  Of each 1,000 samples by DDPM in 50 steps are measured, beside as many real images.
Writes time_to_objects.json and .png beside itself and the first 60 samples of each training into
time_to_objects/, and its network into runs/time_to_objects; goes on where it was stopped, but for
the training that it was at.
"""

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.diffusers_loop import DiffusersExample
from benchmarks.speedrun import Entry, Recipe
from diffusion_lib import config, data, metrics, runs, style, viz
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.evaluation import record as records
from diffusion_lib.metrics import Interval, features
from diffusion_lib.metrics.features import ClassifierOutput
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files

OUT = common.FOLDER / "time_to_objects.json"
N, STEPS = 1000, 50
SURE = f"confidence > {metrics.CONFIDENT}"
COLUMNS = {"Frechet distance": "", "precision": ".2f", "recall": ".2f"}
FIRST = ", first features"  # of the first classifier of the family, as in earlier records
JUDGES = {"": "cifar10_jpeg", FIRST: "cifar10_jpeg_1"}
COLUMNS |= {"Frechet distance" + FIRST: "", "recall" + FIRST: ".2f"}
COLUMNS |= {SURE: ".1%", "as asked": ".1%"}
WAYS: dict[str, Recipe | DiffusersExample] = {
    "ours, labels, guided": Recipe(common.CIFAR10_JPEG_LABELS, num_steps=STEPS, guidance=2.0),
    "ours": Recipe(common.CIFAR10_JPEG, num_steps=STEPS),
    "diffusers' example": DiffusersExample(num_steps=STEPS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[12.0, 40.0])
    parser.add_argument("--seeds", type=int, default=1, help="number of trainings of each")
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    splits = data.load_splits(data.cifar10_jpeg, options.data)
    measure(OUT, options.minutes, range(options.seeds), *splits)


def measure(
    out: Path, minutes: Sequence[float], seeds: Sequence[int], images: Images, test: Images
) -> None:
    """Train and measure what a record lacks, and draw it.

    Args:
        out: file of the record; the pictures stand beside it, under the same name.
        minutes: lengths of the trainings.
        seeds: seeds of the trainings and of their samples.
        images: images to train on.
        test: images that samples are compared with.
    """
    cpu, judge = torch.device("cpu"), Judge(test.images)
    present = {"data": "cifar10_jpeg", "training images": len(images.images), "n": N}
    present |= {"reference": judge.count, "sampler": f"ddpm, {STEPS} steps"}
    present |= {"features sha256": Judge.digests()}
    present |= {"ways": {name: way.describe() for name, way in WAYS.items()}}
    record = common.resume(out, present | common.machine(cpu))
    if "floor" not in record:
        record |= {"floor": judge.measure(judge.held_out), "rows": []}
    for seed, budget, name in ((s, m, name) for s in seeds for m in minutes for name in WAYS):
        job = {"way": name, "minutes": budget, "seed": seed}
        if any(job.items() <= former.items() for former in record["rows"]):
            continue
        row, samples = train(WAYS[name], 60 * budget, seed, images)
        row["samples"] = judge.measure(*samples)
        out.with_suffix("").mkdir(exist_ok=True)
        picture = re.sub(r"\W+", "-", f"{name} {budget:g} {seed}")
        grid = viz.grid(samples.images[:60], columns=10, scale=1)
        grid.save(out.with_suffix("") / f"{picture}.png")
        record["rows"].append(job | row)
        files.write_json(out, record)
        print(json.dumps(record["rows"][-1]), flush=True)
    out.with_suffix(".png").write_bytes(draw(record).png())


class Judge:
    """The released classifiers of the family, and what they say of real images.

    Give it test images: a classifier is surer of those that it was trained on than of others, so
    that they are no floor.

    Args:
        images: real images, uint8 [M, C, H, W]; N of them are held out for the floor, and samples
            are compared with the others.
    """

    def __init__(self, images: Tensor) -> None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.held_out, self.others = images[order[:N]], images[order[N:]]
        self.count = len(self.others)
        self.networks = {suffix: features.load(name) for suffix, name in JUDGES.items()}

    @cached_property
    def references(self) -> dict[str, ClassifierOutput]:
        """What each classifier says of the others: takes minutes, so only once it is needed."""
        return {suffix: net.extract_features(self.others) for suffix, net in self.networks.items()}

    @staticmethod
    def digests() -> list[str]:
        """Return the SHA-256 of each classifier."""
        return [features.released(name)[1] for name in JUDGES.values()]

    def measure(self, samples: Tensor, classes: int = 0) -> dict[str, list[float]]:
        """Measure images: [value, low, high] of each of COLUMNS.

        Args:
            samples: uint8 [N, C, H, W]; image i was to show the class i % classes.
            classes: number of classes, 0 where none was asked for: then there is no "as asked".
        """
        intervals: dict[str, Interval] = {}
        for suffix, network in self.networks.items():
            output, reference = network.extract_features(samples), self.references[suffix]
            quality = metrics.quality(output, reference)
            if classes:
                labels = torch.arange(len(samples)) % classes
                accuracy = metrics.label_accuracy_and_diversity(output, labels, reference)
                quality["as asked"] = accuracy["accuracy"]
            intervals |= {name + suffix: interval for name, interval in quality.items()}
        return {name: common.rounded(intervals[name]) for name in COLUMNS if name in intervals}


class Samples(NamedTuple):
    """Samples, uint8 [N, C, H, W]; image i was to show the class i % classes, if any."""

    images: Tensor
    classes: int


def train(
    way: Recipe | DiffusersExample, seconds: float | None, seed: int, images: Images
) -> tuple[dict[str, Any], Samples]:
    """Train a way, for so long if at all; return a description of the training, and N samples.

    A network that was trained under the same conditions is read from the folder of the runs.

    Args:
        way: what is trained, and how it is sampled.
        seconds: time of the training; None for the steps that a recipe has, which only a `Recipe`
            may have.
        seed: of the training and of the samples.
        images: training images.
    """
    present = hardware.conditions(torch.device("cpu"))
    conditions = [way.describe(), seconds, seed, runs.fingerprint(images.images), present]
    folder = config.runs_root() / OUT.stem / records.digest(conditions)
    if not folder.exists():
        timed, batch_size = within(way, seconds, images)
        clock = time.perf_counter()
        trained = timed.train(images, seed)
        row = {"seconds": round(time.perf_counter() - clock, 1), "steps": trained.steps}
        row |= {"images": batch_size * trained.steps, "parameters": trained.parameters}
        row["computed in"] = timed.describe().get("precision", present["precision"])
        with files.atomic_folder(folder) as temporary:
            trained.save(temporary / "network")
            files.write_json(temporary / "row.json", row)
    row = json.loads((folder / "row.json").read_text())
    clock = time.perf_counter()
    samples = draw_samples(way, folder / "network", seed)
    return row | {"seconds of sampling": round(time.perf_counter() - clock, 1)}, samples


def draw_samples(way: Recipe | DiffusersExample, path: Path, seed: int) -> Samples:
    """Draw N samples of a way from its network in a file or folder."""
    if isinstance(way, DiffusersExample):
        return Samples(way.load(path, seed)(N), 0)
    denoiser = hardware.optimize_memory_layout(Denoiser.load(path))
    return Samples(way.sample_of(denoiser, seed, range(way.classes))(N), way.classes)


def within(
    way: Recipe | DiffusersExample, seconds: float | None, images: Images
) -> tuple[Entry, int]:
    """Give a way the time of its training, if any; return it with the size of its batches."""
    if isinstance(way, DiffusersExample):
        assert seconds is not None
        return replace(way, seconds=seconds), way.batch_size
    if seconds is None:
        return way, way.experiment.train.batch_size
    experiment = common.fit(way.experiment, seconds, images)
    return replace(way, experiment=experiment), experiment.train.batch_size


def cells(
    measured: Mapping[str, Sequence[float]], forms: Mapping[str, str] = COLUMNS
) -> dict[str, str]:
    """Write what was measured as the cells of a row, "" where something was not.

    Args:
        measured: [value, low, high] by name.
        forms: format of each column.
    """
    return {
        name.replace(SURE, "sure"): f"{Interval(*measured[name]):{form}}"
        if name in measured
        else ""
        for name, form in forms.items()
    }


def summary(records: Mapping[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    """Make the figure, the table and its conditions, or nothing before there is a record.

    Args:
        records: all records of the benchmarks.
    """
    if not (record := records.get(OUT.stem)):
        return ()

    rows = [
        {"": f"{row['way']}, seed {row['seed']}", "minutes": f"{row['seconds'] / 60:.1f}"}
        | {"images": f"{row['images']:,}", "parameters": f"{row['parameters'] / 1e6:.1f} million"}
        | {"computed in": row["computed in"]}
        | cells(row["samples"])
        for row in record["rows"]
    ]
    real = dict.fromkeys(rows[0], "") | {"": "real images: the floor"} | cells(record["floor"])
    return (
        "How good photographs of objects are after minutes of training on CIFAR-10's JPEG copy, "
        "beside the loop that diffusers gives as its example:",
        f"![Quality against minutes]({OUT.stem}.png)",
        [*rows, real],
        f"{record['n']:,} samples of each training by {record['sampler']}, beside "
        f"{record['reference']:,} held-out images, in the features of the released classifier "
        f"({record['features sha256'][0][:8]}) and of the first one "
        f"({record['features sha256'][1][:8]}); {record['device']}, {record['processor']}, torch "
        f"{record['torch']} (`python -m benchmarks.{OUT.stem}`). The samples: "
        f"[{OUT.stem}/]({OUT.stem}).",
    )


def draw(record: Mapping[str, Any]) -> style.Plot:
    """Draw the distance of samples to real images against minutes, a line for a way and seed.

    Args:
        record: record of `measure`.
    """
    lines: dict[str, Any] = {}
    for row in sorted(record["rows"], key=lambda row: row["seconds"]):
        name = row["way"] + f", seed {row['seed']}" * (row["seed"] > 0)
        distance = Interval(*row["samples"]["Frechet distance"])
        points = lines.setdefault(name, ([], [], []))
        for values, value in zip(
            points, (row["seconds"] / 60, distance.value, distance.margin), strict=True
        ):
            values.append(value)
    minutes = [row["seconds"] / 60 for row in record["rows"]]
    floor = record["floor"]["Frechet distance"][0]
    lines["real images"] = ([min(minutes), max(minutes)], [floor, floor])
    return viz.curve(lines, "minutes of training", "Frechet distance", y_scale="log")


if __name__ == "__main__":
    main()
