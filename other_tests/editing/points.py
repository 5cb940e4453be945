"""Where curves of the study of what survives noise cross levels and peak, in log2 SNR.

A row has its log2 SNRs, falling, a share "clean" without noise, and measures at each level.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import rng
from diffusion_lib.rng import MeasurementStream
from other_tests.editing import measure

Row = Mapping[str, Any]
LABEL = "label kept"
RESAMPLES = 300


def crossing(row: Row, name: str = LABEL, level: float = 0.5) -> float:
    """Find the log2 SNR at which a measure first falls below a level, linear between its own.

    NaN if it does so nowhere, or is below it from the first on: a statement of that is undecided.
    """
    curve = torch.tensor(row["measures"][name], dtype=torch.float64)
    if not curve.min() < level <= curve[0]:
        return math.nan
    return -measure.falls_below(curve, level, [-x for x in row["log2 snr"]]).item()


def midpoint(row: Row, name: str = LABEL) -> float:
    """Find the log2 SNR in the middle of the window in which labels are lost.

    The mean of the three at which 3/4, 1/2 and 1/4 are left of what there is between chance and the
    curve's largest value.
    """
    top, chance = max(row["clean"][name], *row["measures"][name]), row["chance"]
    return fmean(crossing(row, name, chance + k / 4 * (top - chance)) for k in (1, 2, 3))


def nearly_all(row: Row, name: str = LABEL) -> float:
    """Find the log2 SNR at which 95 % of the labels are left."""
    return crossing(row, name, measure.LABEL)


WINDOW = {"midpoint": midpoint, "95 %": nearly_all}


def deviations(own: Tensor, row: Row) -> dict[str, float | None]:
    """Estimate how far the points of WINDOW vary with the choice of the images, by a bootstrap.

    Args:
        own: how surely the label of each image is kept, [1 + levels, N], without noise first.
        row: row of these levels, of which the log2 SNRs and the chance are used.

    Returns:
        Standard deviation of each point; None where a resample passes the level nowhere.
    """
    n = own.shape[1]
    draws = rng.generator(0, MeasurementStream.RESAMPLE)
    curves = (own[:, rng.integers(0, n, n, draws)].mean(1).tolist() for _ in range(RESAMPLES))
    resamples = [{**row, "clean": {"": y[0]}, "measures": {"": y[1:]}} for y in curves]
    spread = {
        title: float(np.std([at(resample, "") for resample in resamples]))
        for title, at in WINDOW.items()
    }
    return {title: float(f"{s:.2g}") if math.isfinite(s) else None for title, s in spread.items()}


def peak(x: Sequence[float], y: Sequence[float]) -> float:
    """Find where y is largest: the vertex of a parabola through the largest and its neighbors.

    NaN where the first or the last is the largest: the peak may lie beyond.
    """
    k = int(np.argmax(y))
    if k in (0, len(x) - 1):
        return math.nan
    near = slice(k - 1, k + 2)
    a, b, _ = np.polyfit(np.array(x[near]) - x[k], y[near], 2)
    return float(x[k] - b / (2 * a))


def peak_of(row: Row, name: str) -> float:
    """Find the log2 SNR at which a measure is largest."""
    return peak(row["log2 snr"], row["measures"][name])


def at_level(row: Row, log2_snr: float, name: str = LABEL) -> float:
    """Return a measure at a log2 SNR, linear between its own."""
    known = [*zip(row["log2 snr"], row["measures"][name], strict=True)]
    x, y = zip(*reversed(known), strict=True)
    return float(np.interp(log2_snr, x, y))
