"""How many samples of a run does a classifier recognise as digits?

    python -m other_tests.mnist.recognise runs/NAME --steps 250

Trains a small CNN on MNIST (about 99 % test accuracy), samples 1,000 images from the run with
DDPM, and counts those that the CNN assigns to a class with more than 0.9 confidence, beside the
same count for real test digits.  Writes recognise.json beside itself.

Confidence is a weak measure: it says that something looks like a digit, not that all digits
occur, nor that they are new.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_lib import config, data, rng, runs

CONFIDENT = 0.9
EPOCHS, BATCH = 4, 128


def classifier(train: data.Images, device: torch.device) -> nn.Module:
    """A CNN trained on uint8 digits [N, 1, 28, 28]."""
    torch.manual_seed(rng.seed(0))
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).to(device)
    steps = EPOCHS * len(train.images) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)

    for _ in tqdm(range(steps), "classifier"):
        chosen = torch.randint(len(train.images), (BATCH,))
        x = data.to_float(train.images[chosen]).to(device)
        loss = F.cross_entropy(network(x), train.labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Class probabilities [N, 10] of uint8 images [N, 1, 28, 28]."""
    chunks = images.split(500)
    return torch.cat([network(data.to_float(x).to(device)).softmax(1).cpu() for x in chunks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--n", type=int, default=1000, help="number of samples")
    parser.add_argument("--steps", type=int, help="DDPM's steps; all T if not given")
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()

    device = config.device()
    train, test = data.mnist(options.data), data.mnist(options.data, train=False)
    network = classifier(train, device)
    real = probabilities(network, test.images, device)
    accuracy = (real.argmax(1) == test.labels).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")

    run = runs.load(options.run)
    found = probabilities(network, runs.sample(run, options.n, num_steps=options.steps), device)
    record = {
        "run": run.describe(),
        "sampler": "ddpm",
        "sampling_steps": options.steps or run.denoiser.schedule.num_timesteps,
        "seed": 0,
        "n": options.n,
        "recognised": int((found.max(1).values > CONFIDENT).sum()),
        "confidence": CONFIDENT,
        "classes": found.argmax(1).bincount(minlength=10).tolist(),
        "classifier_test_accuracy": accuracy,
        "real_n": len(test.images),
        "real_recognised": int((real.max(1).values > CONFIDENT).sum()),
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
