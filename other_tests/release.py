"""Release a finished run with the library, for `runs.released` and `sample released/NAME`.

    python -m other_tests.release runs/labels mnist_labels

Copies what sampling and measuring need into diffusion_lib/assets/released/NAME, its weights in half
precision, and writes how it was trained and what 1,000 of its samples are like into release.json
beside it.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lib import evaluation, runs
from diffusion_lib.metrics import Interval, features
from diffusion_lib.runs import Run
from diffusion_lib.runs.run import RELEASED
from diffusion_lib.system import files
from other_tests import common

CONDITIONS = evaluation.Conditions()  # 1,000 samples of ddpm in 100 steps
MEASURES = ("confidence > 0.9", "Frechet distance", "precision", "recall")
LONG = {"likelihood", "errors", "seconds"}  # parts of a measurement that are left out


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="name of the release, such as mnist_labels")
    options = parser.parse_args()
    run = runs.load(options.run)
    if classes := run.denoiser.config.classes:
        run = run.guided(range(classes))  # without guidance, which hides what a network lacks
    print(release(run, options.name, options.data))


def release(run: Run, name: str, root: str) -> Path:
    """Measure a run and copy it into the library; return the folder of the release.

    Args:
        run: finished run; with labels, if its network knows them.
        name: name of the release.
        root: folder of the data sets.

    Raises:
        FileExistsError: there is a release of that name.
        ValueError: a file above the limit, an unfinished run, or no feature network for its data.
    """
    folder = RELEASED / name
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it first, or give another name")
    steps = common.load((run.folder / "experiment.json").resolve())["train"]["num_steps"]
    if (step := (run.series("loss")[0] or [0])[-1]) != steps:
        raise ValueError(f"{run.folder} is at step {step} of {steps}: finish its training first")
    dataset = evaluation.dataset_name(run)
    features.released(dataset)  # raises
    with files.atomic_folder(folder) as temporary:
        for file in ("experiment.json", "log.jsonl"):
            shutil.copy(run.folder / file, temporary)
        run.denoiser.network.half()  # what is measured below is what was saved: rounded
        run.denoiser.save(temporary / "ema.safetensors", step)
        run.denoiser.network.float()
        for path in temporary.iterdir():
            if (size := path.stat().st_size / 1e6) > limit(dataset):
                raise ValueError(
                    f"{path.name} has {size:.1f} MB, and a file of a release of {dataset} at most "
                    f"{limit(dataset)} MB: train a smaller network"
                )
        record = describe(run, evaluation.evaluate(run, CONDITIONS, root))
        files.write_json(temporary / "release.json", record)
    return folder


def limit(dataset: str) -> int:
    """Return how many MB a file of a release of a data set may have."""
    return 16 if dataset.startswith("cifar10") else 5


def describe(run: Run, measured: dict[str, Any]) -> dict[str, Any]:
    """Describe how a run was trained, and what was measured of it, for its release.

    Args:
        run: run with a log.
        measured: record of `evaluation.evaluate`.
    """
    short = {name: value for name, value in measured.items() if name not in LONG}
    return {
        "training": common.training(run),
        "measured": short | {"bits per dim": measured["likelihood"]["bits per dim"]},
    }


def records() -> dict[str, dict[str, Any]]:
    """Read the records of the releases, by name."""
    return {name: common.load(path / "release.json") for name, path in runs.releases().items()}


def rows(records: Mapping[str, Mapping[str, Any]]) -> tuple[list[dict[str, str]], str]:
    """Compare the samples of each release with as many real images.

    Args:
        records: records of the releases, by name.
    """
    table = []
    for name, record in records.items():
        for what, part in ((f"`{name}`", "samples"), ("real images", "floor")):
            measured = record["measured"][part]
            intervals = {measure: Interval(**measured[measure]) for measure in MEASURES}
            table.append({"": what} | {m: f"{x:.2f}" for m, x in intervals.items()})
    trainings = "; ".join(
        f"`{name}` {record['training']['steps']} steps, "
        f"{record['training']['minutes of training']:.0f} minutes"
        for name, record in records.items()
    )
    conditions = next(iter(records.values()))["measured"]["conditions"]
    return table, (
        f"{conditions['n']:,} samples of `{conditions['sampler']}` in {conditions['steps']} steps; "
        "labels, where there are any, without guidance. One training each, on two CPU "
        f"cores: {trainings}."
    )


if __name__ == "__main__":
    main()
