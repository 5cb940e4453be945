"""How many images a second does training take, beside diffusers and lucidrains?

    python -m benchmarks.train_step                                  two CPU cores
    python -m benchmarks.train_step --paper --batch-size 128         a GPU

All sides train the same batches, times and noise from the same weights (lucidrains' network is
another one); losses must stay together.  diffusers' step is that of its tutorial: forward, squared
error, backward, clipping, AdamW as torch makes it.  Ours is the trainer's: data and moving average
included.  Writes train_step.json beside itself, or train_step-gpu.json.
"""

from collections.abc import Callable
from itertools import count, islice
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.common import Mode
from diffusion_lib import losses, schedules
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.system import device as hardware
from diffusion_lib.training import TrainConfig, Trainer

OURS, BARE = "diffusion_lib, as its trainer runs it", "diffusion_lib, the bare step"


def main() -> None:
    options = common.options(__doc__)
    device, size = torch.device(options.device), options.batch_size
    sides = [diffusers_ways, our_ways] if options.paper else [diffusers_ways, our_ways, lucidrains]
    timings = common.interleaved_timings(sides, options.rounds, options.paper, size, device)
    peer = timings.get("diffusers, float32")
    record = common.machine(device) | {
        "parameters": sum(p.numel() for p in common.our_denoiser(options.paper).parameters()),
        "batch size": size,
        "steps a turn": turn(device),
        "rounds": options.rounds,
        "ways": common.speeds(timings, OURS, size * turn(device)),
        "largest difference of a loss from diffusers' in float32, relative": {
            name: max(abs(a - b) / abs(b) for a, b in zip(timed.results, peer.results, strict=True))
            for name, timed in timings.items()
            if peer and name.startswith(("diffusers", OURS))
        },
        "GFLOP an image, forward and backward": round(flops(options.paper, device), 3),
    }
    if device.type != "cpu":  # the parts of a CPU's step are those of `benchmarks.parts`
        record["profile"] = profile(bare(options.paper, size, device))
    chosen = "bfloat16" if record["bfloat16 chosen"] else "float32"
    speed = record["ways"][OURS]["images a second"]
    work = record["GFLOP an image, forward and backward"]
    record["share of the speed of a product (model FLOP utilisation)"] = round(
        speed * work / record[f"GFLOP/s, {chosen}"], 3
    )
    common.write("train_step" + common.record_suffix(device), device, record)


def turn(device: torch.device) -> int:
    """Return the steps in a turn: many on a GPU, because it works ahead of the program."""
    return 1 if device.type == "cpu" else 20


def diffusers_ways(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], float]]:
    return {
        f"diffusers, {name}": loop(common.diffusers_network(paper), mode, size, device)
        for name, mode in common.modes(device).items()
    }


def our_ways(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], float]]:
    modes = common.our_modes(OURS, device)
    ways = {name: trainer(paper, size, device, steps=steps) for name, steps in modes.items()}
    return ways | {BARE: bare(paper, size, device)}


def lucidrains(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], float]]:
    """Make lucidrains' step: 7.4 million parameters, linear attention, where it is installed."""
    try:
        from denoising_diffusion_pytorch import Unet  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("pip install denoising-diffusion-pytorch to compare with lucidrains too")
        return {}
    torch.manual_seed(0)
    network = Unet(dim=64, dim_mults=(1, 2, 2, 2))
    return {"lucidrains, float32": loop(network, Mode(False, False), size, device)}


def loop(network: nn.Module, mode: Mode, size: int, device: torch.device) -> Callable[[], float]:
    """Make a step of training as one writes it with diffusers."""
    mode.prepare(network, device)
    schedule = schedules.linear().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    steps = count()

    def step() -> Tensor:
        x_0, t, eps = common.draw(next(steps), size, device)
        x_t = schedule.add_noise(x_0, t, eps)
        with mode.precision(device):
            output = network(x_t, t - 1)
            output = output if isinstance(output, Tensor) else output.sample
            loss = F.mse_loss(output.float(), eps)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return lambda: float(torch.stack([step() for _ in range(turn(device))]).mean())


def trainer(
    paper: bool, size: int, device: torch.device, images: int = 50_000, steps: int = common.LONG
) -> Callable[[], float]:
    """Make a step of the library's own loop, with the draws of the other sides.

    Args:
        paper: whether the network has the paper's width.
        size: number of images in a batch.
        device: device to train on.
        images: number of images in the data set, by default that of CIFAR-10.
        steps: steps of the training of which the turns are the first ones.
    """
    numbers = count()

    def loss(denoiser: Denoiser, x_0: Tensor, generator: torch.Generator) -> Tensor:
        x_0, t, eps = common.draw(next(numbers), size, device)
        return losses.loss_at(denoiser, x_0, t, eps).mean()

    settings = TrainConfig(steps, size, learning_rate=1e-4, warmup_steps=1)
    made = Trainer(common.our_denoiser(paper, device), settings, loss)
    updates = made.run(torch.zeros((images, *common.IMAGE_SHAPE), dtype=torch.uint8))

    def run_turn() -> float:
        done = list(islice(updates, turn(device)))
        return fmean(update.loss for update in done)

    return run_turn


def bare(paper: bool, size: int, device: torch.device) -> Callable[[], float]:
    """Make a step of forward, backward and optimizer alone, laid out as the trainer does."""
    denoiser = common.as_the_library_runs_it(paper, device)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, fused=True)
    x_0, t, eps = common.draw(0, size, device)

    def step() -> Tensor:
        with hardware.autocast(denoiser):
            loss = losses.loss_at(denoiser, x_0, t, eps).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return lambda: float(torch.stack([step() for _ in range(turn(device))]).mean())


def profile(step: Callable[[], float]) -> dict[str, float]:
    """Measure the parts of the time that a step takes on the GPU, largest first."""
    step()
    with torch.profiler.profile() as profiler:
        step()
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        name = kind(event.key)
        times[name] = times.get(name, 0) + event.self_device_time_total
    total = sum(times.values())
    shares = sorted(((t / total, name) for name, t in times.items()), reverse=True)
    return {name: round(share, 3) for share, name in shares}


def kind(operation: str) -> str:
    """Say what kind of operation an operator of torch is, by its name."""
    return next((kind for word, kind in _KINDS.items() if word in operation), "everything else")


# Words in an operator's name -> what it does; the first that fits.
_KINDS = {
    "convolution_backward": "convolutions backward",
    "convolution": "convolutions forward",
    "group_norm": "GroupNorm",
    "silu": "SiLU",
    "attention": "attention",
    "aten::bmm": "attention",
    "softmax": "attention",
    "aten::cat": "joining skip connections",
    "dam": "the optimizer",
    "aten::addmm": "linear layers",
    "aten::mm": "linear layers",
    "aten::add": "additions",
    "copy": "copies and casts",
    "aten::clone": "copies and casts",
}


def flops(paper: bool, device: torch.device) -> float:
    """Count the 10^9 floating-point operations of one image."""
    denoiser = common.our_denoiser(paper, device)
    x_0, t, eps = common.draw(0, 1, device)
    with FlopCounterMode(display=False) as counter:
        losses.loss_at(denoiser, x_0, t, eps).mean().backward()
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
