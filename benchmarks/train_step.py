"""How many images a second does training take, beside diffusers and lucidrains?

    python -m benchmarks.train_step                                  two CPU cores
    python -m benchmarks.train_step --paper --batch-size 128         a GPU

All sides train the same batches, times and noise from the same weights (lucidrains' network is
another one); losses must stay together.  diffusers' step is that of its tutorial: forward, squared
error, backward, clipping, AdamW as torch makes it.  Ours is the trainer's: data and moving average
included.  Writes train_step.json beside itself, or train_step-gpu.json.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.common import Mode
from diffusion_lib import losses, schedules, training
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.training import TrainConfig, Trainer

MINE = "diffusion_lib, as its trainer runs it"


def main() -> None:
    options = common.options(__doc__)
    device, size = torch.device(options.device), options.batch_size
    recorded: dict[str, list[float]] = {}
    modes = common.CPU_MODES if device.type == "cpu" else common.GPU_MODES
    ways: dict[str, Callable[[], None]] = {}
    for name, mode in modes.items():
        network = common.theirs(options.paper)
        ways[f"diffusers, {name}"] = loop(
            network, lambda x, t, n=network: n(x, t).sample, mode, size, device,
            recorded.setdefault(f"diffusers, {name}", []),
        )  # fmt: skip
    if not options.paper and (network := lucidrains()) is not None:
        ways["lucidrains, float32"] = loop(
            network, network, Mode(False, False), size, device, []
        )  # fmt: skip
    ways[MINE] = trainer(options.paper, size, device, recorded.setdefault(MINE, []))
    ways["diffusion_lib, the bare step"] = bare(options.paper, size, device)
    seconds = common.in_turn(ways, options.rounds)
    baseline = next(iter(recorded.values()))
    record = common.machine(device) | {
        "parameters": sum(p.numel() for p in common.theirs(options.paper).parameters()),
        "batch size": size,
        "rounds": options.rounds,
        "ways": common.against(seconds, MINE, size),
        "largest difference of a loss from diffusers' in float32, relative": {
            name: max(abs(a - b) / abs(b) for a, b in zip(losses_, baseline, strict=True))
            for name, losses_ in recorded.items()
        },
        "GFLOP an image, forward and backward": round(flops(options.paper, device), 3),
    }
    common.write("train_step" if device.type == "cpu" else "train_step-gpu", record)


def loop(
    network: nn.Module,
    forward: Callable[[Tensor, Tensor], Tensor],
    mode: Mode,
    size: int,
    device: torch.device,
    recorded: list[float],
) -> Callable[[], None]:
    """A training step as one writes it with diffusers."""
    network.to(device)
    if mode.channels_last:
        network.to(memory_format=torch.channels_last)
    if mode.compiled:
        network.compile()
    schedule = schedules.linear().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        x_0, t, eps = common.draw(len(recorded), size, device)
        x_t = schedule.add_noise(x_0, t, eps)
        with mode.precision(device):
            loss = F.mse_loss(forward(x_t, t - 1).float(), eps)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recorded.append(loss.item())

    return step


def trainer(
    paper: bool, size: int, device: torch.device, recorded: list[float]
) -> Callable[[], None]:
    """The library's own loop; only its draws are those of the other sides."""

    def loss(denoiser: Denoiser, x_0: Tensor, generator: torch.Generator) -> Tensor:
        x_0, t, eps = common.draw(len(recorded), size, device)
        return losses.loss_at(denoiser, x_0, t, eps).mean()

    settings = TrainConfig(10_000, size, learning_rate=1e-4, warmup_steps=1)
    made = Trainer(common.ours(paper, device), settings, loss)
    # A data set of the size of CIFAR-10, so that drawing batches costs what it does.
    images = torch.zeros((50_000, *common.IMAGE_SHAPE), dtype=torch.uint8)
    steps = made.run(images)

    def step() -> None:
        recorded.append(next(steps).loss)

    return step


def bare(paper: bool, size: int, device: torch.device) -> Callable[[], None]:
    """Forward, backward and optimizer alone, in the layout and precision of the trainer."""
    denoiser = training.suit(common.ours(paper, device))
    if training.worth_compiling(device, 10_000):
        denoiser.network.compile()
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, fused=True)
    x_0, t, eps = common.draw(0, size, device)
    bfloat16 = training.has_bfloat16(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = losses.loss_at(denoiser, x_0, t, eps).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def lucidrains() -> nn.Module | None:
    """Its U-Net of 7.4 million parameters with linear attention, where it is installed."""
    try:
        from denoising_diffusion_pytorch import Unet
    except ImportError:
        print("pip install denoising-diffusion-pytorch to compare with lucidrains too")
        return None
    torch.manual_seed(0)
    return Unet(dim=64, dim_mults=(1, 2, 2, 2))


def flops(paper: bool, device: torch.device) -> float:
    """10^9 floating-point operations of one image."""
    denoiser = common.ours(paper, device)
    x_0, t, eps = common.draw(0, 1, device)
    with FlopCounterMode(display=False) as counter:
        losses.loss_at(denoiser, x_0, t, eps).mean().backward()
    return counter.get_total_flops() / 1e9


if __name__ == "__main__":
    main()
