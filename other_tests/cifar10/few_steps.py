"""How few steps are enough?  The runs of `cifar10.json`, sampled with DDIM in fewer steps.

    python -m other_tests.cifar10.few_steps

Trains what is missing, goes on where it was stopped, and writes few_steps.record.json: number of
sampling steps -> the record of the study.
"""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion_lib import compare, config
from diffusion_lib.system import files

FOLDER = Path(__file__).parent
RECORD = FOLDER / "few_steps.record.json"
DATASET = "cifar10_jpeg"
NUM_STEPS = (5, 10, 25)


def load() -> dict[int, dict[str, Any]]:
    """Number of sampling steps -> the record of the study."""
    return {int(steps): study for steps, study in json.loads(RECORD.read_text()).items()}


def series(
    few: Mapping[int, dict[str, Any]], measure: str, arm: str
) -> tuple[list[int], list[float], list[float]]:
    """Numbers of sampling steps, mean over seeds and its 95 % margin, for `viz.curve`."""
    means, margins = [], []
    for study in few.values():
        _, mean, margin = compare.series(study, measure, arm)
        means += mean
        margins += margin
    return list(few), means, margins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    arms, seeds, steps, conditions = compare.read_study(FOLDER / "cifar10.json")
    # Likelihoods do not depend on the sampler, and the study has measured them.
    conditions = replace(conditions, sampler="ddim", n_likelihood=2, num_times=2)
    found: dict[str, Any] = {}
    for num_steps in NUM_STEPS:
        asked = replace(conditions, steps=num_steps)
        study = compare.compare(arms, seeds, steps[-1:], asked, options.data)
        for row in study["measured"]:
            # From two images, which say nothing; the study has measured likelihoods and errors.
            row["measures"] = {name: row["measures"][name] for name in study["floor"][DATASET]}
            del row["errors"]
        found[str(num_steps)] = study
    if os.environ.get("RANK", "0") == "0":  # all processes end with the same
        files.write_json(RECORD, found)


if __name__ == "__main__":
    main()
