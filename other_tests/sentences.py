"""What we found in six sentences, for the front page: every figure in them is from a record."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_lib import compare
from other_tests import findings
from other_tests.cifar10 import few_steps
from other_tests.editing import curves
from other_tests.findings import DDPM, FIRST, FLATTER, LAST, NAIVE, SAME_WEIGHT
from other_tests.mnist import flow

BITS = "bits per dim"
Records = Mapping[str, Mapping[str, Any]]


def text(records: Records) -> str:
    """Write the list.

    Args:
        records: those of `findings.records`.
    """
    parts = (_surprise, _cosine, _photographs, _noise, _labels, _flow)
    return "\n".join(f"- {part(records)}" for part in parts)


def _surprise(records: Records) -> str:
    names = ("mnist", "bottleneck", "way around", "crossing")
    record, narrow, around, long = (records[name] for name in names)
    mlp, unet, wide = (
        _effect(narrow, (f"{network}: x_0, uniform", f"{network}: eps, snr"))
        for network in ("MLP 256", "U-Net 14/64", "MLP 1024")
    )
    skip = _effect(around, ("MLP 256 + skip: eps, snr", "MLP 256: eps, snr"))
    lead, flatter, prediction = (
        _effect(record, pair, FIRST)
        for pair in ((NAIVE, DDPM), (FLATTER, DDPM), (SAME_WEIGHT, DDPM))
    )
    return (
        "**In networks that are narrower than the picture DDPM draws noise, and $x_0$ draws "
        f"digits**: Fréchet distance {mlp} and {unet} in an MLP and a U-Net; but {wide} in a wider "
        f"MLP too, which that does not explain ({_budget(narrow, LAST)}). One connection from "
        f"input to output changes DDPM's by {skip} in the first. In a small U-Net with patches of "
        "2 pixels both draw digits, and $x_0$ is ahead even after the longest training "
        f"({_effect(long, ('x_0, uniform', 'eps, snr'))}, {_budget(long, LAST)}; "
        "[story](other_tests/mnist/bottleneck.ipynb)). In one without patches it is ahead early "
        f"({lead}, {_budget(record, FIRST)}; "
        f"{_effect(record, (NAIVE, DDPM), FIRST, BITS)} more bits per dim), and there the loss "
        f"weight decides: `min_snr` alone changes DDPM's by {flatter}, and with DDPM's weight "
        f"$x_0$ shows no lead ({prediction}; [story](other_tests/mnist/small-backbone.ipynb))."
    )


def _cosine(records: Records) -> str:
    record = records["mnist"]
    pair = ("eps, snr, cosine", DDPM)
    return (
        "**The cosine schedule** gives DDPM fewer bits per dim "
        f"({_effect(record, pair, LAST, BITS)}), more digits that a classifier is sure of "
        f"({_effect(record, pair, LAST, 'confidence > 0.9')}) and lower precision "
        f"({_effect(record, pair, LAST, 'precision')}); its Fréchet distance is not "
        f"distinguishable ({_effect(record, pair)}, {_budget(record, LAST)}; "
        "[one long training](ddpm-cosine-scheduler.ipynb))."
    )


def _photographs(records: Records) -> str:
    record, few = records["cifar10"], records["few steps"]
    pairs = [(arm, "eps") for arm in ("x_0, unweighted", "x_0, weight snr")]
    plain, weight = (_effect(record, pair) for pair in pairs)
    few_plain, few_weight = (_effect(few, pair) for pair in pairs)
    return (
        "**On small photographs** that show no objects yet, $x_0$ minus DDPM is "
        f"{plain} with the plain error and {weight} with DDPM's weight "
        f"({_budget(record, LAST)}); by DDIM in {few_steps.NUM_STEPS[0]} steps DDPM is ahead of "
        f"both, {few_plain} and {few_weight} ([story](other_tests/cifar10/cifar10.ipynb))."
    )


def _noise(records: Records) -> str:
    record = records["editing"]
    digits = [curves.runs_of(record, schedule) for schedule in curves.SCHEDULES]
    ends = [[curves.label_until(run, "noise") for run in runs] for runs in digits]
    linear, cosine = (f"{curves.over_seeds(times).value:.0f}" for times in ends)
    ratio = compare.paired(
        *(
            [curves.log2_snr(run, t) for run, t in zip(runs, times, strict=True)]
            for runs, times in zip(digits, ends, strict=True)
        )
    )
    lowest = [
        f"{curves.over_seeds([curves.lowest(run, 'noise, sketch') for run in runs]).value:.1f}"
        for runs in digits
    ]
    return (
        "**What survives noise**: noised and denoised again, 5 % of digits become another one "
        f"after {linear} of 1,000 steps (linear schedule) or {cosine} (cosine), at "
        f"signal-to-noise ratios that cannot be told apart ({ratio} octaves, {ratio.n} seeds). "
        f"Crude sketches do not look real before (Fréchet distance {' and '.join(lowest)}, real "
        f"digits {curves.ceiling(record):.1f}), nor do the networks' own samples "
        "([story](other_tests/editing/editing.ipynb))."
    )


def _labels(records: Records) -> str:
    record = records["guidance"]
    rows = {row["scale"]: row for row in record["rows"]}
    (right, guided), (recall, left) = (
        [f"{rows[scale][name][0]:{form}}" for scale in (1.0, 2.0)]
        for name, form in (("accuracy", ".1%"), ("recall", ".2f"))
    )
    return (
        f"**Labels** alone give the right digit in {right} of cases, guidance at scale 2 in "
        f"{guided}, at the price of variety: recall falls from {recall} to {left} (one training, "
        f"{record['n']:,} digits; [numbers](other_tests/mnist/README.md#asking-for-a-digit))."
    )


def _flow(records: Records) -> str:
    record = records["flow"]
    return (
        "**Flow matching** is ahead of diffusion (cosine, $v$) at the same signal-to-noise ratios, "
        "where exact denoisers would draw the same "
        f"({_effect(record, flow.PAIRS[0])}, {_budget(record, LAST)}), and on its own schedule "
        f"({_effect(record, flow.PAIRS[2])}), there at "
        f"{_effect(record, flow.PAIRS[2], LAST, BITS)} more bits per dim "
        "([numbers](other_tests/mnist/README.md#flow-matching))."
    )


def _effect(
    record: Mapping[str, Any],
    arms: Sequence[Any],
    steps: int = LAST,
    measure: str = findings.MEASURE,
) -> str:
    """Format the difference of two arms, or of the means of two lists of arms."""
    return f"{compare.difference(record, measure, record['steps'][steps], *arms)}"


def _budget(record: Mapping[str, Any], steps: int) -> str:
    return f"{findings.images_seen(record, steps):,} images, {len(record['seeds'])} seeds"
