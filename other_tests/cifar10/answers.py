"""The statements of the hypotheses of REGISTRATION.md, from the committed records.

Those on the complexity of the data are in `slopes`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from diffusion_lib import compare
from other_tests import registered
from other_tests.cifar10 import prediction
from other_tests.cifar10.prediction import DDPM, NAIVE, SAMPLERS, SEEDS, STUDIES
from other_tests.registered import DISTANCE, gap, gaps, minus

ALPHA = 0.05 / 7  # seven hypotheses
NARROW, WIDE = ("U-Net 8/64", "transformer 16/256"), ("U-Net 8/208", "transformer 16/1024")
FAR = -10.0  # a lead that no one overlooks
SMALL = 3.0  # about the size of the effects that matter here
BOTTLENECK = Path(__file__).parent / "bottleneck.record.json"
Statement = partial(registered.Statement, alpha=ALPHA)
Record = Mapping[str, Any]


def records() -> dict[str, dict[str, Any]]:
    """Read the records that hold all registered seeds, by their names, such as "crossing, ddim"."""
    paths = {
        f"{name}, {sampler}": prediction.record_file(name, sampler)
        for name in STUDIES
        for sampler in SAMPLERS
    }
    paths["bottleneck"] = BOTTLENECK
    return registered.load(paths, SEEDS)


def crossing_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypotheses 1 to 3: who is ahead late and early, and what the sampler changes."""
    by_sampler = {
        sampler: gaps(by_study[f"crossing, {sampler}"], NAIVE, DDPM) for sampler in SAMPLERS
    }
    (first, early), *_, (last, late) = by_sampler["ddpm"].items()
    by_ddim = by_sampler["ddim"][last]
    text = f"after {last:,} images: naive minus DDPM, by "
    return [
        Statement("1a late, by DDPM", f"{text}DDPM", late, 0.0),
        Statement("1b late, by DDIM", f"{text}DDIM", by_ddim, 0.0),
        Statement("2 early", f"after {first:,} images: naive minus DDPM", early, high=0.0),
        Statement("3 the sampler", f"{text}DDIM, less that by DDPM", minus(by_ddim, late), 0.0),
    ]


def prediction_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypotheses 4 and 5, of the arms that did not diverge: prediction alone, and weight alone."""
    record = by_study["prediction, ddpm"]
    last = record["steps"][-1]
    text, pair = "min_snr: $x_0$ minus $\\epsilon$", ("x_0, min_snr", "eps, min_snr")
    stated = [("4 the prediction", text, pair, -SMALL, SMALL)]
    for part, cell in zip("abc", (DDPM, NAIVE, "x_0, snr"), strict=True):
        predicted, weight = cell.split(", ")
        text, pair = f"{predicted}: min_snr minus {weight}", (f"{predicted}, min_snr", cell)
        stated.append((f"5{part} the weight", text, pair, -math.inf, 0.0))
    return [
        Statement(part, text, gap(record, *pair, last), low, high)
        for part, text, pair, low, high in stated
        if {*pair} <= record["arms"].keys()
    ]


def bottleneck_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 6: a narrow network can predict the picture and not the noise."""
    record = by_study["bottleneck"]
    last = record["steps"][-1]

    def lead(network: str) -> Sequence[float]:
        cells = [f"{network}: eps, {weight}" for weight in ("snr", "min_snr")]
        cells = [arm for arm in cells if arm in record["arms"]]  # that did not diverge
        best = min(cells, key=lambda arm: fmean(compare.values(record, DISTANCE, arm, last)))
        return gap(record, f"{network}: {NAIVE}", best, last)

    text = "{}: naive minus the better cell of $\\epsilon$"
    narrow = [Statement("6a H < D", text.format(n), lead(n), high=FAR) for n in NARROW]
    return narrow + [Statement("6b H > D", text.format(n), lead(n), FAR) for n in WIDE]


# What is stated -> the records that it needs.
MAKERS = {
    crossing_statements: tuple(f"crossing, {sampler}" for sampler in SAMPLERS),
    prediction_statements: ("prediction, ddpm",),
    bottleneck_statements: ("bottleneck",),
}


def statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Make the statements of all hypotheses whose records are there."""
    return registered.make(MAKERS, by_study)
