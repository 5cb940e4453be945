"""How long do the metrics of 10,000 samples take, once they are sampled, and how much memory?

    python -m benchmarks.evaluate

Measures 10,000 MNIST training images as if they were samples, the floor and the distances to all
60,000 training images included.  Writes evaluate.json beside itself.
"""

import argparse
import resource
import time

import torch

from benchmarks import common
from diffusion_lib import config, data, evaluation
from diffusion_lib.metrics import features
from diffusion_lib.system import device as hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=10_000, help="number of samples")
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args()
    train, test = (data.mnist(options.data, part).images for part in (True, False))
    network = features.load("mnist")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    evaluation.measure_samples(train[-options.n :], train, test, network)
    record = {
        "n": options.n,
        "seconds": round(time.monotonic() - start, 1),
        "peak memory, GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "of which before, GB": round(before / 1e6, 2),
        "device": hardware.name(torch.device("cpu")),
        "torch": torch.__version__,
    }
    common.write("evaluate", torch.device("cpu"), record)


if __name__ == "__main__":
    main()
