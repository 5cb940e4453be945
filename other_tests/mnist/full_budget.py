"""The runs of the three notebooks in their full budget: their records, and tables of them.

python -m other_tests.mnist.full_budget runs/NAME ...    commit these runs' records
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from diffusion_lib import evaluation
from diffusion_lib.metrics import Interval
from diffusion_lib.system import files
from other_tests import common

RECORDS = Path(__file__).parent / "records"
FLOORS = Path(__file__).with_name("floors.json")
MEASURES = (
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
Rows = list[dict[str, str]]
Records = Sequence[dict[str, Any]]


def records() -> Records:
    """Read the committed records."""
    return [evaluation.load(path) for path in sorted(RECORDS.glob("*.json"))]


def commit(run: str | Path) -> None:
    """Put a run's record among the committed ones, in the place of that of the same experiment.

    Args:
        run: folder of a run that has been evaluated.

    Raises:
        FileNotFoundError, ValueError: the run has not been evaluated, or under other conditions
            than the committed records; nothing is changed then.
    """
    record = evaluation.load(Path(run) / "metrics.json")
    others = {path: evaluation.load(path) for path in RECORDS.glob("*.json")}
    same = [path for path, old in others.items() if old["experiment"] == record["experiment"]]
    evaluation.check_same_conditions(
        [record, *(old for path, old in others.items() if path not in same)]
    )
    for path in same:
        path.unlink()
    files.write_json(RECORDS / f"{record['run']}.json", record)


def find(records: Records, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Find the one record of an experiment.

    Args:
        records: the committed records.
        changes: fields of the experiment that differ from those of `ddpm.ipynb`.

    Raises:
        ValueError: there is none, or more than one.
    """
    fields = {"schedule": "linear", "prediction": "eps", "weight": None, "loss": None}
    fields |= changes or {}
    matches = [record for record in records if fields.items() <= record["experiment"].items()]
    if len(matches) != 1:
        raise ValueError(f"{len(matches)} records of {fields} in {RECORDS.name}; one is needed")
    return matches[0]


def comparison(records: Records) -> Rows:
    """Shorten what `evaluate` prints of the notebooks' own runs.

    Args:
        records: the committed records.
    """
    own = [{}, {"schedule": "cosine"}, {"prediction": "x_0"}]
    rows = evaluation.table([find(records, changes) for changes in own])
    rows = [row for row in rows if row[""] in MEASURES]
    floors = common.load(FLOORS)["floors"]
    for row in rows:
        values = floors.get(row[""], [])
        row["20 floors"] = Interval(fmean(values), min(values), max(values)) if values else ""
    return rows


def differences(records: Records) -> Rows:
    """Compare each run with that of `ddpm.ipynb`, by two measurements.

    Args:
        records: the committed records.
    """
    rows = []
    for name, changes in (
        ("cosine schedule", {"schedule": "cosine"}),
        ("x_0", {"prediction": "x_0"}),
        ("x_0, weight snr", {"prediction": "x_0", "weight": "snr"}),
        ("v", {"prediction": "v"}),
    ):
        gaps = evaluation.differences(find(records, changes), find(records))
        row = {"": name}
        for key in ("Frechet distance", "bits per dim"):
            verdict = "not distinguishable" if 0 in gaps[key] else "different"
            row[key] = f"{gaps[key]}: {verdict}"
        rows.append(row)
    return rows


def learned_variance(records: Records) -> Rows:
    """Compare bits per dim with a learned variance and without, for each schedule.

    Args:
        records: the committed records.
    """
    rows = []
    for schedule in ("linear", "cosine"):
        fixed = find(records, {"schedule": schedule})
        learned = find(records, {"schedule": schedule, "loss": "hybrid_loss"})
        difference = evaluation.differences(learned, fixed)["bits per dim"]
        for name, record, effect in (
            ("L_simple", fixed, ""),
            ("L_hybrid, variance learned", learned, difference),
        ):
            bits = record["likelihood"]
            rows.append(
                {
                    "schedule": schedule,
                    "loss": name,
                    "trained in": record.get("precision", "float32"),  # older ones do not say
                    "bits per dim": Interval(**bits["bits per dim"]),
                    "bits per image": f"{bits['bits per image']:.4g}",
                    "L_0": f"{bits['L_0']:.3g}",
                    "less its twin": effect,
                }
            )
    return rows


def conditions(records: Records) -> str:
    """Say how the runs were measured.

    Args:
        records: the committed records.
    """
    record = find(records)
    made = record["conditions"]
    return (
        f"{made['n']:,} samples of each run ({made['sampler']}, {made['steps']} steps, seed "
        f"{made['seed']}), after {made['images seen']:,} images seen; reference: "
        f"{made['reference']}; likelihood: {made['likelihood']}; {record['device']}. "
        f"Feature network: sha256 `{made['features sha256'][:16]}`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", help="folders of runs that have been evaluated")
    for run in parser.parse_args().runs:
        commit(run)


if __name__ == "__main__":
    main()
