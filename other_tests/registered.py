"""Verdicts on hypotheses that were registered before their study was run.

A hypothesis is one or more statements: a range, and one value for each seed whose mean should lie
in it.  Student's interval over seeds, at a level divided by the number of hypotheses [Bonferroni],
lies in the range (supported), out of it (refuted) or neither (undecided).  Its spread is that of
the values, or a better known one that a study gives.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from scipy import special

from diffusion_lib import compare, style, viz
from diffusion_lib.metrics import Interval

COLORS = {"supported": style.GREEN, "refuted": style.VERMILLION, "undecided": style.GRAY}
DISTANCE = "Frechet distance"  # the measure that decides about samples


class Statement(NamedTuple):
    """A part of a hypothesis: a range, and one value for each seed whose mean should lie in it."""

    hypothesis: str
    text: str
    values: Sequence[float]
    low: float = -math.inf
    high: float = math.inf
    alpha: float = 0.05  # of the study, divided by the number of its hypotheses
    unit: str = ""  # of the values, which a plot shares among statements
    deviation: float = 0.0  # standard deviation of a value, from more than these; 0: from these
    degrees: int = 0  # of freedom of that deviation

    def interval(self, parts: int = 1) -> Interval:
        """Estimate the mean at the level of the study, divided by a number of parts."""
        alpha = self.alpha / parts
        if not self.deviation or not all(map(math.isfinite, self.values)):
            return Interval.student_t(self.values, alpha)
        mean, t = fmean(self.values), float(special.stdtrit(self.degrees, 1 - alpha / 2))
        margin = t * self.deviation / math.sqrt(len(self.values))
        return Interval(mean, mean - margin, mean + margin)

    def judge(self, parts: int = 1) -> str:
        """Say whether the interval lies in the range, out of it, or neither."""
        no_spread = not self.deviation and len(set(self.values)) == 1
        if no_spread or not all(map(math.isfinite, self.values)):
            return "undecided"
        effect = self.interval(parts)
        if self.low <= effect.low and effect.high <= self.high:
            return "supported"
        is_out = effect.high < self.low or effect.low > self.high
        return "refuted" if is_out else "undecided"

    def range_in_words(self) -> str:
        """Describe the range in words."""
        low, high = f"{self.low:.3g}", f"{self.high:.3g}"
        if math.isinf(self.high):
            return f"above {low}"
        return f"below {high}" if math.isinf(self.low) else f"{low} to {high}"


def load(paths: Mapping[str, Path], seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Read the records of studies that are there and hold all registered seeds, by their names."""
    there = {name: compare.load(path) for name, path in paths.items() if path.exists()}
    return {name: record for name, record in there.items() if {*seeds} <= {*record["seeds"]}}


def make(
    makers: Mapping[Callable[[Mapping[str, Any]], list[Statement]], Sequence[str]],
    by_study: Mapping[str, Any],
) -> list[Statement]:
    """Make the statements of all hypotheses whose records are there.

    Args:
        makers: function from the records to statements -> names of the records that it needs.
        by_study: records by the names of their studies.
    """
    return [
        statement
        for of_hypothesis, needed in makers.items()
        if all(name in by_study for name in needed)
        for statement in of_hypothesis(by_study)
    ]


def verdict(parts: Sequence[Statement]) -> str:
    """Judge a hypothesis by its statements.

    It is supported if all of them are, and refuted if one of them is at a level that is divided by
    their number besides.
    """
    if any(part.judge(len(parts)) == "refuted" for part in parts):
        return "refuted"
    return "supported" if all(part.judge() == "supported" for part in parts) else "undecided"


def verdicts(statements: Sequence[Statement]) -> dict[str, str]:
    """Judge the hypotheses that statements belong to, by their names."""
    parts: dict[str, list[Statement]] = {}
    for statement in statements:
        parts.setdefault(statement.hypothesis, []).append(statement)
    return {name: verdict(of_name) for name, of_name in parts.items()}


def rows(statements: Sequence[Statement]) -> list[dict[str, str]]:
    """Make the table of statements."""
    return [
        {
            "hypothesis": s.hypothesis,
            "statement": s.text,
            "expected": s.range_in_words(),
            "measured": f"{s.interval()}",
            "verdict": s.judge(),
        }
        for s in statements
    ]


def minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return the differences of values that share a seed."""
    return [a - b for a, b in zip(one, other, strict=True)]


def gap(record: Mapping[str, Any], one: str, other: str, steps: int) -> list[float]:
    """Return the Frechet distance of an arm minus that of another, for each seed."""
    return minus(*(compare.values(record, DISTANCE, arm, steps) for arm in (one, other)))


def gaps(record: Mapping[str, Any], one: str, other: str) -> dict[int, list[float]]:
    """Return the `gap` of two arms by the number of images that they have seen."""
    batch_size = record["arms"][one]["train"]["batch_size"]
    return {batch_size * steps: gap(record, one, other, steps) for steps in record["steps"]}


def crossing(
    by_images: Mapping[int, Sequence[float]], seeds: Sequence[int] | None = None
) -> int | None:
    """Return the number of images from which on a gap is above 0 in the mean, None if it never is.

    From there on the other arm has the smaller distance.

    Args:
        by_images: `gaps` at each seed, by the number of images seen, which grows.
        seeds: indices of the seeds to average over, which a bootstrap repeats.
    """
    since = None
    for images, values in by_images.items():
        mean = fmean([values[k] for k in seeds] if seeds else values)
        since = (since or images) if mean > 0 else None
    return since


def crossing_interval(
    by_images: Mapping[int, Sequence[float]], resamples: int = 2000
) -> list[int | None]:
    """Return the middle 95 % of the crossing, by a bootstrap over seeds; None is never."""
    draw, seeds = random.Random(0), range(len(next(iter(by_images.values()))))
    images = [crossing(by_images, draw.choices(seeds, k=len(seeds))) for _ in range(resamples)]
    ordered = sorted(images, key=lambda n: math.inf if n is None else n)
    return [ordered[round(q * (resamples - 1))] for q in (0.025, 0.975)]


def crossing_rows(
    by_sampler: Mapping[str, Mapping[str, Any]], one: str, other: str, alpha: float
) -> list[dict[str, str]]:
    """Make a table of the gap of two arms, by sampler and images seen, and where it turns.

    Args:
        by_sampler: records by the names of their samplers.
        one: arm that is behind from the crossing on.
        other: arm that is ahead from there on.
        alpha: of the intervals; those of the crossing hold the middle 95 % of a bootstrap.
    """
    table = []
    for sampler, record in by_sampler.items():
        by_images, row = gaps(record, one, other), {"sampler": sampler}
        for images, values in by_images.items():
            row[f"{images:,} images"] = f"{Interval.student_t(values, alpha):+.1f}"
        ends = [crossing(by_images), *crossing_interval(by_images)]
        longest = f"> {max(by_images):,}"
        since, low, high = (longest if n is None else f"{n:,}" for n in ends)
        table.append(row | {f"{other} ahead from": f"{since} [{low}, {high}]"})
    return table


def draw_crossing(by_sampler: Mapping[str, Mapping[str, Any]], alpha: float) -> style.Plot:
    """Draw the distance of samples against the images seen, a panel for each sampler.

    Arguments as of `crossing_rows`.
    """
    panels = {
        sampler: {arm: compare.series(record, DISTANCE, arm, alpha) for arm in record["arms"]}
        for sampler, record in by_sampler.items()
    }
    return viz.curve(panels, "images seen", "Fréchet distance", y_scale="log")


@style.look
def draw(statements: Sequence[Statement]) -> style.Plot:
    """Draw statements of one unit: their intervals, and the ranges expected, shaded."""
    figure = style.figure(size=(9, 0.5 + 0.24 * len(statements)))
    (axis,) = figure.axes
    spans = [statement.interval() for statement in statements]
    ends = [end for s in (*spans, *statements) for end in (s.low, s.high) if math.isfinite(end)]
    margin = 0.02 * (max(ends) - min(ends))
    low, high = min(ends) - margin, max(ends) + margin
    for place, (statement, span) in enumerate(zip(statements, spans, strict=True)):
        expected = max(low, statement.low), min(high, statement.high)
        rows = [place - 0.4, place + 0.4]
        axis.fill_betweenx(rows, *expected, color=style.GRAY, alpha=0.12, linewidth=0)
        color = COLORS[statement.judge()]
        axis.plot([span.low, span.high], [place] * 2, color=color, linewidth=2)
        axis.plot(span.value, place, "o", color=color, markersize=4)
    names = [style.words(f"{s.hypothesis.split()[0]}  {s.text}") for s in statements]
    axis.set(
        ylim=(len(names) - 0.4, -0.6),
        xlim=(low, high),
        xlabel=f"{style.words(statements[0].unit)}, difference",
    )
    style.plain_ticks(axis)
    axis.set_yticks(range(len(names)), names)
    axis.grid(False, axis="y")
    return figure
