"""What the networks that predict eps output, before anything is clipped.

    python -m other_tests.mnist.bottleneck.outputs

For the arms "eps, snr" of `cells.json`, `floor.json` and `control.py` after their longest training:
the error of the output at some times, and the effective rank of the outputs where there is little
signal.  For some with H >= D also the error there after the last layer has been replaced by the
exact least-squares one on the same features, and after shorter and longer trainings and at other
learning rates.  (The errors in the records of `compare` are those of
a denoiser that clips x_0_hat to [-1, 1], which hides what an output cannot do.)  Trains what is
missing, goes on where it was stopped, and writes outputs.json.  One process only.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lib import compare, data, rng, runs
from diffusion_lib.config import Experiment
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from other_tests import common
from other_tests.mnist.bottleneck import control

FOLDER = Path(__file__).parent
RECORD = FOLDER / "outputs.json"
TIMES = (100, 300, 500, 700, 900)
LITTLE_SIGNAL = 900  # where the signal-to-noise ratio is 0.0003
WIDE_ENOUGH = ("MLP 1024", "MLP 1568", "U-Net 14/196", "U-Net 14/256", "U-Net 14/392")
LONGER, MANY = ("MLP 1024", "U-Net 14/196"), 8000  # of which networks, and steps
NUM_TRAIN, DRAWS, NUM_TEST, BATCH = 10_000, 4, 2_000, 500


class LastLayer(NamedTuple):
    """What the last layer sees and what it should say: rows [N, inputs] and [N, outputs]."""

    features: Tensor
    target: Tensor


def effective_rank(rows: Tensor) -> float:
    """Return the exponential of the entropy of the shares of variance [Roy & Vetterli 2007].

    Args:
        rows: outputs, [N, D].
    """
    share = torch.linalg.svdvals(rows - rows.mean(0)).square()
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())


def last_layer(network: nn.Module) -> nn.Module:
    """Return the layer that makes the output: the last one with weights of its own."""
    return [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]


def rows_of(layer: nn.Module, inputs: Tensor, target: Tensor) -> LastLayer:
    """Write a layer's work as a product of matrices, with a column of ones for the bias.

    Args:
        layer: linear layer, or convolution of 3 x 3.
        inputs: what it has received.
        target: images that the network should output, [B, C, H, W].
    """
    if isinstance(layer, nn.Conv2d):
        patch = target.shape[-1] // inputs.shape[-1]
        target = F.pixel_unshuffle(target, patch).flatten(2).mT.flatten(0, 1)
        inputs = F.unfold(inputs, 3, padding=1).mT.flatten(0, 1)
    else:
        target = target.flatten(1)
    inputs = inputs.double()
    return LastLayer(torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1), target.double())


@torch.no_grad()
def batches(
    denoiser: Denoiser, images: Tensor, seed: int, time: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the outputs for images, uint8 [N, C, H, W], and the noise that is in them at a time."""
    generator = rng.generator(seed, time)
    for batch in images.split(BATCH):
        x_0 = data.to_float(batch)
        eps = rng.normal(x_0.shape, generator)
        t = torch.full((len(x_0),), time)
        yield denoiser.output(denoiser.schedule.add_noise(x_0, t, eps), t), eps


def error_with_exact_last_layer(denoiser: Denoiser, train: Tensor, test: Tensor) -> float:
    """Fit the last layer by least squares on several draws of the noise; return its error."""
    layer, seen = last_layer(denoiser.network), []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    # Sums of products, because the features of all positions of all images would fill the memory.
    inner, outer = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for draw in range(DRAWS):
        for _, eps in batches(denoiser, train[:NUM_TRAIN], 1 + draw, LITTLE_SIGNAL):
            rows = rows_of(layer, seen.pop(), eps)
            inner = inner + rows.features.mT @ rows.features
            outer = outer + rows.features.mT @ rows.target
    best, errors = torch.linalg.pinv(inner, hermitian=True) @ outer, []
    for _, eps in batches(denoiser, test[:NUM_TEST], 0, LITTLE_SIGNAL):
        rows = rows_of(layer, seen.pop(), eps)
        errors.append((rows.features @ best - rows.target).square().mean())
    hook.remove()
    return float(torch.stack(errors).mean())


def measure(denoiser: Denoiser, test: Tensor) -> dict[str, float]:
    """Measure a network that predicts eps, on the CPU, on images uint8 [M, C, H, W]."""
    measures = {}
    for time in TIMES:
        errors, outputs = [], []
        for output, eps in batches(denoiser, test[:NUM_TEST], 0, time):
            errors.append((output - eps).square().mean())
            outputs.append(output.flatten(1).double())
        measures[f"error at {time}"] = float(torch.stack(errors).mean())
        if time == LITTLE_SIGNAL:
            measures["effective rank"] = effective_rank(torch.cat(outputs))
    return measures


def arms() -> dict[str, tuple[Experiment, tuple[int, ...]]]:
    """Return the arms "eps, snr" after their longest training, and their seeds, by network."""
    studies = {name: compare.read_study(FOLDER / f"{name}.json") for name in ("cells", "floor")}
    studies["control"] = studies["cells"]._replace(arms=control.arms())
    chosen = {}
    for study in studies.values():
        for arm, experiment in study.arms.items():
            if arm.endswith(": eps, snr"):
                train = replace(experiment.train, num_steps=study.steps[-1])
                chosen[arm.split(":")[0]] = (replace(experiment, train=train), study.seeds)
    return chosen


def other_trainings() -> dict[str, tuple[Experiment, tuple[int, ...]]]:
    """Return arms "eps, snr" of `WIDE_ENOUGH`, trained otherwise, as `arms` does.

    Their names end in ", 500 steps" or as those of `rates.json` do.
    """
    study = compare.read_study(FOLDER / "rates.json")
    chosen, plain = {}, arms()
    for network in WIDE_ENOUGH:
        experiment, _ = plain[network]
        for steps in (500, MANY) if network in LONGER else (500,):
            train = replace(experiment.train, num_steps=steps)
            chosen[f"{network}, {steps} steps"] = replace(experiment, train=train), study.seeds
    for arm, experiment in study.arms.items():
        name, cell = arm.split(": ")
        if name.startswith(WIDE_ENOUGH) and cell == "eps, snr":
            train = replace(experiment.train, num_steps=study.steps[-1])
            chosen[name] = replace(experiment, train=train), study.seeds
    return chosen


def main() -> None:
    options = common.parser(__doc__).parse_args()
    train, test = data.load_splits(data.mnist, options.data)
    cpu = torch.device("cpu")
    rows: list[dict[str, Any]] = common.load(RECORD)["measured"] if RECORD.exists() else []
    done = {(row["network"], row["seed"]) for row in rows}
    for name, (arm, seeds) in (arms() | other_trainings()).items():
        for seed in [seed for seed in seeds if (name, seed) not in done]:
            experiment = replace(arm, train=replace(arm.train, seed=seed))
            denoiser = runs.train(experiment, train, test, device=cpu).denoiser
            measures = measure(denoiser, test.images)
            if name in WIDE_ENOUGH:
                exact = error_with_exact_last_layer(denoiser, train.images, test.images)
                measures["error with the exact last layer"] = exact
            values = {key: round(value, 5) for key, value in measures.items()}
            rows.append({"network": name, "seed": seed} | values)
            made = {"device": hardware.name(cpu), "n": NUM_TEST, "fitted on": DRAWS * NUM_TRAIN}
            files.write_json(RECORD, made | {"measured": rows})


if __name__ == "__main__":
    main()
