"""Train a feature network and release it.

    python -m other_tests.features mnist
    python -m other_tests.features fashion_mnist
    python -m other_tests.features cifar10_jpeg

Writes features-NAME.safetensors into diffusion_lib/assets with its test accuracy inside, and prints
the hash that `features.RELEASED` must hold.  Another processor or version of torch rounds otherwise
and ends with other weights and another hash: records of the two are not comparable.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from diffusion_lib import config, data, rng
from diffusion_lib.metrics.features import ASSETS, Classifier
from diffusion_lib.system.progress import Bar
from other_tests import common

SEED, BATCH, LEARNING_RATE = 0, 128, 2e-3


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
    parser.add_argument("name", help=", ".join(RECIPES))
    options = parser.parse_args()
    recipe = config.lookup(options.name, RECIPES, "feature network")
    train, test = (recipe.dataset(options.data, part) for part in (True, False))

    torch.manual_seed(rng.seed(SEED))
    device = config.device()
    _, channels, height, width = train.images.shape
    network = Classifier((channels, height, width), widths=recipe.widths).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    steps = recipe.epochs * len(train.images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in Bar(range(steps), "feature network"):
        chosen = torch.randint(len(train.images), (BATCH,))
        x = augment(data.to_float(train.images[chosen]), recipe).to(device)
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
    out = ASSETS / f"features-{options.name}.safetensors"
    print(f"test accuracy {accuracy:.4f}, sha256 {network.cpu().save(out, about)}")


def augment(x: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Mirror and move images at random, because a network that sees more describes better."""
    if recipe.mirror:
        x = torch.where(torch.rand(len(x), 1, 1, 1) < recipe.mirror, x.flip(-1), x)
    if recipe.shift:
        size, room = x.shape[-1], 2 * recipe.shift + 1
        padded = F.pad(x, [recipe.shift] * 4, mode="reflect")
        down, right = torch.randint(room, (2, len(x)))
        moved = [
            image[:, i : i + size, j : j + size]
            for image, i, j in zip(padded, down.tolist(), right.tolist(), strict=True)
        ]
        x = torch.stack(moved)
    return x


if __name__ == "__main__":
    main()
