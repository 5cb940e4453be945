"""The verdicts on the seven hypotheses of REGISTRATION.md, from the committed records.

An interval is Student's over seeds, at 1 - 0.05 / 7, because seven hypotheses are asked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from scipy import special

from diffusion_lib import compare, schedules
from diffusion_lib.metrics import Interval

FOLDER = Path(__file__).parent
HYPOTHESES = 7
SURE = "confidence > 0.9"
LITTLE_SIGNAL = 0.01  # SNR below which there is only noise to see
MARGIN = 0.02  # of the floor
BATCH = 64  # images in a step
NARROW, WIDE = ("MLP 256", "U-Net 14/64"), ("MLP 1024", "U-Net 14/256")
PREDICTIONS, WEIGHTS = ("eps", "v", "x_0"), ("snr", "snr_plus_1", "uniform")
WIDE_ENOUGH = ("MLP 1024", "MLP 1568", "U-Net 14/196", "U-Net 14/256", "U-Net 14/392")
Record = Mapping[str, Any]


class Verdict(NamedTuple):
    """What became of one statement."""

    hypothesis: str
    statement: str
    verdict: str  # "supported", "refuted" or "undecided"
    effect: Interval


def records() -> dict[str, Record]:
    """Read the records that there are, by the names of their studies."""
    studies = ("cells", "floor", "control", "window", "crossing", "crossing_ddim")
    paths = {name: FOLDER / f"{name}.record.json" for name in studies}
    by_study: dict[str, Record] = {
        name: compare.load(path) for name, path in paths.items() if path.exists()
    }
    for name in ("ranks", "toy"):
        if (path := FOLDER / f"{name}.json").exists():
            by_study[name] = json.loads(path.read_text())
    return by_study


def interval(values: Sequence[float]) -> Interval:
    """Estimate the mean of independent values, at the level of this study."""
    n, mean = len(values), fmean(values)
    quantile = float(special.stdtrit(n - 1, 1 - 0.05 / HYPOTHESES / 2))
    margin = quantile * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - margin, mean + margin)


def judge(effect: Interval, low: float, high: float = math.inf) -> str:
    """Say whether an interval lies in a range, out of it, or neither."""
    if low <= effect.low and effect.high <= high:
        return "supported"
    return "refuted" if effect.high < low or effect.low > high else "undecided"


def sure(record: Record, arm: str, steps: int | None = None) -> list[float]:
    """Return the share of sure samples for each seed, by default after the longest training."""
    return compare.values(record, SURE, arm, steps or record["steps"][-1])


def lead(record: Record, arm: str, other: str, steps: int | None = None) -> Interval:
    """Return the share of sure samples of one arm less that of another, paired by seed."""
    pairs = zip(sure(record, arm, steps), sure(record, other, steps), strict=True)
    return interval([a - b for a, b in pairs])


def error_at_little_signal(record: Record, arm: str) -> list[float]:
    """Return the mean error of eps_hat where there is only noise to see, for each seed."""
    snr = schedules.linear().snr(torch.arange(1001)).tolist()
    means = []
    last = record["steps"][-1]
    for row in [r for r in record["measured"] if (r["arm"], r["steps"]) == (arm, last)]:
        errors = zip(row["errors"]["t"], row["errors"]["eps"], strict=True)
        means.append(fmean(e for t, e in errors if snr[int(t)] < LITTLE_SIGNAL))
    return means


def last_layer(network: Mapping[str, Any]) -> tuple[int, int]:
    """Return H and D: the numbers that a last layer sees, and the pixels that it makes of them.

    Args:
        network: record of the network of an arm.
    """
    channels, height, width = network["image_shape"]
    if network.get("kind", "").lower().startswith(("mlp", "skipmlp")):
        return network["width"], channels * height * width
    return network["width"], channels * network.get("patch", 1) ** 2


def backbone(arm: str) -> str:
    """Return the name of the network of an arm."""
    return arm.split(":")[0]


def floors(by_study: Mapping[str, Record]) -> dict[str, tuple[float, Interval]]:
    """Return 1 - H / D, or 0, and the measured error of eps_hat, for each network."""
    result = {}
    for name in ("cells", "floor"):
        record = by_study[name]
        for arm, fields in record["arms"].items():
            if arm.endswith(": eps, snr"):
                numbers, pixels = last_layer(fields["network"])
                measured = interval(error_at_little_signal(record, arm))
                result[backbone(arm)] = max(0.0, 1 - numbers / pixels), measured
    return result


def floor_verdicts(by_study: Mapping[str, Record]) -> list[Verdict]:
    """Judge hypothesis 1 for each network with a floor."""
    return [
        Verdict(
            "1 the floor",
            f"{name}: error of eps_hat less 1 - H/D = {floor:.3f}, within {MARGIN}",
            judge(gap := Interval(*(value - floor for value in error)), -MARGIN, MARGIN),
            gap,
        )
        for name, (floor, error) in floors(by_study).items()
        if floor
    ]


def best_cell(record: Record, network: str, prediction: str) -> str:
    """Return the arm of a network and a prediction with most sure samples."""
    arms = [f"{network}: {prediction}, {weight}" for weight in WEIGHTS]
    return max(arms, key=lambda arm: fmean(sure(record, arm)))


def cell_verdicts(by_study: Mapping[str, Record]) -> list[Verdict]:
    """Judge hypothesis 2."""
    record = by_study["cells"]
    verdicts = []
    for name, weight in product(NARROW, WEIGHTS):
        effect = lead(record, f"{name}: x_0, {weight}", f"{name}: eps, {weight}")
        statement = f"{name}, weight {weight}: x_0 less eps, above 0"
        verdicts.append(Verdict("2a nine cells, H < D", statement, judge(effect, 0), effect))
    for name in WIDE:
        effect = lead(record, best_cell(record, name, "x_0"), best_cell(record, name, "eps"))
        statement = f"{name}: best cell of x_0 less best of eps, below 0.1"
        verdict = judge(effect, -math.inf, 0.1)
        verdicts.append(Verdict("2b nine cells, H > D", statement, verdict, effect))
    return verdicts


def control_verdicts(by_study: Mapping[str, Record]) -> list[Verdict]:
    """Judge hypothesis 3."""
    record, without = by_study["control"], by_study["cells"]
    verdicts = []
    for name in NARROW:
        arms = [f"{name}: eps, {weight}" for weight in ("snr", "min_snr")]
        numbers, pixels = last_layer(without["arms"][arms[0]]["network"])
        floor = 1 - numbers / pixels
        error = interval(error_at_little_signal(record, arms[0]))
        statement = f"{name}: error of eps_hat with the connection, below {floor / 5:.3f}"
        verdict = judge(error, -math.inf, floor / 5)
        verdicts.append(Verdict("3 the control", statement, verdict, error))
        best, before = (
            max((sure(study, arm) for arm in arms), key=fmean) for study in (record, without)
        )
        gain = interval([a - b for a, b in zip(best, before, strict=True)])
        statement = f"{name}: sure samples of eps, with less without it, at least 0.2"
        verdicts.append(Verdict("3 the control", statement, judge(gain, 0.2), gain))
    return verdicts


def rank_verdicts(by_study: Mapping[str, Record]) -> list[Verdict]:
    """Judge hypothesis 4."""
    verdicts = []
    for name in WIDE_ENOUGH:
        rows = [row for row in by_study["ranks"]["measured"] if row["network"] == name]
        exact = "eps error with the exact last layer"
        share = interval([1 - row[exact] / row["eps error"] for row in rows])
        statement = f"{name}: share of the error that the exact last layer removes, below 0.5"
        verdict = judge(share, -math.inf, 0.5)
        verdicts.append(Verdict("4 above the floor", statement, verdict, share))
    return verdicts


def window_verdicts(by_study: Mapping[str, Record]) -> list[Verdict]:
    """Judge hypothesis 5."""
    verdicts = []
    for prediction in PREDICTIONS:
        effect = lead(by_study["window"], f"{prediction}, window", f"{prediction}, mirror")
        statement = f"{prediction}: weight in the window less its mirror image, above 0"
        verdicts.append(Verdict("5 the window", statement, judge(effect, 0), effect))
    return verdicts


def crossing_verdicts(by_study: Mapping[str, Record]) -> list[Verdict]:
    """Judge hypothesis 6."""
    record = by_study["crossing"]
    first, last = record["steps"][0], record["steps"][-1]
    verdicts = []
    for steps, sign, where in ((first, 1, "ahead"), (last, -1, "behind")):
        effect = lead(record, "x_0, uniform", "eps, snr", steps)
        low, high = (0.0, math.inf) if sign > 0 else (-math.inf, 0.0)
        statement = f"after {BATCH * steps:,} images: x_0 less eps, {where}"
        verdicts.append(Verdict("6 the crossing", statement, judge(effect, low, high), effect))
    return verdicts


def crossing(record: Record) -> int | None:
    """Return the number of images from which on eps is ahead in the mean, None if it never is."""
    since = None
    for steps in record["steps"]:
        eps, x_0 = (fmean(sure(record, arm, steps)) for arm in ("eps, snr", "x_0, uniform"))
        since = (since or BATCH * steps) if eps > x_0 else None
    return since


JUDGES = {
    ("cells", "floor"): floor_verdicts,
    ("cells",): cell_verdicts,
    ("control", "cells"): control_verdicts,
    ("ranks",): rank_verdicts,
    ("window",): window_verdicts,
    ("crossing",): crossing_verdicts,
}


def verdicts(by_study: Mapping[str, Record]) -> list[Verdict]:
    """Judge all hypotheses whose records are there."""
    return [
        verdict
        for needed, judge_all in JUDGES.items()
        if all(name in by_study for name in needed)
        for verdict in judge_all(by_study)
    ]


def rows(by_study: Mapping[str, Record]) -> list[dict[str, str]]:
    """Make the table of verdicts."""
    return [
        {
            "hypothesis": verdict.hypothesis,
            "statement": verdict.statement,
            "effect": f"{verdict.effect}",
            "verdict": verdict.verdict,
        }
        for verdict in verdicts(by_study)
    ]
