"""Processes for tests: copies of one that has imported the library, which takes longest."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# Without effect where a test has started the server before: with `tests.faults`, which imports
# as much.
CONTEXT.set_forkserver_preload(["diffusion_lib.cli"])


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
