"""The command line: python -m diffusion_lib train | sample | evaluate | compare | export.

python -m diffusion_lib train mnist_diffusers --budget quick --out runs/a
python -m diffusion_lib train mnist --budget full --steps 20000 --start runs/full --out runs/longer
python -m diffusion_lib sample runs/a --n 64 --out a.png
python -m diffusion_lib evaluate runs/a runs/longer
python -m diffusion_lib compare other_tests/mnist/small_backbone.json
python -m diffusion_lib export runs/a --format diffusers --out exported/a

Many processes, GPUs or machines train, sample and evaluate together under torchrun:

torchrun --nproc-per-node 8 -m diffusion_lib train cifar10 --out runs/c
"""

import argparse
import io
import math
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from diffusion_lib import (
    compare,
    config,
    data,
    evaluation,
    interop,
    losses,
    predictions,
    runs,
    samplers,
    schedules,
)
from diffusion_lib.config import Experiment
from diffusion_lib.data import Dataset, Images
from diffusion_lib.evaluation import Conditions
from diffusion_lib.metrics import features
from diffusion_lib.runs import Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import errors, files, parallel


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0, 2 for bad input, 130 when interrupted, 143 when told to end by SIGTERM, as schedulers of
    clusters do: it saves as an interrupt does; 141 when no one reads the output any more.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few characters stops no command
        sys.stdout.reconfigure(errors="backslashreplace")

    status = 130

    def end(number: int, frame: object) -> None:
        nonlocal status
        status = 128 + number
        raise KeyboardInterrupt

    format_warning = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    handler = signal.signal(signal.SIGTERM, end)
    try:
        with hardware.overridden(options.precision, options.layout, options.threads):
            options.command(options)
        print(end="", flush=True)  # while an error of that can still be told
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt or 'Stopped.'}", file=sys.stderr)
        return status
    except BrokenPipeError:  # such as `| head`; Python would complain of it once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell shows of a command that SIGPIPE has ended
    except Exception as error:
        message = errors.explain(error, options.memory)
        if message is None:
            raise
        print("error:", message, *getattr(error, "__notes__", []), file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = format_warning
        signal.signal(signal.SIGTERM, handler)
    return 0


@parallel.process_group()
def train(options: argparse.Namespace) -> None:
    """Train a preset into a run folder, or go on with it."""
    experiment = _experiment(options)
    if options.show:
        print(experiment.to_json(), end="")
        return
    if options.out is None:
        raise ValueError("train needs --out FOLDER, such as --out runs/a")
    device = _device(options.device)
    start = options.start and _run_folder(options.start)
    train, test = data.load_splits(experiment.dataset, options.data)
    shape = tuple(train.images.shape[1:])
    if shape != experiment.network.image_shape:
        raise ValueError(
            f"the images are {shape}, but the network is for {experiment.network.image_shape}: add "
            f'--set "network.image_shape={list(shape)}", or give a folder another size'
        )
    run = runs.train(experiment, train, test.images, options.out, device, start)
    if parallel.rank() == 0:
        for name, value in run.describe().items():
            print(f"{name}: {value}")


@parallel.process_group()
def sample(options: argparse.Namespace) -> None:
    """Sample images from a run into an .npz or .png file."""
    sampler = config.lookup(options.sampler, samplers, "--sampler")
    folder = _run_folder(options.run)
    # Not among the library's files.
    usual = Path() if folder in runs.releases().values() else folder
    out = options.out or usual / "samples.png"
    out = out / "samples.png" if out.is_dir() else out
    kind = out.suffix.lower()
    if kind not in (".npz", ".png"):
        raise ValueError(
            f"--out {out}: the name must end in .npz (an array) or .png (a grid), or be a folder's"
        )
    _try_to_write(out)
    run = runs.load(folder, _device(options.device))
    c, h, w = run.image_shape
    if kind == ".png" and c not in (1, 3):
        raise ValueError(f"--out {out}: no .png shows images of {c} channels; give a name in .npz")
    if options.labels:
        run = run.guided(options.labels, options.guidance)
    elif options.guidance != 1:
        raise ValueError(f"--guidance {options.guidance} needs --labels to guide to")
    batches = runs.sample_batches(run, options.n, options.seed, sampler, options.steps)
    if parallel.rank() > 0:
        for _ in batches:
            pass  # the first process gets them too, and writes them
        return
    with files.atomic_write(out) as temporary, temporary.open("wb") as file:
        if kind == ".npz":
            runs.write_npz(file, batches, (options.n, h, w, c))
        else:
            from diffusion_lib import viz  # matplotlib, which a training alone does not need

            period = len(options.labels or [0])  # whole turns of the labels in a row
            columns = period * math.ceil(8 / period)
            viz.grid(torch.cat(list(batches)), columns).save(file, format="PNG")
    print(out)


@parallel.process_group()
def evaluate(options: argparse.Namespace) -> None:
    """Measure runs, write metrics.json into each, and print them side by side."""
    conditions = Conditions(**{f.name: getattr(options, f.name) for f in fields(Conditions)})
    device = _device(options.device)
    trained = [runs.load(_run_folder(path), device) for path in options.runs]
    if options.samples and len(trained) > 1:
        raise ValueError(f"--samples is of one run, but {len(trained)} were named")
    for run in trained if options.features else ():
        name = "pictures" if options.images else evaluation.dataset_name(run)
        features.add(name, options.features)
    shape = trained[0].image_shape
    samples = options.samples and evaluation.read_samples(options.samples, shape)
    jobs = [
        (run, conditions, options.data, samples, options.images and _pictures(options.images, run))
        for run in trained
    ]
    # Whether the runs can be measured and compared is known before anything is measured.
    plans = [(job[0].folder.name, evaluation.plan(*job).conditions) for job in jobs]
    evaluation.check_same_conditions([{"run": run, "conditions": plan} for run, plan in plans])
    records = []
    try:
        for job in jobs:
            records.append(evaluation.evaluate(*job))
    finally:  # whatever stops the others
        if records and parallel.rank() == 0:
            from diffusion_lib import viz

            print(viz.markdown(evaluation.table(records)))


def _pictures(folder: Path, run: Run) -> Dataset:
    """Make a data set of a folder's pictures, as test images for a run."""
    c, h, w = run.image_shape

    def pictures(root: str | Path, train: bool) -> Images:
        size: Any = h if h == w else (h, w)
        return data.folder(folder, size, c)

    return pictures


def compare_arms(options: argparse.Namespace) -> None:
    """Run a study from a file, or go on with it; write its record and print what it found."""
    study = compare.read_study(options.study)
    for arm in study.arms.values() if options.features else ():
        features.add(config.label(arm.dataset), options.features)
    usual = options.study.with_suffix(".record.json")
    out = options.out or usual
    out = out / usual.name if out.is_dir() else out
    start = compare.load(options.start) if options.start else None
    if out.exists():
        compare.load(out)  # refuses anything else: a record replaces nothing but a record
    _try_to_write(out)
    rank, processes = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    gpus = torch.cuda.device_count()
    if options.device is None and processes == 1 and gpus > 1:
        arguments = ["compare", str(options.study), "--out", str(out), "--data", str(options.data)]
        arguments += ["--features", str(options.features)] if options.features else []
        arguments += ["--start", str(options.start)] if options.start else []
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(gpus)]
        status = subprocess.run([*launch, "-m", "diffusion_lib", *arguments]).returncode
        if status:  # the processes have told why
            sys.exit(status)
        return
    device = _device(options.device)
    if options.device is None and gpus > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % gpus)
    record = compare.compare(study, options.data, device, start)
    if rank > 0:
        return  # all processes end with the same record
    _print_study(record)  # also where it cannot be written
    compare.save(record, out)
    print(f"\n{out}")


def _print_study(record: dict[str, Any]) -> None:
    from diffusion_lib import viz

    sets: dict[str, list[str]] = {}
    for arm, described in record["arms"].items():
        sets.setdefault(described["dataset"], []).append(arm)
    baselines = {dataset: arms[0] for dataset, arms in sets.items() if len(arms) > 1}
    seeds = len(record["seeds"])
    for measure in record["measured"][0]["measures"]:
        for steps in record["steps"]:
            for dataset, baseline in baselines.items():
                print(f"\n{measure} on {dataset} after {steps} steps, {seeds} seeds")
                print(viz.markdown(compare.differences(record, measure, steps, baseline)))
    print(f"\nWhat sharing seeds was worth, after {record['steps'][-1]} steps")
    print(viz.markdown(compare.variance_reduction(record, record["steps"][-1])))


def export(options: argparse.Namespace) -> None:
    """Write a run's averaged weights into a folder that another library loads."""
    write = config.lookup(options.format, interop.FORMATS, "--format")
    write(runs.load(_run_folder(options.run), torch.device("cpu")).denoiser, options.out)
    print(options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m diffusion_lib", allow_abbrev=False)
    parser.set_defaults(precision=None, layout=None, threads=None)
    names = "train | sample | evaluate | compare | export"
    commands = parser.add_subparsers(required=True, metavar=names)

    def adder(name: str, command: Callable[..., None], memory: str = "") -> Callable[..., object]:
        one = commands.add_parser(name, help=command.__doc__, allow_abbrev=False)
        one.set_defaults(command=command, memory=memory)
        return one.add_argument

    def add_hardware(add: Callable[..., object], device: str = "the GPU if there is one") -> None:
        faster = "(default: the faster one)"
        add("--device", help=f"cpu, cuda, cuda:1, ... (default: {device})")
        add("--precision", choices=hardware.PRECISIONS, help=f"of the network's numbers {faster}")
        add("--layout", choices=hardware.LAYOUTS, help=f"of its weights in memory {faster}")
        add("--threads", type=int, help="of a CPU (default: all cores)")

    def add_data(add: Callable[..., object]) -> None:
        add("--data", default=config.data_root(), type=_path, help="folder of the data sets")

    parts = "--accumulate 4 computes the same batch in 4 parts; --batch-size takes a smaller one."
    add = adder("train", train, parts)
    add("preset", metavar="PRESET|FILE", help=f"{', '.join(config.PRESETS)} or .toml or .json")
    add("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help=_SET)
    add("--show", action="store_true", help="print the experiment as a file, and train nothing")
    add("--out", type=_path, help="run folder, such as runs/a")
    add("--start", type=_path, help="finished run to continue with more --steps in a new --out")
    add_data(add)
    add("--budget", help=f"training length: {', '.join(config.BUDGETS)}")
    steps = "optimizer updates (default: those of the budget)"
    add("--steps", type=int, dest="num_steps", help=steps)
    add("--batch-size", type=int, help="images per optimizer update, over all processes")
    add("--accumulate", type=int, help="gradient accumulation steps")
    add("--seed", type=int, help="random seed")
    add("--schedule", help=", ".join(schedules.__all__))
    add("--prediction", help=", ".join(predictions.__all__))
    add("--weight", help=f"loss weight: {', '.join(losses.__all__)}")
    add("--loss", help=", ".join(config.LOSSES))
    add_hardware(add)

    add = adder("sample", sample, "--n below 64 makes smaller batches.")
    add("run", type=_path, help="run folder, or released/NAME")
    add("--n", type=int, default=64, help="number of images (default: 64)")
    add("--sampler", default="ddpm", help=f"{', '.join(samplers.__all__)} (default: ddpm)")
    add("--steps", type=int, help="sampler steps (default: T)")
    add("--seed", type=int, default=0, help="random seed (default: 0)")
    cycled = "class labels, cycled over the images (default: unconditional)"
    add("--labels", type=int, nargs="+", help=cycled)
    add("--guidance", type=float, default=1.0, help="guidance scale (default: 1, no guidance)")
    add("--out", type=_path, help=".npz, .png or a folder (default: RUN/samples.png)")
    add_hardware(add)

    add = adder("evaluate", evaluate, "Smaller --n and --n-likelihood need less.")
    commands.choices["evaluate"].set_defaults(**asdict(Conditions()))
    add("runs", nargs="+", type=_path, metavar="run", help="run folders, or released/NAME")
    add("--sampler", help=f"{', '.join(samplers.__all__)} (default: %(default)s)")
    for name, meaning in (
        ("--n", "samples per run, 0 for none"),
        ("--steps", "sampler steps"),
        ("--seed", "random seed"),
        ("--n-likelihood", "test images for the likelihood bound"),
        ("--num-times", "network evaluations for each"),
    ):
        add(name, type=int, help=f"{meaning} (default: %(default)s)")
    add("--samples", type=_path, help=".npz of images to measure instead of new samples")
    add("--images", type=_path, help="folder of test pictures, for a data set of your own")
    add("--features", type=_path, help=_FEATURES)
    add_data(add)
    add_hardware(add)

    parts = 'In the study, {"all": {"train": {"accumulate": 4}}} computes a batch in 4 parts.'
    add = adder("compare", compare_arms, parts)
    add("study", type=_path, help="JSON file: see compare.read_study")
    add("--features", type=_path, help=_FEATURES)
    add("--out", type=_path, help="record (default: STUDY.record.json beside the study)")
    add("--start", type=_path, help="record of fewer arms or seeds: measure only what it lacks")
    add_data(add)
    add_hardware(add, "all GPUs if there are any")

    add = adder("export", export)
    add("run", type=_path, help="run folder, or released/NAME")
    add("--format", required=True, help=", ".join(interop.FORMATS))
    add("--out", required=True, type=_path, help="new folder, such as exported/a")
    return parser


_FEATURES = "feature network of your own data set, as other_tests.features trains them"
_SET = "any field: schedule=flow train.ema_decay=0.99 'network=transformer(patch=4)'"


def _path(text: str) -> Path:
    return Path(text).expanduser() if text.startswith(("~/", "~\\")) else Path(text)


def _experiment(options: argparse.Namespace) -> Experiment:
    """Read a preset or a file, and change it by the options: the budget, then the fields."""
    given, path = options.preset, Path(options.preset)
    is_file = path.suffix.lower() in (".toml", ".json")
    if given in config.PRESETS or not (path.exists() or is_file):
        experiment = config.lookup(given, config.PRESETS, "preset")
    elif path.is_dir() or path.name == "experiment.json":
        raise ValueError(
            f"{given} is no preset ({', '.join(config.PRESETS)}). To go on with a run, repeat the "
            "command that began it, with its --out; a study is run by `compare`; a folder of "
            f'pictures is trained on by unet32 --set "dataset=folder(path={given}, size=32)"'
        )
    else:
        experiment = config.read(path)
    networks = [text for text in options.set if text.startswith("network")]
    experiment = experiment.assigned(networks)  # first, because a budget depends on the network
    with warnings.catch_warnings(action="ignore" if options.num_steps else None):
        if options.budget:  # which warns of the hours that its own steps take
            experiment = config.lookup(options.budget, config.BUDGETS, "--budget")(experiment)
        elif given in config.PRESETS:
            experiment = config.budget()(experiment)
    if options.loss:
        outputs = max(config.lookup(options.loss, config.LOSSES, "--loss").outputs)
        experiment = replace(experiment, network=replace(experiment.network, outputs=outputs))
    flags = {n: getattr(options, n) for n in ("schedule", "prediction", "weight", "loss")}
    for name in ("num_steps", "batch_size", "accumulate", "seed"):
        flags[f"train.{name}"] = getattr(options, name)
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    return experiment.assigned([*given, *(t for t in options.set if t not in networks)])


def _run_folder(path: Path) -> Path:
    """Return the folder of a run from its path, that of a file in it, or released/NAME."""
    if path.parent == Path("released") and not path.exists():
        return config.lookup(path.name, runs.releases(), "release")
    folder = path.parent if path.is_file() else path
    return folder.resolve() if folder.name in ("", "..") else folder


def _try_to_write(path: Path) -> None:
    """Refuse a file that cannot be written, before any work; leaves nothing there."""
    place = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}): give another place with --out"
        ) from error


def _device(name: str | None) -> torch.device:
    if name is None:
        return config.device()
    if parallel.size() > 1 and ":" in name:
        raise ValueError(f"--device {name} under torchrun: each process takes a GPU of its own")
    try:
        device = torch.device(name.lower())
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name} cannot be used ({reason}). cpu always can.") from error
    return device
