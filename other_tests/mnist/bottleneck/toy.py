"""Which mix of image and noise should a network predict?  Data of d dimensions in D.

    python -m other_tests.mnist.bottleneck.toy                                      two hours
    python -m other_tests.mnist.bottleneck.toy --cells 2,512 --widths 256 --seeds 10    two minutes

Sixteen normal distributions around points of a sphere, in a random subspace of d of D dimensions.
A perceptron with hidden layers of H numbers predicts u = k x_0 - (1 - k) eps from x_t; the loss
weighs errors of x_0_hat in the same way for every k, so only what the network has to output
differs.  The best denoiser is known, and the error above its own is measured.  Jin & Wang 2026
(arXiv 2601.21419) expect the best k at D / (D + d).  Writes toy.json, and goes on from there; one
process only.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_lib import losses, rng, schedules
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks import MLPConfig
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar
from other_tests import common

RECORD = Path(__file__).parent / "toy.json"
CELLS = [(2, D) for D in (2, 8, 16, 64, 512)] + [(8, D) for D in (16, 64, 512)]
CELLS += [(32, D) for D in (64, 512)]
WIDTHS = (64, 256)
SEEDS = (10, 11, 12, 13, 14)
MIXES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STEPS, BATCH, LEARNING_RATE, NUM_TEST = 2000, 256, 1e-3, 4096
MOST_SNR = 361  # and least 1 / 361, as Li & He 2025 divide by at least 0.05
NUM_MODES, STD = 16, 0.1
JOB = ("d", "D", "H", "seed", "k")


def mix(signal: Tensor, noise: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """Predict k x_0 - (1 - k) eps: 1 is x_0, 0 is -eps, 1/2 half of the velocity of a flow."""
    return k * torch.ones_like(signal), (k - 1) * torch.ones_like(noise)


class Mixture(NamedTuple):
    """Normal distributions in a subspace: their means in it, [NUM_MODES, d], and the subspace."""

    means: Tensor
    subspace: Tensor  # orthonormal, [D, d]


def mixture(intrinsic: int, dimension: int, generator: torch.Generator) -> Mixture:
    """Draw a mixture whose d dimensions have a variance of about 1 each."""
    means = torch.randn(NUM_MODES, intrinsic, generator=generator)
    radius = math.sqrt(intrinsic * (1 - STD**2))
    means *= radius / means.norm(dim=1, keepdim=True)
    subspace = torch.linalg.qr(torch.randn(dimension, intrinsic, generator=generator)).Q
    return Mixture(means, subspace)


def draw(mixture: Mixture, n: int, generator: torch.Generator) -> Tensor:
    """Draw n points, [n, D, 1, 1]."""
    mode = torch.randint(NUM_MODES, (n,), generator=generator)
    z = mixture.means[mode]
    z = z + STD * torch.randn(z.shape, generator=generator)
    return (z @ mixture.subspace.T)[:, :, None, None]


def best_denoiser(x_t: Tensor, t: Tensor, schedule: NoiseSchedule, mixture: Mixture) -> Tensor:
    """Compute E[x_0 | x_t], [n, D, 1, 1]: what lies outside of the subspace is noise."""
    signal, noise = (scale[t][:, None, None] for scale in (schedule.signal, schedule.noise))
    z = (x_t.flatten(1) @ mixture.subspace)[:, None]  # [n, 1, d] against the modes
    variance = (signal * STD) ** 2 + noise**2
    away = z - signal * mixture.means
    share = (-away.square().sum(-1, keepdim=True) / (2 * variance)).softmax(1)
    z_0 = (share * (mixture.means + signal * STD**2 / variance * away)).sum(1)
    return (z_0 @ mixture.subspace.T)[:, :, None, None]


def measure(intrinsic: int, dimension: int, width: int, seed: int, k: float) -> float:
    """Train a perceptron; return its weighted error of x_0_hat above the best, per dimension.

    Args:
        intrinsic: d, dimensions of the data.
        dimension: D, of the space that they lie in.
        width: H, of the hidden layers.
        seed: random seed of the data, of the weights and of all draws.
        k: share of x_0 in what is predicted.
    """
    generator = rng.generator(seed, intrinsic, dimension)
    points = mixture(intrinsic, dimension, generator)
    torch.manual_seed(rng.seed(seed))
    network = MLPConfig((dimension, 1, 1), width=width).build()
    denoiser = Denoiser(network, schedules.cosine(), partial(mix, k=k), clip=None)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    snr = denoiser.schedule.snr(torch.arange(denoiser.schedule.num_timesteps + 1))
    (times,) = ((snr >= 1 / MOST_SNR) & (snr <= MOST_SNR)).nonzero(as_tuple=True)
    for _ in range(STEPS):
        x_0 = draw(points, BATCH, generator)
        t = times[torch.randint(len(times), (BATCH,), generator=generator)]
        eps = torch.randn(x_0.shape, generator=generator)
        loss = losses.loss_at(denoiser, x_0, t, eps, losses.snr_plus_1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    generator = rng.generator(seed, intrinsic, dimension, 1)
    x_0 = draw(points, NUM_TEST, generator)
    t = times[torch.randint(len(times), (NUM_TEST,), generator=generator)]
    eps = torch.randn(x_0.shape, generator=generator)
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    with torch.no_grad():
        error = denoiser(x_t, t).x_0 - best_denoiser(x_t, t, denoiser.schedule, points)
    weight = losses.snr_plus_1(denoiser.schedule.snr(t))
    return float((weight * error.square().mean((1, 2, 3))).mean())


def jobs(
    cells: Sequence[Sequence[int]] = CELLS,
    widths: Sequence[int] = WIDTHS,
    seeds: Sequence[int] = SEEDS,
) -> list[tuple[int, int, int, int, float]]:
    """List what is measured, as JOB names it; by default all that is registered."""
    return [
        (d, D, width, seed, k)
        for d, D in cells
        for width in widths
        for seed in seeds
        for k in MIXES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cells", nargs="+", default=[f"{d},{D}" for d, D in CELLS], metavar="d,D")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    cells: list[list[int]] = [[int(n) for n in cell.split(",")] for cell in options.cells]
    rows: list[dict[str, Any]] = []
    if RECORD.exists():
        rows = common.load(RECORD)["measured"]
    done = {tuple(row[key] for key in JOB) for row in rows}
    left = [job for job in jobs(cells, options.widths, options.seeds) if job not in done]
    for job in Bar(left, "toy"):
        rows.append(dict(zip(JOB, job, strict=True)) | {"error": measure(*job)})
        device = hardware.name(torch.device("cpu"))
        files.write_json(RECORD, {"device": device, "steps": STEPS, "measured": rows})


if __name__ == "__main__":
    main()
