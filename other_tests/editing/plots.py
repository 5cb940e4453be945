"""Plots of the record of editing.

python -m other_tests.editing.plots        draws the plot of the README again
"""

from collections.abc import Callable

from diffusion_lib import style, viz
from other_tests import common
from other_tests.editing import curves, measure
from other_tests.editing.curves import SCHEDULES, Record, Run

PLOT = common.ASSETS / "editing-mnist.png"
SCALES: dict[str, Callable[[Run, float], float]] = {
    "in steps": curves.identity,
    "in signal-to-noise ratio": curves.log2_snr,
}


@style.look
def preservation(record: Record) -> style.Plot:
    """Draw the label and the slant kept, against t and against the SNR: a line for each seed.

    The dots are where 5 % of the labels are lost, mean of the seeds.

    Args:
        record: record of editing.
    """
    figure = style.figure(1, 2, (10, 3.4))
    names = [f"{name}, {schedule}" for name in ("label", "slant") for schedule in SCHEDULES]
    styles = style.of_lines(names)
    for axis, (title, of) in zip(figure.axes, SCALES.items(), strict=True):
        axis.set_title(title)
        for name in names:
            measured, schedule = name.split(", ")
            look = styles[name] | {"marker": None, "linewidth": 1}
            for n, run in enumerate(runs := curves.runs_of(record, schedule)):
                times, values, _ = curves.curve(run, "noise", measured)
                x = [of(run, t) for t in times[1:]]
                axis.plot(x, values[1:], **look, label=None if n else name)
            if measured == "label":
                limits = [of(run, curves.label_until(run, "noise")) for run in runs]
                place = (curves.over_seeds(limits).value, measure.LABEL)
                axis.plot(*place, "o", color=look["color"])
        axis.axhline(measure.LABEL, color=style.GRAY, linewidth=0.8, linestyle=":")
    steps, ratio = figure.axes
    steps.axvline(curves.STEPS, color=style.GRAY, linewidth=0.8, linestyle=":")
    steps.set(xlabel="t", ylabel="kept")
    ratio.set(xlabel="log2 SNR", xlim=(7, -9))
    for axis in figure.axes:
        style.plain_ticks(axis)
    style.name_ends(ratio)
    return figure


@style.look
def distances(record: Record) -> style.Plot:
    """Draw mean squared distances from the input, as shares of those of unrelated pairs.

    Args:
        record: record of editing.
    """
    panels: dict[str, dict[str, tuple[list[float], ...]]] = {}
    for name in ("pixel distance", "feature distance"):
        lines = panels[name] = {}
        for schedule in SCHEDULES:
            run = curves.runs_of(record, schedule)[0]
            unrelated = run["ways"]["noise"]["strangers"][name][0]
            for way, title in (("noise", "noised"), ("invert", "inverted")):
                times, *parts = curves.curve(run, way, name)
                shares = ([value / unrelated for value in part] for part in parts)
                lines[f"{title}, {schedule}"] = (list(times), *shares)
    figure = viz.curve(panels, "t", "share of that of unrelated digits")
    for axis in figure.axes:
        axis.axhline(1, color=style.GRAY, linewidth=0.8, linestyle=":")
    return figure


@style.look
def realism(record: Record) -> style.Plot:
    """Draw the Fréchet distance from real digits against t, for digits and sketches of them.

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
    figure = style.figure(size=(8, 3.4))
    (axis,) = figure.axes
    axis.set(xlabel="t", ylabel="Fréchet distance", yscale="log")
    axis.set_ylim(0.25, 4)  # the intervals of digits near the floor go further down
    style.draw(axis, lines)
    low, high = min(record["floors"]), curves.ceiling(record)
    axis.axhspan(low, high, color=style.GRAY, alpha=0.2, linewidth=0)
    axis.text(20, low, "sets of real digits", size=8, va="bottom")
    style.name_ends(axis)
    return figure


if __name__ == "__main__":
    PLOT.write_bytes(preservation(common.load(curves.RECORD)).png())
