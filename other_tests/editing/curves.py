"""What the record of editing says: where curves cross levels, tables and answers.

The answers rest on all seeds, and their intervals are over them; a curve of one run has intervals
over its 500 digits.  `plots` draws the same.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from diffusion_lib import compare
from diffusion_lib.compare import Difference
from diffusion_lib.metrics import Interval
from other_tests import common
from other_tests.common import Answer
from other_tests.editing import measure

RECORD = measure.OUT
STEPS = 300  # of the question in the notes
HALF = 0.5  # of a signal, where half of it is gone
SCHEDULES = tuple(schedule.__name__ for schedule in measure.SCHEDULES)
Record = Mapping[str, Any]
Run = dict[str, Any]
Rows = list[dict[str, str]]


def runs_of(record: Record, schedule: str) -> list[Run]:
    """List the runs of a schedule, one for each seed, with the times at which they were measured.

    Args:
        record: record of editing; only its first run of a schedule has all edits.
        schedule: one of SCHEDULES.
    """
    runs = (run for run in record["runs"] if run["schedule"] == schedule)
    return [run | {"times": record["times"]} for run in runs]


def curve(run: Run, way: str, name: str) -> tuple[list[int], list[float], list[float]]:
    """Return a measure against t for `viz.curve`: times, values, margins over the digits.

    Args:
        run: one of `runs_of`.
        way: one of `measure.EDITS`.
        name: measure, such as "label".
    """
    estimates = run["ways"][way]["measures"][name]
    margins = [(high - low) / 2 for _, low, high in estimates]
    return run["times"], [value for value, _, _ in estimates], margins


def at(run: Run, way: str, name: str, t: int) -> list[float]:
    """Return a measure at a time: value, low and high over the digits.

    Args:
        run: one of `runs_of`.
        way: one of `measure.EDITS`.
        name: measure, such as "label".
        t: one of the times measured.
    """
    return run["ways"][way]["measures"][name][run["times"].index(t)]


def ceiling(record: Record) -> float:
    """Return the largest Frechet distance among sets of real digits: realism's floor.

    One more set of real digits would lie above it one time in so many as there are sets.

    Args:
        record: record of editing.
    """
    return max(record["floors"])


# ---- where curves cross levels ---------------------------------------------------------------


def label_until(run: Run, way: str) -> float:
    """Return the t from which on fewer than 95 % of the labels are kept."""
    return run["ways"][way]["label until"][0]


def own_level(run: Run) -> float:
    """Return the Frechet distance of what a run draws from nothing: its edits at t = T."""
    return at(run, "noise", "Frechet distance", run["times"][-1])[0]


def lowest(run: Run, way: str) -> float:
    """Return the smallest Frechet distance of edits that keep their label in 95 % of cases."""
    times, values, _ = curve(run, way, "Frechet distance")
    end = label_until(run, way)
    return min(value for t, value in zip(times, values, strict=True) if t <= end)


def first_below(run: Run, way: str, level: float) -> float | None:
    """Find the t from which on edits are no further than a level from real digits.

    Returns:
        The time, linear between those measured; None where they never are.
    """
    times, values, _ = curve(run, way, "Frechet distance")
    return _falls_below(times, values, level) if min(values) < level else None


def first_above(run: Run, way: str, level: float) -> float:
    """Find the t from which on edits are further than a level from real digits; T if never."""
    times, values, _ = curve(run, way, "Frechet distance")
    return _falls_below(times, [-value for value in values], -level)


def falls(run: Run, name: str, level: float) -> float:
    """Find the t at which what a noised digit keeps of a signal falls below a level."""
    times, values, _ = curve(run, "noise", name)
    return _falls_below(times, values, level)


def _falls_below(times: Sequence[int], values: Sequence[float], level: float) -> float:
    return measure.falls_below(torch.tensor(values, dtype=torch.float64), level, times).item()


def log2_snr(run: Run, t: float) -> float:
    """Return log2 of the signal-to-noise ratio at t, linear between the times measured."""
    times, known = run["times"], run["log2 snr"]
    k = max(2, next(k for k, time in enumerate(times) if time >= t))
    fraction = (t - times[k - 1]) / (times[k] - times[k - 1])
    return known[k - 1] + fraction * (known[k] - known[k - 1])


def identity(_: Run, t: float) -> float:
    """Return t itself, where `log2_snr` may stand."""
    return t


def over_seeds(values: Sequence[float]) -> Difference:
    """Return the mean of one value for each seed with its interval."""
    return compare.paired(values, [0.0] * len(values))


# ---- tables ----------------------------------------------------------------------------------


def survives(record: Record, t: int = STEPS) -> Rows:
    """List what is left of digits that were noised to t and denoised, for each schedule.

    Args:
        record: record of editing.
        t: one of the times measured.
    """
    names = {
        "label": "label kept",
        **{name: f"{name}: correlation" for name in measure.PROPERTIES},
        "pixel distance": "pixel distance",
        "Frechet distance": "Frechet distance",
    }
    runs = {schedule: runs_of(record, schedule) for schedule in SCHEDULES}
    snr = {schedule: f"{log2_snr(own[0], t):.2f}" for schedule, own in runs.items()}
    rows = [{"": "log2 of the SNR", **snr}]
    for name, title in names.items():
        cells = {s: format_mean([at(r, "noise", name, t)[0] for r in runs[s]]) for s in SCHEDULES}
        rows.append({"": title, **cells})
    return rows


def limits(record: Record) -> Rows:
    """List where each signal falls below 0.95 and below 0.5, in t and in SNR, by schedule.

    Args:
        record: record of editing.
    """
    rows = []
    for level in (measure.LABEL, HALF):
        for name in ("label", *measure.PROPERTIES):
            for unit, of in (("t", identity), ("log2 SNR", log2_snr)):
                pair = [
                    [of(run, falls(run, name, level)) for run in runs_of(record, schedule)]
                    for schedule in SCHEDULES
                ]
                row = {"until": f"{name} {level}", "in": unit}
                row |= {s: format_mean(v) for s, v in zip(SCHEDULES, pair, strict=True)}
                rows.append(row | {"linear less cosine": f"{compare.paired(*pair):.3g}"})
    return rows


def windows(record: Record) -> Rows:
    """List until which t an edit keeps its label, and from or until which it looks real.

    Over all seeds; they share their digits, so the label has the interval over digits besides.

    Args:
        record: record of editing.
    """
    rows, floor = [], ceiling(record)
    for name, way in (("a digit", "noise"), ("a sketch", "noise, sketch")):
        for schedule in SCHEDULES:
            runs = runs_of(record, schedule)
            if way == "noise":
                real = f"until {format_time([first_above(run, way, floor) for run in runs])}"
            else:
                real = format_onset([first_below(run, way, floor) for run in runs])
            _, low, high = runs[0]["ways"][way]["label until"]
            label_end = format_time([label_until(run, way) for run in runs])
            own = format_onset([first_below(run, way, own_level(run)) for run in runs])
            rows.append(
                {
                    "edits of": f"{name}, {schedule}",
                    "label kept in 95 % until t": label_end,
                    "interval over digits, first seed": f"{low:.0f} to {high:.0f}",
                    "lowest Frechet distance until there": format_mean(
                        [lowest(run, way) for run in runs]
                    ),
                    f"at the floor ({floor:.3g})": real,
                    "as real as the network's own samples": own,
                }
            )
    return rows


def thickened_strokes(record: Record) -> Rows:
    """List what is left of strokes that were made thicker by hand, cosine schedule, first seed.

    Args:
        record: record of editing.
    """
    run = runs_of(record, "cosine")[0]
    usual = at(run, "noise", "mean stroke width", 0)[0]
    added = at(run, "noise, thick", "mean stroke width", 0)[0] - usual
    rows = []
    for t in range(0, 1001, 100):
        width = at(run, "noise, thick", "mean stroke width", t)
        rows.append(
            {
                "t": str(t),
                "of the added width": _interval([(value - usual) / added for value in width]),
                "label kept": _interval(at(run, "noise, thick", "label", t)),
                "Frechet distance": _interval(at(run, "noise, thick", "Frechet distance", t)),
            }
        )
    return rows


def format_mean(values: Sequence[float]) -> str:
    """Format the mean over seeds with its interval."""
    return f"{over_seeds(values):.3g}"


def format_time(times: Sequence[float]) -> str:
    """Format a time over seeds, with its interval, which ends where times do."""
    mean = over_seeds(times)
    end = float(measure.TIMES[-1])
    return f"{Interval(mean.value, max(0.0, mean.low), min(end, mean.high)):.0f}"


def format_onset(times: Sequence[float | None]) -> str:
    """Format the time from which on something is so, over seeds; None where it never is."""
    known = [t for t in times if t is not None]
    if len(known) < len(times):
        return "never" if not known else f"never in {len(times) - len(known)} of {len(times)}"
    return f"from {format_time(known)}" if any(known) else "from 0"


def changes(record: Record) -> Rows:
    """List how often another digit comes, from each t, and what is kept; cosine schedule.

    Args:
        record: record of editing.
    """
    run = runs_of(record, "cosine")[0]
    rows = []
    for way, title in (("noise", "noised"), ("invert", "inverted")):
        for t in range(500, 1001, 100):
            row = {"": f"{title}, t = {t}"}
            for name in ("label", *measure.PROPERTIES, "Frechet distance"):
                column = "asked for" if name == "label" else name
                row[column] = _interval(at(run, f"{way}, another digit", name, t))
            rows.append(row)
    return rows


def same_hand(record: Record) -> str:
    """Name the first t at which 95 % become another digit, and what is kept of the hand there.

    Args:
        record: record of editing.
    """
    run, parts = runs_of(record, "cosine")[0], []
    for edit, title in (("invert", "inverted"), ("noise", "noised")):
        way = f"{edit}, another digit"
        times, values, _ = curve(run, way, "label")
        t = next((t for t, v in zip(times, values, strict=True) if v >= measure.LABEL), None)
        if t is None:
            parts.append(f"{title}, fewer than {measure.LABEL:.0%} do so at any $t$")
            continue
        hand = ", ".join(
            f"{name} {_interval(at(run, way, name, t))}" for name in measure.PROPERTIES
        )
        share = _interval(at(run, way, "label", t))
        parts.append(f"{title} to $t$ = {t}, {share} become it, and keep {hand}")
    return (
        f"Of {record['n']} digits that are asked to become another one: {'; '.join(parts)} "
        f"(correlations among the digits of one label). One training, cosine schedule; "
        f"{run['device']}."
    )


def _interval(estimate: Sequence[float]) -> str:
    return f"{Interval(*estimate):.2f}"


# ---- answers ---------------------------------------------------------------------------------


def answers(record: Record) -> list[Answer]:
    """Answer the questions about editing.

    Args:
        record: record of editing.
    """
    runs = {schedule: runs_of(record, schedule) for schedule in SCHEDULES}
    same = [_same_digit(record, schedule, own) for schedule, own in runs.items()]
    window = [_window(record, schedule, own) for schedule, own in runs.items()]
    return [*same, *_schedules(runs), *window]


def _same_digit(record: Record, schedule: str, runs: Sequence[Run]) -> Answer:
    share = over_seeds([at(run, "noise", "label", STEPS)[0] for run in runs])
    answer = "undecided: about 95 %"
    if share.low >= measure.LABEL:
        answer = "yes"
    elif share.high < measure.LABEL:
        answer = "no"
    return Answer(
        f"MNIST, {schedule} schedule: noised by {STEPS} of 1,000 steps and denoised, is it "
        "still the same digit in 95 % of cases?",
        answer,
        f"share of {record['n']} test digits whose label is kept; over the digits, first seed: "
        f"{_interval(at(runs[0], 'noise', 'label', STEPS))}",
        share,
        level=measure.LABEL,
    )


def _schedules(runs: Mapping[str, Sequence[Run]]) -> list[Answer]:
    """Compare where the two schedules lose a signal."""
    *others, last = measure.PROPERTIES
    time = ("no: the linear one loses it earlier", "no: the linear one keeps it longer")
    ratio = ("no: the linear one bears more noise", "no: the linear one bears less noise")
    questions: list[tuple[str, str, Callable[[Run], float], tuple[str, str], str]] = [
        (
            "Do both schedules lose the label after as many steps?",
            "$t$ at which 5 % of the labels are lost",
            lambda run: label_until(run, "noise"),
            time,
            "planned",
        ),
        (
            "At the same signal-to-noise ratio?",
            "its log2 where 5 % of the labels are lost",
            lambda run: log2_snr(run, label_until(run, "noise")),
            ratio,
            "planned",
        ),
        (
            f"And {', '.join(others)} and {last}, at the same ratio?",
            "its log2 where their correlations with the input are 0.5, mean of the three",
            mean_half_life_snr,
            ratio,
            "added",
        ),
    ]
    compared = []
    for question, measured, of, (lower, higher), chosen in questions:
        pair = [[of(run) for run in runs[schedule]] for schedule in SCHEDULES]
        means = " and ".join(f"{over_seeds(values).value:.3g}" for values in pair)
        effect = compare.paired(*pair)
        answer = common.decide(effect, lower, higher, "undecided: no difference found")
        text = f"{measured}, linear less cosine: {means}"
        compared.append(Answer(question, answer, text, effect, chosen=chosen))
    return compared


def mean_half_life_snr(run: Run) -> float:
    """Return the mean log2 SNR at which half of each of the properties is gone."""
    return fmean(log2_snr(run, falls(run, name, HALF)) for name in measure.PROPERTIES)


def _window(record: Record, schedule: str, runs: Sequence[Run]) -> Answer:
    way, floor = "noise, sketch", ceiling(record)
    effect = over_seeds([lowest(run, way) - floor for run in runs])
    own = format_onset([first_below(run, way, own_level(run)) for run in runs])
    return Answer(
        f"Is there a window, {schedule} schedule: steps after which a crude sketch looks like "
        "a real digit and still keeps its label in 95 % of cases?",
        common.decide(effect, "yes", "no"),
        f"lowest Frechet distance until $t$ = {format_time([label_until(r, way) for r in runs])}, "
        f"less {floor:.3g}, the floor; it is as real as the network's own samples {own}",
        effect,
    )
