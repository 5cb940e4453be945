"""Processes for tests: copies of one that has imported the library, which takes longest."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# With what optimizers, tables and TensorBoard import: 3 s for each process that has to.
IMPORTED = ["diffusion_lib.cli", "diffusion_lib.viz", "diffusion_lib.system.torchvision"]
CONTEXT.set_forkserver_preload([*IMPORTED, "torch._dynamo", "torch.utils.tensorboard"])


def command(arguments: Sequence[str], output: Path, **environment: str) -> ForkServerProcess:
    """Start the command line in the working folder; what it prints goes to a file."""
    process = CONTEXT.Process(target=_main, args=(arguments, output, Path.cwd(), environment))
    process.start()
    return process


def _main(
    arguments: Sequence[str], output: Path, folder: Path, environment: dict[str, str]
) -> None:
    import torch

    from diffusion_lib.cli import main

    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.update(environment)
    with output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        status = main(list(arguments))
    sys.exit(status)
