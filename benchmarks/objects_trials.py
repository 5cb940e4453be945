"""Which recipe draws objects soonest?  The preset with one thing changed, each for as long.

    python -m benchmarks.objects_trials NAME ... [--minutes 30] [--seed 40] [--data FOLDER]

Two processes, each with OMP_NUM_THREADS=1 and other names, use two cores best.  Measures as
`time_to_objects` does, guided by 2, and adds rows to objects_trials.json beside itself, and
pictures to runs/objects_trials; nothing else may be chosen on these seeds.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from benchmarks import common, time_to_objects
from benchmarks.speedrun import Recipe
from diffusion_lib import config, data, viz
from diffusion_lib.metrics import features
from diffusion_lib.system import files

OUT = common.FOLDER / "objects_trials.json"
MUON = {"optimizer": "muon", "train": {"learning_rate": 3e-3}}
TRIALS: dict[str, Mapping[str, Any]] = {
    "preset": {},
    "Muon": MUON,
    "Muon, x_0, uniform": MUON | {"prediction": "x_0", "weight": "uniform"},
    "Muon, middle times": MUON | {"density": "logit_normal(location=0.0, scale=1.5)"},
    "Muon, batches of 32": {
        "optimizer": "muon",
        "train": {"learning_rate": 3e-3, "batch_size": 32},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="+", choices=TRIALS, metavar="NAME", help=", ".join(TRIALS))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=40)
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    images, test = data.load_splits(data.cifar10_jpeg, options.data)
    judge = features.load("cifar10_jpeg")
    reference = judge.extract_features(test.images)
    pictures = config.runs_root() / OUT.stem
    pictures.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        experiment = common.CIFAR10_JPEG_LABELS.changed(TRIALS[name])
        recipe = Recipe(experiment, num_steps=time_to_objects.STEPS, guidance=2.0)
        row, samples = time_to_objects.train(recipe, 60 * options.minutes, options.seed, images)
        row = {"trial": name, "minutes": options.minutes, "seed": options.seed} | row
        row |= {"changed": TRIALS[name], "features sha256": features.released("cifar10_jpeg")[1]}
        row["samples"] = time_to_objects.judged(*samples, judge, reference)
        viz.grid(samples.images[:60], columns=10, scale=1).save(pictures / f"{name}.png")
        record = json.loads(OUT.read_text()) if OUT.exists() else {"trials": []}
        record["trials"].append(row)  # to those of another process
        files.write_json(OUT, record)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
