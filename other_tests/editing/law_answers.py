"""The statements of the eight hypotheses of REGISTRATION.md, tables and plots, from the records."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import torch

from diffusion_lib import samplers, schedules, style
from diffusion_lib.metrics import Interval
from other_tests import common, registered
from other_tests.editing import late, law, measure
from other_tests.registered import minus

ALPHA = 0.05 / 8  # eight hypotheses
Statement = partial(registered.Statement, alpha=ALPHA)
Records = Mapping[str, Any]  # "law" and "late"
Row = Mapping[str, Any]
Lines = dict[str, tuple[Sequence[float], ...]]
LABEL, MIXTURES = "label kept", "mixtures"
MODELS = ("one Gaussian", MIXTURES, "training images")
# [Biroli 2024]: t = 430 of 1,000, linear, with pixels in [0, 1]; in [-1, 1] all is twice as large.
PUBLISHED = math.log2(float(schedules.linear().snr(torch.tensor(430)))) - 2
AGREEMENT = 0.775  # phi at which the published t is read
DIGITS, CLOTHES, PHOTOGRAPHS = "mnist", "fashion_mnist", "cifar10_jpeg"
PAIR = "ones_and_eights"
# Part, data set, model and range of hypothesis 1, in octaves.
MIDPOINTS = [
    ("1a digits", DIGITS, MIXTURES, (-0.1, 0.7)),
    ("1b clothes", CLOTHES, MIXTURES, (0.0, 1.2)),
    ("1c photographs", PHOTOGRAPHS, MIXTURES, (0.5, 3.0)),
    ("1c photographs", PHOTOGRAPHS, "training images", (1.5, 5.0)),
]


class MissingRowsError(LookupError):
    """What is asked of a record has not been measured, or not with all seeds."""


def records() -> dict[str, Any]:
    """Read the records as far as they are."""
    paths = {"law": law.OUT, "late": late.OUT}
    empty = {"predictions": [], "rows": []}
    return {n: empty | (common.load(p) if p.exists() else {}) for n, p in paths.items()}


# ---- what rows say ------------------------------------------------------------------------------


def crossing(row: Row, name: str, level: float = 0.5) -> float:
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


def predicted(records: Records, dataset: str, schedule: str) -> Row:
    """Return the predictions for a data set and a schedule, or a `MissingRowsError`."""
    rows = {(row["dataset"], row["schedule"]): row for row in records["law"]["predictions"]}
    if (dataset, schedule) not in rows:
        raise MissingRowsError(f"no prediction for {dataset}, {schedule}")
    return rows[dataset, schedule]


def values(
    records: Records,
    dataset: str,
    schedule: str,
    of: Callable[[Row], Any] = midpoint,
    variant: str = "",
) -> list[Any]:
    """Return a number of each seed's network; `MissingRowsError` if not all have been measured."""
    rows = {law.Job(*(row[f] for f in law.Job._fields)): row for row in records["law"]["rows"]}
    jobs = [law.Job(dataset, schedule, seed, variant) for seed in law.SEEDS]
    if missing := [job for job in jobs if job not in rows]:
        raise MissingRowsError(f"not measured: {missing[0]}")
    return [of(rows[job]) for job in jobs]


def schedules_of(dataset: str) -> list[str]:
    """List the schedules that networks of a data set are trained with."""
    return [*dict.fromkeys(job.schedule for job in law.jobs() if job.dataset == dataset)]


def over_schedules(
    records: Records, dataset: str, of: Callable[[Row], float] = midpoint
) -> list[float]:
    """Return the mean over the schedules of a number, for each seed."""
    each = [values(records, dataset, schedule, of) for schedule in schedules_of(dataset)]
    return [*map(fmean, zip(*each, strict=True))]


def lead(
    records: Records, model: str = MIXTURES, at: Callable[[Row, str], float] = midpoint
) -> Callable[[Row], float]:
    """Make the function of a network's row: how many octaves before a model it loses labels."""

    def octaves(row: Row) -> float:
        return at(row, LABEL) - at(predicted(records, row["dataset"], row["schedule"]), model)

    return octaves


# ---- hypotheses ---------------------------------------------------------------------------------


def midpoint_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 1: networks lose labels a little before perfect denoisers of what is modeled."""
    return [
        Statement(
            part,
            f"{name}, {schedule}: midpoint minus that of {model}",
            values(records, name, schedule, lead(records, model)),
            *limits,
        )
        for part, name, model, limits in MIDPOINTS
        for schedule in law.SCHEDULES
    ]


def nearly_all_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 2: the point at which 95 % of the labels are left is predicted too, for digits."""
    effect = over_schedules(records, DIGITS, lead(records, at=partial(crossing, level=0.95)))
    text = f"{DIGITS}: point of 95 % minus that of mixtures"
    return [Statement("2 the point of 95 %", text, effect, -0.5, 0.5)]


def schedule_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 3: schedules agree at the same signal-to-noise ratio."""
    made = []
    for one in ("linear", "flow"):
        of_sets = [
            minus(*(values(records, name, schedule) for schedule in (one, "cosine")))
            for name in (DIGITS, CLOTHES, PHOTOGRAPHS)
        ]
        text = f"midpoint, {one} minus cosine, mean of three data sets"
        effect = [*map(fmean, zip(*of_sets, strict=True))]
        made.append(Statement("3 schedules", text, effect, -0.3, 0.3))
    return made


def clone_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 4: clones of ones and eights part where it is published that they do."""
    effect = values(
        records, PAIR, "linear", lambda row: crossing(row, "clone agreement", AGREEMENT) - PUBLISHED
    )
    text = f"log2 SNR at which phi is {AGREEMENT}, minus the published {PUBLISHED:.2f}"
    return [Statement("4 clones", text, effect, -0.5, 0.5)]


def change_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 5: what changes is one thing, and large, where labels are lost."""
    made = []
    parts = {"susceptibility": "5a susceptibility", "correlation length": "5b correlation length"}
    for name, dataset in product(parts, (DIGITS, CLOTHES, PHOTOGRAPHS)):
        part = "5c photographs" if dataset == PHOTOGRAPHS else parts[name]
        effect = over_schedules(
            records, dataset, lambda row, name=name: peak_of(row, name) - midpoint(row)
        )
        text = f"{dataset}: peak of the {name} minus the midpoint"
        made.append(Statement(part, text, effect, -0.7, 0.7))
    return made


def order_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 6: the label of a digit goes before its shape."""
    made = []
    for name in measure.PROPERTIES:
        effect = over_schedules(
            records, DIGITS, lambda row, name=name: midpoint(row) - crossing(row, name)
        )
        text = f"{DIGITS}: midpoint minus the point at which half of the {name} is left"
        made.append(Statement("6 the order", text, effect, 0.1, 1.2))
    return made


def network_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 7: the window belongs to the data, not to the network."""
    made, plain = [], values(records, DIGITS, "cosine")
    for variant in filter(None, law.VARIANTS):
        effect = minus(values(records, DIGITS, "cosine", variant=variant), plain)
        text = f"{DIGITS}, cosine: midpoint, {variant} minus the usual"
        made.append(Statement("7 the network", text, effect, -0.3, 0.3))
    return made


# ---- late start ---------------------------------------------------------------------------------


def distances(records: Records, dataset: str, sampler: str, steps: int) -> list[list[float]]:
    """Return the Frechet distances from each of `late.STARTS`, for each seed."""
    rows = {tuple(row[key] for key in late.KEYS): row for row in records["late"]["rows"]}
    keys = [(dataset, seed, sampler, steps) for seed in law.SEEDS]
    if missing := [key for key in keys if key not in rows]:
        raise MissingRowsError(f"not measured: {missing[0]}")
    return [rows[key][late.MEASURE] for key in keys]


def best_start(records: Records, dataset: str, steps: int) -> list[float]:
    """Find the log2 SNR of the start with the smallest distance, mean of samplers, by seed.

    The vertex of a parabola, as `peak`, of the log of the distance.
    """
    each = [distances(records, dataset, sampler, steps) for sampler in samplers.__all__]
    logs = np.log(each)[:, :, 1:].mean(0)  # [seeds, starts but T]
    return [peak(late.STARTS[1:], [*-curve]) for curve in logs]


def usual_start(records: Records, dataset: str) -> int:
    """Choose the place in `late.STARTS` that is nearest to the speciation of classes."""
    between = predicted(records, dataset, "cosine")["speciation"][1]
    return min(range(1, len(late.STARTS)), key=lambda k: abs(late.STARTS[k] - between))


def late_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 8: with few steps a late start is better, and best where classes part."""
    made, steps = [], late.STEPS[0]
    for name, sampler in product(late.DATASETS, samplers.__all__):
        k = usual_start(records, name)
        gain = [curve[0] - curve[k] for curve in distances(records, name, sampler, steps)]
        text = f"{name}, {sampler}, {steps} steps: Frechet distance from T minus that from "
        made.append(Statement("8a a late start", f"{text}{late.STARTS[k]:g}", gain, 0.0))
    for name in late.DATASETS:
        between = predicted(records, name, "cosine")["speciation"][1]
        effect = [best - between for best in best_start(records, name, steps)]
        text = f"{name}, {steps} steps: best start minus {between:.2f}, the speciation of classes"
        made.append(Statement("8b the best start", text, effect, -1.0, 1.0))
    return made


MAKERS = [midpoint_statements, nearly_all_statements, schedule_statements, clone_statements]
MAKERS += [change_statements, order_statements, network_statements, late_statements]


def statements(records: Records) -> list[registered.Statement]:
    """Make the statements of all hypotheses whose rows are there."""
    made: list[registered.Statement] = []
    for make in MAKERS:
        with suppress(MissingRowsError):
            made += make(records)
    return made


# ---- tables -------------------------------------------------------------------------------------


def interval(numbers: Sequence[float]) -> Interval:
    """Estimate the mean over seeds at the level of this study."""
    return Interval.student_t(numbers, ALPHA)


def cell(numbers: Sequence[float]) -> str:
    """Write a log2 SNR, with its interval if there are several; "none" where it is NaN."""
    if not all(map(math.isfinite, numbers)):
        return "none"
    return f"{interval(numbers):.2f}" if len(numbers) > 1 else f"{numbers[0]:.2f}"


def datasets(records: Records) -> list[str]:
    """List the data sets that have been measured with all of their schedules."""
    names: list[str] = []
    for name in law.SOURCES:
        with suppress(MissingRowsError):
            over_schedules(records, name)
            names.append(name)
    return names


def points(records: Records) -> list[dict[str, str]]:
    """Make a table of the midpoint and of the point of 95 %, predicted and measured."""
    table = []
    for name in datasets(records):
        for schedule in schedules_of(name):
            row, known = {"data": name, "schedule": schedule}, predicted(records, name, schedule)
            for title, at in (("midpoint", midpoint), ("95 %", partial(crossing, level=0.95))):
                for model in MODELS:
                    row[f"{title}, {model}"] = cell([at(known, model)])
                own = values(records, name, schedule, partial(at, name=LABEL))
                row[f"{title}, networks"] = cell(own)
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
                row[dataset] = cell(over_schedules(records, dataset, of))
        table.append(row)
    return table


def late_rows(records: Records) -> list[dict[str, str]]:
    """Make the table of few steps with a late start."""
    table = []
    for name, sampler, steps in product(late.DATASETS, samplers.__all__, late.STEPS):
        curves, k = distances(records, name, sampler, steps), usual_start(records, name)
        whole, chosen = ([curve[place] for curve in curves] for place in (0, k))
        row = {"data": name, "sampler": f"`{sampler}`", "steps": f"{steps}"}
        row |= {"from T": f"{interval(whole)}", f"from {late.STARTS[k]:g}": f"{interval(chosen)}"}
        table.append(row | {"gain": f"{interval(minus(whole, chosen))}"})
    return table


# ---- plots --------------------------------------------------------------------------------------


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
    drawn: dict[str, Lines] = {}
    for name in datasets(records):
        own = drawn[name] = {}
        for model in MODELS:
            row = predicted(records, name, "linear")
            own[model] = row["log2 snr"], row["measures"][model]
        for schedule in schedules_of(name):
            own[f"networks, {schedule}"] = line(records, name, LABEL, schedule)
    return panels(drawn, LABEL)


def changes(records: Records) -> style.Plot:
    """Draw the agreement of clones, and susceptibility and length as shares of their largest."""
    drawn: dict[str, Lines] = {}
    for name in ("clone agreement", "susceptibility", "correlation length"):
        own = drawn[name] = {}
        for dataset in datasets(records):
            x, y = line(records, dataset, name)
            top = 1.0 if name == "clone agreement" else max(y)
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
