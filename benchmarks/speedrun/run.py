"""Train and judge a recipe in this process, which does nothing else.

    python -m benchmarks.speedrun.run RECIPE.py DATA SEED STARTED OUT.json

STARTED is `time.time()` just before the process was started.  What a recipe does not need is
imported after the clock is stopped.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import speedrun
from diffusion_lib import data


def main() -> None:
    recipe, root, seed, started, out = sys.argv[1:]
    result = measure(speedrun.load(Path(recipe)).RECIPE, root, int(seed), float(started))
    from diffusion_lib.system import files

    files.write_json(Path(out), result)


def measure(recipe: speedrun.Entry, root: str, seed: int, started: float) -> dict[str, Any]:
    """Train with one seed and judge the samples.

    Args:
        recipe: what is measured.
        root: folder of the data sets.
        seed: random seed of the training and of the samples.
        started: time at which the clock starts, in seconds since the epoch.
    """
    trained = recipe.train(data.mnist(root, True), seed)
    finished = time.time()
    samples = trained.sample(speedrun.N)
    return {
        "seconds": round(finished - started, 2),
        "seconds of sampling": round(time.time() - finished, 2),
        "steps": trained.steps,
        "parameters": trained.parameters,
        **judge(samples, trained.classes, data.mnist(root, False).images),
    }


def judge(samples: Tensor, classes: int, held_out: Tensor) -> dict[str, list[float]]:
    """Measure samples: [value, low, high] of each measure of the board.

    Args:
        samples: uint8 [N, 1, 28, 28].
        classes: sample i was asked to show the digit i % classes; 0 where none was.
        held_out: reference, uint8 [M, 1, 28, 28].
    """
    from diffusion_lib import metrics
    from diffusion_lib.metrics import Interval, features

    network, n = features.load("mnist"), len(samples)
    output = network.extract_features(samples)
    confidence, digits = output.probabilities.max(1)
    sure = confidence > metrics.CONFIDENT
    intervals = {"sure": Interval.wilson(int(sure.sum()), n)}
    if classes:
        right = sure & (digits == torch.arange(n) % classes)
        intervals["as asked and sure"] = Interval.wilson(int(right.sum()), n)
    quality = metrics.quality(output, network.extract_features(held_out))
    intervals |= {name: quality[name] for name in ("Frechet distance", "precision", "recall")}
    return {name: [round(x, 4) for x in interval] for name, interval in intervals.items()}


if __name__ == "__main__":
    main()
