"""Which mix of image and noise should a network predict?  Data of 2 dimensions in D.

    python -m other_tests.mnist.bottleneck.toy                                        half an hour
    python -m other_tests.mnist.bottleneck.toy --dimensions 16 --widths 64 --seeds 0  a minute

Eight normal distributions on a circle, in a random plane of D dimensions.  A perceptron with hidden
layers of H numbers predicts u = k x_0 - (1 - k) eps from x_t; the loss weighs errors of x_0_hat in
the same way for every k, so only what the network has to output differs.  The best denoiser is
known, and the error above its own is measured.  Jin & Wang 2026 (arXiv 2601.21419) expect the best
k at D / (D + 2).  Writes toy.json, and goes on from there.
"""

import argparse
import json
import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import losses, rng, schedules
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks import MLPConfig
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar

RECORD = Path(__file__).parent / "toy.json"
INTRINSIC = 2
DIMENSIONS, WIDTHS, SEEDS = (2, 8, 16, 64, 512), (64, 256, 1024), (10, 11, 12)
MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS, BATCH, LEARNING_RATE, NUM_TEST = 2000, 256, 1e-3, 4096
MOST_SNR = 361  # and least 1 / 361, as Li & He 2025 divide by at least 0.05
NUM_MODES, STD = 8, 0.1
RADIUS = math.sqrt(2 * (1 - STD**2))  # so that each of the 2 dimensions has a variance of 1


def mix(signal: Tensor, noise: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """Predict k x_0 - (1 - k) eps: 1 is x_0, 0 is -eps, 1/2 half of the velocity."""
    return k * torch.ones_like(signal), (k - 1) * torch.ones_like(noise)


def centers() -> Tensor:
    """Return the means of the normal distributions in their plane, [NUM_MODES, 2]."""
    angles = 2 * math.pi * torch.arange(NUM_MODES) / NUM_MODES
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def draw(plane: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw n points, [n, D, 1, 1], from the mixture in a plane [D, 2]."""
    mode = torch.randint(NUM_MODES, (n,), generator=generator)
    z = centers()[mode] + STD * torch.randn(n, INTRINSIC, generator=generator)
    return (z @ plane.T)[:, :, None, None]


def best_denoiser(x_t: Tensor, t: Tensor, schedule: NoiseSchedule, plane: Tensor) -> Tensor:
    """Compute E[x_0 | x_t], [n, D, 1, 1]: what lies outside of the plane is noise."""
    signal, noise = (scale[t][:, None, None] for scale in (schedule.signal, schedule.noise))
    z = (x_t.flatten(1) @ plane)[:, None]  # [n, 1, 2] against the modes
    variance = (signal * STD) ** 2 + noise**2
    log_p = -(z - signal * centers()).square().sum(-1, keepdim=True) / (2 * variance)
    gain = signal * STD**2 / variance
    z_0 = (log_p.softmax(1) * (centers() + gain * (z - signal * centers()))).sum(1)
    return (z_0 @ plane.T)[:, :, None, None]


def measure(dimension: int, width: int, seed: int, k: float) -> float:
    """Train a perceptron; return its weighted error of x_0_hat above the best, per dimension.

    Args:
        dimension: D, of the space that the plane lies in.
        width: H, of the hidden layers.
        seed: random seed of the plane, of the weights, and of all draws but those of the test.
        k: share of x_0 in what is predicted.
    """
    generator = rng.generator(seed, dimension)
    plane = torch.linalg.qr(torch.randn(dimension, INTRINSIC, generator=generator)).Q
    torch.manual_seed(rng.seed(seed))
    network = MLPConfig((dimension, 1, 1), width=width).build()
    denoiser = Denoiser(network, schedules.cosine(), partial(mix, k=k), clip=None)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    snr = denoiser.schedule.snr(torch.arange(denoiser.schedule.num_timesteps + 1))
    (times,) = ((snr >= 1 / MOST_SNR) & (snr <= MOST_SNR)).nonzero(as_tuple=True)
    for _ in range(STEPS):
        x_0 = draw(plane, BATCH, generator)
        t = times[torch.randint(len(times), (BATCH,), generator=generator)]
        eps = torch.randn(x_0.shape, generator=generator)
        loss = losses.loss_at(denoiser, x_0, t, eps, losses.snr_plus_1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    generator = rng.generator(seed, dimension, 1)
    x_0 = draw(plane, NUM_TEST, generator)
    t = times[torch.randint(len(times), (NUM_TEST,), generator=generator)]
    eps = torch.randn(x_0.shape, generator=generator)
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    with torch.no_grad():
        error = denoiser(x_t, t).x_0 - best_denoiser(x_t, t, denoiser.schedule, plane)
    weight = losses.snr_plus_1(denoiser.schedule.snr(t))
    return float((weight * error.square().mean((1, 2, 3))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, values in (("dimensions", DIMENSIONS), ("widths", WIDTHS), ("seeds", SEEDS)):
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values)
    options = parser.parse_args()
    jobs: list[tuple[int, int, int, float]] = [
        *product(options.dimensions, options.widths, options.seeds, MIXES)
    ]
    rows: list[dict[str, Any]] = []
    if RECORD.exists():
        rows = json.loads(RECORD.read_text())["measured"]
    done = {(row["D"], row["H"], row["seed"], row["k"]) for row in rows}
    for job in Bar([job for job in jobs if job not in done], "toy"):
        error = measure(*job)
        rows.append(dict(zip(("D", "H", "seed", "k"), job, strict=True)) | {"error": error})
        device = hardware.name(torch.device("cpu"))
        files.write_json(RECORD, {"device": device, "steps": STEPS, "measured": rows})


if __name__ == "__main__":
    main()
