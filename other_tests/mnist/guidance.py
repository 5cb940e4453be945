"""What does guidance bring, and what does it cost?

    python -m other_tests.mnist.guidance runs/NAME    samples, writes guidance.json
    python -m other_tests.mnist.guidance              draws the plot again

A run of MNIST that knows labels: as many samples of each digit, at each scale with the same noise.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import data, metrics, runs, samplers, style, viz
from diffusion_lib.metrics import Interval, features
from diffusion_lib.metrics.features import Classifier, ClassifierOutput
from diffusion_lib.system.progress import Bar
from other_tests import common

RECORD = Path(__file__).with_name("guidance.json")
PLOT = common.ASSETS / "guidance-mnist.png"
GRID = PLOT.with_name("guided-mnist.png")
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
N, STEPS = 1000, 100
MEASURES = ("accuracy", "spread", "recall", "precision", "Frechet distance", "confidence > 0.9")


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
    for scale in Bar(scales, "scales"):
        seen = network.extract_features(sample(scale))
        intervals = metrics.label_accuracy_and_diversity(seen, labels, reference)
        intervals |= metrics.quality(seen, reference)
        rows.append({"scale": scale, **{name: [*value] for name, value in intervals.items()}})
    return rows


def measure(folder: str, root: str) -> dict[str, Any]:
    """Sample a run of MNIST that knows labels at each scale, and draw the grid of the README.

    Args:
        folder: folder of the run.
        root: folder of the data sets.
    """
    run, network = runs.load(folder), features.load("mnist")
    reference = network.extract_features(data.mnist(root, False).images)

    def sample(scale: float) -> Tensor:
        guided = run.guided(range(10), scale)
        return runs.sample(guided, N, 0, samplers.ddpm, STEPS, batch_size=125)

    rows = sweep(sample, SCALES, torch.arange(N) % 10, network, reference)
    viz.grid(sample(2.0)[:100], columns=10).save(GRID)
    return {"n": N, "sampler": f"ddpm, {STEPS} steps", **common.provenance(run), "rows": rows}


def summary(record: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    """Make the table, and name the accuracy at the best scale and what it costs.

    Args:
        record: record of `measure`.
    """
    forms = dict.fromkeys(MEASURES, ".3f") | {"spread": "", "Frechet distance": ""}
    rows = {
        row["scale"]: {"scale": f"{row['scale']:g}"}
        | {name: f"{Interval(*row[name]):{form}}" for name, form in forms.items()}
        for row in record["rows"]
    }
    accuracy = {row["scale"]: row["accuracy"] for row in record["rows"]}
    best = max(accuracy, key=lambda scale: accuracy[scale][0])
    cost = "; ".join(
        f"{name} {rows[1.0][name]} without guidance, {rows[best][name]} with it"
        for name in ("spread", "recall")
    )
    for scale, estimate in accuracy.items():
        if estimate[0] == accuracy[best][0]:
            rows[scale]["accuracy"] = f"**{rows[scale]['accuracy']}**"
    return list(rows.values()), (
        f"Of {record['n']:,} digits {Interval(*accuracy[best]):.1%} are the "
        f"asked-for one at scale {best:g}. What it costs: {cost}. One training; "
        f"{record['sampler']}; {record['device']}."
    )


@style.look
def draw(record: Mapping[str, Any]) -> style.Plot:
    """Draw what guidance brings beside what it costs: precision against recall, by scale.

    Args:
        record: record of `measure`.
    """
    rows = [row for row in record["rows"] if row["scale"] > 0]
    figure = style.figure(1, 2, (8, 3))
    left, right = figure.axes
    scales = [row["scale"] for row in rows]
    accuracy, recall, precision = (
        [row[name][0] for row in rows] for name in ("accuracy", "recall", "precision")
    )
    sure, near = (
        [Interval(*row[name]).margin for row in rows] for name in ("accuracy", "precision")
    )
    style.draw(left, {"accuracy": (scales, accuracy, sure)})
    left.set(xlabel="scale of the guidance", ylabel="accuracy", ylim=(0.7, 1.01))
    left.set_title("More digits are the asked-for one")
    right.set(xlabel="recall", ylabel="precision", title="and more look real, but fewer kinds")
    style.draw(right, {"precision": (recall, precision, near)})
    for scale, x, y in zip(scales, recall, precision, strict=True):
        right.annotate(f"scale {scale:g}", (x, y), (7, 12), textcoords="offset points", size=8)
    right.margins(x=0.15)
    return figure


if __name__ == "__main__":
    common.measure_run(__doc__, measure, RECORD)
    PLOT.write_bytes(draw(common.load(RECORD)).png())
