"""The board, from the committed records."""

import json
from collections.abc import Mapping
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
    rows = [row(name, record) for name, record in records.items()]
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*cells.values()] for cells in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    machines = {
        f"{record['device']}, {record['processor']}, {record['precision']}, torch "
        f"{record['torch']}, {record['training images']:,} training images: {name}"
        for name, record in records.items()
    }
    return (
        f"{table}\n\nMeans over the seeds {', '.join(map(str, speedrun.SEEDS))}, with the lowest "
        f"and the highest in parentheses; in brackets the 95 % interval (Wilson) of a share of all "
        f"their samples, {speedrun.N:,} each.\n\n" + "\n".join(f"- {m}" for m in sorted(machines))
    )


def row(name: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Make the row of a recipe.

    Args:
        name: its name.
        record: its record.
    """
    results = list(record["seeds"].values())

    def spread(values: list[float], form: str) -> str:
        mean, low, high = (format(x, form) for x in (fmean(values), min(values), max(values)))
        return f"{mean} ({low} to {high})"

    def share(measure: str) -> str:
        if measure not in results[0]:
            return ""
        values = [result[measure][0] for result in results]
        n = record["n"]
        whole = Interval.wilson(round(n * sum(values)), n * len(values))
        return f"{whole:.1%} ({min(values):.1%} to {max(values):.1%})"

    return {
        "recipe": f"[{name}](recipes/{name}.py)",
        "seconds": spread([result["seconds"] for result in results], ".1f"),
        "as asked and sure": share("as asked and sure"),
        "sure": share("sure"),
        **{
            measure: spread([result[measure][0] for result in results], form)
            for measure, form in (
                ("Frechet distance", ".2f"),
                ("precision", ".2f"),
                ("recall", ".2f"),
            )
        },
        "seconds of sampling": spread([r["seconds of sampling"] for r in results], ".1f"),
        "steps": spread([r["steps"] for r in results], ".0f"),
        "parameters": f"{results[0]['parameters']:,}",
    }
