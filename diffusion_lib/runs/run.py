"""A run on disk, loaded.

experiment.json        the experiment and a fingerprint of its images
training.safetensors   everything that training needs to go on exactly
ema.safetensors        the denoiser with averaged weights; `Denoiser.load` takes nothing else
log.jsonl              one JSON object a line: a "device" line for each start, then losses by step
tensorboard            the same losses, and samples, where the package tensorboard is installed"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion_lib import config
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import check_labels, guided
from diffusion_lib.networks.unet import UNet
from diffusion_lib.system.device import optimize_memory_layout

if TYPE_CHECKING:
    pass
from diffusion_lib.runs.folder import _read_log


@dataclass(frozen=True)
class Run:
    """A trained (or partly trained) run.

    Attributes:
        folder: where it lies.
        denoiser: with the averaged weights, in evaluation mode.
        log: the records of log.jsonl.
        labels: what its images are asked to show: image i shows labels[i % len(labels)]; None asks
            for nothing.
        scale: of the guidance to these labels, see `guidance.guided`.
    """

    folder: Path
    denoiser: Denoiser
    log: list[dict[str, Any]]
    labels: Tensor | None = None
    scale: float = 1.0

    def guided(self, labels: Tensor | Sequence[int], scale: float = 1.0) -> "Run":
        """The same run, asked for labels in turn: `run.guided(range(10), 2.0)`.

        Raises:
            ValueError: its network knows no labels, or not these; a scale that is not finite.
        """
        guided(self.denoiser, labels, scale)  # refuses
        asked = check_labels(labels, self.network.config.classes)
        return replace(self, labels=asked.cpu(), scale=scale)

    @property
    def network(self) -> UNet:
        """Of its denoiser."""
        network = self.denoiser.network
        assert isinstance(network, UNet)  # nothing else can be saved
        return network

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.network.config.image_shape

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of "loss" or "held_out" in the log, for `viz.curve`."""
        points = [(record["step"], record[name]) for record in self.log if name in record]
        return [step for step, _ in points], [value for _, value in points]

    def describe(self) -> dict[str, Any]:
        """What made it, for `viz.table`: device, images, steps, minutes, last held-out loss."""
        starts = [record for record in self.log if "device" in record]
        steps = [record for record in self.log if "seconds" in record]
        held_out = self.series("held_out")[1]
        return {
            "run": self.folder.name,
            "device": _in_turn(starts, "device"),
            "precision": _in_turn(starts, "precision"),
            "memory layout": _in_turn(starts, "layout"),
            "training images": f"{starts[-1]['images']:,}" if starts else "unknown",
            "steps": f"{steps[-1]['step']:,}" if steps else "0",
            "minutes of training": steps[-1]["seconds"] / 60 if steps else 0.0,
            "held-out loss": held_out[-1] if held_out else "not measured",
        }


def load(folder: str | Path, device: torch.device | None = None) -> Run:
    """Read a run.

    Raises:
        FileNotFoundError: no run is there, or it has not been saved yet.
        ValueError: a damaged file.
    """
    folder = Path(folder)
    if not (folder / "ema.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no trained run (ema.safetensors is missing). "
            f"Train one: python -m diffusion_lib train mnist --out {folder}"
        )
    denoiser = Denoiser.load(folder / "ema.safetensors").to(device or config.device())
    return Run(folder, optimize_memory_layout(denoiser), _read_log(folder))


def _in_turn(starts: Sequence[dict[str, Any]], name: str) -> str:
    """List what the starts of a training say, without repeats."""
    return ", then ".join(dict.fromkeys(start.get(name, "not recorded") for start in starts))
