"""Where must a network be wide?  Networks that are narrow in one place, or have a way around it.

    python -m other_tests.mnist.bottleneck.control

Trains them on the seeds of `cells.json`, goes on where it was stopped, and writes
control.record.json.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from diffusion_lib import compare, config
from diffusion_lib.networks import MLPConfig, UNetConfig
from diffusion_lib.networks.base import Network
from diffusion_lib.networks.mlp import MLP
from other_tests import common

FOLDER = Path(__file__).parent
RECORD = FOLDER / "control.record.json"
CELLS = ("eps, snr", "eps, min_snr", "v, snr_plus_1", "x_0, uniform")
NARROW = 256  # numbers that are let through


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


class Narrow(nn.Sequential):
    """A linear layer that lets `NARROW` numbers through.

    Args:
        layer: layer of the same sizes.
    """

    def __init__(self, layer: nn.Linear) -> None:
        sizes = layer.in_features, NARROW, layer.out_features
        super().__init__(nn.Linear(*sizes[:2]), nn.Linear(*sizes[1:]))

    @property
    def weight(self) -> Tensor:
        """Weight whose dtype `MLP.forward` converts x_t to."""
        return self[0].weight  # pyright: ignore[reportReturnType]


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


@dataclass(frozen=True)
class NarrowInputConfig(MLPConfig):
    """An `MLP` whose first layer lets `NARROW` numbers of the picture through."""

    def build(self) -> MLP:
        network = super().build()
        network.hidden[0] = Narrow(network.hidden[0])  # pyright: ignore[reportArgumentType]
        return network


@dataclass(frozen=True)
class NarrowOutputConfig(MLPConfig):
    """An `MLP` whose last layer lets `NARROW` numbers through."""

    def build(self) -> MLP:
        network = super().build()
        network.out = Narrow(network.out)  # pyright: ignore[reportAttributeAccessIssue]
        return network


# Name of a network -> (network of `cells.json` that it changes, class of its config).
NETWORKS = {
    "MLP 256 + skip": ("MLP 256", SkipMLPConfig),
    "U-Net 14/64 + skip": ("U-Net 14/64", SkipUNetConfig),
    "MLP 1024, 256 in": ("MLP 1024", NarrowInputConfig),
    "MLP 1024, 256 out": ("MLP 1024", NarrowOutputConfig),
}


def arms() -> dict[str, config.Experiment]:
    """Return the arms: each of the networks with each of `CELLS`."""
    plain = compare.read_study(FOLDER / "cells.json").arms
    made = {}
    for name, (changed, kind) in NETWORKS.items():
        for cell in CELLS:
            arm = plain[f"{changed}: {cell}"]
            made[f"{name}: {cell}"] = replace(arm, network=kind(**vars(arm.network)))
    return made


def main() -> None:
    options = common.parser(__doc__).parse_args()
    study = compare.read_study(FOLDER / "cells.json")
    study = study._replace(arms=arms(), steps=study.steps[-1:])
    common.run_study(study, options.data, RECORD)


if __name__ == "__main__":
    main()
