"""What does guidance bring, and what does it cost?

    python -m other_tests.mnist.guidance runs/NAME    samples, writes guidance.json
    python -m other_tests.mnist.guidance              draws the plot again

A run of MNIST that knows labels: as many samples of each digit, at each scale with the same noise.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import data, metrics, runs, samplers, viz
from diffusion_lib.metrics import Interval, features
from diffusion_lib.metrics.features import Classifier, ClassifierOutput
from other_tests.mnist import tables

OUT = Path(__file__).with_name("guidance.json")
PLOT = Path(__file__).parent.parent.parent / "assets" / "guidance-mnist.png"
ROWS = PLOT.with_name("guided-mnist.png")
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
N, STEPS = 1000, 100
SHOWN = ("accuracy", "spread", "recall", "precision", "Frechet distance", "confidence > 0.9")


def sweep(
    sample: Callable[[float], Tensor],
    scales: Sequence[float],
    labels: Tensor,
    network: Classifier,
    reference: ClassifierOutput,
) -> list[dict[str, Any]]:
    """Measure what guidance brings and what it costs.

    Args:
        sample: function of the scale that returns uint8 images [N, C, H, W] of `labels`.
        scales: scales of the guidance, see `guidance.guided`.
        labels: class label of each image, int64 [N].
        network: classifier in whose features samples are compared.
        reference: features of the real images.

    Returns:
        A row for each scale: "scale", and [value, low, high] of all of
        `metrics.label_accuracy_and_diversity` and `metrics.quality`.

    Raises:
        ValueError: too few images for either.
    """
    rows = []
    for scale in scales:
        seen = network.extract_features(sample(scale))
        intervals = metrics.label_accuracy_and_diversity(seen, labels, reference)
        intervals |= metrics.quality(seen, reference)
        rows.append({"scale": scale, **{name: [*value] for name, value in intervals.items()}})
    return rows


def measure(folder: str, root: str) -> dict[str, Any]:
    run, network = runs.load(folder), features.load("mnist")
    reference = network.extract_features(data.mnist(root, False).images)

    def sample(scale: float) -> Tensor:
        asked = run.guided(range(10), scale)
        return runs.sample(asked, N, 0, samplers.ddpm, STEPS, batch_size=125)

    rows = sweep(sample, SCALES, torch.arange(N) % 10, network, reference)
    viz.grid(sample(2.0)[:100], columns=10).save(ROWS)
    return {"n": N, "sampler": f"ddpm, {STEPS} steps", **tables.made_with(run), "rows": rows}


def load() -> dict[str, Any]:
    return json.loads(OUT.read_text())


def table() -> list[dict[str, str]]:
    """Rows for `viz.table`; bold is the highest accuracy."""
    rows = load()["rows"]
    best = max(row["accuracy"][0] for row in rows)
    found = []
    for row in rows:
        told = {"scale": f"{row['scale']:g}"}
        for name in SHOWN:
            told[name] = f"{Interval(*row[name]):.3f}"
        if row["accuracy"][0] == best:
            told["accuracy"] = f"**{told['accuracy']}**"
        found.append(told)
    return found


def verdict() -> str:
    """Accuracy at the best scale, and what it costs beside no guidance."""
    record = load()
    rows = {row["scale"]: row for row in record["rows"]}
    best = max(rows, key=lambda scale: rows[scale]["accuracy"][0])
    told, plain = rows[best], rows[1.0]
    cost = "; ".join(
        f"{name} {Interval(*plain[name]):.3f} without guidance, {Interval(*told[name]):.3f} with it"
        for name in ("spread", "recall")
    )
    return (
        f"Of {record['n']:,} digits {Interval(*told['accuracy']):.1%} are the asked-for one at "
        f"scale {best:g}. What it costs: {cost}. One training; {record['sampler']}; "
        f"{record['device']}."
    )


def draw() -> None:
    rows = [row for row in load()["rows"] if row["scale"] > 0]
    x = [row["scale"] for row in rows]
    lines = {
        name: (x, [r[name][0] for r in rows], [(r[name][2] - r[name][1]) / 2 for r in rows])
        for name in ("accuracy", "spread", "recall", "precision")
    }
    viz.curve(lines, "scale of the guidance", "share").savefig(PLOT, dpi=100)


def main() -> None:
    tables.measure_named(__doc__, measure, OUT)
    draw()


if __name__ == "__main__":
    main()
