"""What the record of editing says: tables, plots and the answers.

    python -m other_tests.editing.curves        draws the plot again

An answer rests on the runs of several seeds, and its interval is over them; the curves of one run
have intervals over its 500 digits.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from diffusion_lib import compare, viz
from diffusion_lib.compare import Difference
from other_tests.editing import measure
from other_tests.mnist import tables

PLOT = Path(__file__).parent.parent.parent / "assets" / "editing-mnist.png"
SCHEDULES = ("linear", "cosine")
STEPS_ASKED = 300  # in the question
COMMAND = "`python -m other_tests.editing.measure RUN ...`"
Line = tuple[list[float], list[float], list[float]]


def load() -> dict[str, Any]:
    return json.loads(measure.OUT.read_text())


def runs_of(schedule: str) -> list[dict[str, Any]]:
    """The runs of a schedule, in the order of their seeds; the first has gone all ways."""
    found = [run for run in load()["runs"] if run["experiment"]["schedule"] == schedule]
    return sorted(found, key=lambda run: run["experiment"]["train"]["seed"])


def at(way: str, name: str, t: int, schedule: str) -> list[float]:
    """A measure at a time, in the first run of a schedule: [value, low, high] over the digits."""
    return runs_of(schedule)[0]["ways"][way]["measures"][name][load()["times"].index(t)]


def line(way: str, name: str, schedule: str) -> Line:
    """A measure of the first run of a schedule against t, for `viz.curve`: x, y, margin."""
    told = runs_of(schedule)[0]["ways"][way]["measures"][name]
    return load()["times"], [v for v, _, _ in told], [(high - low) / 2 for _, low, high in told]


def ceiling() -> float:
    """The largest Frechet distance among the sets of real digits: at it, realism is at its floor.

    A further set of real digits would lie above it one time in so many as there are sets.
    """
    return max(load()["floors"])


def log2_snr(run: dict[str, Any], t: float) -> float:
    """Of a time between those measured, linearly; the first has none."""
    times, known = load()["times"], run["log2 snr"]
    k = max(2, next((k for k, time in enumerate(times) if time >= t), len(times) - 1))
    share = (t - times[k - 1]) / (times[k] - times[k - 1])
    return known[k - 1] + share * (known[k] - known[k - 1])


def label_until(run: dict[str, Any], way: str) -> float:
    """The t at which fewer than 95 % of the labels are kept."""
    return run["ways"][way]["falls"]["label"][0]


def real_from(run: dict[str, Any], way: str) -> float | None:
    """The t at which the distance from real digits comes down to the floor; None if it never does.

    Between the times measured, linearly.
    """
    times, told = load()["times"], run["ways"][way]["measures"]["Frechet distance"]
    values = [value for value, _, _ in told]
    for k in range(len(times)):
        if values[k] <= ceiling():
            if k == 0:
                return float(times[0])
            share = (values[k - 1] - ceiling()) / (values[k - 1] - values[k])
            return times[k - 1] + share * (times[k] - times[k - 1])
    return None


def over_seeds(values: Sequence[float]) -> Difference:
    """Their mean and its interval."""
    return compare.paired(values, [0.0] * len(values))
