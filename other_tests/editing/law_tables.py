"""Tables of the study of what survives noise, from its records."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from statistics import fmean
from typing import Any

import torch

from diffusion_lib.metrics import Interval
from other_tests.editing import late, law
from other_tests.editing.law_answers import (
    AGREEMENT,
    ANCHORS,
    MEANS,
    MODELS,
    PAIR,
    MissingRowsError,
    Records,
    Statement,
    datasets,
    distances,
    gain_spread,
    gains,
    over_schedules,
    predicted,
    published_log2_snr,
    schedules_of,
    spread,
    usual_start,
    values,
)
from other_tests.editing.points import LABEL, WINDOW, Row, at_level, crossing, midpoint, peak_of


def cell(numbers: Sequence[float], known: Mapping[str, Any]) -> str:
    """Write the mean over seeds with its interval at the level of the study; "none" for NaN.

    Args:
        numbers: a number of each seed.
        known: their `spread`.
    """
    if not all(map(math.isfinite, numbers)):
        return "none"
    return f"{Statement('', '', numbers, **known).interval():.2f}"


def with_deviation(value: float, deviation: float | None) -> str:
    """Write a point of a curve, and how far it varies with the choice of the images."""
    if not math.isfinite(value):
        return "none"
    return f"{value:.2f} ± {deviation:.2f}" if deviation is not None else f"{value:.2f}"


def points(records: Records) -> list[dict[str, str]]:
    """Make a table of the points of the window, predicted and measured, beside the speciation.

    Predictions have the standard deviation over the choice of images, those of networks the
    interval over seeds and that deviation, of the first seed.
    """
    table = []
    for name in datasets(records):
        for schedule in schedules_of(name):
            row, known = {"data": name, "schedule": schedule}, predicted(records, name, schedule)
            for title, at in WINDOW.items():
                for model in MODELS:
                    off = known["deviations"][model][title]
                    row[f"{title}, {model}"] = with_deviation(at(known, model), off)
                own, of_name = values(records, name, schedule, at), spread(records, name, at)
                row[f"{title}, networks"] = cell(own, of_name)
                off = values(records, name, schedule, lambda row: row["deviations"][LABEL])[0]
                row[f"{title}, networks, over images"] = f"± {off[title]:.2f}" if off[title] else ""
            for title, level in zip(("all", "classes"), known["speciation"], strict=True):
                row[f"speciation, {title}"] = f"{level:.2f}"
            table.append(row)
    return table


def parts(records: Records) -> list[dict[str, str]]:
    """Make a table of what hypotheses 2, 5 and 6 say in the mean, schedule by schedule."""
    table = []
    for mean in (mean for make in MEANS for mean in make(records)):
        with suppress(MissingRowsError):
            row = {"hypothesis": mean.part, "data": mean.dataset, "statement": mean.text}
            known = spread(records, mean.dataset, mean.of)
            for schedule in schedules_of(mean.dataset):
                row[schedule] = cell(values(records, mean.dataset, schedule, mean.of), known)
            table.append(row)
    return table


def order(records: Records) -> list[dict[str, str]]:
    """Make a table of the log2 SNR at which each signal is half gone, and changes are largest."""
    wanted: dict[str, Callable[[Row], float]] = {"label": midpoint}
    for name in dict.fromkeys(name for row in records["law"]["rows"] for name in row["measures"]):
        if name.startswith(("susceptibility", "correlation length")):
            wanted[f"peak of the {name}"] = partial(peak_of, name=name)
        elif name not in (LABEL, "clone agreement"):
            wanted[name] = partial(crossing, name=name)
    table = []
    for title, of in wanted.items():
        row = {"": title}
        for dataset in datasets(records):
            row[dataset] = ""
            with suppress(LookupError):  # a property that pictures of this kind have not
                mean = over_schedules(records, dataset, of)
                row[dataset] = cell(mean, spread(records, dataset, of))
        table.append(row)
    return table


def how_far(records: Records) -> list[dict[str, str]]:
    """Make a table of what `survival.how_far` says, and of the labels that networks keep there."""
    table = []
    for name in datasets(records):
        for schedule in schedules_of(name):
            given = predicted(records, name, schedule)["how far"]
            t = Interval(*given["t"])
            level = float(law.SCHEDULES[schedule](1000).snr(torch.tensor(int(t.value))).log2())
            at = partial(at_level, log2_snr=level)
            own = cell(values(records, name, schedule, at), spread(records, name, at))
            row = {"data": name, "schedule": schedule, "share to keep": f"{given['keep']:.3g}"}
            row |= {"t": f"{t:.0f}", "log2 SNR": f"{level:.2f}", "networks keep": own}
            table.append(row)
    return table


def anchors(records: Records) -> list[dict[str, str]]:
    """Make a table of the published points at which clones part, and of ours: log2 SNR."""
    table = []
    for name, (eigenvalue, *times) in ANCHORS.items():
        level, own = (f"{published_log2_snr(t):.2f}" for t in times)
        row = {"data": f"{name}, published", "largest eigenvalue": f"{4 * eigenvalue:.3g}"}
        table.append(row | {"predicted": level, "measured": own})
    with suppress(MissingRowsError):
        at = partial(crossing, name="clone agreement", level=AGREEMENT)
        own, level = values(records, PAIR, "linear", at), predicted(records, PAIR, "linear")
        total = level["speciation"][0]
        row = {"data": "MNIST, 1 against 8, ours", "largest eigenvalue": f"{2**-total:.3g}"}
        row |= {"predicted": f"{total:.2f}", "measured": cell(own, spread(records, PAIR, at))}
        table.insert(1, row)
    return table


def late_rows(records: Records) -> list[dict[str, str]]:
    """Make the table of few steps with a late start: mean distances, and the log of their ratio."""
    table = []
    for steps in late.STEPS:
        by_sampler = gains(records, steps)
        for (name, sampler), gain in by_sampler.items():
            curves, k = distances(records, name, sampler, steps), usual_start(records, name)
            row = {"data": name, "sampler": f"`{sampler}`", "steps": f"{steps}"}
            for title, place in (("from T", 0), ("from the speciation of classes", k)):
                row[title] = f"{fmean(curve[place] for curve in curves):.3g}"
            table.append(row | {"log of the ratio": cell(gain, gain_spread(by_sampler))})
    return table
