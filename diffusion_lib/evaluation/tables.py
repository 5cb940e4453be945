"""Tables of records, which are compared only where their conditions agree."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusion_lib.metrics import Bits, Interval

EXPERIMENT_FIELDS = ("dataset", "schedule", "T", "prediction", "weight", "loss")
"""Fields of an experiment that a record repeats."""

_COMPARED = ("Frechet distance", "kernel distance", "precision", "recall", "confidence > 0.9")


def table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return rows for `viz.table`: each measurement of each run, and the floor.

    Records without samples have rows of the likelihood and the errors alone.

    Raises:
        ValueError: records made under different conditions.
    """
    check_same_conditions(records)
    names = distinguishing_labels(records)
    likelihood = [record["likelihood"] for record in records]
    rows = []
    for metric, floor in records[0].get("floor", {}).items():
        cells = [f"{Interval(**record['samples'][metric]):.4g}" for record in records]
        rows.append(_row(metric, names, cells, f"{Interval(**floor):.4g}"))
    cells = [f"{Interval(**bits['bits per dim']):.4g}" for bits in likelihood]
    rows.append(_row("bits per dim (bound)", names, cells, ""))
    for part in ("bits per image", "L_0", "L_T"):
        rows.append(_row(part, names, [f"{bits[part]:.4g}" for bits in likelihood], ""))
    errors = [record["errors"] for record in records]
    for part in ("x_0", "eps", "v"):
        cells = [f"{sum(error[part]) / len(error[part]):.4g}" for error in errors]
        rows.append(_row(f"mean squared error of {part}", names, cells, ""))
    cells = [f"{sum(record['seconds'].values()):.0f}" for record in records]
    return [*rows, _row("seconds to evaluate", names, cells, "")]


def verdicts(record: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return rows for `viz.table`: differences of two runs, and whether they may be noise.

    A difference of sample metrics adds the two intervals in quadrature; that of the bits per dim
    is taken image by image.  The intervals cover the spread over samples and test images, not that
    over trainings: another seed is another run.

    Raises:
        ValueError: records made under different conditions.
    """
    check_same_conditions([record, other])
    here, there = distinguishing_labels([record, other])
    rows = []
    compared = [name for name in _COMPARED if "samples" in record and "samples" in other]
    for metric in (*compared, "bits per dim"):
        if metric in _COMPARED:
            a, b = (Interval(**r["samples"][metric]) for r in (record, other))
            difference = a - b  # they share a reference, so it is wider than need be
        else:
            a, b = (Interval(**r["likelihood"]["bits per dim"]) for r in (record, other))
            one, two = (torch.tensor(r["likelihood"]["per image"]) for r in (record, other))
            difference = Bits(one.double() - two.double(), 1).interval
        rows.append(
            {
                "": metric,
                here: f"{a:.4g}",
                there: f"{b:.4g}",
                "difference": f"{difference:.4g}",
                "verdict": "not distinguishable" if 0 in difference else "different",
            }
        )
    return rows


def check_same_conditions(records: Sequence[Mapping[str, Any]]) -> None:
    """Refuse records whose numbers cannot be compared.

    Raises:
        ValueError: conditions that differ, each with its values.
    """
    first = records[0]["conditions"]
    for record in records[1:]:
        other = record["conditions"]
        different = [
            f"{name}: {first.get(name)!r} and {other.get(name)!r}"
            for name in first | other
            if first.get(name) != other.get(name)
        ]
        if different:
            raise ValueError(
                f"{records[0]['run']} and {record['run']} were measured under different "
                f"conditions, so their numbers cannot be compared: {'; '.join(different)}. "
                "Give evaluate the same options for both; what was trained differently (images "
                "seen) can only be measured apart."
            )


def _row(metric: str, names: Sequence[str], cells: Sequence[str], floor: str) -> dict[str, str]:
    return {"": metric, **dict(zip(names, cells, strict=True)), "floor": floor}


def distinguishing_labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each record: the values in which their experiments differ."""
    differ = [
        name
        for name in EXPERIMENT_FIELDS
        if len({json.dumps(record["experiment"][name]) for record in records}) > 1
    ]
    labels: list[str] = []
    for record in records:
        values = [record["experiment"][name] for name in differ]
        label = ", ".join(str(value) for value in values if value is not None) or record["run"]
        if label in labels:
            label = f"{label} ({record['run']})"
        if label in labels:
            label = f"{label} ({len(labels) + 1})"
        labels.append(label)
    return labels
