"""How much memory do training and sampling take, beside diffusers?

    python -m benchmarks.memory

Each in a process of its own, three times: the largest resident size above that before the network
was made; on a GPU the most that torch allocated, once, because it does not vary.  Network,
optimizer and moving average are part of it.  Writes memory.json beside itself, or memory-gpu.json.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from benchmarks import common, sampling, train_step
from diffusion_lib import runs, samplers
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.system.device import optimize_memory_layout


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in WAYS:
        name, kind, size, paper = sys.argv[1:]
        print(json.dumps(measure(WAYS[name], torch.device(kind), int(size), paper == "True")))
        return
    options = common.options(__doc__)
    device = torch.device(options.device)
    names = [name for name in WAYS if common.modes(device) or not name.startswith("diffusers")]
    megabytes: dict[str, list[float]] = {name: [] for name in names}
    repeats = 3 if device.type == "cpu" else 1
    for _ in range(repeats):
        for name in names:
            arguments = [name, options.device, str(options.batch_size), str(options.paper)]
            command = [sys.executable, "-m", "benchmarks.memory", *arguments]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            megabytes[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, megabytes[name][-1], "MB", flush=True)
    medians = {name: round(median(values)) for name, values in megabytes.items()}
    record = common.machine(device) | {
        "batch size": options.batch_size,
        f"MB, median of {repeats}": medians,
        "MB, all": megabytes,
    }
    common.write("memory", device, record)


def measure(
    way: Callable[[torch.device, int, bool], Callable[[], object]],
    device: torch.device,
    size: int,
    paper: bool,
) -> float:
    """Return the peak memory in MB, above that of the process before the network was made."""
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * resource.getpagesize() / 1e6
    step = way(device, size, paper)
    for _ in range(3):
        step()
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before, 1)


def diffusers_trains(device: torch.device, size: int, paper: bool) -> Callable[[], object]:
    return train_step.loop(common.diffusers_network(paper), common.Mode(False, False), size, device)


def ours_trains(device: torch.device, size: int, paper: bool) -> Callable[[], object]:
    return train_step.trainer(paper, size, device, images=1000)


def diffusers_samples(device: torch.device, size: int, paper: bool) -> Callable[[], object]:
    return sampling.pipeline(common.Mode(False, False), paper, size, device)


def ours_samples(device: torch.device, size: int, paper: bool) -> Callable[[], object]:
    return partial(_sample, _denoiser(device, paper), size, 1)


def ours_samples_many(device: torch.device, size: int, paper: bool) -> Callable[[], object]:
    return partial(_sample, _denoiser(device, paper), size, 8)


def _denoiser(device: torch.device, paper: bool) -> Denoiser:
    return optimize_memory_layout(common.our_denoiser(paper, device)).eval()


def _sample(denoiser: Denoiser, size: int, batches: int) -> None:
    for _ in runs.sample_batches(denoiser, batches * size, 0, samplers.ddim, 2, batch_size=size):
        pass


WAYS = {
    "diffusers trains": diffusers_trains,
    "diffusion_lib trains": ours_trains,
    "diffusers samples a batch": diffusers_samples,
    "diffusion_lib samples a batch": ours_samples,
    "diffusion_lib samples 8 batches": ours_samples_many,
}

if __name__ == "__main__":
    main()
