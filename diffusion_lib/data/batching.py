"""Shuffled batches in [-1, 1], drawn from (seed, step) alone.

A data set of this size needs no worker processes: it lives in memory once, as uint8, on the device
that trains on it; a batch is gathered, scaled and mirrored there."""

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
    """Endless shuffled batches x_0, float32 [batch_size, C, H, W], on the device of `images`.

    Batch n depends on (seed, n) alone: starting at `start` gives what an earlier start would have
    given there.  Each image comes once per epoch; a batch at the end of an epoch goes on into the
    next.

    Args:
        images: uint8, [N, C, H, W].
        start: number of the first batch.
        mirror: probability of flipping an image left to right.
        rows: of each batch, for a process that works on a part of it.

    Raises:
        TypeError, ValueError: images that are not uint8, or empty; numbers that are not whole or
            are negative, a probability outside [0, 1].
    """
    images = check(images)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start", start, 0),
    ):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r:.99}")
    if not isinstance(mirror, Real) or not 0 <= mirror <= 1:
        raise ValueError(f"mirror is a probability in [0, 1]; got {mirror!r:.99}")
    return _batches(images, batch_size, seed, start, mirror, rows)


def _batches(
    images: Tensor, batch_size: int, seed: int, start: int, mirror: float, rows: slice
) -> Iterator[Tensor]:
    device = images.device
    drawn = batch_indices(len(images), batch_size, seed, start, device)
    for step, chosen in zip(count(start), drawn, strict=False):
        x_0 = to_float(images[chosen[rows]])
        if mirror > 0:
            drawn_for_all = torch.rand(
                batch_size,
                1,
                1,
                1,
                generator=rng.generator(seed, TrainingStream.MIRROR, step),
                device="cpu",
            )
            flipped = (drawn_for_all[rows] < mirror).to(device, non_blocking=True)
            x_0 = torch.where(flipped, x_0.flip(-1), x_0)
        yield x_0


def batch_indices(
    n: int, batch_size: int, seed: int, start: int, device: torch.device
) -> Iterator[Tensor]:
    """Which of n images the batches from number `start` on hold, int64 [batch_size], endlessly.

    Drawn on the CPU, so that all devices agree, whichever the images are on.
    """

    @lru_cache(maxsize=1)  # one epoch's order at a time
    def order(epoch: int) -> Tensor:
        return rng.permutation(n, seed, TrainingStream.BATCH_ORDER, epoch).to(device)

    for step in count(start):
        epoch, offset = divmod(step * batch_size, n)
        # At once, so that a batch larger than the memory is an error, and not filled for ever.
        chosen, filled = torch.empty(batch_size, dtype=torch.int64, device=device), 0
        while filled < batch_size:
            part = order(epoch)[offset:][: batch_size - filled]
            chosen[filled : filled + len(part)] = part
            filled += len(part)
            epoch, offset = epoch + 1, 0
        yield chosen
