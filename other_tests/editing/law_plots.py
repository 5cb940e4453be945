"""Plots of the study of what survives noise, from its records."""

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np

from diffusion_lib import samplers, style
from diffusion_lib.metrics import Interval
from other_tests import registered
from other_tests.editing import late, law
from other_tests.editing.law_answers import (
    MODELS,
    Records,
    datasets,
    distances,
    predicted,
    schedules_of,
    statements,
    values,
)
from other_tests.editing.points import LABEL

Lines = dict[str, tuple[Sequence[float], ...]]
PHI = "clone agreement"


def line(records: Records, dataset: str, name: str, schedule: str = "") -> tuple[Any, ...]:
    """Return a measure against the log2 SNR, mean over seeds: of a schedule, or of all."""
    curves = [
        curve
        for own in ([schedule] if schedule else schedules_of(dataset))
        for curve in values(records, dataset, own, lambda row: row["measures"][name])
    ]
    return law.LOG2_SNR, np.mean(curves, 0).tolist()


@style.look
def panels(lines: Mapping[str, Lines], y_label: str, y_scale: str = "linear") -> style.Plot:
    """Draw panels name -> lines against the log2 SNR, noise to the right.

    What is predicted is a line, what networks do are points, a shape for each schedule.
    """
    figure = style.figure(1, len(lines), (3.2 * len(lines) + 1, 3.2))
    for axis, (title, own) in zip(figure.axes, lines.items(), strict=True):
        axis.set(title=title.replace("_", " "), xlabel="log2 SNR", yscale=y_scale)
        axis.invert_xaxis()
        style.draw(axis, own)
        for drawn in axis.lines:
            _, _, schedule = str(drawn.get_label()).partition("networks, ")
            if schedule:
                drawn.set(marker=dict(zip(law.SCHEDULES, "s^o", strict=True))[schedule], ls="none")
            elif drawn.get_label() in MODELS:
                drawn.set_marker("")
    figure.axes[0].set_ylabel(y_label)
    for axis, own in zip(figure.axes, lines.values(), strict=True):  # their y axis is known now
        if axis is figure.axes[-1] or own.keys() != [*lines.values()][-1].keys():
            style.name_ends(axis)
    return figure


def labels(records: Records) -> style.Plot:
    """Draw the labels kept, predicted and measured (mean of three), a panel for each data set."""
    return _with_predictions(records, LABEL, "measures")


def agreement(records: Records) -> style.Plot:
    """Draw phi, the agreement of clones, as `labels` does."""
    return _with_predictions(records, PHI, PHI)


def _with_predictions(records: Records, name: str, key: str) -> style.Plot:
    """Draw a measure of networks, and what predictions have under a key."""
    drawn: dict[str, Lines] = {}
    for dataset in datasets(records):
        row = predicted(records, dataset, "linear")
        own = drawn[dataset] = {model: (row["log2 snr"], row[key][model]) for model in MODELS}
        for schedule in schedules_of(dataset):
            own[f"networks, {schedule}"] = line(records, dataset, name, schedule)
    return panels(drawn, name)


def verdicts(records: Records, unit: str) -> style.Plot:
    """Draw the statements of a unit, OCTAVES or LOG_RATIO."""
    return registered.draw([s for s in statements(records) if s.unit == unit])


def changes(records: Records) -> style.Plot:
    """Draw the agreement of clones, and susceptibility and length as shares of their largest."""
    drawn: dict[str, Lines] = {}
    for name in (PHI, "susceptibility", "correlation length"):
        own = drawn[name] = {}
        for dataset in datasets(records):
            x, y = line(records, dataset, name)
            top = 1.0 if name == PHI else max(y)
            own[dataset.replace("_", " ")] = x, [value / top for value in y]
    return panels(drawn, "share of the largest")


def signals(records: Records) -> style.Plot:
    """Draw what is kept of labels, of properties and of what the judge's convolutions say."""
    drawn: dict[str, Lines] = {}
    for dataset in datasets(records):
        row = next(row for row in records["law"]["rows"] if row["dataset"] == dataset)
        names = [n for n in row["measures"] if "suscept" not in n and "length" not in n]
        drawn[dataset] = {name: line(records, dataset, name) for name in names}
    return panels(drawn, "kept")


def late_starts(records: Records) -> style.Plot:
    """Draw distances against the start, those from T as dashes, and where classes part."""
    drawn: dict[str, Lines] = {}
    for name, steps in product(late.DATASETS, late.STEPS[:2]):
        own = drawn[f"{name}, {steps} steps"] = {}
        for sampler in samplers.__all__:
            each = [*zip(*distances(records, name, sampler, steps), strict=True)][1:]
            means = [Interval.student_t(values) for values in each]
            own[sampler] = late.STARTS[1:], [m.value for m in means], [m.margin for m in means]
    figure = panels(drawn, "Fréchet distance, lower is better", "log")
    for axis, title in zip(figure.axes, drawn, strict=True):
        name, steps = title.removesuffix(" steps").split(", ")
        for sampler, look in style.of_lines(samplers.__all__).items():
            whole = fmean(curve[0] for curve in distances(records, name, sampler, int(steps)))
            axis.axhline(whole, color=look["color"], linewidth=0.8, linestyle="--")
        level = predicted(records, name, "cosine")["speciation"][1]
        axis.axvline(level, color=style.GRAY, linewidth=0.8, linestyle=":")
    return figure
