"""What test_parallel.py has torchrun start: train, sample and measure by the command line.

python -m torch.distributed.run --nproc-per-node N -m tests.together FOLDER DATA [LOST]

With LOST, the last process kills itself at step 7 of the first try.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from diffusion_lib import parallel, runs, training
from diffusion_lib.__main__ import main

STEPS = 12


def lose_a_process(folder: Path) -> None:
    average = training.Trainer._average

    def maybe_die(trainer: training.Trainer) -> None:
        average(trainer)
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if trainer.step == 7 and last and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            (folder / "lost").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def slow(trainer: training.Trainer, *arguments) -> None:
        time.sleep(1.5)  # as large weights would: torchrun's SIGTERM comes in the meantime
        save(trainer, *arguments)

    save = training.Trainer.save
    training.Trainer._average, training.Trainer.save = maybe_die, slow


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
    images = torch.cat(list(runs.stream(asked, 7, 1, num_steps=3, batch_size=2)))
    if parallel.rank() == parallel.size() - 1:
        torch.save(images, folder / "images.pt")
    out = str(folder / "images.npz")
    sample = ["sample", run, "--n", "7", "--steps", "3", "--out", out, "--device", "cpu"]
    small = ["--n", "70", "--steps", "2", "--n-likelihood", "4", "--num-times", "4"]
    # Measuring is divided as sampling is: two processes show it.
    measure = ["evaluate", run, *small, *common] if parallel.size() < 4 else []
    return main(sample) or (main(measure) if measure else 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # float32 on every processor: what is compared must agree to more digits than bfloat16 has.
    training.has_bfloat16 = runs.has_bfloat16 = lambda device: False
    with parallel.group():
        sys.exit(work(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["lost"]))
