"""The board, from the committed records."""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks import speedrun
from diffusion_lib.metrics import Interval

Records = Mapping[str, Mapping[str, Any]]


def records() -> dict[str, dict[str, Any]]:
    """Read the records that have all seeds, the fastest recipe first."""
    paths = sorted(speedrun.RECORDS.glob("*.json"))
    read = {path.stem: json.loads(path.read_text()) for path in paths}
    whole = [name for name in read if {*map(str, speedrun.SEEDS)} <= read[name]["seeds"].keys()]
    return {name: read[name] for name in sorted(whole, key=lambda name: seconds(read[name]))}


def seconds(record: Mapping[str, Any]) -> float:
    """Return the mean seconds of a recipe over its seeds."""
    return fmean(result["seconds"] for result in record["seeds"].values())


def text(records: Records) -> str:
    """Write the board and the conditions in Markdown.

    Args:
        records: records by the names of their recipes.
    """
    if not records:
        return "No recipe is measured yet."
    goals, details = zip(*(rows(*item) for item in records.items()), strict=True)
    machines: dict[str, list[str]] = {}
    for name, record in records.items():
        precision = record["recipe"].get("precision", record["precision"])
        machine = f"{record['device']}, {record['processor']}, {precision}, torch "
        machine += f"{record['torch']}, {record['training images']:,} training images"
        machines.setdefault(machine, []).append(name)
    return (
        f"{table(goals)}\n\nMeans over the seeds {', '.join(map(str, speedrun.SEEDS))}, with the "
        f"lowest and the highest in parentheses; in brackets the 95 % interval (Wilson) of a share "
        f"of all their samples, {speedrun.N:,} each.\n\n{table(details)}\n\n"
        + "\n".join(f"- {machine}: {', '.join(machines[machine])}" for machine in sorted(machines))
    )


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Write a table in Markdown.

    Args:
        rows: cells by the names of their columns.
    """
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*cells.values()] for cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows(name: str, record: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Make the two rows of a recipe: what counts, and what else is of interest.

    Args:
        name: its name.
        record: its record.
    """
    results = list(record["seeds"].values())

    def spread(values: list[float], form: str) -> str:
        mean, low, high = (format(x, form) for x in (fmean(values), min(values), max(values)))
        return f"{mean} ({low}\xa0to\xa0{high})" if low != high else mean

    def share(measure: str) -> str:
        if measure not in results[0]:
            return ""
        values = [result[measure][0] for result in results]
        n = record["n"]
        whole = Interval.wilson(round(n * sum(values)), n * len(values))
        return f"{whole:.1%} ({min(values):.1%}\xa0to\xa0{max(values):.1%})"

    def quality(measure: str) -> str:
        return spread([result[measure][0] for result in results], ".2f")

    recipe = {"recipe": f"[{name}](recipes/{name}.py)"}
    goals = {
        "seconds": spread([result["seconds"] for result in results], ".1f"),
        "as asked and sure": share("as asked and sure"),
        "sure": share("sure"),
        "Fréchet distance": quality("Frechet distance"),
    }
    details = {
        "precision": quality("precision"),
        "recall": quality("recall"),
        "steps": spread([result["steps"] for result in results], ".0f"),
        "parameters": f"{results[0]['parameters']:,}",
        "seconds of sampling": spread([r["seconds of sampling"] for r in results], ".1f"),
    }
    return recipe | goals, recipe | details
