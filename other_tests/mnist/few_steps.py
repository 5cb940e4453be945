"""How few steps reach the quality of 1000?

    python -m other_tests.mnist.few_steps runs/NAME    samples, writes few_steps.json
    python -m other_tests.mnist.few_steps              draws the plot again

`metrics.sweep` of every sampler in few steps, and DDPM in 1000, from one run of MNIST.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_lib import data, features, metrics, runs, samplers, viz
from diffusion_lib.metrics import Estimate
from other_tests.mnist import tables

OUT = Path(__file__).with_name("few_steps.json")
PLOT = Path(__file__).parent.parent.parent / "assets" / "few-steps-mnist.png"
SAMPLERS = {name: getattr(samplers, name) for name in samplers.__all__}
STEPS = (5, 10, 20, 50)
N = 500
MEASURE = "Frechet distance"


def measure(folder: str, root: str) -> dict[str, Any]:
    run, network = runs.load(folder), features.load("mnist")
    reference = network.describe_images(data.mnist(root, False).images)
    sample = partial(runs.sample, run, N, batch_size=125)
    rows = metrics.sweep(sample, {"ddpm": samplers.ddpm}, [1000], network, reference)
    rows += metrics.sweep(sample, SAMPLERS, STEPS, network, reference)
    return {"n": N, **tables.made_with(run), "rows": rows}


def load() -> dict[str, Any]:
    return json.loads(OUT.read_text())


def table() -> list[dict[str, str]]:
    """Rows for `viz.table`; bold where the distance is not above the interval of 1000 steps."""
    rows = load()["rows"]
    high = rows[0][MEASURE][2]
    found = []
    for row in rows:
        distance, sure = (Estimate(*row[name]) for name in (MEASURE, "confidence > 0.9"))
        reached = row["steps"] < 1000 and distance.value <= high
        told = f"{distance.value:.3g} [{distance.low:.3g}, {distance.high:.3g}]"
        found.append(
            {
                "sampler": row["sampler"],
                "steps": str(row["steps"]),
                "evaluations": f"{row['evaluations']:.4g}",
                "seconds an image": f"{row['seconds']:.2g}",
                MEASURE: f"**{told}**" if reached else told,
                "confidence > 0.9": f"{sure.value:.3f} [{sure.low:.3f}, {sure.high:.3f}]",
            }
        )
    return found


def verdict() -> str:
    """The fewest evaluations with which each sampler reaches the 1000 steps' interval."""
    full, *rows = load()["rows"]
    low, high = full[MEASURE][1:]
    told = []
    for name in SAMPLERS:
        reached = [
            row["evaluations"] for row in rows if row["sampler"] == name and row[MEASURE][0] <= high
        ]
        told.append(f"`{name}` {f'{min(reached):.4g}' if reached else 'none of these'}")
    return (
        f"Network evaluations needed to be no worse than DDPM's 1000 steps, [{low:.3g}, "
        f"{high:.3g}]: {', '.join(told)}. {load()['n']} samples each; {load()['device']}."
    )


def draw() -> None:
    full, *rows = load()["rows"]
    lines: dict[str, tuple[list[float], ...]] = {}
    for name in SAMPLERS:
        own = [row for row in rows if row["sampler"] == name]
        x, y = [row["evaluations"] for row in own], [row[MEASURE][0] for row in own]
        lines[name] = (x, y, [(row[MEASURE][2] - row[MEASURE][1]) / 2 for row in own])
    evaluations = [row["evaluations"] for row in rows]
    ends = [min(evaluations), max(evaluations)]
    margin = (full[MEASURE][2] - full[MEASURE][1]) / 2
    lines["ddpm, 1000"] = (ends, [full[MEASURE][0]] * 2, [margin] * 2)
    figure = viz.curve(lines, "network evaluations of an image", MEASURE, y_scale="log")
    figure.axes[0].set_xscale("log")
    figure.savefig(PLOT, dpi=100)


def main() -> None:
    tables.measure_named(__doc__, measure, OUT)
    draw()


if __name__ == "__main__":
    main()
