"""Measured numbers with their 95 % intervals."""

from typing import NamedTuple

import torch
from torch import Tensor

_RESAMPLES = 200


class Estimate(NamedTuple):
    """A measured number and its 95 % interval."""

    value: float
    low: float
    high: float


def _resample(n: int, generator: torch.Generator) -> Tensor:
    """How often each of n images counts: once in the first row, as drawn in the others."""
    drawn = torch.randint(n, (_RESAMPLES, n), generator=generator, device="cpu")
    counts = drawn.new_zeros(_RESAMPLES, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return torch.cat([counts.new_ones(1, n), counts])


def _estimate(values: Tensor) -> Estimate:
    """The first value, and the middle 95 % of the others."""
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975], device="cpu").double())
    return Estimate(values[0].item(), low.item(), high.item())


def _share(share: Estimate, n: int) -> Estimate:
    """The interval of a share of n, widened where it is nearly 0 or 1 and so no image differs.

    By Wilson's: that of 0 of n reaches z^2 / (n + z^2), z = 1.96.
    """
    least = 1.96**2 / (n + 1.96**2)
    low = share.value - max(share.value - share.low, min(least, share.value))
    high = share.value + max(share.high - share.value, min(least, 1 - share.value))
    return Estimate(share.value, max(low, 0.0), min(high, 1.0))


def _around(distances: Tensor) -> Estimate:
    """The first value, with the spread of the others laid around it.

    Images drawn twice put a distance up, so the others lie above the first one as a whole.
    """
    return _estimate(
        torch.cat([distances[:1], distances[1:] - distances[1:].mean() + distances[0]])
    )
