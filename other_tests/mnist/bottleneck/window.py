"""At which noise levels must a network learn?  Weights that look at one part of them.

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
ELSEWHERE = 0.01  # so that no time is left unlearned, and the loss still lies where it is said


# All are `min_snr`, with which each of the predictions can be trained, times 1 or `ELSEWHERE`.
# AdamW does not mind by how much that makes a loss smaller as a whole; the bound on the norm of the
# gradient does, but acts in the first steps alone.


def inside(snr: Tensor) -> Tensor:
    """Weight the noise levels at which labels are decided."""
    log2_snr = snr.log2()
    return losses.min_snr(snr) * _emphasis((log2_snr >= LOW) & (log2_snr <= HIGH))


def noisier(snr: Tensor) -> Tensor:
    """Weight the noise levels above them."""
    return losses.min_snr(snr) * _emphasis(snr.log2() < LOW)


def cleaner(snr: Tensor) -> Tensor:
    """Weight the noise levels below them."""
    return losses.min_snr(snr) * _emphasis(snr.log2() > HIGH)


def _emphasis(chosen: Tensor) -> Tensor:
    return chosen.float().clamp(min=ELSEWHERE)


WEIGHTS = (inside, noisier, cleaner, losses.min_snr)


def arms() -> dict[str, config.Experiment]:
    """Return the arms: each prediction with each weight, on the U-Net of `crossing.json`."""
    base = next(iter(compare.read_study(FOLDER / "crossing.json").arms.values()))
    return {
        f"{prediction.__name__}, {weight.__name__}": replace(
            base, prediction=prediction, weight=weight
        )
        for prediction in (predictions.eps, predictions.v, predictions.x_0)
        for weight in WEIGHTS
    }


def main() -> None:
    options = common.parser(__doc__).parse_args()
    study = compare.read_study(FOLDER / "cells.json")
    common.run_study(study._replace(arms=arms()), options.data, RECORD)


if __name__ == "__main__":
    main()
