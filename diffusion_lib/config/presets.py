"""Experiments by name, and budgets: functions from an experiment to one that takes less time.

To add a preset, write one `Experiment` and list it in `PRESETS`.
"""

import json
import os
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from diffusion_lib import data, densities, losses, predictions, schedules
from diffusion_lib.config.experiment import Experiment
from diffusion_lib.config.registry import lookup
from diffusion_lib.data import sets
from diffusion_lib.networks import NetworkConfig, UNetConfig, operations
from diffusion_lib.optimizers import adamw, muon
from diffusion_lib.system.device import CPU_SPEED
from diffusion_lib.system.device import default_device as device
from diffusion_lib.training import TrainConfig

MNIST = Experiment(
    dataset=data.mnist,
    # The paper's network scaled down to what two CPU cores train within minutes.
    network=UNetConfig((1, 28, 28), 16, (1, 2, 4), num_blocks=1, attention=(7,), dropout=0.0),
    train=TrainConfig(
        num_steps=10_000, batch_size=64, learning_rate=1e-3, warmup_steps=100, ema_decay=0.9995
    ),
)

# With one number of groups in every GroupNorm, as diffusers' network: its runs can be exported.
MNIST_DIFFUSERS = replace(MNIST, network=replace(MNIST.network, groups=4))

FASHION_MNIST = replace(MNIST, dataset=data.fashion_mnist)
CIFAR10 = Experiment(dataset=data.cifar10, network=UNetConfig(), train=TrainConfig(mirror=0.5))

# Clear digits on request, and the same without labels, in an hour of two CPU cores: the most that a
# classifier is sure of, at any length (other_tests/LOG.md).  x_0, because nothing noisy is drawn;
# Muon, because it needs a third of AdamW's steps; mostly noisy times, which decide the digit; no
# first level, whose time a wider network uses better.
MNIST_LABELS = Experiment(
    dataset=data.mnist,
    network=UNetConfig(
        (1, 28, 28), 48, (1, 2), num_blocks=2, attention=(), dropout=0.0, patch=2, classes=10
    ),
    schedule=schedules.cosine,
    prediction=predictions.x_0,
    weight=losses.uniform,
    density=lookup("logit_normal(location=0.3, scale=1.5)", densities, "density"),
    optimizer=muon,
    train=replace(MNIST.train, learning_rate=3e-3, cooldown=0.6, ema_decay=0.999),
)
MNIST_BEST = replace(MNIST_LABELS, network=replace(MNIST_LABELS.network, classes=0))

# With eps and the linear schedule a classifier is sure of 77 to 79 % of the digits after 1,500 of
# such steps, and of 76 % after 2,200 of uniform times (benchmarks/speedrun/trials.json).
_MIDDLE = lookup("logit_normal(location=-0.4, scale=1.2)", densities, "density")


def smoke(experiment: Experiment) -> Experiment:
    """Seconds: proves that everything runs, learns nothing."""
    train = replace(shorten(experiment.train, 4), batch_size=8)
    return replace(experiment, train=train, sample_steps=4)


def quick(experiment: Experiment) -> Experiment:
    """Minutes on two CPU cores: for MNIST digits that a person reads, for CIFAR-10 first objects.

    At most 3,000 steps.  What is as a preset of MNIST has it becomes what suits so few steps: Muon,
    900 or 1,500 steps, half the batch, a learning rate that falls, mostly times in the middle, and
    a smaller network: one block a level, attention in the middle alone, no first level, which takes
    most of the time.  The presets of CIFAR-10 for two cores get 1,300 steps of half the batch.
    """
    network, train = experiment.network, experiment.train
    optimizer, density = experiment.optimizer, experiment.density
    options = {"outputs": network.outputs, "classes": network.classes}
    presets = [replace(preset.network, **options) for preset in (MNIST, MNIST_LABELS)]
    if is_preset := network in presets:
        network = replace(
            network, width=32, multipliers=(1, 2), num_blocks=1, attention=(), patch=2
        )
    if (train, optimizer) == (replace(MNIST.train, seed=train.seed), adamw):
        train, optimizer = _few(train, 1500, cooldown=0.8, ema_decay=0.995), muon
        if (density, experiment.loss) == (densities.uniform, losses.diffusion_loss):
            density = _MIDDLE
    elif train == replace(MNIST_LABELS.train, seed=train.seed):
        train = _few(train, 900, cooldown=0.9, ema_decay=0.99)
    elif train == replace(CIFAR10_LABELS.train, seed=train.seed):
        train = replace(shorten(train, 1300), batch_size=64, cooldown=0.8, ema_decay=0.995)
    train = shorten(train, 3000)
    if not is_preset and device().type == "cpu" and (hours := _hours(network, train)) > 1:
        warnings.warn(
            "the quick budget takes minutes for the network of the MNIST presets; for this one it "
            f"takes about {hours:.0f} hours of two CPU cores. Use a GPU, a smaller network, or "
            "fewer steps (TrainConfig.num_steps, --steps)",
            stacklevel=2,
        )
    return replace(experiment, network=network, train=train, optimizer=optimizer, density=density)


def _few(train: TrainConfig, num_steps: int, cooldown: float, ema_decay: float) -> TrainConfig:
    """Make settings of a few steps of 32 images with Muon."""
    train = replace(shorten(train, num_steps), batch_size=32, learning_rate=4e-3)
    return replace(train, cooldown=cooldown, ema_decay=ema_decay)


def shorten(train: TrainConfig, num_steps: int) -> TrainConfig:
    """Cut the settings to fewer steps, of which at most a tenth are warm-up."""
    if num_steps >= train.num_steps:
        return train
    warmup_steps = min(train.warmup_steps, num_steps // 10)
    return replace(train, num_steps=num_steps, warmup_steps=warmup_steps)


def _hours(network: NetworkConfig, train: TrainConfig) -> float:
    """Estimate a training on two CPU cores: a step takes three times the operations of a call."""
    return 3 * operations(network) * train.batch_size * train.num_steps / CPU_SPEED / 3600


def full(experiment: Experiment) -> Experiment:
    """Keep the preset as it is: a GPU, or hours of a CPU, as the presets say."""
    return experiment


# For your own pictures, in a folder "photos" if no other is named: a night of two CPU cores.
# Measured for 40 steps of AdamW on an AMD EPYC: 5.5 hours for 32 x 32 pixels, 7 for 64 x 64, where
# larger squares of pixels are one position.
UNET32 = Experiment(
    dataset=lookup("folder(path=photos, size=32)", sets, "dataset"),
    network=UNetConfig(
        (3, 32, 32), 64, (1, 2, 2), num_blocks=2, attention=(8,), dropout=0.0, patch=2
    ),
    schedule=schedules.cosine,
    prediction=predictions.v,
    weight=losses.min_snr,
    optimizer=muon,
    train=replace(MNIST_LABELS.train, num_steps=40_000, warmup_steps=500, cooldown=0.4, mirror=0.5),
    sample_steps=100,
)
UNET64 = replace(
    UNET32,
    dataset=lookup("folder(path=photos, size=64)", sets, "dataset"),
    network=replace(UNET32.network, image_shape=(3, 64, 64), patch=4),
)

# Photographs on request in hours of two CPU cores, and without labels (other_tests/cifar10).
CIFAR10_LABELS = replace(
    UNET32,
    dataset=data.cifar10,
    network=replace(UNET32.network, classes=10),
    train=replace(UNET32.train, num_steps=10_000, batch_size=128),
)
CIFAR10_SMALL = replace(CIFAR10_LABELS, network=UNET32.network)

PRESETS = {
    "mnist": MNIST,
    "mnist_best": MNIST_BEST,
    "mnist_labels": MNIST_LABELS,
    "mnist_diffusers": MNIST_DIFFUSERS,
    "fashion_mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    "cifar10_small": CIFAR10_SMALL,
    "cifar10_labels": CIFAR10_LABELS,
    "unet32": UNET32,
    "unet64": UNET64,
}


def read(path: str | Path) -> Experiment:
    """Read an experiment from a TOML or JSON file: a preset and the fields that differ.

        preset = "mnist"
        schedule = "sigmoid(tau=0.7)"
        train = {batch_size = 32}

    Without a preset the file has all fields, as `Experiment.to_json` writes them.

    Raises:
        FileNotFoundError, ValueError: no such file; not an experiment.
    """
    path = Path(path)
    try:
        text = path.read_text()
        changes = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
        if "arms" in changes:
            raise ValueError("a study is run by `compare`")
        if "preset" not in changes and "dataset" not in changes:
            raise ValueError(f'add preset = "mnist" or another of {", ".join(PRESETS)}')
        if "preset" not in changes:
            return Experiment.from_json(json.dumps(changes))
        return lookup(changes.pop("preset"), PRESETS, "preset").changed(changes)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not an experiment: {error}") from error


BUDGETS = {"smoke": smoke, "quick": quick, "full": full}


def budget() -> Callable[[Experiment], Experiment]:
    """`full` on a GPU, `quick` elsewhere, or what the variable DIFFUSION_BUDGET names."""
    name = os.environ.get("DIFFUSION_BUDGET") or ("quick" if device().type == "cpu" else "full")
    return lookup(name, BUDGETS, "DIFFUSION_BUDGET")


def data_root() -> str:
    """Folder of the data sets: the environment variable DIFFUSION_DATA, or "data".

    Anywhere in a checkout of the repository that is the one in its root.
    """
    return os.environ.get("DIFFUSION_DATA") or _in_root("data")


def runs_root() -> Path:
    """Folder of the runs: the environment variable DIFFUSION_RUNS, or "runs", as `data_root`."""
    return Path(os.environ.get("DIFFUSION_RUNS") or _in_root("runs"))


def _in_root(name: str) -> str:
    """Find a name in the checkout around the working folder, as a path from there."""
    root = Path(__file__).resolve().parents[2]
    checkout = (root / "pyproject.toml").exists()  # and no installed copy
    return os.path.relpath(root / name) if checkout and Path.cwd().is_relative_to(root) else name
