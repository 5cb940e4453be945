"""Plots of the record of editing.

python -m other_tests.editing.plots        draws the plot of the README again
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from diffusion_lib import viz
from other_tests import common
from other_tests.editing import curves, measure
from other_tests.editing.curves import SCHEDULES, Record, Run

PLOT = common.ASSETS / "editing-mnist.png"
COLORS = dict(zip(SCHEDULES, ("tab:blue", "tab:orange"), strict=True))


def preservation(record: Record) -> Figure:
    """Draw the label and the slant kept, against t and against the SNR: a line for each seed.

    The dots are where 5 % of the labels are lost, mean of the seeds.

    Args:
        record: record of editing.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    scales: tuple[Callable[[Run, float], float], ...] = (curves.identity, curves.log2_snr)
    for axis, of in zip(axes, scales, strict=True):
        for schedule, color in COLORS.items():
            runs = curves.runs_of(record, schedule)
            for n, run in enumerate(runs):
                for name, style, title in (
                    ("label", "-", "label kept"),
                    ("slant", "--", "slant, correlation"),
                ):
                    times, values, _ = curves.curve(run, "noise", name)
                    x = [of(run, t) for t in times[1:]]
                    label = f"{schedule}: {title}" if n == 0 else None
                    axis.plot(x, values[1:], style, color=color, linewidth=1, label=label)
            limits = [of(run, curves.label_until(run, "noise")) for run in runs]
            place = (curves.over_seeds(limits).value, measure.LABEL)
            axis.plot(*place, "o", color=color)
            if axis is axes[0]:  # beside each other in the other one
                axis.annotate(f"{place[0]:.0f}", place, (4, 4), textcoords="offset points")
        axis.axhline(measure.LABEL, color="gray", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3)
    axes[0].axvline(curves.STEPS, color="gray", linewidth=0.8, linestyle=":")
    axes[0].set(xlabel="t", ylabel="kept")
    axes[1].set(xlabel="log2 of the signal-to-noise ratio", xlim=(7, -9))
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    plt.close(figure)
    return figure


def distances(record: Record) -> Figure:
    """Draw mean squared distances from the input, as shares of those of unrelated pairs.

    Args:
        record: record of editing.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, name in zip(axes, ("pixel distance", "feature distance"), strict=True):
        for schedule, color in COLORS.items():
            run = curves.runs_of(record, schedule)[0]
            unrelated = run["ways"]["noise"]["strangers"][name][0]
            for way, style, title in (("noise", "-", "noised"), ("invert", "--", "inverted")):
                times, values, margins = curves.curve(run, way, name)
                axis.errorbar(
                    times,
                    [value / unrelated for value in values],
                    [margin / unrelated for margin in margins],
                    color=color,
                    linestyle=style,
                    label=f"{schedule}: {title}",
                )
        axis.axhline(1, color="gray", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3)
        axis.set(xlabel="t", title=name)
    axes[0].set_ylabel("share of that of strangers")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    plt.close(figure)
    return figure


def realism(record: Record) -> Figure:
    """Draw the Frechet distance from real digits against t, for digits and sketches of them.

    Args:
        record: record of editing.
    """
    lines = {
        f"{name}, {schedule}": curves.curve(
            curves.runs_of(record, schedule)[0], way, "Frechet distance"
        )
        for name, way in (("digits", "noise"), ("sketches", "noise, sketch"))
        for schedule in SCHEDULES
    }
    figure = viz.curve(lines, "t", "Frechet distance", y_scale="log")
    low, high = min(record["floors"]), curves.ceiling(record)
    axis = figure.axes[0]
    axis.axhspan(low, high, color="gray", alpha=0.2)
    axis.text(20, low, "sets of real digits", fontsize=8, va="bottom")
    axis.set_ylim(0.25, 4)  # the intervals of digits near the floor go further down
    axis.minorticks_off()
    axis.set_yticks(ticks := [0.3, 0.6, 1, 2, 3], [str(tick) for tick in ticks])
    return figure


if __name__ == "__main__":
    preservation(common.load(curves.RECORD)).savefig(PLOT, dpi=100)
