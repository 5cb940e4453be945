"""How many images a second does the preset cifar10 train?

    python -m benchmarks.cifar10

The preset as it is, dropout and mirror images included, on as many random images as CIFAR-10 has:
speed does not depend on what they show.  Writes cifar10.json beside itself, or cifar10-gpu.json.
"""

import time
from itertools import islice
from statistics import median

import torch

from benchmarks import common
from diffusion_lib import config
from diffusion_lib.system import device as hardware

IMAGES = 50_000


def main() -> None:
    options = common.options(__doc__)
    device, train = torch.device(options.device), config.CIFAR10.train
    steps = 1 if device.type == "cpu" else 50
    images = torch.randint(0, 256, (IMAGES, *common.IMAGE_SHAPE), dtype=torch.uint8)
    updates = config.CIFAR10.trainer(device).run(images)
    float(next(updates).loss_tensor)  # compiles
    seconds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        *_, last = islice(updates, steps)
        float(last.loss_tensor)
        seconds.append((time.perf_counter() - start) / steps)
    record = common.machine(device) | hardware.conditions(device)
    record |= {
        "compiled": hardware.should_compile(device, train.num_steps),
        "batch size": train.batch_size,
        "steps a round": steps,
        "rounds": options.rounds,
        "images a second": round(train.batch_size / median(seconds), 1),
        "images a second, slowest and fastest round": [
            round(train.batch_size / value, 1) for value in (max(seconds), min(seconds))
        ],
        "hours of the whole training": round(train.num_steps * median(seconds) / 3600, 2),
    }
    common.write("cifar10", device, record)


if __name__ == "__main__":
    main()
