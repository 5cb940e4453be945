"""How many of 500 digits are real ones after eight minutes of training on a CPU?

    python -m benchmarks.time_to_digits

Four ways, one after the other, on all of MNIST: diffusers' network and scheduler in a plain loop
(AdamW with a constant rate of 1e-4); the experiment of ddpm.ipynb with AdamW and the network of the
quick budget, and the same predicting v, without and with labels, with as many steps as fit in the
time.  The last draws 50 of each digit, guided, with a seed with which nothing was chosen.  A digit
counts where the released classifier gives it more than 0.9.  What else: seconds for a grid of 64 in
few steps.
Writes time_to_digits.json beside itself and the runs under runs/; goes on where it was stopped.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.speedrun.recipes.diffusers_60s import DiffusersLoop
from diffusion_lib import config, data, metrics, runs, samplers
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.metrics import features
from diffusion_lib.system import files

OUT = common.FOLDER / "time_to_digits.json"
N, SAMPLE_STEPS, FEW_STEPS = 500, 100, 20
GUIDANCE = 2.0  # of a run that knows labels
SAVING = 0.97  # of the time is training, the rest held-out losses and checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, for each way")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    train, held_out = data.mnist(options.data, True), data.mnist(options.data, False).images
    record: dict[str, Any] = {"minutes": options.minutes, "n": N, "sampling steps": SAMPLE_STEPS}
    record = common.resume(OUT, record | common.machine(torch.device("cpu")))
    # Each with its first seed: nothing was chosen by that.
    ways: dict[str, tuple[int, Callable[..., dict[str, Any]]]] = {
        "a plain loop with diffusers: eps, linear": (0, diffusers),
        "the experiment of ddpm.ipynb with AdamW: eps, linear": (
            0,
            partial(ours, common.MNIST_ADAMW),
        ),
        "v, cosine, AdamW": (0, partial(ours, common.MNIST_ADAMW_V)),
        "v, cosine, AdamW, labels, guided": (1, partial(ours, common.MNIST_ADAMW_LABELS)),
    }
    for n in range(options.seeds):
        for name, (first, way) in ways.items():
            seed = first + n
            seeds = record.setdefault("ways", {}).setdefault(name, {})
            if str(seed) not in seeds:
                seeds[str(seed)] = way(seed, options.minutes * 60, train, held_out)
                files.write_json(OUT, record)
                print(name, seeds[str(seed)], flush=True)


def ours(
    experiment: Experiment, seed: int, seconds: float, train: Images, held_out: Tensor
) -> dict[str, Any]:
    """Train an experiment for as many steps as fit into the time, and judge its samples."""
    experiment = replace(experiment, train=replace(experiment.train, seed=seed))
    experiment = common.fit(experiment, SAVING * seconds, train)
    labels = "-labels" if experiment.network.classes else ""
    prediction = config.label(experiment.prediction)
    folder = config.runs_root() / f"{prediction}{labels}-in-{seconds:.0f}-s-{seed}"
    clock = time.perf_counter()
    run = runs.train(experiment, train, held_out, folder, torch.device("cpu"))
    result = {"seconds": round(time.perf_counter() - clock, 1), "steps": experiment.train.num_steps}
    result["parameters"] = sum(p.numel() for p in run.denoiser.parameters())
    if labels:
        run = run.guided(range(10), GUIDANCE)
        result["guidance"] = GUIDANCE
    clock = time.perf_counter()
    few = runs.sample(run, 64, 1, samplers.dpm_solver, FEW_STEPS)
    result[f"seconds for 64 digits, dpm_solver in {FEW_STEPS} steps"] = round(
        time.perf_counter() - clock, 2
    )
    result["of these"] = judged(few)
    samples = runs.sample(run, N, 1, samplers.ddpm, SAMPLE_STEPS, batch_size=125)
    return result | {"confident": judged(samples)}


def diffusers(seed: int, seconds: float, train: Images, held_out: Tensor) -> dict[str, Any]:
    """Train a plain loop: float32, AdamW with a constant learning rate, no moving average."""
    clock = time.perf_counter()
    trained = DiffusersLoop(seconds, SAMPLE_STEPS).train(train, seed)
    result: dict[str, Any] = {"seconds": round(time.perf_counter() - clock, 1)}
    result |= {"steps": trained.steps, "parameters": trained.parameters}
    return result | {"confident": judged(trained.sample(N))}


def judged(images: Tensor) -> list[float]:
    """Return the share of the images of which the classifier is sure, with its 95 % interval."""
    described = features.load("mnist").extract_features(images)
    sure = int((described.probabilities.max(1).values > metrics.CONFIDENT).sum())
    return common.rounded(metrics.Interval.wilson(sure, len(images)))


if __name__ == "__main__":
    main()
