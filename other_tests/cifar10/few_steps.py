"""How few steps are enough?  The runs of `cifar10.json`, sampled with DDIM in fewer steps.

    python -m other_tests.cifar10.few_steps

Trains what is missing, goes on where it was stopped, and writes few_steps.record.json: number of
sampling steps -> the record of the study.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusion_lib import compare, config, files

FOLDER = Path(__file__).parent
RECORD = FOLDER / "few_steps.record.json"
NUM_STEPS = (5, 10, 25, 50, 100)


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
        found[str(num_steps)] = compare.compare(arms, seeds, steps[-1:], asked, options.data)
    if os.environ.get("RANK", "0") == "0":  # all processes end with the same
        files.write_text(RECORD, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
