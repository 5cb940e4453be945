"""Random numbers as functions of a key.

Every random draw of the library comes from a key such as (seed, step) or (seed, image), never
from how much was drawn before.  So a resumed run equals an uninterrupted one, the runs of a
comparison see the same batches, times and noise, and image i does not depend on how many others
are sampled beside it.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class TrainingStream(IntEnum):
    """What a training draws: the second part of a key (seed, stream, step or epoch)."""

    BATCH_ORDER = 0
    MIRROR = 1
    TIMES_AND_NOISE = 2
    DROPOUT = 3
    LABEL_DROPOUT = 4


class MeasurementStream(IntEnum):
    """What a measurement draws: the second part of a key (seed, stream, batch, ...)."""

    TIMES = 0
    NOISE = 1
    DEQUANTIZE = 2
    PROBE = 3
    RESAMPLE = 4
    HALVES = 5


class Rows(NamedTuple):
    """Some rows of what a generator draws for a whole batch.

    However a batch is divided among processes, its images get the numbers that they would have got
    in one piece.
    """

    generator: torch.Generator
    first: int  # of the rows
    total: int  # rows in the whole batch


Generator = torch.Generator | Rows | Sequence[torch.Generator] | None


def seed(*key: int) -> int:
    """A 32-bit seed from non-negative integers; any change of the key gives an unrelated seed."""
    if any(part < 0 for part in key):
        raise ValueError(f"a seed must not be negative; got {key[0] if len(key) == 1 else key}")
    # The length tells (0,) from (0, 0), which numpy pads to the same.
    return int(np.random.SeedSequence([len(key), *key]).generate_state(1)[0])


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for a key."""
    return torch.Generator(device).manual_seed(seed(*key))


def per_image(key: int, n: int, first: int = 0) -> list[torch.Generator]:
    """Generators of the images first .. first + n - 1, on the CPU so that devices agree."""
    return [generator(key, image) for image in range(first, first + n)]


def permutation(n: int, *key: int) -> Tensor:
    """Return 0..n - 1 in the random order of a key, int64 [n], on the CPU so that devices agree."""
    with torch.device("cpu"):  # whatever the default device is
        return torch.randperm(n, generator=generator(*key))


def normal(
    shape: Sequence[int], generator: Generator = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal numbers, shape [B, ...], on `device`.

    Args:
        generator: one for the whole batch, or a sequence of B, one for each image, or `Rows` of a
            larger batch, or None for torch's global one.

    Raises:
        ValueError: a sequence of another length than B.
    """
    if generator is None:
        return torch.randn(*shape, device=device)
    if isinstance(generator, torch.Generator):
        return torch.randn(*shape, generator=generator, device=generator.device).to(device)
    if isinstance(generator, Rows):
        whole = normal((generator.total, *shape[1:]), generator.generator, device)
        return whole[generator.first : generator.first + shape[0]]
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} images; one each is needed")
    images = [torch.randn(*shape[1:], generator=g, device=g.device) for g in generator]
    return torch.stack(images).to(device)


def integers(
    low: int,
    high: int,
    n: int,
    generator: torch.Generator | Rows | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """n whole numbers, low <= number < high, [n] on `device`, which must be the generator's."""
    if isinstance(generator, Rows):
        whole = integers(low, high, generator.total, generator.generator, device)
        return whole[generator.first : generator.first + n]
    return torch.randint(low, high, (n,), generator=generator, device=device)
