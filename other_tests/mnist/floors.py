"""Measure real digits: disjoint sets of training images in the place of samples.

    python -m other_tests.mnist.floors        writes floors.json

A run's record has one such set as its floor, which is one draw.  Here are twenty of the same size,
so that a run can be held against the whole of what real digits score.
"""

from pathlib import Path

from diffusion_lib import data, evaluation, metrics
from diffusion_lib.metrics import features
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar
from other_tests import common

OUT = Path(__file__).with_name("floors.json")
SETS = 20


def main() -> None:
    options = common.parser(__doc__).parse_args()
    n, network = evaluation.Conditions().n, features.load("mnist")
    train, test = (data.mnist(options.data, part).images for part in (True, False))
    reference = network.extract_features(test).features
    chosen = evaluation.random_subset(train, SETS * n)
    floors: dict[str, list[float]] = {}
    for images in Bar(chosen.split(n), "sets of real digits"):
        for name, value in metrics.point_estimates(
            network.extract_features(images), reference
        ).items():
            floors.setdefault(name, []).append(float(f"{value:.6g}"))
    record = {
        "n": n,
        "reference": f"mnist test, {len(test)} images",
        "features sha256": features.released("mnist")[1],
        "floors": floors,
    }
    files.write_json(OUT, record)


if __name__ == "__main__":
    main()
