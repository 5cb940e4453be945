"""Shared by the benchmarks: the network of both sides, interleaved timings, records.

The network is DDPM's at half of its width, 8.95 million parameters for 32 x 32 x 3; with `--paper`
it is the paper's own, 35.7 million.  diffusers' and ours start from the same weights and are the
same function, but for the last bits.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lib import config, data, interop, losses, predictions, schedules
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.metrics import Interval
from diffusion_lib.networks import UNetConfig
from diffusion_lib.system import device as hardware
from diffusion_lib.system import (
    files,
    torchvision,  # noqa: F401  (first: diffusers imports torchvision too)
)
from diffusion_lib.training import TrainConfig

FOLDER = Path(__file__).parent
IMAGE_SHAPE = (3, 32, 32)
LONG, SHORT = 1_000_000, 4_999  # steps of work that is worth compiling, and of work that is not
HAS_DIFFUSERS = find_spec("diffusers") is not None

# What MNIST was trained with before there was Muon: records and studies keep these experiments.
MNIST_ADAMW = replace(
    config.MNIST,
    network=UNetConfig((1, 28, 28), 32, (1, 2), num_blocks=1, attention=(7,), dropout=0.0, patch=2),
    train=replace(
        config.MNIST.train, num_steps=3000, learning_rate=2e-3, cooldown=0.5, ema_decay=0.995
    ),
)
MNIST_ADAMW_V = replace(
    MNIST_ADAMW, schedule=schedules.cosine, prediction=predictions.v, weight=losses.uniform
)
MNIST_ADAMW_LABELS = replace(MNIST_ADAMW_V, network=replace(MNIST_ADAMW_V.network, classes=10))

CIFAR10_JPEG = replace(config.CIFAR10_SMALL, dataset=data.cifar10_jpeg)
CIFAR10_JPEG_LABELS = replace(config.CIFAR10_LABELS, dataset=data.cifar10_jpeg)
# What the trials of its recipe began with (objects_trials.py).
CIFAR10_ADAMW = Experiment(
    dataset=data.cifar10_jpeg,
    network=UNetConfig(
        (3, 32, 32), 64, (1, 2, 2), num_blocks=2, attention=(8,), dropout=0.0, patch=2, classes=10
    ),
    schedule=schedules.cosine,
    prediction=predictions.v,
    weight=losses.min_snr,
    train=TrainConfig(
        num_steps=40_000,
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=500,
        ema_decay=0.999,
        mirror=0.5,
        cooldown=0.4,
    ),
    sample_steps=100,
)


class Mode(NamedTuple):
    """A way to run diffusers' network that its users know of."""

    autocast: bool
    channels_last: bool
    compiled: bool = False

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make the context in which the network computes."""
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext()

    def prepare(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Put a network on the device and into the layout of this mode, in place."""
        network.to(device)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.compiled:
            network.compile()
        return network


CPU_MODES = {
    "float32": Mode(False, False),
    "bfloat16": Mode(True, False),
    "float32, channels last": Mode(False, True),
    "bfloat16, channels last": Mode(True, True),
}
GPU_MODES = {
    "float32": Mode(False, False),
    "bfloat16": Mode(True, False),
    "bfloat16, channels last": Mode(True, True),
    "bfloat16, compiled": Mode(True, False, True),
    "bfloat16, channels last, compiled": Mode(True, True, True),
}


def modes(device: torch.device) -> dict[str, Mode]:
    """Return the modes in which diffusers is measured on a device: none where it is missing."""
    if not HAS_DIFFUSERS:
        print("pip install diffusers to compare with it")
        return {}
    modes, able = CPU_MODES if device.type == "cpu" else GPU_MODES, can_compile(device)
    return {name: mode for name, mode in modes.items() if able or not mode.compiled}


def our_modes(name: str, device: torch.device) -> dict[str, int]:
    """Return the modes in which we are measured: steps of work that the library runs in each.

    Args:
        name: name of our side; "not compiled" is added where the library compiles long work.
        device: device to measure.
    """
    return {name: LONG} | ({f"{name}, not compiled": SHORT} if can_compile(device) else {})


def can_compile(device: torch.device) -> bool:
    """Tell whether the library compiles long work on a device."""
    return hardware.should_compile(device, LONG)


def options(about: str | None) -> argparse.Namespace:
    """Parse the command line of a benchmark.

    Args:
        about: docstring of the command, whose first line describes it.
    """
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--device", default=str(config.device()), help="cpu or cuda")
    parser.add_argument("--paper", action="store_true", help="the paper's 35.7 million parameters")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8, help="timings of each way")
    return parser.parse_args()


def diffusers_network(paper: bool = False) -> nn.Module:
    """Make the network of diffusers with fresh weights.

    Args:
        paper: whether it has the paper's width.
    """
    return diffusers_unet(128 if paper else 64, IMAGE_SHAPE[1])


def diffusers_unet(width: int, size: int) -> nn.Module:
    """Make the paper's U-Net with diffusers, with fresh weights.

    Args:
        width: channels of its first level.
        size: height and width of its images in pixels.
    """
    from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def our_denoiser(paper: bool = False, device: torch.device | str = "cpu") -> Denoiser:
    """Make our denoiser around the same network, not clipped; of the same weights as diffusers'.

    Where diffusers is missing the weights are fresh ones, whose output is zero.
    """
    if HAS_DIFFUSERS:
        network = interop.unet_from_diffusers(diffusers_network(paper))
    else:
        network = UNetConfig(width=128 if paper else 64, dropout=0.0, groups=32).build()
    return Denoiser(network, schedules.linear(), clip=None).to(device)


def as_the_library_runs_it(paper: bool, device: torch.device, steps: int = LONG) -> Denoiser:
    """Lay out `our_denoiser` as the library does, and compile it as for so many steps."""
    denoiser = hardware.optimize_memory_layout(our_denoiser(paper, device))
    if hardware.should_compile(device, steps):
        denoiser.network.compile()
    return denoiser


class Timed(NamedTuple):
    """Seconds of the turns of one way, and the numbers that it returned."""

    seconds: list[float]
    results: list[float]


# Makes the ways of one side in its own process: name -> a turn, which may return a number.
Side = Callable[..., Mapping[str, Callable[[], float | None]]]


def interleaved_timings(sides: Sequence[Side], rounds: int, *arguments: Any) -> dict[str, Timed]:
    """Time the ways of all sides, a turn of each in every round, after a turn of warm-up.

    A side has a process of its own, so that no setting of one reaches another.  They warm up at the
    same time, because compiling takes minutes, and then work one at a time.  Every round starts
    with another way, so that other load on the machine meets all.  A way that fails to warm up is
    left out.

    Args:
        sides: functions from `arguments` to the ways of a side.
        rounds: number of timings of each way.
        arguments: arguments of every side.
    """
    context = torch.multiprocessing.get_context("spawn")
    workers = []
    for side in sides:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, side, arguments), daemon=True)
        process.start()
        there.close()  # so that the end of the process ends the wait for it, by an EOFError
        workers.append((process, here))
    pipes = {name: here for _, here in workers for name in here.recv()}
    names = list(pipes)
    timings = {name: Timed([], []) for name in names}
    for n in range(rounds):
        for k in range(len(names)):
            name = names[(k + n) % len(names)]
            pipes[name].send(name)
            seconds, result = pipes[name].recv()
            timings[name].seconds.append(seconds)
            if result is not None:
                timings[name].results.append(result)
        print(f"round {n + 1} of {rounds}", flush=True)
    for process, _ in workers:
        process.terminate()
    return timings


def _serve(pipe: Connection, side: Side, arguments: tuple[Any, ...]) -> None:
    ways = dict(side(*arguments))
    for name, turn in list(ways.items()):
        try:
            turn()
        except Exception as error:
            print(f"{name} is left out: {' '.join(str(error).split()):.500}", flush=True)
            del ways[name]
    pipe.send(list(ways))
    while True:
        turn = ways[pipe.recv()]
        start = time.perf_counter()
        result = turn()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - start, result))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Return the geometric mean of the ratios of two measurements in the same rounds."""
    logarithms = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    return Interval(*map(math.exp, Interval.student_t(logarithms)))


def speeds(timings: Mapping[str, Timed], ours: str, images: int) -> dict[str, Any]:
    """Return images a second of each way, and how many times as fast ours is.

    Args:
        timings: result of `interleaved_timings`.
        ours: name of our way.
        images: number of images in a turn.
    """
    table: dict[str, Any] = {}
    for name, timed in timings.items():
        table[name] = {"images a second": round(images / median(timed.seconds), 2)}
        if name != ours:
            faster = ratio(timed.seconds, timings[ours].seconds)
            table[name]["ours is faster by"] = rounded(faster)
    return table


def rounded(values: Iterable[float]) -> list[float]:
    """Round numbers to four digits."""
    return [float(f"{value:.4g}") for value in values]


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the device and the speed of its matrix products, the limit of everything else."""
    record: dict[str, Any] = {"device": hardware.name(device), "torch": torch.__version__}
    if device.type == "cpu":
        record["processor"] = torch.cpu.get_capabilities().get("cpu_name", "unknown")
        record["threads"] = torch.get_num_threads()
    record["bfloat16 chosen"] = hardware.precision(device) == "bfloat16"
    size = 2048 if device.type == "cpu" else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device).to(dtype)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            float((a @ a)[0, 0])
            seconds.append(time.perf_counter() - start)
        name = f"GFLOP/s, {str(dtype).removeprefix('torch.')}"
        record[name] = round(2 * size**3 / min(seconds) / 1e9)
    return record


def write(name: str, device: torch.device, record: dict[str, Any]) -> None:
    """Write a record beside the benchmarks, and print it.

    Args:
        name: name of the file on a CPU; a GPU adds "-gpu".
        device: device that was measured.
        record: the record.
    """
    name = name if device.type == "cpu" else f"{name}-gpu"
    path = FOLDER / f"{name}.json"
    files.write_json(path, record)
    print(path.read_text())


def different_conditions(record: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Name the conditions of a record that are not the present ones; speeds vary and are none."""
    return [
        name
        for name, value in present.items()
        if value != record.get(name) and not name.startswith("GFLOP/s")
    ]


def resume(path: Path, present: dict[str, Any]) -> dict[str, Any]:
    """Read a record to go on with; where there is none, begin with the present conditions.

    Raises:
        SystemExit: it was measured under other conditions.
    """
    record = json.loads(path.read_text()) if path.exists() else present
    if different := different_conditions(record, present):
        names = " and ".join(different)
        raise SystemExit(f"{path.name} is of another {names}: move it away to measure again")
    return record


def add_row(path: Path, part: str, row: Mapping[str, Any]) -> None:
    """Add a row to a list of a record, to which other processes add theirs.

    A file beside the runs is locked meanwhile, because the record is replaced as a whole.

    Args:
        path: file of the record, which need not be there.
        part: name of the list.
        row: what is added.
    """
    guard = config.runs_root() / f".{path.name}.lock"
    guard.parent.mkdir(parents=True, exist_ok=True)
    guard.touch()
    while True:
        with files.lock(guard) as is_free:
            if is_free:
                record = json.loads(path.read_text()) if path.exists() else {}
                return files.write_json(path, record | {part: [*record.get(part, []), row]})
        time.sleep(0.05)


def fit(experiment: Experiment, seconds: float, images: Images) -> Experiment:
    """Give an experiment as many steps as fit into the time, judged by 50 of them.

    Args:
        experiment: what is to be trained; at most a tenth of its steps will be warm-up.
        seconds: time of the training.
        images: training images.
    """

    def of(num_steps: int) -> Experiment:
        warmup_steps = min(experiment.train.warmup_steps, num_steps // 10)
        train = replace(experiment.train, num_steps=num_steps, warmup_steps=warmup_steps)
        return replace(experiment, train=train)

    clock = time.perf_counter()
    for step in of(60).trainer().run(images):
        if step.step == 10:
            clock = time.perf_counter()
    return of(max(1, round(seconds / (time.perf_counter() - clock) * 50)))


def record_suffix(device: torch.device) -> str:
    """Return the suffix of the name of a record of speeds, which depend on the kind of processor.

    "-bfloat16" for a processor that is fast in it, else "".
    """
    return "-bfloat16" if device.type == "cpu" and hardware.precision(device) == "bfloat16" else ""


def draw(step: int, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x_0, t and eps of a step, the same for both sides."""
    generator = torch.Generator(device).manual_seed(step)
    shape = (batch_size, *IMAGE_SHAPE)
    x_0 = torch.rand(shape, generator=generator, device=device) * 2 - 1
    t = torch.randint(1, 1001, (batch_size,), generator=generator, device=device)
    return x_0, t, torch.randn(shape, generator=generator, device=device)
