"""What should CIFAR-10 at the paper's size take on eight GPUs?

    python -m benchmarks.eight_gpus

Nothing is run on a GPU for it.  Counted: the multiplications and additions of the network, and the
tensors that one training step keeps for its gradient, in bfloat16.  Assumed: which share of the
processor's peak is used.  Writes eight_gpus.json beside itself.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from diffusion_lib import config, losses, rng
from diffusion_lib.denoiser import Denoiser

GPUS, SAMPLES, COUNTED = 8, 50_000, 2  # COUNTED images are enough: all grows with their number
PEAK = 989e12  # an H100 SXM's dense bfloat16 [NVIDIA H100 data sheet]
SHARES = (0.05, 0.2)  # of the peak: a bad and a good case for a network of this size
# float32 weights, gradients, two moments of AdamW, moving average, buckets of the gradients
COPIES = 6


def main() -> None:
    experiment = config.CIFAR10
    experiment = replace(experiment, network=replace(experiment.network, dropout=0.0))
    denoiser = experiment.build()
    parameters = sum(p.numel() for p in denoiser.parameters())
    forward, backward, fewer = counted(denoiser, COUNTED)
    more = counted(denoiser, 2 * COUNTED)[2]
    each = (more - fewer) / COUNTED  # without what does not grow with the batch, such as weights
    once = forward / COUNTED
    update = once + backward / COUNTED
    train = experiment.train
    record: dict[str, Any] = {
        "GPUs": GPUS,
        "peak of one, TFLOP/s": PEAK / 1e12,
        "shares of the peak": SHARES,
        "parameters": parameters,
        "GFLOP of an image, forward": round(once / 1e9, 2),
        "GFLOP of an image, forward and backward": round(update / 1e9, 2),
        "steps": train.num_steps,
        "batch size": train.batch_size,
        "GB of weights and their copies": round(COPIES * 4 * parameters / 1e9, 2),
        "GB kept for the gradient": round(each * train.batch_size / GPUS / 1e9, 2),
        "hours of training": hours(update * train.num_steps * train.batch_size),
        "samples": SAMPLES,
        "sampling steps": experiment.T,
        "hours of sampling": hours(once * SAMPLES * experiment.T),
    }
    common.write("eight_gpus", torch.device("cpu"), record)


def counted(denoiser: Denoiser, n: int) -> tuple[int, int, int]:
    """Count FLOP of n images forward and backward, and bytes stored for the gradient."""
    x_0 = rng.normal((n, *config.CIFAR10.network.image_shape), rng.generator(0))
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        FlopCounterMode(display=False) as forward,
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        loss = losses.diffusion_loss(denoiser, x_0, generator=rng.generator(1))
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops(), sum(storages.values())


def hours(flop: float) -> list[float]:
    """Return the longest and the shortest time of a number of FLOP."""
    return common.rounded([flop / (GPUS * PEAK * share) / 3600 for share in SHARES])


if __name__ == "__main__":
    main()
