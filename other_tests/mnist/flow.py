"""Is flow matching diffusion at another signal-to-noise ratio, and which times should it draw?

    python -m other_tests.mnist.flow        trains, samples, writes flow.record.json; goes on

Six arms on MNIST, 1,000 steps of 64 images with AdamW, seeds 0 to 2, sampled by DDIM in 50
steps (on `flow` that is Euler's method).  The measure is the Frechet distance of 500 samples; a
lower one is better.  Hypotheses, written down before the study was run:

1. "diffusion" (cosine, v) and "flow, same SNR" (a straight line that passes through the cosine
   schedule's signal-to-noise ratios at the same t, velocity, the same weight of x_0_hat's error)
   differ by less than seeds do: the interval of their difference holds 0.  Refuted by an interval
   that does not.
2. "flow, logit-normal" is better than "flow", whose times are uniform [Esser 2024 found so on
   photographs].  Refuted by an interval that holds 0 or lies above it.
3. Of the networks the U-Net is better than the transformer, and that than the MLP, at this length
   of training.  Refuted likewise, pair by pair.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import MNIST_ADAMW
from diffusion_lib import compare, config, densities, losses, predictions, schedules, viz
from diffusion_lib.config import Experiment
from diffusion_lib.evaluation import Conditions
from diffusion_lib.networks import MLPConfig, TransformerConfig
from diffusion_lib.schedules import NoiseSchedule
from other_tests import common

RECORD = Path(__file__).with_name("flow.record.json")
SEEDS, STEPS = (0, 1, 2), (1000,)
CONDITIONS = Conditions(n=500, sampler="ddim", steps=50, n_likelihood=100, num_times=25)
MEASURE = "Frechet distance"

# What is compared, in the order of the hypotheses: an arm, and what it is measured against.
PAIRS = (
    ("flow, same SNR", "diffusion"),
    ("flow, logit-normal", "flow"),
    ("flow", "diffusion"),
    ("flow, transformer", "flow, logit-normal"),
    ("flow, MLP", "flow, transformer"),
)


def straight_cosine(T: int) -> NoiseSchedule:
    """Pass through the signal-to-noise ratios of `schedules.cosine` on the line of `flow`."""
    cosine = schedules.cosine(T)
    signal, noise = cosine.alpha_bar.sqrt(), cosine.noise_variance.sqrt()
    return NoiseSchedule(signal / (signal + noise), noise / (signal + noise))


def arms() -> dict[str, Experiment]:
    """Return the experiments that are compared, by name."""
    shape = config.MNIST.network.image_shape
    base = MNIST_ADAMW
    diffusion = replace(
        base, schedule=schedules.cosine, prediction=predictions.v, weight=losses.snr_plus_1
    )
    flow = replace(base, schedule=schedules.flow, prediction=predictions.velocity)
    logit_normal = replace(flow, density=densities.logit_normal)
    return {
        "diffusion": diffusion,
        "flow, same SNR": replace(
            diffusion, schedule=straight_cosine, prediction=predictions.velocity
        ),
        "flow": flow,
        "flow, logit-normal": logit_normal,
        "flow, transformer": replace(
            logit_normal, network=TransformerConfig(shape, patch=4, width=128, depth=6, heads=4)
        ),
        "flow, MLP": replace(logit_normal, network=MLPConfig(shape, width=1024, depth=3)),
    }


def differences(record: dict[str, Any], measure: str = MEASURE) -> list[dict[str, str]]:
    """Return rows for `viz.table`: each of PAIRS, after the last step.

    Args:
        record: record of the study.
        measure: name of the measure.
    """
    return compare.pairwise_differences(record, measure, record["steps"][-1], PAIRS)


def main() -> None:
    options = common.parser(__doc__).parse_args()
    record = compare.compare(compare.Study(arms(), SEEDS, STEPS, CONDITIONS), options.data)
    compare.save(record, RECORD)
    print(viz.table(differences(record)).data)


if __name__ == "__main__":
    main()
