"""Train a feature network and release it.

    python -m other_tests.features mnist
    python -m other_tests.features fashion_mnist
    python -m other_tests.features cifar10_jpeg
    python -m other_tests.features "folder(path=photos, size=32)" --out photos.safetensors

The last one is for your own pictures, each class in a folder of its own:
`python -m diffusion_lib evaluate RUN --features photos.safetensors` measures distances by it.

Writes features-NAME.safetensors into diffusion_lib/assets with its test accuracy inside, and prints
the hash that `features.RELEASED` must hold.  Another processor or version of torch rounds otherwise
and ends with other weights and another hash: records of the two are not comparable.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from diffusion_lib import config, data, rng
from diffusion_lib.data import sets
from diffusion_lib.metrics.features import ASSETS, Classifier
from diffusion_lib.system.progress import Bar
from other_tests import common

SEED, BATCH, LEARNING_RATE = 0, 128, 2e-3
LEAST_STEPS = 300  # of small data sets


class Recipe(NamedTuple):
    """Settings that differ between the networks."""

    dataset: data.Dataset
    widths: tuple[int, ...]
    epochs: int
    mirror: float
    shift: int  # pixels that training images are moved by, at most
    dtype: torch.dtype  # that the network computes in while it is trained


RECIPES = {
    "mnist": Recipe(data.mnist, (32, 64), 8, 0.0, 0, torch.float32),
    "fashion_mnist": Recipe(data.fashion_mnist, (32, 64), 12, 0.5, 0, torch.float32),
    "cifar10_jpeg": Recipe(data.cifar10_jpeg, (48, 96, 192, 192), 12, 0.5, 3, torch.bfloat16),
}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("name", help=f"{', '.join(RECIPES)} or another data set with labels")
    parser.add_argument("--out", type=Path, help="file (default: among those of the library)")
    options = parser.parse_args()
    recipe = RECIPES.get(options.name)
    if recipe is None:
        dataset = config.lookup(options.name, sets, "data set")
        recipe = Recipe(dataset, (48, 96, 192), 12, 0.5, 2, torch.float32)
        if options.out is None:
            raise SystemExit("give --out FILE.safetensors for a data set of your own")
    train, test = (recipe.dataset(options.data, part) for part in (True, False))

    torch.manual_seed(rng.seed(SEED))
    device = config.device()
    _, channels, height, width = train.images.shape
    shape, classes = (channels, height, width), int(train.labels.max()) + 1
    if classes < 2:
        raise SystemExit(f"{options.name} has {classes} class: put each class in its own folder")
    network = Classifier(shape, classes, widths=recipe.widths).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    steps = max(recipe.epochs * len(train.images) // BATCH, LEAST_STEPS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in Bar(range(steps), "feature network"):
        chosen = torch.randint(len(train.images), (BATCH,))
        x = augment(data.to_float(train.images[chosen].to(device)), recipe)
        with torch.autocast(device.type, recipe.dtype, recipe.dtype is not torch.float32):
            loss = F.cross_entropy(network(x)[1], train.labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    network.normalize(train.images)
    classes = network.extract_features(test.images).probabilities.argmax(1)
    accuracy = (classes == test.labels).double().mean().item()
    about = {
        "test_accuracy": f"{accuracy:.4f}",
        "data": f"{options.name}, {len(train.images)} training images",
        "seed": str(SEED),
    }
    out = options.out or ASSETS / f"features-{options.name}.safetensors"
    print(f"test accuracy {accuracy:.4f}, sha256 {network.cpu().save(out, about)}")


def augment(x: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Mirror and move images at random, because a network that sees more describes better."""
    if recipe.mirror:
        is_mirrored = (torch.rand(len(x), 1, 1, 1) < recipe.mirror).to(x.device)
        x = torch.where(is_mirrored, x.flip(-1), x)
    if recipe.shift:
        size, room = x.shape[-1], 2 * recipe.shift + 1
        padded = F.pad(x, [recipe.shift] * 4, mode="reflect")
        down, right = torch.randint(room, (2, len(x), 1))
        image, channel = torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])
        rows, columns = (first + torch.arange(size) for first in (down, right))
        x = padded[image, channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
    return x


if __name__ == "__main__":
    main()
