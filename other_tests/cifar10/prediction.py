"""Who is ahead on photographs, after how many images, by which sampler?  See REGISTRATION.md.

    python -m other_tests.cifar10.prediction

Two studies of one small U-Net with skip connections, each by DDPM and by DDIM, from the same runs:
DDPM against the network that predicts x_0 with the plain error, up to a million images, and five
pairs of prediction and weight up to half of that.  Goes on where it was stopped, and after every
seed writes crossing.SAMPLER.record.json or prediction.SAMPLER.record.json.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from diffusion_lib import compare, config, data, losses, predictions, schedules
from diffusion_lib.evaluation import Conditions
from diffusion_lib.networks import UNetConfig
from other_tests import common

FOLDER = Path(__file__).parent
DDPM, NAIVE = "eps, snr", "x_0, uniform"
CELLS = (DDPM, NAIVE, "x_0, snr", "eps, min_snr", "x_0, min_snr")
# Name -> (arms, numbers of steps of 64 images): what decides most stands first.
STUDIES = {
    "crossing": ((DDPM, NAIVE), (500, 1000, 2000, 4000, 8000, 16000)),
    "prediction": (CELLS, (500, 2000, 8000)),
}
SAMPLERS = ("ddpm", "ddim")
SEEDS = (20, 21, 22)
CONDITIONS = Conditions(n=1000, steps=50, n_likelihood=100, num_times=25)
BASE = replace(
    config.CIFAR10,
    dataset=data.cifar10_jpeg,
    network=UNetConfig(
        (3, 32, 32), 32, (1, 2, 2), num_blocks=1, attention=(8,), dropout=0.0, patch=2
    ),
    schedule=schedules.cosine,
    train=replace(
        config.CIFAR10.train,
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=100,
        ema_decay=0.999,
        mirror=0.5,
    ),
)


def arm(cell: str) -> config.Experiment:
    """Make an arm from the names of its prediction and its weight."""
    prediction, weight = cell.split(", ")
    return replace(
        BASE, prediction=getattr(predictions, prediction), weight=getattr(losses, weight)
    )


def study(name: str, sampler: str, without: Collection[str] = ()) -> compare.Study:
    """Return one of the studies, without the arms that diverged."""
    cells, steps = STUDIES[name]
    arms = {cell: arm(cell) for cell in cells if cell not in without}
    return compare.Study(arms, SEEDS, steps, replace(CONDITIONS, sampler=sampler))


def record_file(name: str, sampler: str) -> Path:
    """Return the record of a study."""
    return FOLDER / f"{name}.{sampler}.record.json"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--without", nargs="+", default=[], choices=CELLS, help="arms to leave out")
    options = parser.parse_args()
    for name in STUDIES:
        by_sampler = {record_file(name, s): study(name, s, options.without) for s in SAMPLERS}
        common.run_studies(by_sampler, options.data)


if __name__ == "__main__":
    main()
