"""How many of 500 digits are real ones after eight minutes of training on a CPU?

    python -m benchmarks.time_to_digits

Three ways, one after the other, on all of MNIST: diffusers' network and scheduler in a plain loop;
the experiment of ddpm.ipynb in its quick budget; the preset mnist_fast.  A digit counts where the
released classifier gives it more than 0.9.  What else: seconds for a grid of 64 in few steps.
Writes time_to_digits.json beside itself, goes on where it was stopped.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from benchmarks import common
from diffusion_lib import config, data, features, files, metrics, rng, runs, samplers, viz
from diffusion_lib.config import Experiment
from diffusion_lib.runs import Run

OUT = common.FOLDER / "time_to_digits.json"
N, SAMPLE_STEPS, FEW_STEPS = 500, 250, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, for each way")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    train = data.mnist(options.data, True).images
    record: dict[str, Any] = {"minutes": options.minutes, "n": N, "sampling steps": SAMPLE_STEPS}
    if OUT.exists():
        record = json.loads(OUT.read_text())
    record |= common.machine(torch.device("cpu"))
    ways: dict[str, Callable[[int, float, Tensor], dict[str, Any]]] = {
        "diffusers, eps, linear": diffusers,
        "ddpm.ipynb, quick budget: eps, linear": lambda *a: ours(config.quick(config.MNIST), *a),
        "the preset mnist_fast": lambda *a: ours(config.MNIST_FAST, *a),
    }
    for seed in range(options.seeds):
        for name, way in ways.items():
            found = record.setdefault("ways", {}).setdefault(name, {})
            if str(seed) not in found:
                found[str(seed)] = way(seed, options.minutes * 60, train)
                files.write_text(OUT, json.dumps(record, indent=1) + "\n")
                print(name, found[str(seed)], flush=True)


def ours(experiment: Experiment, seed: int, seconds: float, train: Tensor) -> dict[str, Any]:
    """Train as many steps as fit."""
    settings = replace(experiment.train, seed=seed)
    trial = replace(experiment, train=replace(settings, num_steps=60)).trainer()
    clock = time.perf_counter()
    for step in trial.run(train):
        if step.step == 10:
            clock = time.perf_counter()
    fits = round(seconds / (time.perf_counter() - clock) * 50)
    settings = replace(settings, num_steps=fits)
    trainer = replace(experiment, train=settings).trainer()
    clock = time.perf_counter()
    for _ in viz.progress(trainer.run(train), fits, "training"):
        pass
    told = {"seconds": round(time.perf_counter() - clock, 1), "steps": fits}
    told["parameters"] = sum(p.numel() for p in trainer.denoiser.parameters())
    run = Run(Path(), trainer.ema, [])
    clock = time.perf_counter()
    few = runs.sample(run, 64, 1, samplers.dpm_solver, FEW_STEPS)
    told[f"seconds for 64 digits, dpm_solver in {FEW_STEPS} steps"] = round(
        time.perf_counter() - clock, 2
    )
    told["of these"] = judged(few)
    samples = runs.sample(run, N, 1, samplers.ddpm, SAMPLE_STEPS, batch_size=125)
    return told | {"confident": judged(samples)}


def diffusers(seed: int, seconds: float, train: Tensor) -> dict[str, Any]:
    """A plain loop: float32, AdamW with the tutorial's learning rate, no moving average."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    clock, steps = time.perf_counter(), 0
    for x_0 in data.batches(train, 64, seed):
        t, eps = torch.randint(0, 1000, (64,)), torch.randn_like(x_0)
        loss = F.mse_loss(network(scheduler.add_noise(x_0, eps, t), t).sample, eps)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if time.perf_counter() - clock > seconds:
            break
    told: dict[str, Any] = {"seconds": round(time.perf_counter() - clock, 1), "steps": steps}
    told["parameters"] = sum(p.numel() for p in network.parameters())
    made = DDPMPipeline(network, scheduler)
    made.set_progress_bar_config(disable=True)
    parts = [
        made(125, rng.generator(seed, k), SAMPLE_STEPS, output_type="np").images
        for k in range(N // 125)
    ]
    images = torch.cat([torch.from_numpy(part).permute(0, 3, 1, 2) for part in parts])
    return told | {"confident": judged((images * 255).round().to(torch.uint8))}


def judged(images: Tensor) -> list[float]:
    """Share of the images of which the classifier is sure, with its 95 % interval."""
    described = features.load("mnist").describe_images(images)
    sure = int((described.probabilities.max(1).values > metrics.CONFIDENT).sum())
    interval = stats.binomtest(sure, len(images)).proportion_ci(method="wilson")
    return common.rounded([sure / len(images), interval.low, interval.high])


if __name__ == "__main__":
    main()
