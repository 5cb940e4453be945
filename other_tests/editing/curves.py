"""What the record of editing says: tables, plots and the answers.

    python -m other_tests.editing.curves        draws the plot of the README again

The answers rest on all seeds, and their intervals are over them; a curve of one run has intervals
over its 500 digits.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffusion_lib import compare, viz
from diffusion_lib.compare import Difference
from diffusion_lib.metrics import Interval
from other_tests.editing import measure

PLOT = Path(__file__).parent.parent.parent / "assets" / "editing-mnist.png"
COMMAND = "`python -m other_tests.editing.measure`"
ASKED = 300  # steps, in the notes
HALF = 0.5  # of a signal, where half of it is gone
SCHEDULES = tuple(schedule.__name__ for schedule in measure.SCHEDULES)
COLORS = dict(zip(SCHEDULES, ("tab:blue", "tab:orange"), strict=True))
Run = dict[str, Any]


@cache  # every curve asks for it
def load() -> dict[str, Any]:
    return json.loads(measure.OUT.read_text())


def runs_of(schedule: str) -> list[Run]:
    """The runs of a schedule, one for each seed; the first has gone all ways."""
    return [run for run in load()["runs"] if run["schedule"] == schedule]


def curve(run: Run, way: str, name: str) -> tuple[list[int], list[float], list[float]]:
    """A measure against t, for `viz.curve`: times, values, margins over the digits."""
    told = run["ways"][way]["measures"][name]
    return load()["times"], [v for v, _, _ in told], [(high - low) / 2 for _, low, high in told]


def at(run: Run, way: str, name: str, t: int) -> list[float]:
    """A measure at a time: value, low, high, over the digits."""
    return run["ways"][way]["measures"][name][load()["times"].index(t)]


def ceiling() -> float:
    """The largest Frechet distance among sets of real digits: below it, realism is at its floor.

    One more set of real digits would lie above it one time in so many as there are sets.
    """
    return max(load()["floors"])


# ---- where curves cross levels ---------------------------------------------------------------


def label_until(run: Run, way: str) -> float:
    """The t from which on fewer than 95 % of the labels are kept."""
    return run["ways"][way]["label until"][0]


def own_level(run: Run) -> float:
    """The Frechet distance of what a run draws from nothing: its edits at t = T."""
    return at(run, "noise", "Frechet distance", load()["times"][-1])[0]


def lowest(run: Run, way: str) -> float:
    """The smallest Frechet distance of edits that keep their label in 95 % of cases."""
    times, values, _ = curve(run, way, "Frechet distance")
    end = label_until(run, way)
    return min(value for t, value in zip(times, values, strict=True) if t <= end)


def first_below(run: Run, way: str, level: float) -> float | None:
    """The t from which on edits are no further than a level from real digits; None: they never are.

    Between the times measured, linearly.
    """
    times, values, _ = curve(run, way, "Frechet distance")
    return _falls_below(times, values, level) if min(values) < level else None


def first_above(run: Run, way: str, level: float) -> float:
    """The t from which on edits are further than a level from real digits; T if they never are."""
    times, values, _ = curve(run, way, "Frechet distance")
    return _falls_below(times, [-value for value in values], -level)


def _falls_below(times: Sequence[int], values: Sequence[float], level: float) -> float:
    return measure.falls_below(torch.tensor(values, dtype=torch.float64), level, times).item()


def log2_snr(run: Run, t: float) -> float:
    """Of a time, linear between those that were measured."""
    times, known = load()["times"], run["log2 snr"]
    k = max(2, next(k for k, time in enumerate(times) if time >= t))
    share = (t - times[k - 1]) / (times[k] - times[k - 1])
    return known[k - 1] + share * (known[k] - known[k - 1])


def over_seeds(values: Sequence[float]) -> Difference:
    """Their mean and its interval."""
    return compare.paired(values, [0.0] * len(values))


# ---- tables ----------------------------------------------------------------------------------


def survives(t: int = ASKED) -> list[dict[str, str]]:
    """What is left of a digit that was noised to t and denoised, for each schedule: all seeds."""
    names = {
        "label": "label kept",
        **{name: f"{name}: correlation" for name in measure.PROPERTIES},
        "pixel distance": "pixel distance",
        "Frechet distance": "Frechet distance",
    }
    rows = []
    for name, title in names.items():
        row = {"": title}
        for schedule in SCHEDULES:
            values = [at(run, "noise", name, t)[0] for run in runs_of(schedule)]
            row[schedule] = mean(values)
        rows.append(row)
    snr = {s: f"{log2_snr(runs_of(s)[0], t):.2f}" for s in SCHEDULES}
    return [{"": "log2 of the SNR", **snr}, *rows]


def limits() -> list[dict[str, str]]:
    """Where each signal falls below 0.95 and below 0.5, in t and in SNR, by schedule: all seeds."""
    rows = []
    for level in (measure.LABEL, HALF):
        for name in ("label", *measure.PROPERTIES):
            row = {"until": f"{name} {level}"}
            for unit, of in (("t", _same), ("log2 SNR", log2_snr)):
                found = {
                    schedule: [of(run, falls(run, name, level)) for run in runs_of(schedule)]
                    for schedule in SCHEDULES
                }
                for schedule, values in found.items():
                    row[f"{schedule}, {unit}"] = mean(values)
                difference = compare.paired(*found.values())
                row[f"linear less cosine, {unit}"] = f"{difference:.3g}"
            rows.append(row)
    return rows


def falls(run: Run, name: str, level: float) -> float:
    """The t at which what a noised digit keeps of a signal falls below a level."""
    times, values, _ = curve(run, "noise", name)
    return _falls_below(times, values, level)


def _same(_: Run, t: float) -> float:
    return t


def windows() -> list[dict[str, str]]:
    """Until which t an edit keeps its label, and from or until which it looks real.

    Over all seeds; they share their digits, so the label has the interval over digits besides.
    """
    rows = []
    for name, way in (("a digit", "noise"), ("a sketch", "noise, sketch")):
        for schedule in SCHEDULES:
            runs = runs_of(schedule)
            if way == "noise":
                floor = f"until {span([first_above(run, way, ceiling()) for run in runs])}"
            else:
                floor = since([first_below(run, way, ceiling()) for run in runs])
            rows.append(
                {
                    "edits of": f"{name}, {schedule}",
                    "label kept in 95 % until t": span([label_until(run, way) for run in runs]),
                    "interval over digits, first seed": "{1:.0f} to {2:.0f}".format(
                        *runs[0]["ways"][way]["label until"]
                    ),
                    "lowest Frechet distance until there": mean([lowest(r, way) for r in runs]),
                    f"at the floor ({ceiling():.3g})": floor,
                    "as real as the network's own samples": since(
                        [first_below(run, way, own_level(run)) for run in runs]
                    ),
                }
            )
    return rows


def bolder() -> list[dict[str, str]]:
    """What is left of strokes that were made thicker by hand, cosine schedule, first seed."""
    run = runs_of("cosine")[0]
    usual = at(run, "noise", "mean stroke width", 0)[0]
    added = at(run, "noise, thick", "mean stroke width", 0)[0] - usual
    rows = []
    for t in range(0, 1001, 100):
        row = {"t": str(t)}
        width = at(run, "noise, thick", "mean stroke width", t)
        row["of the added width"] = _interval([(value - usual) / added for value in width])
        row["label kept"] = _interval(at(run, "noise, thick", "label", t))
        row["Frechet distance"] = _interval(at(run, "noise, thick", "Frechet distance", t))
        rows.append(row)
    return rows


def mean(values: Sequence[float]) -> str:
    """Over seeds, with its interval."""
    return f"{over_seeds(values):.3g}"


def span(times: Sequence[float]) -> str:
    """A time over seeds, with its interval, which ends where times do."""
    told = over_seeds(times)
    end = float(load()["times"][-1])
    return f"{Interval(told.value, max(0.0, told.low), min(end, told.high)):.0f}"


def since(times: Sequence[float | None]) -> str:
    """From which t on, over seeds; None is a training of which that is not so for any t."""
    known = [t for t in times if t is not None]
    if len(known) < len(times):
        return "never" if not known else f"never in {len(times) - len(known)} of {len(times)}"
    return f"from {span(known)}" if any(known) else "from 0"


def answers() -> list[dict[str, str]]:
    """Rows for the table of what was found."""
    record = load()
    linear, cosine = (runs_of(schedule) for schedule in SCHEDULES)
    rows = []

    def row(question: str, answer: str, measured: str, effect: Difference) -> None:
        rows.append(
            {
                "question": question,
                "answer": answer,
                "measured": measured,
                "effect": f"{effect:.3g}",
                "seeds": str(effect.n),
                "device": ", ".join(dict.fromkeys(run["device"] for run in record["runs"])),
                "command": COMMAND,
            }
        )

    for schedule, runs in zip(SCHEDULES, (linear, cosine), strict=True):
        kept = over_seeds([at(run, "noise", "label", ASKED)[0] for run in runs])
        row(
            f"MNIST, {schedule} schedule: noised by {ASKED} of 1,000 steps and denoised, is it "
            "still the same digit in 95 % of cases?",
            "yes"
            if kept.low >= measure.LABEL
            else "no"
            if kept.high < measure.LABEL
            else "undecided: about 95 %",
            f"share of {record['n']} test digits whose label is kept; over the digits, first seed: "
            f"{_interval(at(runs[0], 'noise', 'label', ASKED))}",
            kept,
        )
    properties = ", ".join(measure.PROPERTIES[:-1]) + f" and {measure.PROPERTIES[-1]}"
    steps = ("no: the linear one loses it earlier", "no: the linear one keeps it longer")
    ratio = ("no: the linear one bears more noise", "no: the linear one bears less noise")
    for question, measured, pair, words in (
        (
            "Do both schedules lose the label after as many steps?",
            "$t$ at which 5 % of the labels are lost",
            [[label_until(run, "noise") for run in runs] for runs in (linear, cosine)],
            steps,
        ),
        (
            "At the same signal-to-noise ratio?",
            "its log2 where 5 % of the labels are lost",
            [
                [log2_snr(run, label_until(run, "noise")) for run in runs]
                for runs in (linear, cosine)
            ],
            ratio,
        ),
        (
            f"And {properties}, at the same ratio?",
            "its log2 where their correlations with the input are 0.5, mean of the three",
            [[_fading(run) for run in runs] for runs in (linear, cosine)],
            ratio,
        ),
    ):
        gap = compare.paired(*pair)
        means = " and ".join(f"{over_seeds(values).value:.3g}" for values in pair)
        row(
            question,
            dict(zip(("lower", "higher"), words, strict=True)).get(
                gap.verdict, "undecided: no difference found"
            ),
            f"{measured}, linear less cosine: {means}",
            gap,
        )
    for schedule, runs in zip(SCHEDULES, (linear, cosine), strict=True):
        way = "noise, sketch"
        gap = over_seeds([lowest(run, way) - ceiling() for run in runs])
        own = since([first_below(run, way, own_level(run)) for run in runs])
        row(
            f"Is there a window, {schedule} schedule: steps after which a crude sketch looks like "
            "a real digit and still keeps its label in 95 % of cases?",
            {"lower": "yes", "higher": "no"}.get(gap.verdict, "undecided: not distinguishable"),
            f"lowest Frechet distance until $t$ = {span([label_until(r, way) for r in runs])}, "
            f"less {ceiling():.3g}, the floor; it is as real as the network's own samples {own}",
            gap,
        )
    return rows


def _fading(run: Run) -> float:
    return fmean(log2_snr(run, falls(run, name, HALF)) for name in measure.PROPERTIES)


def changes() -> list[dict[str, str]]:
    """Asked for another digit from t, cosine schedule: how often it comes, and what is kept."""
    run = runs_of("cosine")[0]
    rows = []
    for way, title in (("noise", "noised"), ("invert", "inverted")):
        for t in range(500, 1001, 100):
            row = {"": f"{title}, t = {t}"}
            for name in ("label", *measure.PROPERTIES):
                told = at(run, f"{way}, another digit", name, t)
                row["the asked-for digit" if name == "label" else name] = _interval(told)
            row["Frechet distance"] = _interval(
                at(run, f"{way}, another digit", "Frechet distance", t)
            )
            rows.append(row)
    return rows


def same_hand() -> str:
    """The first t at which 95 % become the digit asked for, and what is kept of the hand there."""
    run, told = runs_of("cosine")[0], []
    for way, title in (("invert", "inverted"), ("noise", "noised")):
        times, values, _ = curve(run, f"{way}, another digit", "label")
        reached = [t for t, value in zip(times, values, strict=True) if value >= measure.LABEL]
        if not reached:
            told.append(f"{title}, fewer than {measure.LABEL:.0%} do so at any $t$")
            continue
        kept = ", ".join(
            f"{name} {_interval(at(run, f'{way}, another digit', name, reached[0]))}"
            for name in measure.PROPERTIES
        )
        share = _interval(at(run, f"{way}, another digit", "label", reached[0]))
        told.append(f"{title} to $t$ = {reached[0]}, {share} become it, and keep {kept}")
    return (
        f"Of {load()['n']} digits that are asked to become another one: {'; '.join(told)} "
        f"(correlations among the digits of one label). One training, cosine schedule; "
        f"{run['device']}."
    )


def _interval(told: Sequence[float]) -> str:
    """Over the digits of one run."""
    return f"{Interval(*told):.2f}"


# ---- plots -----------------------------------------------------------------------------------


def kept() -> Figure:
    """Label and slant kept, against t and against the SNR: a line for each seed.

    The dots are where 5 % of the labels are lost, mean of the seeds.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, of in zip(axes, (_same, log2_snr), strict=True):
        _lines(axis, of)
        for schedule, color in COLORS.items():
            limit = over_seeds([of(r, label_until(r, "noise")) for r in runs_of(schedule)]).value
            axis.plot(limit, measure.LABEL, "o", color=color)
            if axis is axes[0]:  # beside each other in the other one
                place = (limit, measure.LABEL)
                axis.annotate(f"{limit:.0f}", place, (4, 4), textcoords="offset points")
        axis.axhline(measure.LABEL, color="gray", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3)
    axes[0].axvline(ASKED, color="gray", linewidth=0.8, linestyle=":")
    axes[0].set(xlabel="t", ylabel="kept")
    axes[1].set(xlabel="log2 of the signal-to-noise ratio", xlim=(7, -9))
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    plt.close(figure)
    return figure


def _lines(axis: Axes, of: Callable[[Run, float], float]) -> None:
    for schedule, color in COLORS.items():
        for n, run in enumerate(runs_of(schedule)):
            for name, style in (("label", "-"), ("slant", "--")):
                times, values, _ = curve(run, "noise", name)
                title = {"label": "label kept", "slant": "slant, correlation"}[name]
                axis.plot(
                    [of(run, t) for t in times[1:]],
                    values[1:],
                    style,
                    color=color,
                    linewidth=1,
                    label=f"{schedule}: {title}" if n == 0 else None,
                )


def distances() -> Figure:
    """Mean squared distance from the input, of pixels and of features, as a share of strangers'."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, name in zip(axes, ("pixel distance", "feature distance"), strict=True):
        for schedule, color in COLORS.items():
            run = runs_of(schedule)[0]
            strangers = run["ways"]["noise"]["strangers"][name][0]
            for way, style in (("noise", "-"), ("invert", "--")):
                times, values, margins = curve(run, way, name)
                shares = [value / strangers for value in values]
                title = f"{schedule}: {'noised' if way == 'noise' else 'inverted'}"
                axis.errorbar(
                    times,
                    shares,
                    [margin / strangers for margin in margins],
                    color=color,
                    linestyle=style,
                    label=title,
                )
        axis.axhline(1, color="gray", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3)
        axis.set(xlabel="t", title=name)
    axes[0].set_ylabel("share of that of strangers")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    plt.close(figure)
    return figure


def realism() -> Figure:
    """Frechet distance from real digits against t, for digits and sketches of them."""
    lines = {
        f"{name}, {schedule}": curve(runs_of(schedule)[0], way, "Frechet distance")
        for name, way in (("digits", "noise"), ("sketches", "noise, sketch"))
        for schedule in SCHEDULES
    }
    figure = viz.curve(lines, "t", "Frechet distance", y_scale="log")
    low, high = min(load()["floors"]), ceiling()
    axis = figure.axes[0]
    axis.axhspan(low, high, color="gray", alpha=0.2)
    axis.text(20, low, "sets of real digits", fontsize=8, va="bottom")
    axis.set_ylim(0.25, 4)  # the intervals of digits near the floor go further down
    axis.minorticks_off()
    axis.set_yticks(ticks := [0.3, 0.6, 1, 2, 3], [str(tick) for tick in ticks])
    return figure


def main() -> None:
    kept().savefig(PLOT, dpi=100)


if __name__ == "__main__":
    main()
