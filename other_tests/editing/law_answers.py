"""The statements of the eight hypotheses of REGISTRATION.md, from the records."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from statistics import fmean, variance
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion_lib import samplers, schedules
from other_tests import common, registered
from other_tests.editing import late, law, measure
from other_tests.editing.points import LABEL, Row, crossing, midpoint, nearly_all, peak, peak_of
from other_tests.registered import minus

ALPHA = 0.05 / 8  # eight hypotheses
OCTAVES, LOG_RATIO = "log2 SNR", "log of the Fréchet distance"  # units
Statement = partial(registered.Statement, alpha=ALPHA, unit=OCTAVES)
Records = Mapping[str, Any]  # "law" and "late"
MIXTURES = "mixtures"
MODELS = ("one Gaussian", MIXTURES, "training images")
AGREEMENT = 0.775  # phi at which a published t is read
# [Biroli 2024]: two classes, linear schedule, T = 1000, one network each, pixels in [0, 1].  The
# largest eigenvalue of the covariance, t predicted, and t at which phi is AGREEMENT, from what the
# authors published: Saves/Exp_spec of tbonnair/Dynamical-Regimes-of-Diffusion-Models.
ANCHORS = {
    "MNIST, 1 against 8": (7.66, 446, 430),
    "CIFAR-10": (16.72, 526, 432),
    "ImageNet, 16 pixels": (3.05, 329, 336),
    "ImageNet, 32 pixels": (12.11, 495, 475),
    "LSUN": (60.52, 635, 546),
}
DIGITS, CLOTHES, PHOTOGRAPHS = "mnist", "fashion_mnist", "cifar10_jpeg"
PAIR = "ones_and_eights"
# Part, data set, model and range of hypothesis 1, in octaves.
MIDPOINTS = [
    ("1a digits", DIGITS, MIXTURES, (-0.1, 0.7)),
    ("1b clothes", CLOTHES, MIXTURES, (0.0, 1.2)),
    ("1c photographs", PHOTOGRAPHS, MIXTURES, (0.5, 3.0)),
    ("1c photographs", PHOTOGRAPHS, "training images", (1.5, 5.0)),
]


def published_log2_snr(t: int) -> float:
    """Return the log2 SNR of a published t in pixels of [-1, 1], where all is twice as large."""
    return math.log2(float(schedules.linear().snr(torch.tensor(t)))) - 2


PUBLISHED = published_log2_snr(ANCHORS["MNIST, 1 against 8"][-1])


class MissingRowsError(LookupError):
    """What is asked of a record has not been measured, or not with all seeds."""


def records() -> dict[str, Any]:
    """Read the records as far as they are."""
    paths = {"law": law.OUT, "late": late.OUT}
    empty = {"predictions": [], "rows": []}
    return {n: empty | (common.load(p) if p.exists() else {}) for n, p in paths.items()}


# ---- what rows say ------------------------------------------------------------------------------


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


def datasets(records: Records) -> list[str]:
    """List the data sets that have been measured with all of their schedules."""
    names: list[str] = []
    for name in law.SOURCES:
        with suppress(MissingRowsError):
            over_schedules(records, name)
            names.append(name)
    return names


def lead(
    records: Records, model: str = MIXTURES, at: Callable[[Row, str], float] = midpoint
) -> Callable[[Row], float]:
    """Make the function of a network's row: how many octaves before a model it loses labels."""

    def octaves(row: Row) -> float:
        return at(row, LABEL) - at(predicted(records, row["dataset"], row["schedule"]), model)

    return octaves


def pooled(cells: Sequence[Sequence[float]], factor: float = 1.0) -> dict[str, Any]:
    """Estimate the standard deviation that cells share, each with its own mean.

    Returns:
        Settings of a `Statement`: the deviation times the factor, and its degrees of freedom.
    """
    finite = [cell for cell in cells if all(map(math.isfinite, cell))]
    degrees = sum(len(cell) - 1 for cell in finite)
    squares = sum((len(cell) - 1) * variance(cell) for cell in finite)
    deviation = factor * math.sqrt(squares / max(degrees, 1))
    return {"deviation": deviation, "degrees": degrees}


def spread(
    records: Records, dataset: str, of: Callable[[Row], float] = midpoint, factor: float = 1.0
) -> dict[str, Any]:
    """Return `pooled` of all networks of a data set that have been measured with all seeds."""
    cells: list[list[float]] = []
    for job in law.jobs()[:: len(law.SEEDS)]:
        if job.dataset == dataset:
            with suppress(MissingRowsError):
                cells.append(values(records, dataset, job.schedule, of, job.variant))
    return pooled(cells, factor)


# ---- hypotheses ---------------------------------------------------------------------------------


def midpoint_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 1: networks lose labels a little before perfect denoisers of what is modeled."""
    return [
        Statement(
            part,
            f"{name}, {schedule}: midpoint minus that of {model}",
            values(records, name, schedule, lead(records, model)),
            *limits,
            **spread(records, name),
        )
        for part, name, model, limits in MIDPOINTS
        for schedule in law.SCHEDULES
    ]


def schedule_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 3: schedules agree at the same signal-to-noise ratio."""
    made = []
    for name, one in product((DIGITS, CLOTHES, PHOTOGRAPHS), ("linear", "flow")):
        effect = minus(*(values(records, name, schedule) for schedule in (one, "cosine")))
        text = f"{name}: midpoint, {one} minus cosine"
        known = spread(records, name, factor=math.sqrt(2))
        made.append(Statement("3 schedules", text, effect, -0.3, 0.3, **known))
    return made


def clone_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 4: clones of ones and eights part where it is published that they do."""
    effect = values(
        records, PAIR, "linear", lambda row: crossing(row, "clone agreement", AGREEMENT) - PUBLISHED
    )
    text = f"log2 SNR at which phi is {AGREEMENT}, minus the published {PUBLISHED:.2f}"
    return [Statement("4 clones", text, effect, -0.5, 0.5)]


def network_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 7: the window belongs to the data, not to the network."""
    made, usual = [], values(records, DIGITS, "cosine")
    for variant in filter(None, law.VARIANTS):
        effect = minus(values(records, DIGITS, "cosine", variant=variant), usual)
        text = f"{DIGITS}, cosine: midpoint, {variant} minus the usual"
        known = spread(records, DIGITS, factor=math.sqrt(2))
        made.append(Statement("7 the network", text, effect, -0.3, 0.3, **known))
    return made


class Mean(NamedTuple):
    """A statement about a number of each network of a data set, mean of the schedules."""

    part: str
    dataset: str
    text: str
    of: Callable[[Row], float]
    low: float
    high: float


def nearly_all_means(records: Records) -> list[Mean]:
    """Hypothesis 2: the point at which 95 % of the labels are left is predicted too, for digits."""
    of = lead(records, at=nearly_all)
    text = "point of 95 % minus that of mixtures"
    return [Mean("2 the point of 95 %", DIGITS, text, of, -0.5, 0.5)]


def change_means(records: Records) -> list[Mean]:
    """Hypothesis 5: what changes is one thing, and large, where labels are lost."""
    made = []
    parts = {"susceptibility": "5a susceptibility", "correlation length": "5b correlation length"}
    for name, dataset in product(parts, (DIGITS, CLOTHES, PHOTOGRAPHS)):
        part = "5c photographs" if dataset == PHOTOGRAPHS else parts[name]
        text = f"peak of the {name} minus the midpoint"

        def of(row: Row, name: str = name) -> float:
            return peak_of(row, name) - midpoint(row)

        made.append(Mean(part, dataset, text, of, -0.7, 0.7))
    return made


def order_means(records: Records) -> list[Mean]:
    """Hypothesis 6: the label of a digit goes before its shape."""
    made = []
    for name in measure.PROPERTIES:
        text = f"midpoint minus the point at which half of the {name} is left"

        def of(row: Row, name: str = name) -> float:
            return midpoint(row) - crossing(row, name)

        made.append(Mean("6 the order", DIGITS, text, of, 0.1, 1.2))
    return made


MEANS = [nearly_all_means, change_means, order_means]


def mean_statements(
    make: Callable[[Records], list[Mean]], records: Records
) -> list[registered.Statement]:
    """Make the statements of a hypothesis about means of schedules.

    The spread is that of one schedule: as if a seed moved those of all schedules by as much.
    """
    return [
        Statement(
            mean.part,
            f"{mean.dataset}: {mean.text}",
            over_schedules(records, mean.dataset, mean.of),
            mean.low,
            mean.high,
            **spread(records, mean.dataset, mean.of),
        )
        for mean in make(records)
    ]


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


def gains(records: Records, steps: int) -> dict[tuple[str, str], list[float]]:
    """Compute the log of the Frechet distance from T over that from `usual_start`, by seed.

    By data set and sampler.
    """
    made = {}
    for name, sampler in product(late.DATASETS, samplers.__all__):
        k = usual_start(records, name)
        curves = distances(records, name, sampler, steps)
        made[name, sampler] = [math.log(curve[0] / curve[k]) for curve in curves]
    return made


def gain_spread(by_sampler: Mapping[Any, Sequence[float]]) -> dict[str, Any]:
    """Return `pooled` of `gains`, with the degrees of freedom of networks: samplers share them."""
    networks = {"degrees": len(late.DATASETS) * (len(law.SEEDS) - 1)}
    return pooled([*by_sampler.values()]) | networks


def late_statements(records: Records) -> list[registered.Statement]:
    """Hypothesis 8: with few steps a late start is better, and best where classes part."""
    made, steps = [], late.STEPS[0]
    by_sampler, unit = gains(records, steps), {"unit": LOG_RATIO}
    for (name, sampler), gain in by_sampler.items():
        start = late.STARTS[usual_start(records, name)]
        text = f"{name}, {sampler}, {steps} steps: log Frechet distance from T minus that from "
        known = unit | gain_spread(by_sampler)
        made.append(Statement("8a a late start", f"{text}{start:g}", gain, 0.0, **known))
    between = {n: predicted(records, n, "cosine")["speciation"][1] for n in late.DATASETS}
    effects = {
        name: [best - level for best in best_start(records, name, steps)]
        for name, level in between.items()
    }
    for name, effect in effects.items():
        text = f"{name}, {steps} steps: best start minus {between[name]:.2f}, where classes part"
        known = pooled([*effects.values()])
        made.append(Statement("8b the best start", text, effect, -1.0, 1.0, **known))
    return made


MAKERS: list[Callable[[Records], list[registered.Statement]]] = [
    *(midpoint_statements, partial(mean_statements, nearly_all_means)),
    *(schedule_statements, clone_statements, partial(mean_statements, change_means)),
    *(partial(mean_statements, order_means), network_statements, late_statements),
]


def statements(records: Records) -> list[registered.Statement]:
    """Make the statements of all hypotheses whose rows are there."""
    made: list[registered.Statement] = []
    for make in MAKERS:
        with suppress(MissingRowsError):
            made += make(records)
    return made
