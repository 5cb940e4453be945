"""Train the feature network for MNIST-like data and release it.

    python -m other_tests.mnist.features

Writes assets/features-mnist.safetensors with its test accuracy inside, and prints the hash that
`features.RELEASED` must hold.
"""

import argparse

import torch
import torch.nn.functional as F
from tqdm import tqdm

from diffusion_lib import config, data, rng
from diffusion_lib.features import Classifier

SEED, EPOCHS, BATCH, LEARNING_RATE = 0, 8, 128, 2e-3
OUT = "assets/features-mnist.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    train, test = data.mnist(options.data), data.mnist(options.data, train=False)

    torch.manual_seed(rng.seed(SEED))
    device = config.device()
    network = Classifier((1, 28, 28)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    steps = EPOCHS * len(train.images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in tqdm(range(steps), "feature network"):
        chosen = torch.randint(len(train.images), (BATCH,))
        x = data.to_float(train.images[chosen]).to(device)
        loss = F.cross_entropy(network(x)[1], train.labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    network.normalise(train.images)
    found = network.describe_images(test.images).probabilities.argmax(1)
    accuracy = (found == test.labels).double().mean().item()
    about = {
        "test_accuracy": f"{accuracy:.4f}",
        "data": f"MNIST, {len(train.images)} training images",
        "seed": str(SEED),
    }
    print(f"test accuracy {accuracy:.4f}, sha256 {network.cpu().save(OUT, about)}")


if __name__ == "__main__":
    main()
