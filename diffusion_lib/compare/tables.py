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


def values(record: Mapping[str, Any], measure: str, arm: str, steps: int) -> list[float]:
    """Return a measure of an arm after a number of steps, for each seed.

    Raises:
        ValueError: no such arm, steps or measure.
    """
    found = rows_of(record, arm, steps)
    for row in found:
        config.choose(measure, row["measures"], "measure")
    return [row["measures"][measure] for row in found]


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

    Raises:
        ValueError: no such arms, steps or measure; arms of different data sets, whose measures
            are not of one kind.
    """
    named = [[names] if isinstance(names, str) else list(names) for names in (arm, other)]
    sides = []
    for names in named:
        found = [values(record, measure, name, steps) for name in names]
        sides.append([fmean(of_seed) for of_seed in zip(*found, strict=True)])
    if len(sets := {record["arms"][name]["dataset"] for names in named for name in names}) > 1:
        raise ValueError(
            f"arms of different data sets cannot be compared: {', '.join(sorted(sets))}"
        )
    return paired(*sides)


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Return the mean of one - other; entries of one index share a seed.

    Raises:
        ValueError: different lengths, or fewer than 2 entries.
    """
    n = len(one)
    if n != len(other) or n < 2:
        raise ValueError(
            f"pairs need two equally long lists, at least 2 each; got {n}, {len(other)}"
        )
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    standard_error = stdev(gaps) / math.sqrt(n)
    unpaired = math.hypot(stdev(one), stdev(other)) / math.sqrt(n)
    mean = Interval.student_t(gaps)
    return Difference(mean.value, mean.low, mean.high, standard_error, unpaired, n)


def differences(
    record: Mapping[str, Any], measure: str, steps: int, baseline: str | None = None
) -> list[dict[str, str]]:
    """Return rows for `viz.table`: arms of a data set against one of them, by default the first.

    Raises:
        ValueError: no such arm, steps or measure; a baseline alone with its data set.
    """
    baseline = baseline or next(iter(record["arms"]))
    config.choose(baseline, record["arms"], "arm")
    dataset = record["arms"][baseline]["dataset"]
    alike = [arm for arm, told in record["arms"].items() if told["dataset"] == dataset]
    pairs = [(arm, baseline) for arm in alike if arm != baseline]
    if not pairs:
        raise ValueError(f"no other arm is trained on {dataset}, the data set of {baseline!r}")
    rows = []
    for row, (arm, _) in zip(
        pairwise_differences(record, measure, steps, pairs), pairs, strict=True
    ):
        mean = {"arm": arm, measure: f"{fmean(values(record, measure, arm, steps)):.4g}"}
        del row["images seen"], row["arm"], row["minus"]
        rows.append(mean | row)
    mean = fmean(values(record, measure, baseline, steps))
    first = dict.fromkeys(rows[0], "")
    return [first | {"arm": f"{baseline} (baseline)", measure: f"{mean:.4g}"}, *rows]


def pairwise_differences(
    record: Mapping[str, Any], measure: str, steps: int, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, str]]:
    """Return rows for `viz.table`: the difference of each pair of arms.

    Raises:
        ValueError: no such arms, steps or measure.
    """
    rows = []
    for arm, other in pairs:
        told = difference(record, measure, steps, arm, other)
        seen = f"{rows_of(record, arm, steps)[0]['images seen']:,}"
        row = {"images seen": seen, "arm": arm, "minus": other}
        row |= {"difference": f"{told:.3g}", "verdict": told.verdict}
        row["standard error"] = f"{told.standard_error:.2g}"
        row["if unpaired"] = f"{told.unpaired_standard_error:.2g}"
        rows.append(row)
    return rows


def variance_reduction(record: Mapping[str, Any], steps: int) -> list[dict[str, str]]:
    """Return rows for `viz.table`: the effect of shared seeds on each measure.

    The standard errors of the differences of all pairs of arms of one data set, as they are and as
    they would have been unpaired: the square root of their mean squares, and their ratio.  Below
    1, pairing has helped.

    Raises:
        ValueError: no such steps.
    """
    arms = record["arms"]
    pairs = [
        pair
        for pair in combinations(arms, 2)
        if arms[pair[0]]["dataset"] == arms[pair[1]]["dataset"]
    ]
    rows = []
    for measure in record["measured"][0]["measures"]:
        told = [difference(record, measure, steps, *pair) for pair in pairs]
        paired_error = math.sqrt(fmean(d.standard_error**2 for d in told))
        unpaired_error = math.sqrt(fmean(d.unpaired_standard_error**2 for d in told))
        rows.append(
            {
                "measure": measure,
                "pairs of arms": str(len(pairs)),
                "standard error": f"{paired_error:.3g}",
                "if unpaired": f"{unpaired_error:.3g}",
                "ratio": f"{paired_error / unpaired_error:.2f}" if unpaired_error else "",
            }
        )
    return rows


def series(
    record: Mapping[str, Any], measure: str, arm: str
) -> tuple[list[int], list[float], list[float]]:
    """Return images seen, mean over seeds and its 95 % margin, for `viz.curve`.

    Raises:
        ValueError: no such arm or measure.
    """
    seen, means, margins = [], [], []
    for steps in record["steps"]:
        mean = Interval.student_t(values(record, measure, arm, steps))
        seen.append(rows_of(record, arm, steps)[0]["images seen"])
        means.append(mean.value)
        margins.append(mean.margin)
    return seen, means, margins


def table(record: Mapping[str, Any], measures: Sequence[str], steps: int) -> list[dict[str, str]]:
    """Return rows for `viz.table`: mean over seeds +- 95 % margin of each arm; then the floor.

    Raises:
        ValueError: no such steps or measure.
    """
    rows = []
    for arm in record["arms"]:
        row = {"arm": arm}
        for measure in measures:
            mean = Interval.student_t(values(record, measure, arm, steps))
            row[measure] = f"{mean.value:.3g} ± {mean.margin:.2g}"
        rows.append(row)
    for dataset, floor in record["floor"].items():
        told = {name: f"{floor[name]:.3g}" if name in floor else "" for name in measures}
        rows.append({"arm": f"floor: {dataset} training images"} | told)
    return rows


def errors(
    record: Mapping[str, Any], kind: str, arm: str, steps: int
) -> tuple[list[int], list[float]]:
    """Return times and mean errors over seeds of "x_0", "eps", "v" or "bound", for `viz.curve`."""
    rows = rows_of(record, arm, steps)
    config.choose(kind, rows[0]["errors"], "error")
    columns = zip(*(row["errors"][kind] for row in rows), strict=True)
    return rows[0]["errors"]["t"], [fmean(column) for column in columns]
