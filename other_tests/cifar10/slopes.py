"""The statements of hypothesis 7 of REGISTRATION.md, from the records of `dials`.

Does the gap between a network that predicts x_0 and one that predicts eps rise with the complexity
of the data, within a data set?
"""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np

from diffusion_lib import viz
from diffusion_lib.compare.record import rows as rows_of
from diffusion_lib.metrics import Interval
from diffusion_lib.style import Plot
from other_tests import registered
from other_tests.cifar10.answers import ALPHA, Statement
from other_tests.cifar10.dials import DIALS, NARROW, SCHEDULE, SEEDS, SKIPS, STEPS, record_file

WINDOW, EVERYWHERE = (-5.0, 5.0), (-math.inf, math.inf)  # of log2 SNR
# Part of the hypothesis, dial, network.
PARTS = (
    ("7a low-pass", "low_pass", SKIPS),
    ("7b number of classes", "few_classes", SKIPS),
    ("7c gray levels", "gray_levels", SKIPS),
    ("7d mix", "mixed", SKIPS),
    ("7e with the bottleneck", "low_pass", NARROW),
    ("7e with the bottleneck", "mixed", NARROW),
)
# Secondary slopes -> measure of complexity, window.
OTHERS = {
    "a level, all times": (None, EVERYWHERE),
    "doubling of the bits": ("bits", WINDOW),
    "doubling of the dimension by TwoNN": ("TwoNN", WINDOW),
    "doubling of the dimension by MLE": ("MLE", WINDOW),
}

Records = Mapping[str, Mapping[str, Any]]  # by dial
Levels = Mapping[str, Mapping[str, float]]  # by level


def load() -> Records:
    """Read the records that hold all registered seeds."""
    return registered.load({name: record_file(name) for name in DIALS}, SEEDS)


def gaps(record: Mapping[str, Any], pair: str, window: tuple[float, float] = WINDOW) -> list[float]:
    """Return log2 of the error with x_0 over that with eps, in v, for each seed.

    Errors are averaged over the evenly spaced times (all but t = 1) whose log2 SNR lies in a
    window.  x_0_hat is clipped to [-1, 1], and the error of v_hat is that of x_0_hat / noise^2.
    Over all times most of it is that of clipped images, because an error of eps_hat is 1 / SNR
    times as large in x_0_hat: 4e8 times at T, but at most 32 times within WINDOW.  The clip still
    acts there, on values below black and on the noise that a bottleneck cannot draw.  It lowers
    mostly the error of eps: without it the gap would be smaller.

    Args:
        record: record of the dial.
        pair: level and network, such as "mixed 0.4, with skips".
        window: least and largest log2 SNR.
    """
    schedule = SCHEDULE(1000)
    log2_snr = (schedule.alpha_bar / schedule.noise_variance).log2().tolist()
    means = {}
    for prediction in ("eps", "x_0"):
        rows = rows_of(record, f"{pair}, {prediction}", STEPS)
        snrs = [log2_snr[int(t)] for t in rows[0]["errors"]["t"]]
        inside = [k for k, snr in enumerate(snrs) if k and window[0] <= snr <= window[1]]
        means[prediction] = [fmean(row["errors"]["v"][k] for k in inside) for row in rows]
    return [math.log2(x_0 / eps) for eps, x_0 in zip(*means.values(), strict=True)]


def slopes(
    records: Records,
    levels: Levels,
    line: tuple[str, str],
    measure: str | None = None,
    window: tuple[float, float] = WINDOW,
) -> list[float]:
    """Fit the rise of the gap from level to level, or for each doubling of a measure of complexity.

    Returns a slope for each seed.

    Args:
        records: records by dial.
        levels: measures of each level.
        line: dial and network.
        measure: name of a measure of `levels`; None counts the levels.
        window: as in `gaps`.
    """
    name, kind = line
    own = DIALS[name].datasets()
    x = [math.log2(levels[n][measure]) if measure else float(k) for k, n in enumerate(own)]
    y = [gaps(records[name], f"{level}, {kind}", window) for level in own]
    return np.polyfit(x, y, 1)[0].tolist()


def statements(records: Records, levels: Levels) -> list[registered.Statement]:
    """Make the statements about the dials that were run: all slopes are above 0.

    Args:
        records: records by dial.
        levels: measures of each level.
    """
    return [
        Statement(
            hypothesis,
            f"{dial.replace('_', ' ')}, {network}: rise of the gap a level",
            slopes(records, levels, (dial, network)),
            0.0,
        )
        for hypothesis, dial, network in PARTS
        if all(d in records for part, d, _ in PARTS if part == hypothesis)
    ]


def others(records: Records, levels: Levels) -> list[dict[str, str]]:
    """Return rows for `viz.table`: slopes that decide nothing, at the level of those that do.

    Args:
        records: records by dial.
        levels: measures of each level.
    """
    return [
        {"dial": dial.replace("_", " "), "network": network}
        | {
            text: f"{Interval.student_t(slopes(records, levels, (dial, network), *of), ALPHA)}"
            for text, of in OTHERS.items()
        }
        for _, dial, network in PARTS
        if dial in records
    ]


def plot(records: Records, levels: Levels) -> Plot:
    """Draw the gap against the coded bits with 95 % intervals over seeds, a panel for each dial.

    Args:
        records: records by dial.
        levels: measures of each level.
    """
    panels = {}
    for name, record in records.items():
        own = sorted(DIALS[name].datasets(), key=lambda level: levels[level]["bits"])
        x = [math.log2(levels[level]["bits"]) for level in own]
        lines = panels[name.replace("_", " ")] = {}
        for kind in DIALS[name].networks():
            means = [Interval.student_t(gaps(record, f"{level}, {kind}")) for level in own]
            lines[kind] = x, [mean.value for mean in means], [mean.margin for mean in means]
    return viz.curve(panels, "log2 of the bits of a picture", "log2(error of x_0 / error of eps)")
