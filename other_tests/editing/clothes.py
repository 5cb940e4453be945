"""How far may clothes be changed?  `survival.how_far` says how far, and networks change them.

    python -m other_tests.editing.clothes      half an hour of two cores

Trains networks of Fashion-MNIST that know labels.  `how_far` looks at the training images alone and
names the t at which three shares of the labels are expected to survive.  500 test images are edited
from there: drawn as they are, as another class, from a sketch, and over a hole that was filled with
the mean of its surroundings.  Tells how many labels survive, and writes clothes.json and the
pictures.  Nothing here tests a hypothesis.  Goes on where it was stopped.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import add_row
from diffusion_lib import config, data, editing, metrics, rng, runs, survival, viz
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import guided
from diffusion_lib.metrics import Interval, features
from diffusion_lib.metrics.features import Classifier, ClassifierOutput
from diffusion_lib.samplers import final
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import device as hardware
from diffusion_lib.system import interrupts
from diffusion_lib.system.progress import Bar
from other_tests import common
from other_tests.editing import law, points

OUT = Path(__file__).with_name("clothes.json")
PICTURE = common.ASSETS / "edited-clothes.png"
KEEP = (0.8, 0.5, 0.25)  # shares of the labels; Gaussians recognize 0.87 without noise
GUIDANCE = 2.0
# A class that is near to each: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker,
# bag, ankle boot.
ANOTHER = torch.tensor([2, 0, 4, 1, 6, 7, 3, 9, 5, 8])


def experiment(seed: int) -> Experiment:
    """Make the experiment: a small U-Net that knows labels, of which 30 % are left out."""
    base = config.quick(config.MNIST_LABELS)
    settings = replace(base.train, num_steps=4000, label_dropout=0.3, seed=seed)
    return replace(base, dataset=data.fashion_mnist, train=settings)


def sketch(x_0: Tensor) -> Tensor:
    """Draw images in squares of 4 x 4 pixels that are black, gray or white."""
    return F.interpolate(F.avg_pool2d(x_0, 4).round(), scale_factor=4)


def hole(x_0: Tensor) -> Tensor:
    """Mark the known pixels: all but a square in the middle, bool [1, 1, H, W]."""
    known = torch.ones(1, 1, *x_0.shape[2:], dtype=torch.bool)
    known[..., 9:19, 9:19] = False
    return known


def fill(x_0: Tensor) -> Tensor:
    """Fill the hole of images with the means of the known pixels of 15 x 15 around each."""
    known = hole(x_0)
    near, share = (F.avg_pool2d(x, 15, 1, 7) for x in (x_0 * known, known.float()))
    return torch.where(known, x_0, near / share)


WAYS = ("as it is", "another class", "sketch", "hole")


def start(way: str, x_0: Tensor) -> Tensor:
    """Return what is noised, [N, C, H, W]."""
    return {"sketch": sketch, "hole": fill}.get(way, torch.clone)(x_0)


def edit(denoiser: Denoiser, way: str, images: Images, t: int) -> Tensor:
    """Noise to t what a way starts from, and denoise it; returns uint8 [N, C, H, W]."""
    parts, device = [], denoiser.schedule.signal.device
    for first in range(0, len(images.images), law.BATCH):
        rows = slice(first, first + law.BATCH)
        x_0 = data.to_float(images.images[rows])
        wish, times = denoiser, law.grid(t, law.STEPS)
        if way == "another class":
            wish = guided(denoiser, ANOTHER[images.labels[rows]], GUIDANCE)
        eps = rng.per_image(0, len(x_0), first)
        with hardware.autocast(denoiser):
            steps = editing.edit(wish, start(way, x_0).to(device), t, times, generator=eps)
            edited = final(steps).float().cpu()
        parts.append(torch.where(hole(x_0), x_0, edited) if way == "hole" else edited)
    return data.to_uint8(torch.cat(parts))


def measure(
    edited: Tensor, images: Images, judge: Classifier, reference: ClassifierOutput
) -> dict[str, float]:
    """Count labels that survive, and those of the other class; and the distance to other images."""
    seen = judge.extract_features(edited)
    labels = seen.probabilities.argmax(1)
    distance = metrics.frechet_distance(seen.features, reference.features)
    measures = {
        points.LABEL: (labels == images.labels).double().mean().item(),
        "another class": (labels == ANOTHER[images.labels]).double().mean().item(),
        "Frechet distance": distance,
    }
    return {name: float(f"{value:.4g}") for name, value in measures.items()}


def how_far(known: Images, schedule: NoiseSchedule) -> dict[float, Interval]:
    """Ask for the t at which each share of KEEP is left."""
    return {keep: survival.how_far(known.images, known.labels, schedule, keep) for keep in KEEP}


def main() -> None:
    options = common.parser(__doc__).parse_args()
    known, test, images = law.load("fashion_mnist", options.data)
    judge = features.load("fashion_mnist")
    # In the order in which `law.load` chooses: those that are not edited.
    others = rng.permutation(len(test.images), 0)[len(images.images) :]
    reference = judge.extract_features(test.images[others])
    made = experiment(law.SEEDS[0])
    far = how_far(known, made.schedule(made.T))
    measured = {row["seed"] for row in law.read(OUT, "rows")}
    with interrupts.explain_stop(f"{OUT} has what was measured. Run this again to go on."):
        for seed in [seed for seed in law.SEEDS if seed not in measured]:
            run = runs.train(experiment(seed), known, test)
            row: dict[str, Any] = {"seed": seed, "n": len(images.images), "guidance": GUIDANCE}
            row["how far"] = {str(keep): [*t] for keep, t in far.items()}
            row["ways"] = {}
            for way in Bar(WAYS, "ways"):
                edits = [data.to_uint8(start(way, data.to_float(images.images)))]
                edits += [edit(run.denoiser, way, images, int(t.value)) for t in far.values()]
                row["ways"][way] = [measure(x, images, judge, reference) for x in edits]
            add_row(OUT, "rows", law.about(run, "fashion_mnist") | row)
            if seed == law.SEEDS[0]:
                draw(run.denoiser, images, far)


def draw(denoiser: Denoiser, images: Images, far: Mapping[float, Interval]) -> None:
    """Draw the edits of the first image of each class."""
    first = [int((images.labels == k).nonzero()[0]) for k in range(10)]
    ten = Images(images.images[first], images.labels[first])
    x_0 = data.to_float(ten.images)
    rows = [("picture", [*x_0])]
    for way in WAYS:
        if way in ("sketch", "hole"):
            rows.append((way, [*start(way, x_0)]))
        for keep, t in far.items():
            rows.append((f"{way}, {keep:.0%}", [*edit(denoiser, way, ten, int(t.value))]))
    names = "T-shirt trouser pullover dress coat sandal shirt sneaker bag boot"
    PICTURE.write_bytes(viz.table_of_images(rows, names.split()).png())


if __name__ == "__main__":
    main()
