"""How few steps are enough?  The runs of `cifar10.json`, sampled with DDIM in fewer steps.

    python -m other_tests.cifar10.few_steps

Trains what is missing, goes on where it was stopped, and writes few_steps.N.record.json: the record
of the study with N sampling steps.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion_lib import compare
from other_tests import common

FOLDER = Path(__file__).parent
DATASET = "cifar10_jpeg"
NUM_STEPS = (5, 10, 25)


def load() -> dict[int, dict[str, Any]]:
    """Read the records of the study by numbers of sampling steps."""
    return {steps: compare.load(_file(steps)) for steps in NUM_STEPS}


def _file(num_steps: int) -> Path:
    return FOLDER / f"few_steps.{num_steps}.record.json"


def series(
    few: Mapping[int, dict[str, Any]], measure: str, arm: str
) -> tuple[list[int], list[float], list[float]]:
    """Return numbers of sampling steps, means over seeds and 95 % margins for `viz.curve`.

    Args:
        few: result of `load`.
        measure: measure of the study, such as "Frechet distance".
        arm: name of an arm.
    """
    means, margins = [], []
    for study in few.values():
        _, mean, margin = compare.series(study, measure, arm)
        means += mean
        margins += margin
    return list(few), means, margins


def main() -> None:
    options = common.parser(__doc__).parse_args()
    arms, seeds, steps, conditions = compare.read_study(FOLDER / "cifar10.json")
    # Likelihoods do not depend on the sampler, and the study has measured them.
    conditions = replace(conditions, sampler="ddim", n_likelihood=2, num_times=2)
    for num_steps in NUM_STEPS:
        few = replace(conditions, steps=num_steps)
        study = compare.compare(compare.Study(arms, seeds, steps[-1:], few), options.data)
        for row in study["measured"]:
            # From two images, which say nothing; the study has measured likelihoods and errors.
            row["measures"] = {name: row["measures"][name] for name in study["floor"][DATASET]}
            del row["errors"]
        if os.environ.get("RANK", "0") == "0":  # all processes end with the same
            compare.save(study, _file(num_steps))


if __name__ == "__main__":
    main()
