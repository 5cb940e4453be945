"""If you noise a picture by 300 steps and denoise it, which signals survive?

    python -m other_tests.editing.measure

Trains a network of MNIST with either schedule and each of three seeds (`experiment`), sends 500
test digits to t = 0, 50, ..., 1000 and back by six edits (`EDITS`), and compares the results with
the digits: pixels, features, label, area, slant, width of the strokes, and the distance of the set
from real digits.  Every t, run and edit sees the same digits with the same noise.  The networks
know labels, but receive one only where another digit is requested; so half of their training is
without.  The first run of a schedule makes all edits, the others those that the answers rest on
(`REPEATED`).

Writes editing.json beside itself.  Runs and images are saved under runs/, so that a measurement
that was stopped continues when it is run again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import MNIST_ADAMW_LABELS
from diffusion_lib import data, editing, metrics, rng, runs, schedules, viz
from diffusion_lib.config import Experiment
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import guided
from diffusion_lib.metrics import Interval, features
from diffusion_lib.metrics.features import Classifier, ClassifierOutput
from diffusion_lib.runs import Run
from diffusion_lib.samplers import final
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar
from other_tests import common

OUT = Path(__file__).with_name("editing.json")
PICTURE = common.ASSETS / "edited-mnist.png"
SCHEDULES, SEEDS = (schedules.linear, schedules.cosine), (0, 1, 2)
N, STEPS = 500, 40
# Scales of the guidance to another digit, chosen by eye: an inverted digit changes less easily.
SCALE_NOISED, SCALE_INVERTED = 2.0, 4.0
TIMES = tuple(range(0, 1001, 50))
LABEL = 0.95  # share of the labels that an edit is to keep
PROPERTIES = ("area", "slant", "stroke width")
_FORMAT = "diffusion_lib edits 1"
_BATCH = 125
_RESAMPLES = 1000
_FRECHETS = 100  # of them: each takes its time

Generators = list[torch.Generator]
Schedule = Callable[[int], NoiseSchedule]
Edit = Callable[[Denoiser, Tensor, Tensor, Generators], Iterator[Tensor]]


def experiment(schedule: Schedule, seed: int) -> Experiment:
    """Make the experiment: a U-Net that knows labels, of which half are left out.

    Args:
        schedule: function from T to a noise schedule.
        seed: seed of the training.
    """
    settings = replace(MNIST_ADAMW_LABELS.train, num_steps=4000, label_dropout=0.5, seed=seed)
    return replace(MNIST_ADAMW_LABELS, schedule=schedule, train=settings)


# ---- edits --------------------------------------------------------------------------------------


def noise(denoiser: Denoiser, x_0: Tensor, labels: Tensor, eps: Generators) -> Iterator[Tensor]:
    """Noise and denoise."""
    times = denoiser.schedule.timesteps(STEPS)
    states = [generator.get_state() for generator in eps]
    for t in TIMES:
        for generator, state in zip(eps, states, strict=True):
            generator.set_state(state)  # every t adds the same eps
        yield final(editing.edit(denoiser, x_0, t, times, generator=eps))


def invert(denoiser: Denoiser, x_0: Tensor, labels: Tensor, eps: Generators) -> Iterator[Tensor]:
    """Invert and reconstruct."""
    return _inverted(denoiser, denoiser, x_0)


def noise_sketch(
    denoiser: Denoiser, x_0: Tensor, labels: Tensor, eps: Generators
) -> Iterator[Tensor]:
    """Noise and denoise a sketch, the use of SDEdit."""
    return noise(denoiser, sketch(x_0), labels, eps)


def noise_thick(
    denoiser: Denoiser, x_0: Tensor, labels: Tensor, eps: Generators
) -> Iterator[Tensor]:
    """Noise and denoise with strokes thickened by hand."""
    return noise(denoiser, thick(x_0), labels, eps)


def noise_other(
    denoiser: Denoiser, x_0: Tensor, labels: Tensor, eps: Generators
) -> Iterator[Tensor]:
    """Noise, and denoise as another digit."""
    return noise(guided(denoiser, target_labels(labels), SCALE_NOISED), x_0, labels, eps)


def invert_other(
    denoiser: Denoiser, x_0: Tensor, labels: Tensor, eps: Generators
) -> Iterator[Tensor]:
    """Invert, and reconstruct as another digit."""
    return _inverted(denoiser, guided(denoiser, target_labels(labels), SCALE_INVERTED), x_0)


def _inverted(there: Denoiser, back: Denoiser, x_0: Tensor) -> Iterator[Tensor]:
    times = there.schedule.timesteps(STEPS)
    for step in editing.invert(there, x_0, TIMES[-1], times, repeats=2):
        if step.t in TIMES:
            yield final(editing.reconstruct(back, step.x_t, step.t, times))


EDITS: dict[str, Edit] = {
    "noise": noise,
    "noise, sketch": noise_sketch,
    "noise, thick": noise_thick,
    "invert": invert,
    "noise, another digit": noise_other,
    "invert, another digit": invert_other,
}
REPEATED = ("noise", "noise, sketch")


def sketch(x_0: Tensor) -> Tensor:
    """Draw digits in black and white squares of 2 x 2 pixels."""
    squares = F.interpolate(F.avg_pool2d(x_0, 2), scale_factor=2)
    return torch.where(squares > 0, 1.0, -1.0)


def thick(x_0: Tensor) -> Tensor:
    """Draw digits in black and white, their strokes a pixel thicker on each side."""
    return torch.where(F.max_pool2d(x_0, 3, stride=1, padding=1) > 0, 1.0, -1.0)


def target_labels(labels: Tensor) -> Tensor:
    """Return another digit for each: 3 becomes 8."""
    return (labels + 5) % 10


def edits(run: Run, way: str, inputs: data.Images) -> Tensor:
    """Read the edited images of a run, or make and save them.

    Args:
        run: run of the `experiment`.
        way: one of EDITS.
        inputs: digits to edit, with their labels.

    Returns:
        uint8 [len(TIMES), N, 1, H, W].
    """
    device = run.denoiser.schedule.signal.device
    path = run.folder / "editing" / f"{way.replace(', ', '-').replace(' ', '-')}.safetensors"
    about = {"format": _FORMAT, "inputs": runs.fingerprint(inputs.images), "steps": str(STEPS)}
    about["times"] = " ".join(map(str, TIMES))
    about["scales"] = f"{SCALE_NOISED}, {SCALE_INVERTED}"
    if path.exists():
        tensors, metadata = files.read_tensors(path, _FORMAT)
        if {name: metadata.get(name) for name in about} == about:
            return tensors["images"]
    parts = []
    total = len(inputs.images) // _BATCH * len(TIMES)
    with Bar(None, f"{run.folder.name}: {way}", total) as bar:
        for first in range(0, len(inputs.images), _BATCH):
            rows = slice(first, first + _BATCH)
            x_0, labels = data.to_float(inputs.images[rows]), inputs.labels[rows]
            eps = rng.per_image(0, len(x_0), first)
            edited = []
            # Inversion accumulates rounding errors, and stays in float32.
            fast = hardware.precision(device) == "bfloat16" and "invert" not in way
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                for images in EDITS[way](run.denoiser, x_0.to(device), labels, eps):
                    edited.append(data.to_uint8(images).cpu())
                    bar.update()
            parts.append(torch.stack(edited))
    images = torch.cat(parts, dim=1)
    path.parent.mkdir(exist_ok=True)
    files.write_tensors(path, {"images": images}, about)
    return images


# ---- what is measured ------------------------------------------------------------------------


def properties(images: Tensor) -> dict[str, Tensor]:
    """Measure properties of digits by the moments of their ink: each [N], in float64.

    Args:
        images: uint8 [N, 1, H, W].

    Returns:
        "area": sum of the ink, in pixels.
        "slant": angle from the upright to the line on which the ink of each row has its mean,
            in degrees, positive to the right.
        "stroke width": twice the area for each pixel of outline, in pixels; the outline is the
            total variation of the ink.
    """
    ink = images[:, 0].double() / 255
    area = ink.sum((1, 2))
    height, width = ink.shape[1:]
    y = torch.arange(height - 1, -1, -1).double()[:, None].expand(height, width)  # upwards
    x = torch.arange(width).double().expand(height, width)
    safe_area = area.clamp(min=1e-9)
    x_off, y_off = (z - ((ink * z).sum((1, 2)) / safe_area)[:, None, None] for z in (x, y))
    upright = (ink * y_off.square()).sum((1, 2)).clamp(min=1e-9)
    slant = torch.atan((ink * x_off * y_off).sum((1, 2)) / upright).rad2deg()
    corners = F.pad(ink, (1, 1, 1, 1)).unfold(1, 2, 1).unfold(2, 2, 1)  # the four pixels about each
    dx, dy = ((corners.select(k, 1) - corners.select(k, 0)).mean(3) for k in (4, 3))
    outline = (dx.square() + dy.square()).sqrt().sum((1, 2)).clamp(min=1e-9)
    return {"area": area, "slant": slant, "stroke width": 2 * area / outline}


def correlations(before: Tensor, after: Tensor, labels: Tensor, drawn: Tensor) -> Tensor:
    """Correlate a property before and after an edit, among the digits of one label.

    Each label's mean is subtracted: a 1 that is narrower than an 8 before and after says nothing.

    Args:
        before: property of the inputs, [N].
        after: property of the edited images, [N].
        labels: labels of the inputs, int64 [N].
        drawn: indices of the images of each resample, int64 [R, N].

    Returns:
        Correlation of each resample, [R].
    """
    a, b = (value - _means(value, labels)[labels] for value in (before, after))
    a, b = a[drawn], b[drawn]
    squares = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return (a * b).sum(1) / squares.clamp(min=1e-12)


def _means(value: Tensor, labels: Tensor) -> Tensor:
    sums = torch.zeros(int(labels.max()) + 1, dtype=value.dtype).index_add(0, labels, value)
    return sums / labels.bincount().clamp(min=1)


def falls_below(curve: Tensor, level: float, times: Sequence[int]) -> Tensor:
    """Find the first time at which curves fall below a level, linear between times.

    Args:
        curve: values at the times, [..., len(times)].
        level: level to fall below.
        times: increasing times.

    Returns:
        The times [...]; the last one where a curve never falls below.
    """
    t = torch.tensor(times).double()
    below = curve < level
    first = torch.where(below.any(-1), below.double().argmax(-1), len(times) - 1)
    before = (first - 1).clamp(min=0)
    high, low = (curve.gather(-1, k[..., None]).squeeze(-1) for k in (before, first))
    fraction = ((high - level) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    crossing = t[before] + fraction * (t[first] - t[before])
    return torch.where(below.any(-1), crossing, t[-1])


def measure_edit(
    images: Tensor,
    inputs: data.Images,
    targets: Tensor,
    network: Classifier,
    reference: ClassifierOutput,
) -> dict[str, Any]:
    """Measure edited images at each of TIMES, and the time until which the label survives.

    Args:
        images: edited images, uint8 [len(TIMES), N, 1, H, W].
        inputs: digits that were edited, with their labels.
        targets: label that each edited image should have, int64 [N].
        network: classifier that judges labels and realism.
        reference: features of real digits, the inputs not among them.
    """
    n, labels = len(inputs.images), inputs.labels
    drawn = torch.randint(n, (_RESAMPLES, n), generator=rng.generator(0))
    drawn = torch.cat([torch.arange(n)[None], drawn])
    before, seen_before = properties(inputs.images), network.extract_features(inputs.images)
    x_0 = data.to_float(inputs.images)
    label_shares: list[Tensor] = []
    measures: dict[str, list[list[float]]] = {}
    for edited in images:
        seen, after = network.extract_features(edited), properties(edited)
        each = {
            **distances(x_0, edited, seen_before, seen),
            "label": (seen.probabilities.argmax(1) == targets).double(),
            "mean stroke width": after["stroke width"],
        }
        resampled = {name: value[drawn].mean(1) for name, value in each.items()}
        for name in PROPERTIES:
            resampled[name] = correlations(before[name], after[name], labels, drawn)
        for name, values in resampled.items():
            measures.setdefault(name, []).append(_bootstrap(values))
        label_shares.append(resampled["label"])
        measures.setdefault("Frechet distance", []).append(_frechet(seen, reference, drawn))
    # Baseline: unrelated pairs, each input beside the edit of another one at the largest t.
    others = images[-1].roll(1, 0)
    unrelated = distances(x_0, others, seen_before, network.extract_features(others))
    return {
        "measures": measures,
        "label until": _bootstrap(falls_below(torch.stack(label_shares, 1), LABEL, TIMES)),
        "strangers": {name: _bootstrap(value[drawn].mean(1)) for name, value in unrelated.items()},
    }


def distances(
    x_0: Tensor, edited: Tensor, seen_before: ClassifierOutput, seen: ClassifierOutput
) -> dict[str, Tensor]:
    """Compute mean squared distances from the input, of pixels in [-1, 1] and of features: [N].

    Args:
        x_0: inputs, float [N, 1, H, W].
        edited: edited images, uint8 [N, 1, H, W].
        seen_before: features of the inputs.
        seen: features of the edited images.
    """
    return {
        "pixel distance": (data.to_float(edited) - x_0).square().flatten(1).mean(1).double(),
        "feature distance": (seen.features - seen_before.features).square().mean(1),
    }


def _bootstrap(statistics: Tensor) -> list[float]:
    return _short(Interval.bootstrap(statistics))


def _frechet(seen: ClassifierOutput, reference: ClassifierOutput, drawn: Tensor) -> list[float]:
    """Compute the Frechet distance from the reference with its interval."""
    values = [
        metrics.frechet_distance(seen.features[rows], reference.features)
        for rows in drawn[: 1 + _FRECHETS]
    ]
    return _short(Interval.centered_bootstrap(torch.tensor(values).double()))


def _short(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


# ---- the record ------------------------------------------------------------------------------


def split(test: data.Images) -> tuple[data.Images, list[Tensor]]:
    """Split test images into disjoint sets of N, and return the first with its labels, and all."""
    order = torch.randperm(len(test.images), generator=rng.generator(0))
    first = order[:N]
    return data.Images(test.images[first], test.labels[first]), list(test.images[order].split(N))


def floors(sets: list[Tensor], network: Classifier) -> list[float]:
    """Compute the Frechet distance of each set of real digits from all the others: the floor."""
    described = [network.extract_features(images).features for images in sets]
    return _short(
        metrics.frechet_distance(one, torch.cat([*described[:k], *described[k + 1 :]]))
        for k, one in enumerate(described)
    )


def measure(root: str) -> dict[str, Any]:
    """Train what is missing, edit, and measure all.

    Args:
        root: folder of the data sets.
    """
    train, test = (data.mnist(root, part) for part in (True, False))
    inputs, sets = split(test)
    network = features.load("mnist")
    reference = network.extract_features(torch.cat(sets[1:]))
    measured = []
    for seed, schedule in product(SEEDS, SCHEDULES):
        run = runs.train(experiment(schedule, seed), train, test)
        ways = {}
        for way in EDITS if seed == SEEDS[0] else REPEATED:
            targets = target_labels(inputs.labels) if "another" in way else inputs.labels
            images = edits(run, way, inputs)
            ways[way] = measure_edit(images, inputs, targets, network, reference)
        snr = run.denoiser.schedule.snr(torch.tensor(TIMES[1:])).log2()
        about = {"schedule": schedule.__name__, "seed": seed, **common.provenance(run)}
        measured.append({**about, "log2 snr": [None, *_short(snr.tolist())], "ways": ways})
    return {
        "n": N,
        "steps": STEPS,
        "scale, noised": SCALE_NOISED,
        "scale, inverted": SCALE_INVERTED,
        "times": list(TIMES),
        "level": LABEL,
        "features sha256": features.released("mnist")[1],
        "floors": floors(sets, network),
        "runs": measured,
    }


def draw(root: str) -> None:
    """Draw all edits of the first 3 among the inputs, by the network of the cosine schedule."""
    train, test = (data.mnist(root, part) for part in (True, False))
    run = runs.train(experiment(schedules.cosine, SEEDS[0]), train, test)
    inputs, _ = split(test)
    three = int((inputs.labels == 3).nonzero()[0])
    rows = [(way, list(edits(run, way, inputs)[::2, three])) for way in EDITS]
    PICTURE.write_bytes(viz.table_of_images(rows, [f"t = {t}" for t in TIMES[::2]]).png())


def main() -> None:
    options = common.parser(__doc__).parse_args()
    files.write_json(OUT, measure(options.data))
    draw(options.data)


if __name__ == "__main__":
    main()
