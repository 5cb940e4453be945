"""Does one connection from the input to the output remove the floor?

    python -m other_tests.mnist.bottleneck.control

Trains the two narrow networks of `cells.json` with such a connection, on the seeds of that study,
goes on where it was stopped, and writes control.record.json.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from diffusion_lib import compare, config
from diffusion_lib.networks import MLPConfig, UNetConfig
from diffusion_lib.networks.base import Network
from other_tests import common

FOLDER = Path(__file__).parent
RECORD = FOLDER / "control.record.json"
BACKBONES = ("MLP 256", "U-Net 14/64")
CELLS = ("eps, snr", "eps, min_snr", "v, snr_plus_1", "x_0, uniform")


class WithSkip(nn.Module):
    """A network that adds its input, times a number that it learns for each time, to its output.

    Args:
        network: the network.
        channels: size of its embedding of the time.
    """

    def __init__(self, network: Network, channels: int) -> None:
        super().__init__()
        self.network = network
        self.config = network.config
        self.gain = nn.Linear(channels, 1)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        gain = self.gain(self.network.condition(x_t, t, label))
        return self.network(x_t, t, label) + gain[:, :, None, None] * x_t


@dataclass(frozen=True)
class SkipMLPConfig(MLPConfig):
    """An `MLP` in a `WithSkip`."""

    def build(self) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
        return WithSkip(super().build(), self.width)


@dataclass(frozen=True)
class SkipUNetConfig(UNetConfig):
    """A `UNet` in a `WithSkip`."""

    def build(self) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
        return WithSkip(super().build(), 4 * self.width)


WITH_SKIP = {MLPConfig: SkipMLPConfig, UNetConfig: SkipUNetConfig}


def arms() -> dict[str, config.Experiment]:
    """Return the narrow arms of `cells.json`, each with the connection."""
    narrow = compare.read_study(FOLDER / "cells.json").arms
    chosen = {f"{backbone}: {cell}" for backbone in BACKBONES for cell in CELLS}
    return {
        name: replace(arm, network=WITH_SKIP[type(arm.network)](**vars(arm.network)))
        for name, arm in narrow.items()
        if name in chosen
    }


def main() -> None:
    options = common.parser(__doc__).parse_args()
    study = compare.read_study(FOLDER / "cells.json")
    record = compare.compare(arms(), study.seeds, study.steps[-1:], study.conditions, options.data)
    compare.save(record, RECORD)


if __name__ == "__main__":
    main()
