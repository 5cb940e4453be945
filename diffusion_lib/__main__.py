"""The command line: python -m diffusion_lib train | sample | evaluate | compare | export.

python -m diffusion_lib train mnist --budget quick --out runs/a
python -m diffusion_lib train mnist_diffusers --budget quick --out runs/b
python -m diffusion_lib sample runs/a --n 64 --out a.png
python -m diffusion_lib evaluate runs/a runs/b
python -m diffusion_lib compare other_tests/mnist/study.json
python -m diffusion_lib export runs/b --format diffusers --out exported/b

Many processes, GPUs or machines train, sample and evaluate together under torchrun:

torchrun --nproc-per-node 8 -m diffusion_lib train cifar10 --out runs/c
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import (
    compare,
    config,
    evaluation,
    files,
    interop,
    losses,
    parallel,
    predictions,
    runs,
    samplers,
    schedules,
    viz,
)
from diffusion_lib.evaluation import Conditions


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0, 2 for bad input, 130 when interrupted, 143 when told to end by SIGTERM, as schedulers of
    clusters do: it saves as an interrupt does.
    """
    options = _parser().parse_args(arguments)
    status = 128 + signal.SIGINT

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal status
        status = 128 + number
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():  # no other may set a handler
        signal.signal(signal.SIGTERM, end)
    try:
        options.command(options)
    except KeyboardInterrupt as interrupt:
        notes = [
            f"{note} The same command goes on." for note in getattr(interrupt, "__notes__", [])
        ]
        print("\ninterrupted.", *notes, file=sys.stderr)
        return status
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        notes = " ".join(getattr(error, "__notes__", []))
        print(f"error: {error} {notes}".rstrip(), file=sys.stderr)
        return 2
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    return 0


@parallel.group()
def train(options: argparse.Namespace) -> None:
    """Train a preset into a run folder, or go on with it."""
    experiment = config.choose(options.preset, config.PRESETS, "preset")
    budget = (
        config.choose(options.budget, config.BUDGETS, "--budget")
        if options.budget
        else config.budget()
    )
    experiment = budget(experiment)
    if options.schedule:
        experiment = replace(
            experiment, schedule=config.resolve(options.schedule, schedules, "--schedule")
        )
    if options.prediction:
        experiment = replace(
            experiment, prediction=config.resolve(options.prediction, predictions, "--prediction")
        )
    if options.weight:
        experiment = replace(experiment, weight=config.resolve(options.weight, losses, "--weight"))
    if options.loss:
        loss = config.choose(options.loss, losses.LOSSES, "--loss")
        # Only these two losses teach a variance, and need an output for it.
        outputs = 1 if loss is losses.diffusion_loss else 2
        experiment = replace(
            experiment, loss=loss, network=replace(experiment.network, outputs=outputs)
        )
    settings = {
        "num_steps": options.steps,
        "batch_size": options.batch_size,
        "accumulate": options.accumulate,
        "seed": options.seed,
    }
    told = {name: value for name, value in settings.items() if value is not None}
    experiment = replace(experiment, train=replace(experiment.train, **told))
    device = _device(options.device)
    train, test = evaluation.splits(experiment.dataset, options.data)
    run = runs.train(experiment, train, test.images, options.out, device)
    if parallel.rank() == 0:
        for name, value in run.describe().items():
            print(f"{name}: {value}")


@parallel.group()
def sample(options: argparse.Namespace) -> None:
    """Sample images from a run into an .npz or .png file."""
    out = Path(options.out or Path(options.run) / "samples.png")
    if out.suffix not in (".npz", ".png"):
        raise ValueError(f"--out {out}: the name must end in .npz (an array) or .png (a grid)")
    sampler = config.resolve(options.sampler, samplers, "--sampler")
    run = runs.load(options.run, _device(options.device))
    if options.labels:
        run = run.guided(options.labels, options.guidance)
    elif options.guidance != 1:
        raise ValueError(f"--guidance {options.guidance} needs --labels to guide to")
    batches = runs.stream(run, options.n, options.seed, sampler, options.steps)
    if parallel.rank() > 0:
        for _ in batches:
            pass  # the first process gets them too, and writes them
        return
    with files.replacing(out) as temporary, temporary.open("wb") as file:
        if out.suffix == ".npz":
            c, h, w = run.image_shape
            _write_npz(file, batches, (options.n, h, w, c))
        else:
            asked = len(options.labels or [0])  # whole turns of the labels in a row
            columns = asked * math.ceil(8 / asked)
            viz.grid(torch.cat(list(batches)), columns).save(file, format="PNG")
    print(out)


def _write_npz(file: IO[bytes], batches: Iterable[Tensor], shape: tuple[int, ...]) -> None:
    """arr_0, uint8 [N, H, W, C], written batch by batch, so that N may be large."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        zipfile.ZipFile(file, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as array,
    ):
        np.lib.format.write_array_header_1_0(array, header)
        for images in batches:
            array.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())


@parallel.group()
def evaluate(options: argparse.Namespace) -> None:
    """Measure runs, write metrics.json into each, and print them side by side."""
    conditions = Conditions(
        n=options.n,
        sampler=options.sampler,
        steps=options.steps,
        seed=options.seed,
        n_likelihood=options.n_likelihood,
        num_times=options.num_times,
    )
    device = _device(options.device)
    found = [runs.load(folder, device) for folder in options.runs]
    samples = None
    if options.samples:
        if len(found) > 1:
            raise ValueError(f"--samples is of one run, but {len(found)} were named")
        samples = evaluation.read_samples(options.samples, found[0].image_shape)
    # Whether the runs can be compared is known before anything is measured.
    plans = [evaluation.measured_under(run, conditions, options.data, samples) for run in found]
    evaluation.check_alike(
        [
            {"run": run.folder.name, "conditions": plan}
            for run, plan in zip(found, plans, strict=True)
        ]
    )
    records = [evaluation.evaluate(run, conditions, options.data, samples) for run in found]
    if parallel.rank() == 0:
        print(viz.table(evaluation.table(records)).data)


def compare_arms(options: argparse.Namespace) -> None:
    """Run a study from a file, or go on with it; write its record and print what it found."""
    study = compare.read_study(options.study)
    out = Path(options.out or Path(options.study).with_suffix(".record.json"))
    rank, processes = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    gpus = torch.cuda.device_count()
    if options.device is None and processes == 1 and gpus > 1:
        arguments = ["compare", options.study, "--out", str(out), "--data", options.data]
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(gpus)]
        status = subprocess.run([*launch, "-m", "diffusion_lib", *arguments]).returncode
        if status:  # the processes have told why
            sys.exit(status)
        return
    device = _device(options.device)
    if options.device is None and gpus > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % gpus)
    record = compare.compare(*study, options.data, device)
    if rank > 0:
        return  # all processes end with the same record
    files.write_text(out, json.dumps(record, indent=1, allow_nan=False) + "\n")
    sets: dict[str, list[str]] = {}
    for arm, told in record["arms"].items():
        sets.setdefault(told["dataset"], []).append(arm)
    baselines = {dataset: arms[0] for dataset, arms in sets.items() if len(arms) > 1}
    seeds = len(record["seeds"])
    for measure in record["measured"][0]["measures"]:
        for steps in record["steps"]:
            for dataset, baseline in baselines.items():
                print(f"\n{measure} on {dataset} after {steps} steps, {seeds} seeds")
                print(viz.table(compare.differences(record, measure, steps, baseline)).data)
    print(f"\nWhat sharing seeds was worth, after {record['steps'][-1]} steps")
    print(viz.table(compare.pairing(record, record["steps"][-1])).data)
    print(f"\n{out}")


def export(options: argparse.Namespace) -> None:
    """Write a run's averaged weights into a folder that another library loads."""
    write = config.choose(options.format, interop.FORMATS, "--format")
    write(runs.load(options.run, torch.device("cpu")).denoiser, options.out)
    print(options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m diffusion_lib", allow_abbrev=False)
    names = "train | sample | evaluate | compare | export"
    commands = parser.add_subparsers(required=True, metavar=names)

    command = commands.add_parser("train", help=train.__doc__, allow_abbrev=False)
    command.set_defaults(command=train)
    command.add_argument("preset", help=", ".join(config.PRESETS))
    command.add_argument("--out", required=True, help="folder of the run, such as runs/a")
    command.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    command.add_argument("--budget", help=f"how long: {', '.join(config.BUDGETS)}")
    command.add_argument("--steps", type=int, help="optimizer updates, in place of the budget's")
    command.add_argument("--batch-size", type=int, help="images of an update, of all processes")
    command.add_argument("--accumulate", type=int, help="parts of a process's share of a batch")
    command.add_argument("--seed", type=int, help="of the weights and of everything drawn")
    command.add_argument("--schedule", help=", ".join(schedules.__all__))
    command.add_argument("--prediction", help=", ".join(predictions.__all__))
    command.add_argument("--weight", help=", ".join(losses.__all__))
    command.add_argument("--loss", help=", ".join(losses.LOSSES))
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; the GPU if there is one")

    command = commands.add_parser("sample", help=sample.__doc__, allow_abbrev=False)
    command.set_defaults(command=sample)
    command.add_argument("run", help="folder of a run")
    command.add_argument("--n", type=int, default=64, help="number of images")
    command.add_argument("--sampler", default="ddpm", help=", ".join(samplers.__all__))
    command.add_argument("--steps", type=int, help="network evaluations an image; T if not given")
    command.add_argument("--seed", type=int, default=0, help="image i is a function of (seed, i)")
    command.add_argument(
        "--labels", type=int, nargs="+", help="what to ask for, in turn; else nothing is asked for"
    )
    command.add_argument("--guidance", type=float, default=1.0, help="scale; 1 for none")
    command.add_argument("--out", help=".npz or .png; RUN/samples.png if not given")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; the GPU if there is one")

    usual = Conditions()
    command = commands.add_parser("evaluate", help=evaluate.__doc__, allow_abbrev=False)
    command.set_defaults(command=evaluate)
    command.add_argument("runs", nargs="+", metavar="run", help="folders of runs")
    command.add_argument("--n", type=int, default=usual.n, help="images to sample from each")
    command.add_argument("--sampler", default=usual.sampler, help=", ".join(samplers.__all__))
    command.add_argument("--steps", type=int, default=usual.steps, help="of the sampler")
    command.add_argument("--seed", type=int, default=usual.seed, help="of everything drawn")
    command.add_argument("--samples", help=".npz of images to measure in place of new ones")
    command.add_argument(
        "--n-likelihood", type=int, default=usual.n_likelihood, help="test images for the bound"
    )
    command.add_argument(
        "--num-times", type=int, default=usual.num_times, help="network evaluations of each"
    )
    command.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; the GPU if there is one")

    command = commands.add_parser("compare", help=compare_arms.__doc__, allow_abbrev=False)
    command.set_defaults(command=compare_arms)
    command.add_argument("study", help="JSON file: see compare.read_study")
    command.add_argument("--out", help="the record; beside the study, .record.json, if not given")
    command.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; all GPUs if there are any")

    command = commands.add_parser("export", help=export.__doc__, allow_abbrev=False)
    command.set_defaults(command=export)
    command.add_argument("run", help="folder of a run")
    command.add_argument("--format", required=True, help=", ".join(interop.FORMATS))
    command.add_argument("--out", required=True, help="folder to make, such as exported/a")
    return parser


def _device(name: str | None) -> torch.device:
    if name is None:
        return config.device()
    if parallel.size() > 1 and ":" in name:
        raise ValueError(f"--device {name} under torchrun: each process takes a GPU of its own")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name} cannot be used ({reason}). cpu always can.") from error
    return device


if __name__ == "__main__":
    sys.exit(main())
