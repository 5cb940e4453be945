"""What adding something costs: an example of each kind, with its file and its lines."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from diffusion_lib import (
    bound,
    densities,
    losses,
    optimizers,
    posterior,
    predictions,
    samplers,
    schedules,
)
from diffusion_lib.data import sets
from diffusion_lib.networks import mlp
from other_tests.common import ROOT

# To add -> (what to write, an example).
EXAMPLES: dict[str, tuple[str, Callable[..., Any] | Any]] = {
    "a schedule": ("a function from T to a `NoiseSchedule`", schedules.flow),
    "a prediction": ("a function of the scales of signal and noise", predictions.velocity),
    "a loss weight": ("a function of the signal-to-noise ratio", losses.min_snr),
    "a density of t": ("a function (n, T, generator) -> t", densities.logit_normal),
    "a loss": ("a function (denoiser, x_0, weight, generator)", bound.vlb_loss),
    "a variance": ("a function (schedule, t, s)", posterior.beta_tilde),
    "a sampler": ("a generator (denoiser, x_T, timesteps, generator)", samplers.ddim),
    "a network": ("a module and a config that builds it, in one file", mlp),
    "an optimizer": ("a function (parameters, settings)", optimizers.adamw),
    "a data set": ("a function (root, train) -> images and labels", sets.fashion_mnist),
}
# Those on the front page.
SEVEN = ["a schedule", "a prediction", "a loss weight", "a density of t"]
SEVEN += ["a network", "a sampler", "an optimizer"]


def rows(
    _: None = None, names: Iterable[str] = EXAMPLES, folder: Path = ROOT / "diffusion_lib"
) -> list[dict[str, str]]:
    """Return rows for `viz.table`: what to write, an example, its file and lines with docstring.

    Args:
        names: some of EXAMPLES, in the order of the rows.
        folder: where the README is that links to the files.
    """
    table = []
    for name in names:
        what, example = EXAMPLES[name]
        file = Path(inspect.getsourcefile(example) or "").resolve()
        label = f"`{example.__name__.rpartition('.')[2]}`"
        link = f"[{file.name}]({file.relative_to(folder.resolve())})"
        lines = str(len(inspect.getsource(example).splitlines()))
        row = {"to add": name, "write": what, "example": f"{label} in {link}", "lines": lines}
        table.append(row)
    return table
