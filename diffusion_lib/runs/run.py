"""A run on disk, loaded.

experiment.json        the experiment and a fingerprint of its images
training.safetensors   everything that training needs to resume exactly
ema.safetensors        the denoiser with averaged weights; `Denoiser.load` takes nothing else
log.jsonl              one JSON object a line: a "device" line for each start, then losses by step
previews               samples during the training, a row of pictures for each step
tensorboard            losses and previews again, where the package tensorboard is installed
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lib import config, data, guidance
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.runs.folder import read_log
from diffusion_lib.system.device import optimize_memory_layout

RELEASED = Path(__file__).parents[1] / "assets" / "released"


@dataclass(frozen=True)
class Run:
    """A trained (or partly trained) run.

    Attributes:
        folder: folder of its files.
        denoiser: denoiser with the averaged weights, in evaluation mode.
        log: records of log.jsonl.
        is_new: whether it was trained now rather than loaded.
    """

    folder: Path
    denoiser: Denoiser
    log: list[dict[str, Any]]
    is_new: bool = field(default=False, kw_only=True)

    def guided(self, labels: Tensor | Sequence[int], scale: float = 1.0) -> "GuidedRun":
        """Return the run with labels [K] for its samples: image i shows labels[i % K].

        Such as `run.guided(range(10), 2.0)`; the scale is that of `guidance.guided`.
        """
        guidance.guided(self.denoiser, labels, scale)  # raises
        labels = data.check_labels(labels, self.denoiser.config.classes).cpu()
        return GuidedRun(**vars(self) | {"labels": labels, "scale": scale})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.denoiser.config.image_shape

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return steps and values of "loss" or "held_out" in the log, for `viz.curve`."""
        points = [(record["step"], record[name]) for record in self.log if name in record]
        return [step for step, _ in points], [value for _, value in points]

    def previews(self) -> dict[int, Tensor]:
        """Read the samples drawn during the training, by step: uint8 [16, C, H, W], C = 1 or 3.

        Each step has samples from the same noise.  A release or a former run may have none.
        """
        previews, (_, height, width) = {}, self.image_shape
        for path in sorted((self.folder / "previews").glob("*.png")):
            row = torch.from_numpy(np.array(Image.open(path))).view(height, 16, width, -1)
            previews[int(path.stem)] = row.permute(1, 3, 0, 2)
        return previews

    def describe(self) -> dict[str, Any]:
        """Return when and on what it was trained, its steps and its loss, for `viz.table`."""
        starts = [record for record in self.log if "device" in record]
        steps = [record for record in self.log if "seconds" in record]
        held_out = self.series("held_out")[1]
        origin = "trained now," if self.is_new else "loaded, trained"

        def over_starts(name: str) -> str:  # without repeats
            return ", then ".join(dict.fromkeys(s.get(name, "not recorded") for s in starts))

        return {
            "run": self.folder.name,
            "weights": f"{origin} {starts[-1].get('date', 'earlier') if starts else 'earlier'}",
            "device": over_starts("device"),
            "precision": over_starts("precision"),
            "memory layout": over_starts("layout"),
            "training images": f"{starts[-1]['images']:,}" if starts else "unknown",
            "steps": f"{steps[-1]['step']:,}" if steps else "0",
            "minutes of training": steps[-1]["seconds"] / 60 if steps else 0.0,
            "held-out loss": held_out[-1] if held_out else "not measured",
        }


@dataclass(frozen=True)
class GuidedRun(Run):
    """A run together with labels for its samples, as `Run.guided` makes it.

    Attributes:
        labels: class labels, int64 [K] on the CPU; image i shows labels[i % K].
        scale: guidance scale, see `guidance.guided`.
    """

    labels: Tensor
    scale: float


def load(folder: str | Path, device: torch.device | None = None) -> Run:
    """Read a run, onto a device: None takes the GPU if there is one.

    Raises:
        FileNotFoundError: no run is there, or it has not been saved yet.
        ValueError: a damaged file.
    """
    folder = Path(folder)
    if not (folder / "ema.safetensors").is_file():
        place = folder if folder.is_dir() else folder.parent
        others = sorted(str(path.parent) for path in place.glob("*/ema.safetensors"))[:5]
        raise FileNotFoundError(
            f"{folder} holds no trained run (ema.safetensors is missing). "
            + (f"There are {', '.join(others)}. " if others else "")
            + f"Train one: python -m diffusion_lib train mnist --out {folder}"
        )
    denoiser = Denoiser.load(folder / "ema.safetensors").to(device or config.device())
    return Run(folder, optimize_memory_layout(denoiser), read_log(folder))


def releases() -> dict[str, Path]:
    """Return the folders of the runs that come with the library, by name."""
    return {
        path.parent.name: path.parent for path in sorted(RELEASED.glob("[!.]*/ema.safetensors"))
    }


def released(name: str, device: torch.device | None = None) -> Run:
    """Load a run that comes with the library, such as "mnist"; see `load`.

    Raises:
        ValueError: no such release; the message has the names of all.
    """
    return load(config.lookup(name, releases(), "release"), device)
