"""Random numbers as functions of a key.

Every random draw of the library depends on a key such as (seed, step) or (seed, image), and not on
earlier draws.  Therefore a resumed run equals an uninterrupted one, the runs of a comparison see
the same batches, times and noise, and image i is the same in a batch of any size.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class TrainingStream(IntEnum):
    """Draws of a training: the second part of a key (seed, stream, step or epoch)."""

    BATCH_ORDER = 0
    MIRROR = 1
    TIMES_AND_NOISE = 2
    DROPOUT = 3
    LABEL_DROPOUT = 4


class MeasurementStream(IntEnum):
    """Draws of a measurement: the second part of a key (seed, stream, batch, ...)."""

    TIMES = 0
    NOISE = 1
    DEQUANTIZE = 2
    PROBE = 3
    RESAMPLE = 4
    HALVES = 5


class Rows(NamedTuple):
    """Some rows of the numbers that a generator draws for a whole batch.

    The images of a batch get the same numbers however it is divided among processes.
    """

    generator: torch.Generator
    first: int  # of the rows
    total: int  # rows in the whole batch


Generator = torch.Generator | Rows | Sequence[torch.Generator] | None


def seed(*key: int) -> int:
    """Hash non-negative integers to a 32-bit seed; other keys give unrelated seeds."""
    if any(part < 0 for part in key):
        raise ValueError(f"a seed must not be negative; got {key[0] if len(key) == 1 else key}")
    # With the length, because numpy pads (0,) and (0, 0) to the same.
    return int(np.random.SeedSequence([len(key), *key]).generate_state(1)[0])


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a new generator for a key."""
    return torch.Generator(device).manual_seed(seed(*key))


def per_image(key: int, n: int, first: int = 0) -> list[torch.Generator]:
    """Make generators of the images first .. first + n - 1, on the CPU so that devices agree."""
    return [generator(key, image) for image in range(first, first + n)]


def permutation(n: int, *key: int) -> Tensor:
    """Return 0..n - 1 in the random order of a key, int64 [n], on the CPU so that devices agree."""
    with torch.device("cpu"):  # whatever the default device is
        return torch.randperm(n, generator=generator(*key))


def normal(
    shape: Sequence[int], generator: Generator = None, device: torch.device | str | None = None
) -> Tensor:
    """Draw standard normal numbers of a shape [B, ...], on `device`; None is the generator's.

    `generator` is one for the whole batch, a sequence of B, one for each image, `Rows` of a larger
    batch, or None for torch's global one.

    Raises:
        ValueError: a sequence of another length than B.
    """
    if generator is None:
        return torch.randn(*shape, device=device or "cpu")
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
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw n integers, low <= integer < high, [n] on `device`, None or that of the generator."""
    if isinstance(generator, Rows):
        whole = integers(low, high, generator.total, generator.generator, device)
        return whole[generator.first : generator.first + n]
    device = device or (generator.device if generator else "cpu")
    return torch.randint(low, high, (n,), generator=generator, device=device)
