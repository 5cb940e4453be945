"""What survives noise, predicted without a network and measured with many: see REGISTRATION.md.

    python -m other_tests.editing.law               hours
    python -m other_tests.editing.law --part 0 2    every second job; another process takes 1 2

Trains networks of four data sets with three schedules and three seeds, some of another size or
length of training, and sends test images to 15 noise levels.  From each noisy image DDPM draws two
clones, which are held against the image and against each other.  Goes on where it was stopped: the
clones of a level are saved in the folder of the run (together about 1 GB), and what is measured in
law.json: predictions for a data set and a schedule, and a row for each network.  With --part, each
process takes one thread.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import add_row
from diffusion_lib import config, data, losses, predictions, rng, runs, samplers, schedules
from diffusion_lib import survival as theory
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.metrics import features
from diffusion_lib.metrics.features import Classifier
from diffusion_lib.rng import MeasurementStream
from diffusion_lib.runs import Run
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files, interrupts
from diffusion_lib.system.progress import Bar
from other_tests import common
from other_tests.cifar10 import prediction
from other_tests.editing import fields, measure, points

OUT = Path(__file__).with_name("law.json")
SEEDS = (30, 31, 32)
# Denser where labels are lost.
LOG2_SNR = (6, 4, 2.5, 1.25, 0.25, -0.5, -1.25, -2, -2.75, -3.5, -4.25, -5, -6, -7.25, -9)
STEPS, CLONES, BATCH = 40, 2, 125
POINTS = 20_000  # training images of the empirical posterior and of the covariances
_FORMAT = "diffusion_lib clones 1"


def ones_and_eights(root: str | Path, train: bool = True) -> Images:
    """Load the ones and eights of MNIST."""
    images, labels = data.mnist(root, train)
    chosen = (labels == 1) | (labels == 8)
    return Images(images[chosen], labels[chosen])


class Source(NamedTuple):
    """A data set, the feature network that judges it, and the number of test images."""

    dataset: data.Dataset
    judge: str
    n: int = 500


SOURCES = {
    "mnist": Source(data.mnist, "mnist"),
    # Few networks, and an agreement that is harder to measure than a label.
    "ones_and_eights": Source(ones_and_eights, "mnist", 2000),
    "fashion_mnist": Source(data.fashion_mnist, "fashion_mnist"),
    "cifar10_jpeg": Source(data.cifar10_jpeg, "cifar10_jpeg"),
}
SCHEDULES = {make.__name__: make for make in (schedules.linear, schedules.cosine, schedules.flow)}
VARIANTS: dict[str, dict[str, dict[str, int]]] = {
    "": {},
    "half the width": {"network": {"width": 16}},
    "twice the width": {"network": {"width": 64}},
    "a quarter of the steps": {"train": {"num_steps": 300}},
    "four times the steps": {"train": {"num_steps": 4800}},
}


class Job(NamedTuple):
    """A network to train and to measure."""

    dataset: str
    schedule: str
    seed: int
    variant: str = ""


def jobs() -> list[Job]:
    """List the networks; what decides most stands first."""
    sets = [("mnist", s, "") for s in SCHEDULES] + [("ones_and_eights", "linear", "")]
    sets += [("fashion_mnist", s, "") for s in SCHEDULES]
    sets += [("mnist", "cosine", variant) for variant in VARIANTS if variant]
    sets += [("cifar10_jpeg", s, "") for s in SCHEDULES]
    return [Job(name, schedule, seed, v) for name, schedule, v in sets for seed in SEEDS]


def experiment(job: Job) -> Experiment:
    """Make the experiment of a job: a network without labels that takes a minute or a few."""
    base, steps = config.quick(config.MNIST_BEST), 1200
    if job.dataset == "cifar10_jpeg":
        base = replace(prediction.BASE, prediction=predictions.v, weight=losses.min_snr)
        steps = 4000
    source = {"dataset": SOURCES[job.dataset].dataset, "schedule": SCHEDULES[job.schedule]}
    settings = replace(base.train, num_steps=steps, seed=job.seed)
    return replace(base, train=settings, **source).changed(VARIANTS[job.variant])


@cache
def load(name: str, root: str) -> tuple[Images, Images, Images]:
    """Load a data set: to train on, to test on, and those of the latter that are noised."""
    train, test = data.load_splits(SOURCES[name].dataset, root)
    chosen = rng.permutation(len(test.images), 0)[: SOURCES[name].n]
    return train, test, Images(test.images[chosen], test.labels[chosen])


def train(job: Job, root: str) -> Run:
    """Train the network of a job, or load it."""
    return runs.train(experiment(job), *load(job.dataset, root)[:2])


# ---- noise levels, and clones -------------------------------------------------------------------


def time_of(schedule: NoiseSchedule, log2_snr: float) -> int:
    """Find the t whose log2 SNR is nearest."""
    known = (schedule.alpha_bar / schedule.noise_variance)[1:].log2()
    return 1 + int((known - log2_snr).abs().argmin())


def grid(t: int, num_steps: int) -> list[int]:
    """Space `num_steps` steps evenly from t to 0; at small t each of its times is one."""
    times = {(t * left + num_steps // 2) // num_steps for left in range(num_steps + 1)}
    return sorted(times, reverse=True)


def noise(images: Tensor) -> Tensor:
    """Draw the eps of images [N, C, H, W], the same for every network and noise level."""
    return rng.normal(images.shape, rng.generator(0, MeasurementStream.NOISE))


def clones(run: Run, images: Tensor, t: int) -> Tensor:
    """Read the clones of a run's `draw_clones`, or draw and save them."""
    path = run.folder / "clones" / f"{t}.safetensors"
    about = {"format": _FORMAT, "inputs": runs.fingerprint(images), "t": t, "steps": STEPS}
    about = {name: str(value) for name, value in (about | {"batch": BATCH}).items()}
    if path.exists():
        tensors, metadata = files.read_tensors(path, _FORMAT)
        if metadata == about and len(tensors["clones"]) == CLONES:
            return tensors["clones"]
    drawn = draw_clones(run.denoiser, images, t)
    files.write_tensors(path, {"clones": drawn}, about)
    return drawn


def draw_clones(denoiser: Denoiser, images: Tensor, t: int) -> Tensor:
    """Noise images, uint8 [N, C, H, W], to t, and denoise each CLONES times: [CLONES, N, ...]."""
    x_0, eps, parts = data.to_float(images), noise(images), []
    device = denoiser.schedule.signal.device
    for first in range(0, len(x_0), BATCH):
        x, e = (z[first : first + BATCH].to(device) for z in (x_0, eps))
        x_t = denoiser.schedule.add_noise(x, torch.full((len(x),), t, device=device), e)
        with hardware.autocast(denoiser):
            start, draws = x_t.repeat(CLONES, 1, 1, 1), rng.generator(1, first)
            steps = samplers.ddpm(denoiser, start, grid(t, STEPS), generator=draws)
            parts.append(data.to_uint8(samplers.final(steps)).cpu().view(CLONES, *x.shape))
    return torch.cat(parts, 1)


# ---- what is measured ---------------------------------------------------------------------------


class Seen(NamedTuple):
    """What there is to see in N images."""

    labels: Tensor  # those of the judge, [N]
    signals: dict[str, Tensor]  # properties, [N, ...]
    maps: list[Tensor]  # what the judge's convolutions say, pooled, [N, C, H, W] each


def look(images: Tensor, judge: Classifier, classes: Tensor) -> Seen:
    """Describe images, uint8 [N, C, H, W], of which there are only some of the judge's classes."""
    maps: list[Tensor] = []

    def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
        of_images = output.chunk(2)[0] if judge.averages_mirrors else output  # their mirrors follow
        maps.append(F.max_pool2d(of_images.relu(), 2, ceil_mode=True))

    layers = [layer for layer in judge.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_hook(store) for layer in layers]
    probabilities = judge.extract_features(images).probabilities
    for hook in hooks:
        hook.remove()
    labels = classes[probabilities[:, classes].argmax(1)]
    whole = [torch.cat(maps[k :: len(layers)]) for k in range(len(layers))]  # of all batches
    if images.shape[1] == 1:
        return Seen(labels, measure.properties(images), whole)
    x = data.to_float(images)
    low = F.avg_pool2d(x, 4)
    signals = {"mean color": x.mean((2, 3)), "low frequencies": low}
    return Seen(labels, signals | {"detail": x - F.interpolate(low, scale_factor=4)}, whole)


def compare(before: Seen, after: Sequence[Seen], labels: Tensor) -> dict[str, float]:
    """Hold clones against the images that they come from, and against each other."""
    measures = {
        "label kept": fmean((clone.labels == labels).double().mean().item() for clone in after),
        "clone agreement": fields.agreement([clone.labels for clone in after]),
    }
    for name, own in before.signals.items():
        each = [fields.correlation(own, clone.signals[name], labels) for clone in after]
        measures[name] = fmean(each)
    for k, own in enumerate(before.maps):  # the class is a part of what they say
        each = [fields.correlation(own, clone.maps[k], torch.zeros_like(labels)) for clone in after]
        measures[f"convolution {k + 1}"] = fmean(each)
    return measures


def measure_network(run: Run, images: Images, judge: Classifier) -> dict[str, Any]:
    """Measure a network at all noise levels."""
    schedule = run.denoiser.schedule
    x_0, classes = data.to_float(images.images), images.labels.unique()
    before = look(images.images, judge, classes)
    times = [time_of(schedule, level) for level in LOG2_SNR]
    own = [(before.labels == images.labels).double()]
    measures: dict[str, list[float]] = {}
    for t in Bar(times, "noise levels"):
        drawn = clones(run, images.images, t)
        u = (data.to_float(drawn) - x_0).square().sum(2)
        after = [look(x, judge, classes) for x in drawn]
        each = compare(before, after, images.labels)
        each["susceptibility"] = fields.susceptibility(u.flatten(0, 1))
        each["susceptibility given x_t"] = fields.susceptibility(u[0] - u[1])
        each["correlation length"] = fields.correlation_length(u.flatten(0, 1))
        for name, value in each.items():
            measures.setdefault(name, []).append(_short(value))
        is_own = torch.stack([clone.labels == images.labels for clone in after])
        own.append(is_own.double().mean(0))
    row = _levels(schedule, times, images) | {"clones": CLONES}
    row |= {"clean": {"label kept": _short(own[0].mean().item())}, "measures": measures}
    return row | {"deviations": {"label kept": points.deviations(torch.stack(own), row)}}


# ---- what is predicted --------------------------------------------------------------------------


def predict(known: Images, images: Images, schedule: NoiseSchedule) -> dict[str, Any]:
    """Predict the share of labels kept, of the same images with the same noise, without a network.

    And phi, the share of images whose two clones are of one class: each is drawn from p(class), so
    the mean over images of the sum over classes of p^2.

    Args:
        known: training images.
        images: images that are noised.
        schedule: schedule of the noise.
    """
    times = [1, *(time_of(schedule, level) for level in LOG2_SNR)]
    x, x_0 = (data.to_float(part).flatten(1) for part in (known.images, images.images))
    eps, axes = noise(images.images).flatten(1), theory.principal_axes(x[:2000])
    along, given = x @ axes, (x_0 @ axes, eps @ axes, schedule, times)
    some = rng.permutation(len(x), 0)[:POINTS]
    chosen = x[some], known.labels[some]
    posteriors = {
        "one Gaussian": theory.class_posterior(theory.fit(along, known.labels, 1), *given),
        "mixtures": theory.class_posterior(theory.fit(along, known.labels), *given),
        "training images": theory.empirical_posterior(chosen, x_0, eps, schedule, times),
    }
    row: dict[str, Any] = _levels(schedule, times[1:], images) | {"training images": len(some)}
    row["speciation"] = [_short(level) for level in theory.speciation(*chosen)]
    for key in ("clean", "measures", "clone agreement", "deviations"):
        row[key] = {}
    for name, p in posteriors.items():
        own = p[:, torch.arange(len(x_0)), images.labels]
        row["clean"][name], *row["measures"][name] = map(_short, own.mean(1).tolist())
        row["clone agreement"][name] = [*map(_short, p[1:].square().sum(-1).mean(1).tolist())]
        row["deviations"][name] = points.deviations(own, row)
    return row | {"how far": how_far(known, schedule)}


def how_far(known: Images, schedule: NoiseSchedule) -> dict[str, Any]:
    """Ask `survival.how_far`: the share of labels to keep, and the t with its interval.

    The share is 0.95, or where it refuses that, 95 % of what its Gaussians recognize without noise.
    """
    keep = measure.LABEL
    try:
        t = theory.how_far(known.images, known.labels, schedule, keep)
    except ValueError:
        keep *= theory.label_curve(known.images, known.labels, schedule, [1]).mean().item()
        t = theory.how_far(known.images, known.labels, schedule, keep)
    return {"keep": _short(keep), "t": [*t]}


def _levels(schedule: NoiseSchedule, times: list[int], images: Images) -> dict[str, Any]:
    snr = (schedule.alpha_bar / schedule.noise_variance)[times].log2().tolist()
    share, n = images.labels.bincount().double() / len(images.labels), len(images.labels)
    about = {"n": n, "chance": _short(share.square().sum().item()), "torch": torch.__version__}
    return about | {"t": times, "log2 snr": [_short(level) for level in snr]}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


# ---- the record ---------------------------------------------------------------------------------


def read(path: Path, part: str) -> list[dict[str, Any]]:
    """Read the rows of a part of a record as it is now."""
    return common.load(path).get(part, []) if path.exists() else []


def options_of(about: str | None) -> Any:
    """Read the command line: the folder of the data sets, and the part that is this process's."""
    parser = common.parser(about)
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("K", "N"))
    options = parser.parse_args()
    part, parts = options.part
    if not 0 <= part < parts:
        parser.error(f"--part K N: K must lie in 0..N - 1; got {part} {parts}")
    if parts > 1:
        torch.set_num_threads(1)  # threads of processes that share the cores wait for each other
    return options


def run_all(tasks: Sequence[Callable[[], None]], title: str) -> None:
    """Run all tasks, and end with status 1 if some failed, whose tracebacks are printed."""
    failures = 0
    for task in Bar(tasks, title):
        try:
            task()
        except Exception:
            traceback.print_exc()
            failures += 1
    if failures:
        sys.exit(f"{failures} of {len(tasks)} {title} failed, for the reasons printed above")


def main() -> None:
    options = options_of(__doc__)
    part, parts = options.part
    for name in SOURCES:
        load(name, options.data)  # refuses what is missing now, and not after hours
    done = {(row["dataset"], row["schedule"]) for row in read(OUT, "predictions")}
    wanted = [key for key in [*product(SOURCES, SCHEDULES)][part::parts] if key not in done]
    tasks = [partial(add_prediction, *key, options.data) for key in wanted]
    measured = {Job(*(row[f] for f in Job._fields)) for row in read(OUT, "rows")}
    left = [job for job in jobs()[part::parts] if job not in measured]
    tasks += [partial(add_network, job, options.data) for job in left]
    with interrupts.explain_stop(f"{OUT} has what was measured. Run this again to go on."):
        run_all(tasks, "predictions and networks")


def add_prediction(name: str, schedule: str, root: str) -> None:
    """Predict what a data set keeps, and add it to the record."""
    known, _, images = load(name, root)
    row = predict(known, images, SCHEDULES[schedule](1000))
    add_row(OUT, "predictions", {"dataset": name, "schedule": schedule, **row})


def add_network(job: Job, root: str) -> None:
    """Train and measure a network, and add it to the record."""
    run, judge = train(job, root), SOURCES[job.dataset].judge
    row = measure_network(run, load(job.dataset, root)[2], features.load(judge))
    add_row(OUT, "rows", job._asdict() | about(run, judge) | row)


def about(run: Run, judge: str) -> dict[str, Any]:
    """Describe a run and its judge for the record."""
    sha256, device = features.released(judge)[1], run.denoiser.schedule.signal.device
    made = {"run": run.folder.name, "features": sha256[:16], "steps": STEPS}
    made |= {"device": hardware.name(device), **hardware.conditions(device)}
    return made | {"torch": torch.__version__}


if __name__ == "__main__":
    main()
