"""How many dimensions do the outputs fill, and is their last layer the best there is?

    python -m other_tests.mnist.bottleneck.ranks

For the networks of `cells.json` and `floor.json` that predict eps with its plain error, at one time
of little signal: the effective rank of the outputs, their error, and the error after the last layer
has been replaced by the exact least-squares one on the same features.  Trains what is missing, goes
on where it was stopped, and writes ranks.json.
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

FOLDER = Path(__file__).parent
RECORD = FOLDER / "ranks.json"
TIME, NUM_TRAIN, NUM_TEST, BATCH = 900, 10_000, 2_000, 500


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
    elif inputs.dim() == 3:  # a transformer's, [B, squares, width]
        patch = round((target[0].numel() / inputs.shape[1]) ** 0.5)
        target = F.pixel_unshuffle(target, patch).flatten(2).mT.flatten(0, 1)
        inputs = inputs.flatten(0, 1)
    else:
        target = target.flatten(1)
    inputs = inputs.double()
    return LastLayer(torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1), target.double())


class Batch(NamedTuple):
    """Noisy images in a network: its last layer's work, its outputs, and the noise in them."""

    rows: LastLayer
    output: Tensor
    eps: Tensor


@torch.no_grad()
def batches(denoiser: Denoiser, images: Tensor, seed: int) -> Iterator[Batch]:
    """Yield batches of images, uint8 [N, C, H, W], with noise at `TIME`."""
    layer, seen = last_layer(denoiser.network), []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    generator = rng.generator(seed)
    for batch in images.split(BATCH):
        x_0 = data.to_float(batch)
        eps = rng.normal(x_0.shape, generator)
        t = torch.full((len(x_0),), TIME)
        output = denoiser.output(denoiser.schedule.add_noise(x_0, t, eps), t)
        yield Batch(rows_of(layer, seen.pop(), eps), output, eps)
    hook.remove()


def measure(denoiser: Denoiser, train: Tensor, test: Tensor) -> dict[str, float]:
    """Measure a network that predicts eps.

    Args:
        denoiser: trained denoiser, on the CPU.
        train: images to fit the exact last layer on, uint8 [N, C, H, W].
        test: images to measure on, uint8 [M, C, H, W].
    """
    # Sums of products, because the features of all positions of all images would fill the memory.
    inner, outer = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in batches(denoiser, train[:NUM_TRAIN], 0):
        inner = inner + batch.rows.features.mT @ batch.rows.features
        outer = outer + batch.rows.features.mT @ batch.rows.target
    best = torch.linalg.pinv(inner, hermitian=True) @ outer
    outputs, own, exact = [], [], []
    for rows, output, eps in batches(denoiser, test[:NUM_TEST], 1):
        outputs.append(output.flatten(1).double())
        own.append((output - eps).square().mean())
        exact.append((rows.features @ best - rows.target).square().mean())
    return {
        "effective rank": effective_rank(torch.cat(outputs)),
        "eps error": float(torch.stack(own).mean()),
        "eps error with the exact last layer": float(torch.stack(exact).mean()),
    }


def arms() -> dict[str, tuple[Experiment, tuple[int, ...]]]:
    """Return the arms "eps, snr" of both studies at their longest budget, and their seeds."""
    chosen = {}
    for name in ("cells", "floor"):
        study = compare.read_study(FOLDER / f"{name}.json")
        for arm, experiment in study.arms.items():
            if arm.endswith(": eps, snr"):
                train = replace(experiment.train, num_steps=study.steps[-1])
                chosen[arm.split(":")[0]] = (replace(experiment, train=train), study.seeds)
    return chosen


def main() -> None:
    options = common.parser(__doc__).parse_args()
    train, test = data.load_splits(data.mnist, options.data)
    cpu = torch.device("cpu")
    rows: list[dict[str, Any]] = common.load(RECORD)["measured"] if RECORD.exists() else []
    done = {(row["network"], row["seed"]) for row in rows}
    for name, (arm, seeds) in arms().items():
        for seed in [seed for seed in seeds if (name, seed) not in done]:
            experiment = replace(arm, train=replace(arm.train, seed=seed))
            denoiser = runs.train(experiment, train, test, device=cpu).denoiser
            measures = measure(denoiser, train.images, test.images)
            values = {key: round(value, 5) for key, value in measures.items()}
            rows.append({"network": name, "seed": seed} | values)
            made = {"device": hardware.name(cpu), "t": TIME, "n": NUM_TEST, "fitted on": NUM_TRAIN}
            files.write_json(RECORD, made | {"measured": rows})


if __name__ == "__main__":
    main()
