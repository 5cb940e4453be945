"""Do many processes train what one trains, and how much faster?

    python -m benchmarks.processes

A small U-Net of digits with labels and a batch of 64 that is divided among 1, 2 and 4 processes of
one thread each, from the same seed: the largest difference of a weight from those of one process,
and images a second, several times in turn.  With as many processes as cores, or fewer, more should
be faster.  Writes processes.json beside itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from diffusion_lib import config, data
from diffusion_lib.system import files, parallel
from diffusion_lib.system.progress import Bar

PROCESSES, ROUNDS, STEPS, WARM = (1, 2, 4), 5, 40, 10
FORMAT = "weights of benchmarks.processes"


def main() -> None:
    results: dict[str, dict[str, list[float]]] = {
        str(n): {"images a second": [], "largest difference of a weight": []} for n in PROCESSES
    }
    with tempfile.TemporaryDirectory() as place:
        for _ in Bar(range(ROUNDS), "rounds"):
            weights = {n: launch(n, Path(place) / f"{n}.safetensors", results) for n in PROCESSES}
            for n, own in weights.items():
                largest = max(float((own[k] - x).abs().max()) for k, x in weights[1].items())
                results[str(n)]["largest difference of a weight"].append(largest)
    record = common.machine(torch.device("cpu")) | {
        "steps": STEPS,
        "batch size": common.MNIST_ADAMW_LABELS.train.batch_size,
        "cores": os.cpu_count(),
        "processes": results,
    }
    common.write("processes", torch.device("cpu"), record)


def launch(n: int, out: Path, results: dict[str, dict[str, list[float]]]) -> dict[str, Tensor]:
    """Train with n processes and return their weights; append their speed to `results`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    command = [sys.executable, *torchrun, "-m", "benchmarks.processes", str(out)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    weights, metadata = files.read_tensors(out, FORMAT)
    results[str(n)]["images a second"].append(json.loads(metadata["images a second"]))
    return weights


@parallel.process_group()
def work(out: Path) -> None:
    """Train in one of the processes that torchrun starts."""
    experiment = common.MNIST_ADAMW_LABELS
    experiment = replace(experiment, train=replace(experiment.train, num_steps=STEPS))
    trainer = experiment.trainer("cpu")
    clock = 0.0
    train, _ = data.load_splits(data.mnist, config.data_root())
    for step in trainer.run(train):
        if step.step == WARM:
            clock = time.perf_counter()
    speed = experiment.train.batch_size * (STEPS - WARM) / (time.perf_counter() - clock)
    if parallel.rank() == 0:
        metadata: dict[str, Any] = {"format": FORMAT, "images a second": json.dumps(speed)}
        files.write_tensors(out, trainer.denoiser.state_dict(), metadata)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]))
    else:
        main()
