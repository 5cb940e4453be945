"""What test_parallel.py compares: processes that train, sample and measure by the command line.

Groups of 1, 2 and 4 processes, and two of 2 of which the last kills itself at step 7 of the first
try: "lost" ends with that, "again" is restarted once.  Each works in a folder of that name.
torchrun's agent starts them, as copies of a process that has imported everything, which takes
longer than what they do.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from diffusion_lib import config, optimizers, runs, training
from diffusion_lib.cli import main
from diffusion_lib.runs import driver
from diffusion_lib.system import parallel
from tests.processes import CONTEXT

STEPS = 12


def lose_a_process(folder: Path) -> None:
    train_step = training.Trainer.train_step

    def maybe_die(trainer: training.Trainer, micro_batches: list) -> Tensor:
        loss = train_step(trainer, micro_batches)
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if trainer.step == 7 and last and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            (folder / "lost").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    def slow(trainer: training.Trainer, *arguments) -> None:
        time.sleep(0.5)  # as large weights would: torchrun's SIGTERM comes in the meantime
        save(trainer, *arguments)

    save = training.Trainer.save
    training.Trainer.train_step, training.Trainer.save = maybe_die, slow


def work(folder: Path, root: str, lost: bool) -> int:
    folder.mkdir(exist_ok=True)
    run = str(folder / "run")
    if lost:
        lose_a_process(folder)
    common = ["--data", root, "--device", "cpu"]
    smoke = ["--budget", "smoke", "--steps", str(STEPS)]
    if parallel.size() == 2:
        smoke += ["--accumulate", "2"]
    status = main(["train", "mnist_labels", "--out", run, *smoke, *common])
    if status or lost:
        return status
    asked = runs.load(run, torch.device("cpu")).guided(range(10))
    images = torch.cat(list(runs.sample_batches(asked, 7, 1, num_steps=3, batch_size=2)))
    if parallel.rank() == parallel.size() - 1:
        torch.save(images, folder / "images.pt")
    out = str(folder / "images.npz")
    sample = ["sample", run, "--n", "7", "--steps", "3", "--out", out, "--device", "cpu"]
    small = ["--n", "70", "--steps", "2", "--n-likelihood", "4", "--num-times", "4"]
    # Measuring is divided as sampling is: two processes show it.
    measure = ["evaluate", run, *small, *common] if parallel.size() < 4 else []
    return main(sample) or (main(measure) if measure else 0)


def join(folder: str, root: str, lost: bool = False) -> None:
    """One process of a group."""
    torch.set_num_threads(1)
    driver.find_spec = lambda name: None  # neither TensorBoard nor previews, as in conftest.py
    driver._draw_preview = lambda denoiser, path: None
    # float32 on every processor: what is compared must agree to more digits than bfloat16 has.
    os.environ["DIFFUSION_PRECISION"] = "float32"
    network = replace(config.MNIST_LABELS.network, width=16, multipliers=(1, 1), num_blocks=1)
    config.PRESETS["mnist_labels"] = replace(
        # Muon's steps have bfloat16's rounding.
        config.MNIST_LABELS,
        network=network,
        optimizer=optimizers.adamw,
    )
    with parallel.process_group():
        status = work(Path(folder), root, lost)
    if status:
        sys.exit(status)


def together(folder: Path, root: str, size: int, lost: bool = False, restarts: int = 0) -> None:
    """A group of processes; what they print goes to files beside their folder."""
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method=CONTEXT.get_start_method(),
        logs_specs=DefaultLogsSpecs(f"{folder}.printed", Std.ALL),
    )
    elastic_launch(settings, join)(str(folder), root, lost)


def make(place: Path, root: str) -> None:
    """Let every group work in a folder of its own."""
    alone = CONTEXT.Process(target=join, args=(str(place / "1"), root))  # as a user would start it
    alone.start()
    together(place / "2", root, 2)
    together(place / "4", root, 4)
    try:
        together(place / "lost", root, 2, lost=True)
    except ChildFailedError:
        (place / "lost" / "failed").touch()
    together(place / "again", root, 2, lost=True, restarts=1)
    alone.join()
    if alone.exitcode:
        raise ChildProcessError(f"the process on its own ended with {alone.exitcode}")
