"""A late start in few steps: which noise level is best to begin at?  See REGISTRATION.md.

    python -m other_tests.editing.late               an hour or two
    python -m other_tests.editing.late --part 0 2    every second network; another process takes 1 2

Samples the networks of `law` of the cosine schedule: every sampler, few steps, from T and from
where the data's Gaussian has come at lower noise levels, at equal evaluations of the network.  Goes
on where it was stopped, and writes late.json.  With --part, each process takes one thread.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from torch import Tensor

from benchmarks.common import add_row
from diffusion_lib import metrics, rng, runs, samplers
from diffusion_lib.late_start import LateStart
from diffusion_lib.metrics import features
from diffusion_lib.metrics.features import Classifier
from diffusion_lib.runs import Run
from diffusion_lib.samplers import DenoiserLike, SampleStep
from diffusion_lib.system import interrupts
from diffusion_lib.system.progress import Bar
from other_tests.editing import law

OUT = Path(__file__).with_name("late.json")
DATASETS = ("mnist", "fashion_mnist")
STEPS = (5, 10, 20)
STARTS = (None, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0)  # log2 SNR; None is T
N, MEASURE = 1000, "Frechet distance"
KEYS = ("dataset", "seed", "sampler", "steps")
Sampler = Callable[..., Iterator[SampleStep]]


def late(sampler: Sampler, start: LateStart, t: int) -> Sampler:
    """Make a sampler that takes all of its steps below t; T is the usual start."""

    def sample(
        denoiser: DenoiserLike, x_T: Tensor, timesteps: Sequence[int], generator: rng.Generator
    ) -> Iterator[SampleStep]:
        x_t = start(denoiser.schedule, t, x_T)
        return sampler(denoiser, x_t, law.grid(t, len(timesteps) - 1), generator=generator)

    return sample


def main() -> None:
    options = law.options_of(__doc__)
    part, parts = options.part
    for name in DATASETS:
        law.load(name, options.data)  # refuses what is missing now, and not after hours
    own = [*product(DATASETS, law.SEEDS)][part::parts]
    tasks = [partial(add_run, name, seed, options.data) for name, seed in own]
    with interrupts.explain_stop(f"{OUT} has what was measured. Run this again to go on."):
        law.run_all(tasks, "networks")


def add_run(name: str, seed: int, root: str) -> None:
    """Sample a network in all ways that the record lacks, and add them."""
    done = {tuple(row[key] for key in KEYS) for row in law.read(OUT, "rows")}
    ways = [*product([name], [seed], samplers.__all__, STEPS)]
    if done >= {*ways}:
        return
    run = law.train(law.Job(name, "cosine", seed), root)
    judge, (known, test, _) = law.SOURCES[name].judge, law.load(name, root)
    network, start = features.load(judge), LateStart(known.images)
    reference = network.extract_features(test.images).features
    for way in Bar([way for way in ways if way not in done], run.folder.name):
        distances = measure(run, start, way[-2:], network, reference)
        row = law.about(run, judge) | dict(zip(KEYS, way, strict=True)) | {"n": N}
        add_row(OUT, "rows", row | {"starts": STARTS, MEASURE: distances})


def measure(
    run: Run, start: LateStart, way: tuple[str, int], judge: Classifier, reference: Tensor
) -> list[float]:
    """Measure the Frechet distance of N samples from each of STARTS.

    Args:
        run: run to sample.
        start: flow of the Gaussian of its images.
        way: name of the sampler, and number of its steps.
        judge: feature network.
        reference: features of real images, [M, D].
    """
    (name, num_steps), schedule, distances = way, run.denoiser.schedule, []
    for level in STARTS:
        t = schedule.num_timesteps if level is None else law.time_of(schedule, level)
        sampler = late(getattr(samplers, name), start, t)
        images = runs.sample(run, N, sampler=sampler, num_steps=num_steps, batch_size=125)
        seen = judge.extract_features(images).features
        distances.append(float(f"{metrics.frechet_distance(seen, reference):.4g}"))
    return distances


if __name__ == "__main__":
    main()
