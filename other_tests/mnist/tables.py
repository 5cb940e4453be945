"""The README's tables of MNIST, from the committed records.

    python -m other_tests.mnist.tables runs/NAME ...    commit these runs' records
    python -m other_tests.mnist.tables                  write the tables into the README

A table stands between two comments that name it; a test fails where it is not the one that this
script would write.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from diffusion_lib import config, evaluation, runs, viz
from diffusion_lib.metrics import Interval
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files

RECORDS = Path(__file__).parent / "records"
ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
FLOORS = Path(__file__).parent / "floors.json"
SHOWN = (
    "Frechet distance",
    "kernel distance",
    "precision",
    "recall",
    "confidence > 0.9",
    "nearest training image",
    "copies",
    "bits per dim (bound)",
    "bits per image",
)


def commit(run: str | Path) -> None:
    """Put a run's record among the committed ones, in the place of that of the same experiment.

    Raises:
        FileNotFoundError, ValueError: the run has not been evaluated, or under other conditions
            than the committed records; nothing is changed then.
    """
    path = Path(run) / "metrics.json"
    record = evaluation.load(path)
    others = {old: evaluation.load(old) for old in sorted(RECORDS.glob("*.json"))}
    same = [old for old, told in others.items() if told["experiment"] == record["experiment"]]
    kept = [told for old, told in others.items() if old not in same]
    evaluation.check_same_conditions([record, *kept])
    for old in same:
        old.unlink()
    RECORDS.mkdir(exist_ok=True)
    shutil.copy(path, RECORDS / f"{record['run']}.json")


def find(**wanted: Any) -> dict[str, Any]:
    """The one committed record whose experiment has these values, and else those of the preset.

    Raises:
        ValueError: there is none, or more than one.
    """
    wanted = {"schedule": "linear", "prediction": "eps", "weight": None, "loss": None} | wanted
    found = [
        record
        for record in map(evaluation.load, sorted(RECORDS.glob("*.json")))
        if wanted.items() <= record["experiment"].items()
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} records of {wanted} in {RECORDS.name}; one is needed")
    return found[0]


def the_runs() -> str:
    """What `evaluate` prints of the notebooks' own runs, shortened."""
    records = [find(), find(schedule="cosine"), find(prediction="x_0")]
    floors = json.loads(FLOORS.read_text())["floors"]
    rows = [row for row in evaluation.table(records) if row[""] in SHOWN]
    for row in rows:
        values = floors.get(row[""], [])
        row["20 floors"] = (
            f"{Interval(fmean(values), min(values), max(values)):.4g}" if values else ""
        )
    return markdown(rows)


def differences() -> str:
    """The verdicts on each run against that of `ddpm.ipynb`, for two measurements."""
    rows = []
    for name, record in (
        ("cosine schedule", find(schedule="cosine")),
        ("x_0", find(prediction="x_0")),
        ("x_0, weight snr", find(prediction="x_0", weight="snr")),
        ("v", find(prediction="v")),
    ):
        row = {"": name}
        for told in evaluation.verdicts(record, find()):
            if told[""] in ("Frechet distance", "bits per dim"):
                row |= {told[""]: f"{told['difference']}: {told['verdict']}"}
        rows.append(row)
    return markdown(rows)


def learned_variance() -> str:
    """Bits per dim with a learned variance and without, each schedule against its twin."""
    rows = []
    for schedule in ("linear", "cosine"):
        twins = [find(schedule=schedule), find(schedule=schedule, loss="hybrid_loss")]
        (difference,) = (
            row["difference"]
            for row in evaluation.verdicts(*twins[::-1])
            if row[""] == "bits per dim"
        )
        for name, record in zip(("L_simple", "L_hybrid, variance learned"), twins, strict=True):
            bits = record["likelihood"]
            rows.append(
                {
                    "schedule": schedule,
                    "loss": name,
                    "bits per dim": f"{Interval(**bits['bits per dim']):.4g}",
                    "bits per image": f"{bits['bits per image']:.4g}",
                    "L_0": f"{bits['L_0']:.3g}",
                    "less its twin": difference if record is twins[1] else "",
                }
            )
    return markdown(rows)


def conditions() -> str:
    """How the runs were measured, in words."""
    record = find()
    told = record["conditions"]
    return (
        f"{told['n']:,} samples of each run ({told['sampler']}, {told['steps']} steps, seed "
        f"{told['seed']}), after {told['images seen']:,} images seen; reference: "
        f"{told['reference']}; likelihood: {told['likelihood']}; {record['device']}. "
        f"Feature network: sha256 `{told['features sha256'][:16]}`."
    )


TABLES: dict[str, Callable[[], str]] = {
    "the runs": the_runs,
    "differences": differences,
    "learned variance": learned_variance,
    "conditions": conditions,
}


def made_with(run: runs.Run) -> dict[str, Any]:
    """What a record of a run tells of how it was made."""
    return {
        "experiment": json.loads((run.folder / "experiment.json").read_text()),
        "device": hardware.name(run.denoiser.schedule.signal.device),
        "torch": torch.__version__,
    }


def measure_named(
    about: str | None, measure: Callable[[str, str], dict[str, Any]], out: Path
) -> None:
    """Write the record of the run that the command line names, if it names one.

    Args:
        about: docstring of the command.
        measure: (folder of the run, folder of the data sets) -> record.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("run", nargs="?", help="folder of the run to measure")
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    if options.run:
        files.write_json(out, measure(options.run, options.data))


def markdown(rows: list[dict[str, str]]) -> str:
    return str(viz.table(rows).data)


def replace_table(text: str, name: str, table: str) -> str:
    """The text with what stands between a table's two comments replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the README needs {begin} and {end}, once each")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", help="folders of runs that have been evaluated")
    options = parser.parse_args()
    for run in options.runs:
        commit(run)
    text = README.read_text()
    for name, make in TABLES.items():
        text = replace_table(text, name, make())
    README.write_text(text)


if __name__ == "__main__":
    main()
