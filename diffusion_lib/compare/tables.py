"""Tables and series from the record of a study; nothing is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from diffusion_lib import config
from diffusion_lib.compare.record import rows as rows_of
from diffusion_lib.metrics import Interval


@dataclass(frozen=True)
class Difference(Interval):
    """The mean difference of two arms over n seeds that they share."""

    standard_error: float  # of the paired difference
    unpaired_standard_error: float  # had the arms not shared their seeds
    n: int

    @property
    def verdict(self) -> str:
        """Return "lower", "higher" or "not distinguishable"."""
        if 0 in self:
            return "not distinguishable"
        return "lower" if self.value < 0 else "higher"

    def cells(self) -> dict[str, Any]:
        """Return the cells of a table's row."""
        return {"difference": self, "verdict": self.verdict}


def values(record: Mapping[str, Any], measure: str, arm: str, steps: int) -> list[float]:
    """Return a measure of an arm after a number of steps, for each seed."""
    return [
        config.lookup(measure, row["measures"], "measure") for row in rows_of(record, arm, steps)
    ]


def difference(
    record: Mapping[str, Any],
    measure: str,
    steps: int,
    arm: str | Sequence[str],
    other: str | Sequence[str],
) -> Difference:
    """Return a measure of one arm minus that of another, paired by seed.

    Args:
        record: record of a study.
        measure: name of the measure.
        steps: number of training steps.
        arm: name of an arm; several stand for their mean, so that the effect of one choice can be
            averaged over the others that a study crosses with it.
        other: name or names of what is subtracted.
    """
    sides, sets = [], set()
    for names in (arm, other):
        names = [names] if isinstance(names, str) else names
        measured = [values(record, measure, name, steps) for name in names]
        sides.append([fmean(of_seed) for of_seed in zip(*measured, strict=True)])
        sets |= {record["arms"][name]["dataset"] for name in names}
    if len(sets) > 1:
        raise ValueError(
            f"arms of different data sets cannot be compared: {', '.join(sorted(sets))}"
        )
    return paired(*sides)


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Return the mean of one - other, [n] each, n >= 2; entries of one index share a seed."""
    gaps, n = [a - b for a, b in zip(one, other, strict=True)], len(one)
    standard_error = stdev(gaps) / math.sqrt(n)
    unpaired = math.hypot(stdev(one), stdev(other)) / math.sqrt(n)
    mean = Interval.student_t(gaps)
    return Difference(mean.value, mean.low, mean.high, standard_error, unpaired, n)


def differences(
    record: Mapping[str, Any], measure: str, steps: int, baseline: str | None = None
) -> list[dict[str, Any]]:
    """Return rows for `viz.table`: arms of a data set against one of them, by default the first."""
    baseline = baseline or next(iter(record["arms"]))
    config.lookup(baseline, record["arms"], "arm")
    dataset = record["arms"][baseline]["dataset"]
    arms = [arm for arm, fields in record["arms"].items() if fields["dataset"] == dataset]
    arms.remove(baseline)
    if not arms:
        raise ValueError(f"no other arm is trained on {dataset}, the data set of {baseline!r}")
    means = {arm: f"{fmean(values(record, measure, arm, steps)):.4g}" for arm in (baseline, *arms)}
    rows = [
        {"arm": arm, measure: means[arm]}
        | difference(record, measure, steps, arm, baseline).cells()
        for arm in arms
    ]
    first = {"arm": f"{baseline} (baseline)", measure: means[baseline]}
    return [dict.fromkeys(rows[0], "") | first, *rows]


def pairwise_differences(
    record: Mapping[str, Any], measure: str, steps: int, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return rows for `viz.table`: the difference of each pair of arms."""
    rows = []
    for arm, other in pairs:
        images_seen = f"{rows_of(record, arm, steps)[0]['images seen']:,}"
        cells = difference(record, measure, steps, arm, other).cells()
        rows.append({"images seen": images_seen, "arm": arm, "minus": other} | cells)
    return rows


def variance_reduction(record: Mapping[str, Any], steps: int) -> list[dict[str, str]]:
    """Return rows for `viz.table`: the effect of shared seeds on each measure.

    The standard errors of the differences of all pairs of arms of one data set, as they are and as
    they would have been unpaired: the square root of their mean squares, and their ratio.  Below
    1, pairing has helped.
    """
    arms = record["arms"]
    pairs = [(a, b) for a, b in combinations(arms, 2) if arms[a]["dataset"] == arms[b]["dataset"]]
    rows = []
    for measure in record["measured"][0]["measures"]:
        estimates = [difference(record, measure, steps, *pair) for pair in pairs]
        paired_error = math.sqrt(fmean(d.standard_error**2 for d in estimates))
        unpaired_error = math.sqrt(fmean(d.unpaired_standard_error**2 for d in estimates))
        row = {"measure": measure, "pairs of arms": str(len(pairs))}
        row |= {"standard error": f"{paired_error:.3g}", "if unpaired": f"{unpaired_error:.3g}"}
        ratio = f"{paired_error / unpaired_error:.2f}" if unpaired_error else ""
        rows.append(row | {"ratio": ratio})
    return rows


def series(
    record: Mapping[str, Any], measure: str, arm: str, alpha: float = 0.05
) -> tuple[list[int], list[float], list[float]]:
    """Return images seen, mean over seeds and its margin at 1 - `alpha`, for `viz.curve`."""
    means = [Interval.student_t(values(record, measure, arm, n), alpha) for n in record["steps"]]
    images_seen = [rows_of(record, arm, n)[0]["images seen"] for n in record["steps"]]
    return images_seen, [mean.value for mean in means], [mean.margin for mean in means]


def table(record: Mapping[str, Any], measures: Sequence[str], steps: int) -> list[dict[str, str]]:
    """Return rows for `viz.table`: mean over seeds +- 95 % margin of each arm; then the floor."""
    rows = []
    for arm in record["arms"]:
        row = {"arm": arm}
        for measure in measures:
            mean = Interval.student_t(values(record, measure, arm, steps))
            row[measure] = f"{mean.value:.3g} ± {mean.margin:.2g}"
        rows.append(row)
    for dataset, floor in record["floor"].items():
        cells = {name: f"{floor[name]:.3g}" if name in floor else "" for name in measures}
        rows.append({"arm": f"floor: {dataset} training images"} | cells)
    return rows


def errors(
    record: Mapping[str, Any], kind: str, arm: str, steps: int
) -> tuple[list[int], list[float]]:
    """Return times and mean errors over seeds of "x_0", "eps", "v" or "bound", for `viz.curve`."""
    rows = rows_of(record, arm, steps)
    config.lookup(kind, rows[0]["errors"], "error")
    columns = zip(*(row["errors"][kind] for row in rows), strict=True)
    return rows[0]["errors"]["t"], [fmean(column) for column in columns]
