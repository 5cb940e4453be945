"""How few steps reach the quality of 1000?

    python -m other_tests.mnist.few_steps runs/NAME    samples, writes few_steps.json
    python -m other_tests.mnist.few_steps              draws the plot again

Every sampler in few steps, and DDPM in 1000, from one run of MNIST.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor

from diffusion_lib import data, metrics, rng, runs, samplers, viz
from diffusion_lib.denoiser import Denoised
from diffusion_lib.metrics import Interval, features
from diffusion_lib.metrics.features import Classifier, ClassifierOutput
from diffusion_lib.samplers import DenoiserLike, SampleStep
from other_tests.mnist import tables

OUT = Path(__file__).with_name("few_steps.json")
PLOT = Path(__file__).parent.parent.parent / "assets" / "few-steps-mnist.png"
SAMPLERS = {name: getattr(samplers, name) for name in samplers.__all__}
STEPS = (5, 10, 20, 50)
N = 500
MEASURE = "Frechet distance"


Sampler = Callable[..., Iterator[SampleStep]]


class CountingDenoiser:
    """Count the images that a denoiser is called with, over all of its calls."""

    def __init__(self, denoiser: DenoiserLike, counts: list[int]) -> None:
        self.denoiser, self.counts, self.schedule = denoiser, counts, denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Denoised:
        self.counts.append(len(x_t))
        return self.denoiser(x_t, t)


class CountingSampler:
    """Sample as another sampler does, and count the images that its denoiser is called with."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.counts: list[int] = []

    def __call__(
        self,
        denoiser: DenoiserLike,
        x_T: Tensor,
        timesteps: Sequence[int],
        generator: rng.Generator = None,
    ) -> Iterator[SampleStep]:
        counting = CountingDenoiser(denoiser, self.counts)
        return self.sampler(counting, x_T, timesteps, generator=generator)


def sweep(
    sample: Callable[..., Tensor],
    ways: Mapping[str, Sampler],
    steps: Sequence[int],
    network: Classifier,
    reference: ClassifierOutput,
) -> list[dict[str, Any]]:
    """Measure the quality and the cost of samplers in few steps.

        sweep(partial(runs.sample, run, 1000), {"ddim": samplers.ddim}, [5, 10], network, reference)

    Args:
        sample: function (sampler=..., num_steps=...) -> uint8 images [N, C, H, W].
        ways: samplers by name.
        steps: numbers of steps to sample each of them with.
        network: classifier in whose features samples are compared.
        reference: features of the real images.

    Returns:
        A row for each sampler and number of steps: "sampler", "steps", "evaluations" of the network
        for each image, "seconds" for each image, and [value, low, high] of all of
        `metrics.quality`.

    Raises:
        ValueError: more steps than T, or too few images for `metrics.quality`.
    """
    rows = []
    for name, sampler in ways.items():
        for num_steps in steps:
            counting = CountingSampler(sampler)
            start = perf_counter()
            images = sample(sampler=counting, num_steps=num_steps)
            seconds = perf_counter() - start
            row: dict[str, Any] = {
                "sampler": name,
                "steps": num_steps,
                "evaluations": sum(counting.counts) / len(images),
                "seconds": seconds / len(images),
            }
            intervals = metrics.quality(network.extract_features(images), reference)
            rows.append(row | {name: [*value] for name, value in intervals.items()})
    return rows


def measure(folder: str, root: str) -> dict[str, Any]:
    run, network = runs.load(folder), features.load("mnist")
    reference = network.extract_features(data.mnist(root, False).images)
    sample = partial(runs.sample, run, N, batch_size=125)
    rows = sweep(sample, {"ddpm": samplers.ddpm}, [1000], network, reference)
    rows += sweep(sample, SAMPLERS, STEPS, network, reference)
    return {"n": N, **tables.made_with(run), "rows": rows}


def load() -> dict[str, Any]:
    return json.loads(OUT.read_text())


def table() -> list[dict[str, str]]:
    """Rows for `viz.table`; bold where the distance is not above the interval of 1000 steps."""
    rows = load()["rows"]
    high = rows[0][MEASURE][2]
    found = []
    for row in rows:
        distance, sure = (Interval(*row[name]) for name in (MEASURE, "confidence > 0.9"))
        reached = row["steps"] < 1000 and distance.value <= high
        found.append(
            {
                "sampler": row["sampler"],
                "steps": str(row["steps"]),
                "evaluations": f"{row['evaluations']:.4g}",
                "seconds an image": f"{row['seconds']:.2g}",
                MEASURE: f"**{distance:.3g}**" if reached else f"{distance:.3g}",
                "confidence > 0.9": f"{sure:.3f}",
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
