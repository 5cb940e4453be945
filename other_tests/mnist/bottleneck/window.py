"""Does a weight in the window where labels are decided help, and its mirror image harm?

    python -m other_tests.mnist.bottleneck.window

A U-Net with skip connections, three predictions, four weights, new seeds.  Goes on where it was
stopped, and writes window.record.json.
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from diffusion_lib import compare, config, losses, predictions
from other_tests import common

FOLDER = Path(__file__).parent
RECORD = FOLDER / "window.record.json"
LOW, HIGH = -5.5, -0.5  # log2 SNR; chosen on the record of small_backbone.json
OUTSIDE = 0.1  # so that no time is left unlearned


def window(snr: Tensor) -> Tensor:
    """Weight 1 where labels are decided, `OUTSIDE` elsewhere: on the error of x_0_hat."""
    log2_snr = snr.log2()
    return ((log2_snr >= LOW) & (log2_snr <= HIGH)).to(snr.dtype).clamp(min=OUTSIDE)


def mirror(snr: Tensor) -> Tensor:
    """Weight `OUTSIDE` where labels are decided, 1 elsewhere."""
    return OUTSIDE / window(snr)


WEIGHTS = {"window": window, "mirror": mirror, "uniform": losses.uniform, "min_snr": losses.min_snr}


def arms() -> dict[str, config.Experiment]:
    """Return the arms: each prediction with each weight, on the U-Net of `crossing.json`."""
    base = next(iter(compare.read_study(FOLDER / "crossing.json").arms.values()))
    return {
        f"{prediction.__name__}, {name}": replace(base, prediction=prediction, weight=weight)
        for prediction in (predictions.eps, predictions.v, predictions.x_0)
        for name, weight in WEIGHTS.items()
    }


def main() -> None:
    options = common.parser(__doc__).parse_args()
    study = compare.read_study(FOLDER / "cells.json")
    record = compare.compare(arms(), study.seeds, study.steps, study.conditions, options.data)
    compare.save(record, RECORD)


if __name__ == "__main__":
    main()
