"""Shuffled batches in [-1, 1], drawn from (seed, step) alone.

A data set of this size needs no worker processes: it lives in memory once, as uint8, on the device
that trains on it; a batch is gathered, scaled and mirrored there.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from numbers import Integral, Real

import torch
from torch import Tensor

from diffusion_lib import rng
from diffusion_lib.data.images import check, to_float
from diffusion_lib.rng import TrainingStream


def batches(
    images: Tensor,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    mirror: float = 0.0,
    rows: slice = slice(None),
) -> Iterator[Tensor]:
    """Yield shuffled batches x_0 without end, float32 [batch_size, C, H, W] in [-1, 1].

    Batch n depends on (seed, n) alone, so that an iterator that starts at `start` continues an
    earlier one.  Each image comes once per epoch; a batch at the end of an epoch continues in the
    next one.

    Args:
        images: uint8 [N, C, H, W]; the batches are on their device.
        batch_size: number of images in a batch.
        seed: key of the order and of the flips.
        start: number of the first batch.
        mirror: probability of flipping an image left to right.
        rows: part of each batch to yield, for one of several processes.
    """
    images = check(images)
    numbers = (("batch_size", batch_size, 1), ("seed", seed, 0), ("start", start, 0))
    for name, value, least in numbers:
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r:.99}")
    if not isinstance(mirror, Real) or not 0 <= mirror <= 1:
        raise ValueError(f"mirror is a probability in [0, 1]; got {mirror!r:.99}")

    def batch(step: int, indices: Tensor) -> Tensor:
        x_0 = to_float(images[indices[rows]])
        if mirror == 0:
            return x_0
        generator = rng.generator(seed, TrainingStream.MIRROR, step)
        uniform = torch.rand(batch_size, 1, 1, 1, generator=generator, device="cpu")
        flipped = (uniform[rows] < mirror).to(images.device, non_blocking=True)
        return torch.where(flipped, x_0.flip(-1), x_0)

    order = batch_indices(len(images), batch_size, seed, start, images.device)
    return map(batch, count(start), order)


def batch_indices(
    n: int, batch_size: int, seed: int, start: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the indices of the images in each batch from number `start` on, int64 [batch_size].

    They are drawn on the CPU, so that they are the same for images on any device.
    """

    @lru_cache(maxsize=2)
    def order(epoch: int) -> Tensor:
        return rng.permutation(n, seed, TrainingStream.BATCH_ORDER, epoch).to(device)

    torch.empty(batch_size, dtype=torch.int64, device=device)  # or too little memory, at once
    for step in count(start):
        first, offset = divmod(step * batch_size, n)
        epochs = range(first, ((step + 1) * batch_size - 1) // n + 1)
        yield torch.cat([order(epoch) for epoch in epochs])[offset : offset + batch_size]
