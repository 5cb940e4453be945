"""Which recipe draws objects soonest?  The first one with few changes, each on as many images.

    python -m benchmarks.objects_trials NAME ... [--images 110400] [--seed 40] [--data FOLDER]

Each trial is named after what differs from the first recipe, which has AdamW; Muon has a learning
rate of its own.  Two processes, each with OMP_NUM_THREADS=1 and other names, use two cores best.
Measures as `time_to_objects` does, guided by 2, keeps networks where that does, and adds the rows
that are missing to objects_trials.json beside itself, and pictures to runs/objects_trials; nothing
else may be chosen on these seeds.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import common, time_to_objects
from benchmarks.speedrun import Recipe
from diffusion_lib import config, data, viz

OUT = common.FOLDER / "objects_trials.json"
CELLS = ("Frechet distance", "Frechet distance" + time_to_objects.FIRST, "as asked")
MUON: dict[str, Any] = {"optimizer": "muon", "train": {"learning_rate": 3e-3}}
TRIALS: dict[str, Mapping[str, Any]] = {
    "AdamW": {},
    "Muon": MUON,
    "Muon, batches of 32": MUON | {"train": MUON["train"] | {"batch_size": 32}},
    "Muon, batches of 128": MUON | {"train": MUON["train"] | {"batch_size": 128}},
    "Muon, falling over 80 %": MUON | {"train": MUON["train"] | {"cooldown": 0.8}},
    "Muon, learning rate 0.0015": MUON | {"train": {"learning_rate": 1.5e-3}},
    "Muon, learning rate 0.006": MUON | {"train": {"learning_rate": 6e-3}},
    "Muon, average 0.995": MUON | {"train": MUON["train"] | {"ema_decay": 0.995}},
    "Muon, middle times": MUON | {"density": "logit_normal(location=0.0, scale=1.5)"},
    "Muon, x_0, uniform": MUON | {"prediction": "x_0", "weight": "uniform"},
    "Muon, one block a level": MUON | {"network": {"num_blocks": 1}},
    "Muon, wider below": MUON | {"network": {"multipliers": (1, 2, 3)}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="+", choices=TRIALS, metavar="NAME", help=", ".join(TRIALS))
    parser.add_argument("--images", type=int, default=110_400, help="images that each one sees")
    parser.add_argument("--seed", type=int, default=40)
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    images, test = data.load_splits(data.cifar10_jpeg, options.data)
    judge = time_to_objects.Judge(test.images)
    pictures = config.runs_root() / OUT.stem
    pictures.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        trial = {"trial": name, "images": options.images, "seed": options.seed}
        if any(trial.items() <= row.items() for row in trials()):
            continue
        experiment = common.CIFAR10_ADAMW.changed(TRIALS[name])
        size, most = experiment.train.batch_size, experiment.train.num_steps
        steps = round(options.images / size)
        if not 0 < steps <= most:
            raise SystemExit(
                f"--images {options.images}: give a batch of {size} to {most * size:,} images"
            )
        experiment = replace(experiment, train=config.shorten(experiment.train, steps))
        recipe = Recipe(experiment, num_steps=time_to_objects.STEPS, guidance=2.0)
        row, samples = time_to_objects.train(recipe, None, options.seed, images)
        row |= trial | {"changed": TRIALS[name]}
        row["features sha256"] = judge.digests()
        row["samples"] = judge.measure(*samples)
        viz.grid(samples.images[:60], columns=10, scale=1).save(pictures / f"{name}.png")
        common.add_row(OUT, "trials", row)
        print(json.dumps(row), flush=True)


def trials() -> list[dict[str, Any]]:
    """Read the rows of the record, where there is one."""
    return json.loads(OUT.read_text())["trials"] if OUT.exists() else []


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Make the rows of a table, best first.

    Args:
        rows: rows of the record.
    """
    ordered = sorted(rows, key=lambda row: row["samples"]["Frechet distance"][0])
    forms = {name: time_to_objects.COLUMNS[name] for name in CELLS}
    return [
        {"trial": row["trial"], "parameters": f"{row['parameters'] / 1e6:.1f} million"}
        | time_to_objects.cells(row["samples"], forms)
        for row in ordered
    ]


if __name__ == "__main__":
    main()
