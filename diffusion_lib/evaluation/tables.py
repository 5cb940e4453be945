"""Tables of records, which are compared only where their conditions agree."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from diffusion_lib.metrics import Bits, Interval

EXPERIMENT_FIELDS = ("dataset", "schedule", "T", "prediction", "weight", "loss")
"""Fields of an experiment that a record repeats."""

_COMPARED = {"Frechet distance": 1, "kernel distance": 1}  # smaller is better
_COMPARED |= {"precision": -1, "recall": -1, "confidence > 0.9": -1}


def table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for `viz.table`: each measurement of each run, and the floor.

    Records without samples have rows of the likelihood and the errors alone; records made under
    different conditions are refused.
    """
    check_same_conditions(records)
    columns = dict(zip(distinguishing_labels(records), map(_cells, records), strict=True))
    columns["floor"] = _intervals(records[0].get("floor", {}))
    return [
        {"": metric} | {label: cells.get(metric, "") for label, cells in columns.items()}
        for metric in _cells(records[0])
    ]


def _cells(record: Mapping[str, Any]) -> dict[str, Any]:
    likelihood, errors = record["likelihood"], record["errors"]
    cells: dict[str, Any] = _intervals(record.get("samples", {}))
    cells = {metric: cells[metric] for metric in cells if not metric.startswith("class ")}
    cells |= _intervals({"bits per dim (bound)": likelihood["bits per dim"]})
    cells |= {part: likelihood[part] for part in ("bits per image", "L_0", "L_T")}
    cells |= {f"mean squared error of {p}": fmean(errors[p]) for p in ("x_0", "eps", "v")}
    return cells | {"seconds to evaluate": f"{sum(record['seconds'].values()):.0f}"}


def _intervals(measured: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    return {metric: Interval(**interval) for metric, interval in measured.items()}


def differences(record: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Interval]:
    """Subtract the measurements of another run.

    A difference of sample metrics adds the two intervals in quadrature; that of the bits per dim
    is taken image by image.  The intervals cover the spread over samples and test images, not that
    over trainings: another seed is another run.
    """
    check_same_conditions([record, other])
    a, b = (_intervals(r.get("samples", {})) for r in (record, other))
    gaps = {m: a[m] - b[m] for m in _COMPARED if m in a and m in b}  # one reference: a bit wide
    one, two = (torch.tensor(r["likelihood"]["per image"]).double() for r in (record, other))
    return gaps | {"bits per dim": Bits(one - two, 1).interval}


def effects(differences: Mapping[str, Mapping[str, Interval]]) -> list[tuple[str, Interval, str]]:
    """Return rows for `viz.forest`: `differences` of samples, by name of the run.

    Half of an interval's width is 1, and what is better lies below 0, so that one axis holds all.
    """
    rows = []
    for metric, sign in _COMPARED.items():
        for name, gaps in differences.items():
            if gap := gaps.get(metric):  # without samples there is none
                value, *ends = (sign * x / (gap.margin or 1) for x in gap)
                rows.append((f"{metric}, {name}", Interval(value, *sorted(ends)), f"{gap}"))
    return rows


def check_same_conditions(records: Sequence[Mapping[str, Any]]) -> None:
    """Refuse records whose numbers cannot be compared, because they differ in a condition."""
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


def distinguishing_labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a label for each record: the values in which their experiments differ."""
    differ = [
        name
        for name in EXPERIMENT_FIELDS
        if any(record["experiment"][name] != records[0]["experiment"][name] for record in records)
    ]
    labels: list[str] = []
    for record in records:
        values = [record["experiment"][name] for name in differ]
        label = ", ".join(str(value) for value in values if value is not None) or record["run"]
        if label in labels:
            label = f"{label} ({record['run']}, {len(labels) + 1})"
        labels.append(label)
    return labels
