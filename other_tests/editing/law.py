"""What survives noise, predicted without a network and measured with many: see REGISTRATION.md.

    python -m other_tests.editing.law               hours
    python -m other_tests.editing.law --part 0 2    every second job; another process takes 1 2

Trains networks of four data sets with three schedules and three seeds, some of another size or
length of training, and sends test images to 15 noise levels.  From each noisy image DDPM draws two
clones, which are held against the image and against each other.  Goes on where it was stopped, and
writes law.json: predictions for a data set and a schedule, and a row for each network.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from other_tests.editing import measure

OUT = Path(__file__).with_name("law.json")
SEEDS = (30, 31, 32)
# Denser where labels are lost.
LOG2_SNR = (6, 4, 2.5, 1.25, 0.25, -0.5, -1.25, -2, -2.75, -3.5, -4.25, -5, -6, -7.25, -9)
STEPS, CLONES, BATCH = 40, 2, 125
POINTS = 20_000  # training images of the empirical posterior and of the covariances


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


def clones(denoiser: Denoiser, images: Tensor, t: int) -> Tensor:
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
        maps.append(F.max_pool2d(output.relu(), 2, ceil_mode=True))

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


def correlation(before: Tensor, after: Tensor, labels: Tensor) -> float:
    """Correlate numbers [N, ...] before and after, over all of them, less the mean of each label.

    Those are means of each number: a 1 that is narrower than an 8 before and after says nothing.
    """
    share = F.one_hot(labels).double()
    means = share / share.sum(0).clamp(min=1)
    rows = (x.reshape(len(x), -1).double() for x in (before, after))
    a, b = (x - share @ (means.T @ x) for x in rows)
    squares = (a.square().sum() * b.square().sum()).sqrt()
    return ((a * b).sum() / squares.clamp(min=1e-12)).item()


def agreement(labels: Sequence[Tensor]) -> float:
    """Return phi: the share of images whose clones, labels [N] each, have one class."""
    return fmean((a == b).double().mean().item() for a, b in combinations(labels, 2))


def susceptibility(u: Tensor) -> float:
    """Compute chi = sum_ij C_ij / sum_i C_ii of fields u [N, H, W].

    C_ij = mean(u_i u_j) - mean(u_i) mean(u_j) over the N fields, i and j pixels: as in [Sclocchi
    2025, arXiv 2410.13770], where i and j are patches and u_i is the size of a change in CLIP's
    features, and here its square in pixels, summed over channels.  So chi is (1/D) times the sum
    over pairs of pixels of their covariance in units of the mean variance of a pixel: 1 if pixels
    change independently, D if all change by one number.  It is the variance of the sum over that
    sum, which needs no pairs.
    """
    u = u.flatten(1).double()
    spread = u.var(0, correction=0).sum()
    return (u.sum(1).var(correction=0) / spread.clamp(min=1e-12)).item()


def correlation_length(u: Tensor) -> float:
    """Return the distance in pixels at which C(r) of fields u [N, H, W] falls to C(0) / e.

    C(r) is the mean of the C_ij of `susceptibility` over the pairs of pixels whose distance rounds
    to r pixels, at the mean of their distances; it is taken as linear between those.
    """
    h, w = u.shape[1:]
    size = (2 * h, 2 * w)  # padded, as a Fourier transform goes around the edges

    def pair_sums(x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x, s=size).abs().square().mean(0), s=size)

    u = u.double()
    sums, pairs = pair_sums(u - u.mean(0)), pair_sums(torch.ones_like(u[:1]))
    down, right = (torch.fft.fftfreq(s, 1 / s).double() for s in size)
    distance = torch.hypot(down[:, None], right)
    at = distance.round().long().flatten()
    each = (sums, pairs, pairs * distance)
    c, count, far = (x.new_zeros(int(at.max()) + 1).index_add(0, at, x.flatten()) for x in each)
    inside = slice(min(h, w))
    curve, where = (c / count)[inside], (far / count)[inside]
    return measure.falls_below(curve / curve[0], 1 / torch.e, where.tolist()).item()


def compare(before: Seen, after: Sequence[Seen], labels: Tensor) -> dict[str, float]:
    """Hold clones against the images that they come from, and against each other."""
    measures = {
        "label kept": fmean((clone.labels == labels).double().mean().item() for clone in after),
        "clone agreement": agreement([clone.labels for clone in after]),
    }
    for name, own in before.signals.items():
        each = [correlation(own, clone.signals[name], labels) for clone in after]
        measures[name] = fmean(each)
    for k, own in enumerate(before.maps):  # the class is a part of what they say
        each = [correlation(own, clone.maps[k], torch.zeros_like(labels)) for clone in after]
        measures[f"convolution {k + 1}"] = fmean(each)
    return measures


def measure_network(denoiser: Denoiser, images: Images, judge: Classifier) -> dict[str, Any]:
    """Measure a network at all noise levels."""
    x_0, classes = data.to_float(images.images), images.labels.unique()
    before = look(images.images, judge, classes)
    times = [time_of(denoiser.schedule, level) for level in LOG2_SNR]
    measures: dict[str, list[float]] = {}
    for t in Bar(times, "noise levels"):
        drawn = clones(denoiser, images.images, t)
        u = (data.to_float(drawn) - x_0).square().sum(2)
        each = compare(before, [look(x, judge, classes) for x in drawn], images.labels)
        each["susceptibility"] = susceptibility(u.flatten(0, 1))
        each["susceptibility given x_t"] = susceptibility(u[0] - u[1])
        each["correlation length"] = correlation_length(u.flatten(0, 1))
        for name, value in each.items():
            measures.setdefault(name, []).append(_short(value))
    accuracy = (before.labels == images.labels).double().mean().item()
    clean = {"label kept": _short(accuracy)}
    return {**_levels(denoiser.schedule, times, images), "clean": clean, "measures": measures}


# ---- what is predicted --------------------------------------------------------------------------


def predict(known: Images, images: Images, schedule: NoiseSchedule) -> dict[str, Any]:
    """Predict the share of labels kept, of the same images with the same noise, without a network.

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
    points = x[some], known.labels[some]
    posteriors = {
        "one Gaussian": theory.class_posterior(theory.fit(along, known.labels, 1), *given),
        "mixtures": theory.class_posterior(theory.fit(along, known.labels), *given),
        "training images": theory.empirical_posterior(points, x_0, eps, schedule, times),
    }
    clean, measures = {}, {}
    for name, p in posteriors.items():
        own = p[:, torch.arange(len(x_0)), images.labels].mean(1).tolist()
        clean[name], *measures[name] = map(_short, own)
    about = {"speciation": [_short(level) for level in theory.speciation(*points)]}
    return {**_levels(schedule, times[1:], images), **about, "clean": clean, "measures": measures}


def _levels(schedule: NoiseSchedule, times: list[int], images: Images) -> dict[str, Any]:
    snr = (schedule.alpha_bar / schedule.noise_variance)[times].log2().tolist()
    share = images.labels.bincount().double() / len(images.labels)
    chance = {"chance": _short(share.square().sum().item())}
    return {"t": times, "log2 snr": [_short(level) for level in snr], **chance}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


# ---- the record ---------------------------------------------------------------------------------


def read(path: Path, part: str) -> list[dict[str, Any]]:
    """Read the rows of a part of a record as it is now."""
    return common.load(path).get(part, []) if path.exists() else []


def add(path: Path, part: str, row: dict[str, Any]) -> None:
    """Add a row to a record, which another process may have written meanwhile."""
    record = common.load(path) if path.exists() else {}
    files.write_json(path, record | {part: [*record.get(part, []), row]})


def options_of(about: str | None) -> Any:
    """Read the command line: the folder of the data sets, and the part that is this process's."""
    parser = common.parser(about)
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("K", "N"))
    return parser.parse_args()


def main() -> None:
    options = options_of(__doc__)
    part, parts = options.part
    with interrupts.explain_stop(f"{OUT} has what was measured. Run this again to go on."):
        done = {(row["dataset"], row["schedule"]) for row in read(OUT, "predictions")}
        for name, schedule in Bar([*product(SOURCES, SCHEDULES)][part::parts], "predictions"):
            if (name, schedule) not in done:
                known, _, images = load(name, options.data)
                row = predict(known, images, SCHEDULES[schedule](1000))
                add(OUT, "predictions", {"dataset": name, "schedule": schedule, **row})
        measured = {Job(*(row[f] for f in Job._fields)) for row in read(OUT, "rows")}
        for job in Bar(jobs()[part::parts], "networks"):
            if job not in measured:
                run, judge = train(job, options.data), SOURCES[job.dataset].judge
                images = load(job.dataset, options.data)[2]
                row = measure_network(run.denoiser, images, features.load(judge))
                add(OUT, "rows", job._asdict() | about(run, judge) | row)


def about(run: Run, judge: str) -> dict[str, Any]:
    """Describe a run and its judge for the record."""
    sha256, device = features.released(judge)[1], run.denoiser.schedule.signal.device
    made = {"run": run.folder.name, "features": sha256[:16], "steps": STEPS}
    return made | {"device": hardware.name(device), "torch": torch.__version__}


if __name__ == "__main__":
    main()
