"""How few steps reach the quality of 1000?

    python -m other_tests.mnist.few_steps runs/NAME    samples, writes few_steps.json
    python -m other_tests.mnist.few_steps              draws the plot again

Every sampler in few steps, and DDPM in 1000, from one run of MNIST.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from torch import Tensor

from diffusion_lib import data, metrics, rng, runs, samplers, style
from diffusion_lib.denoiser import Denoised
from diffusion_lib.metrics import Interval, features
from diffusion_lib.metrics.features import Classifier, ClassifierOutput
from diffusion_lib.samplers import DenoiserLike, SampleStep
from other_tests import common

RECORD = Path(__file__).with_name("few_steps.json")
PLOT = common.ASSETS / "few-steps-mnist.png"
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
    """Sample a run of MNIST in few steps, and in 1000.

    Args:
        folder: folder of the run.
        root: folder of the data sets.
    """
    run, network = runs.load(folder), features.load("mnist")
    reference = network.extract_features(data.mnist(root, False).images)
    sample = partial(runs.sample, run, N, batch_size=125)
    rows = sweep(sample, {"ddpm": samplers.ddpm}, [1000], network, reference)
    rows += sweep(sample, SAMPLERS, STEPS, network, reference)
    return {"n": N, **common.provenance(run), "rows": rows}


def fewest_evaluations(record: Mapping[str, Any]) -> dict[str, float]:
    """Find the fewest evaluations of each sampler that end in the interval of DDPM's 1000 steps.

    A distance not above that interval, which is no test of being as good.  Samplers that are above
    it in all are left out.

    Args:
        record: record of `measure`.
    """
    (_, _, high), fewest = record["rows"][0][MEASURE], {}
    for row in record["rows"][1:]:
        if row[MEASURE][0] <= high:
            fewest.setdefault(row["sampler"], row["evaluations"])  # steps grow from row to row
    return fewest


def summary(record: Mapping[str, Any]) -> tuple[list[dict[str, str]], str]:
    """Make the table, and name the fewest evaluations that reach the 1000 steps' interval.

    Distances are bold where they are not above that interval.

    Args:
        record: record of `measure`.
    """
    _, low, high = record["rows"][0][MEASURE]
    rows, fewest = [], fewest_evaluations(record)
    for row in record["rows"]:
        distance, sure = (Interval(*row[name]) for name in (MEASURE, "confidence > 0.9"))
        cell = f"{distance}"
        if row["steps"] < 1000 and distance.value <= high:
            cell = f"**{cell}**"
        rows.append(
            {
                "sampler": f"`{row['sampler']}`",
                "steps": str(row["steps"]),
                "evaluations": f"{row['evaluations']:.4g}",
                "seconds an image": f"{row['seconds']:.2g}",
                MEASURE: cell,
                "confidence > 0.9": f"{sure}",
            }
        )
    evaluations = [
        f"`{name}` " + (f"{fewest[name]:.4g}" if name in fewest else "none of these")
        for name in SAMPLERS
    ]
    return rows, (
        f"Network evaluations after which the distance is not above the interval of DDPM's 1000 "
        f"steps, [{low:.3g}, {high:.3g}]: {', '.join(evaluations)}. "
        f"{record['n']} samples each; {record['device']}."
    )


@style.look
def draw(record: Mapping[str, Any]) -> style.Plot:
    """Draw the distances against the evaluations, above those of 1000 steps.

    Args:
        record: record of `measure`.
    """
    full, *rows = record["rows"]
    distance = Interval(*full[MEASURE])
    names = {"ddpm": "DDPM", "ddim": "DDIM", "dpm_solver": "DPM-Solver++", "heun": "Heun"}
    lines: dict[str, tuple[list[float], ...]] = {}
    for name in SAMPLERS:
        own = [row for row in rows if row["sampler"] == name]
        x, y = [row["evaluations"] for row in own], [row[MEASURE][0] for row in own]
        lines[names[name]] = (x, y, [Interval(*row[MEASURE]).margin for row in own])
    others = [y[-1] for name, (_, y, *_) in lines.items() if name != names["ddpm"]]
    near, end = fewest_evaluations(record)["ddpm"], fmean(others)
    title = f"DDPM comes near its 1,000 steps in {near:.0f}; the others end at {end:.1f}"
    figure = style.figure(size=(7, 3.4))
    (axis,) = figure.axes
    axis.set(xscale="log", yscale="log", title=title)
    axis.set(xlabel="network evaluations of an image", ylabel="Fréchet distance, lower is better")
    style.draw(axis, lines)
    axis.set_xticks([5, 10, 20, 50, 100])
    axis.axhspan(distance.low, distance.high, color=style.GRAY, alpha=0.12, linewidth=0)
    axis.axhline(distance.value, color=style.GRAY, linewidth=1, linestyle="--")
    axis.text(4.8, distance.value, "DDPM, 1,000 steps, with its interval", size=8, va="bottom")
    style.name_ends(axis)
    return figure


if __name__ == "__main__":
    common.measure_run(__doc__, measure, RECORD)
    PLOT.write_bytes(draw(common.load(RECORD)).png())
