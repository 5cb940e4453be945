"""How many seconds of two CPU cores until the digits are good?  README.md has the rules."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from diffusion_lib import config, runs, samplers
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.runs import Run
from diffusion_lib.samplers import SampleStep

FOLDER = Path(__file__).parent
RECIPES, RECORDS = FOLDER / "recipes", FOLDER / "records"
SEEDS = (1, 2, 3)  # of the board; nothing is chosen by them
THREADS = 2
N = 1000  # samples that are judged


class Trained(NamedTuple):
    """What the training of a recipe leaves.

    Attributes:
        steps: number of updates.
        parameters: number of weights.
        sample: function from n to samples, uint8 [n, 1, 28, 28].
        save: function that writes the network to a path.
        classes: sample i shows the digit i % classes; 0 where no digit is asked for.
    """

    steps: int
    parameters: int
    sample: Callable[[int], Tensor]
    save: Callable[[Path], None]
    classes: int = 0


class Entry(Protocol):
    """What the file of a recipe calls RECIPE."""

    def train(self, images: Images, seed: int) -> Trained:
        """Train on MNIST's images with a seed, which is also that of the samples."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe in JSON all that decides what comes out."""
        ...


@dataclass(frozen=True)
class Recipe:
    """An experiment of the library, and how to sample from it.

    Args:
        experiment: what is trained; its seed is replaced.
        sampler: one of `samplers`, or a function like those.
        num_steps: number of steps of the sampler.
        guidance: scale of the guidance to each digit in turn, 1 for labels alone; None samples
            without labels.
    """

    experiment: Experiment
    sampler: Callable[..., Iterator[SampleStep]] = samplers.ddpm
    num_steps: int = 50
    guidance: float | None = None

    @property
    def classes(self) -> int:
        """Number of classes that samples are of, 0 where they are of none."""
        return 0 if self.guidance is None else self.experiment.network.classes

    def train(self, images: Images, seed: int) -> Trained:
        trained = self._train(images, seed, range(self.classes))
        return trained._replace(classes=self.classes)

    def _train(self, images: Images, seed: int, labels: Tensor | Sequence[int]) -> Trained:
        """Train, and sample with these labels in turn, if any."""
        experiment = self.experiment
        trainer = replace(experiment, train=replace(experiment.train, seed=seed)).trainer()
        for _ in trainer.run(images):
            pass
        sample = self.sample_of(trainer.ema, seed, labels)
        parameters = sum(p.numel() for p in trainer.ema.parameters())
        return Trained(trainer.step, parameters, sample, trainer.ema.save)

    def sample_of(
        self, denoiser: Denoiser, seed: int, labels: Tensor | Sequence[int]
    ) -> Callable[[int], Tensor]:
        """Make the function from n to samples of a denoiser, with these labels in turn, if any."""
        run = Run(Path(), denoiser, [])
        if self.guidance is not None:
            run = run.guided(labels, self.guidance)
        settings = {"sampler": self.sampler, "num_steps": self.num_steps, "batch_size": 125}
        return partial(runs.sample, run, seed=seed, **settings)

    def describe(self) -> dict[str, Any]:
        return {
            "experiment": json.loads(self.experiment.to_json()),
            "sampler": config.label(self.sampler),
            "num_steps": self.num_steps,
            "guidance": self.guidance,
        }


def load(path: Path) -> ModuleType:
    """Import the file of a recipe.

    Args:
        path: file that defines RECIPE, an `Entry`.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
