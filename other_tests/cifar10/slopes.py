"""The statements of hypothesis 7 of REGISTRATION.md, from the records of `dials`.

Does the gap between a network that predicts x_0 and one that predicts eps rise with the complexity
of the data, within a data set?  A ratio of errors also changes with the part that both errors
share, because no network can predict it: so their difference has to rise too, where both networks
can.
"""

import math
from collections.abc import Callable, Mapping
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


def errors(
    record: Mapping[str, Any], pair: str, window: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return the errors of v with x_0 and with eps, for each seed.

    They are averaged over the evenly spaced times (all but t = 1) whose log2 SNR lies in a
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
    means = []
    for prediction in ("x_0", "eps"):
        rows = rows_of(record, f"{pair}, {prediction}", STEPS)
        snrs = [log2_snr[int(t)] for t in rows[0]["errors"]["t"]]
        inside = [k for k, snr in enumerate(snrs) if k and window[0] <= snr <= window[1]]
        means.append([fmean(row["errors"]["v"][k] for k in inside) for row in rows])
    return [*zip(*means, strict=True)]


def gaps(record: Mapping[str, Any], pair: str, window: tuple[float, float] = WINDOW) -> list[float]:
    """Return log2 of the error with x_0 over that with eps, for each seed; see `errors`."""
    return [math.log2(x_0 / eps) for x_0, eps in errors(record, pair, window)]


def differences(
    record: Mapping[str, Any], pair: str, window: tuple[float, float] = WINDOW
) -> list[float]:
    """Return the error with x_0 minus that with eps, for each seed; see `errors`."""
    return [x_0 - eps for x_0, eps in errors(record, pair, window)]


RISING = {"gap": gaps, "difference of the errors": differences}  # both must, with skips


def slopes(
    records: Records,
    levels: Levels,
    line: tuple[str, str],
    measure: str | None = None,
    window: tuple[float, float] = WINDOW,
    compared: Callable[..., list[float]] = gaps,
) -> list[float]:
    """Fit the rise of the gap from level to level, or for each doubling of a measure of complexity.

    Returns a slope for each seed.

    Args:
        records: records by dial.
        levels: measures of each level.
        line: dial and network.
        measure: name of a measure of `levels`; None counts the levels.
        window: as in `errors`.
        compared: what rises: `gaps` or `differences`.
    """
    name, kind = line
    own = DIALS[name].datasets()
    x = [math.log2(levels[n][measure]) if measure else float(k) for k, n in enumerate(own)]
    y = [compared(records[name], f"{level}, {kind}", window) for level in own]
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
            f"{dial.replace('_', ' ')}, {network}: rise of the {what} a level",
            slopes(records, levels, (dial, network), compared=compared),
            0.0,
            unit=what,
        )
        for hypothesis, dial, network in PARTS
        if all(d in records for part, d, _ in PARTS if part == hypothesis)
        for what, compared in RISING.items()
        if network == SKIPS or compared is gaps
    ]


def others(records: Records, levels: Levels) -> list[dict[str, str]]:
    """Return rows for `viz.table`: what decides nothing, at the level of the slopes that do.

    The gap at the last level, which is above 0 where x_0 is behind, and slopes of the gap.

    Args:
        records: records by dial.
        levels: measures of each level.
    """
    rows = []
    for _, dial, network in PARTS:
        if dial in records:
            *_, last = DIALS[dial].datasets()
            values = {"gap at the last level": gaps(records[dial], f"{last}, {network}")}
            values |= {o: slopes(records, levels, (dial, network), *of) for o, of in OTHERS.items()}
            row = {text: f"{Interval.student_t(v, ALPHA)}" for text, v in values.items()}
            rows.append({"dial": dial.replace("_", " "), "network": network} | row)
    return rows


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
