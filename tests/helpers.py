"""What several test modules need: tiny networks, files of data sets, comparisons, a full disk."""

import errno
import struct
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusion_lib
from diffusion_lib import predictions, schedules
from diffusion_lib.config import Experiment
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.metrics import features
from diffusion_lib.networks.unet import UNet, UNetConfig
from diffusion_lib.predictions import Prediction
from diffusion_lib.system import files
from diffusion_lib.training import Trainer

PACKAGE = Path(diffusion_lib.__file__).parent
ROOT = PACKAGE.parent
STATE_FORMAT = "diffusion_lib training state 1"

# A network of 3 classes, and a label for each of 4 images.
CONDITIONAL = UNetConfig((1, 8, 8), 8, (1, 2), num_blocks=1, attention=(4,), dropout=0.1, classes=3)
FOUR_LABELS = torch.tensor([0, 1, 2, 2])


def random_denoiser(
    prediction: Prediction = predictions.eps,
    clip: float | None = None,
    network: UNetConfig = CONDITIONAL,
) -> Denoiser:
    """Make a denoiser all of whose weights are drawn from N(0, 0.1^2); equal at every call."""
    torch.manual_seed(0)
    unet = UNet(network)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Denoiser(unet, schedules.linear(100), prediction, clip).eval()


def random_images(*shape: int) -> Tensor:
    """Draw images of noise, uint8; equal at every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def tiny(experiment: Experiment) -> Experiment:
    """Give an experiment a network that takes a tenth of the time."""
    network = replace(
        experiment.network, width=8, multipliers=(1,), num_blocks=1, attention=(), patch=7
    )
    return replace(experiment, network=network)


def use_small_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a small network of its own in the place of each released classifier of photographs."""

    def load(name: str) -> features.Classifier:
        torch.manual_seed(len(name))
        return features.Classifier((3, 32, 32), features=4, widths=(4, 4))

    monkeypatch.setattr(features, "load", load)


def write_idx(folder: Path, n_train: int = 12, n_test: int = 5) -> None:
    """Write the four files of MNIST in its own format; the image of index i has gray value i."""
    folder.mkdir(parents=True)
    for name, n in (("train", n_train), ("t10k", n_test)):
        images = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
        parts = {
            f"{name}-images-idx3-ubyte": struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes(),
            f"{name}-labels-idx1-ubyte": struct.pack(">II", 2049, n)
            + (np.arange(n, dtype=np.uint8) % 10).tobytes(),
        }
        for file, content in parts.items():
            (folder / file).write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder: name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the training state and the averaged weights of a run's folder."""
    state, metadata = files.read_tensors(folder / "training.safetensors", STATE_FORMAT)
    state["step"] = torch.tensor(int(metadata["step"]))
    return state | Denoiser.load(folder / "ema.safetensors").state_dict()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Copy the weights and the averaged weights of a trainer."""
    return {
        f"{part}.{name}": value.clone()
        for part, module in (("network", trainer.denoiser), ("ema", trainer.ema))
        for name, value in module.state_dict().items()
    }


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Demand equal names and tensors, bit for bit; no option of Python leaves this out.

    Raises:
        AssertionError: they differ.
    """
    different = one.keys() ^ other.keys()
    different |= {name for name in one.keys() & other.keys() if not one[name].equal(other[name])}
    if different:
        raise AssertionError(f"{sorted(different)} differ")


def assert_same_run(folder: Path, other: Path) -> None:
    """Demand that two folders hold the same state, averages and step."""
    assert_same(run_tensors(folder), run_tensors(other))


def is_own(error: BaseException) -> bool:
    """Whether an error was raised by a `raise` of the library, and not by what it called."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return PACKAGE in Path(last.filename).parents and (last.line or "").startswith("raise")


def full_disk(*arguments, **options):
    """Fail as a function that writes does when no space is left."""
    raise OSError(errno.ENOSPC, "No space left on device")
