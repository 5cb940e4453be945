"""A multilayer perceptron over all pixels: (x_t, t) or (x_t, t, label) -> output.

Its last layer sees `width` numbers, so the outputs for all images lie in a plane of that many
dimensions: below C * H * W it cannot output noise, which fills all of them.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lib.networks.base import Network, check_config


@dataclass(frozen=True)
class MLPConfig:
    """Size of an `MLP`.

    Args:
        image_shape: shape (C, H, W) of x_t.
        width: numbers in a hidden layer, at least 4.
        depth: number of hidden layers.
        outputs: number of images in the output, see `NetworkConfig`.
        classes: number of class labels, see `NetworkConfig`.
    """

    image_shape: tuple[int, int, int] = (1, 28, 28)
    width: int = 1024
    depth: int = 3
    outputs: int = 1
    classes: int = 0

    def __post_init__(self) -> None:
        check_config(self, {"width": 4, "depth": 1})

    def build(self) -> "MLP":
        """Build the network with new weights."""
        return MLP(self)


class MLP(Network):
    """A multilayer perceptron; every hidden layer adds time and label to its input."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config, 128, config.width)
        c, h, w = config.image_shape
        sizes = [c * h * w, *[config.width] * config.depth]
        self.hidden = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.time = nn.ModuleList(nn.Linear(config.width, config.width) for _ in self.hidden)
        self.out = nn.Linear(config.width, config.outputs * c * h * w)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the output, [B, outputs * C, H, W]; arguments and errors as in `condition`."""
        condition = self.condition(x_t, t, label)
        x = x_t.to(self.out.weight.dtype).flatten(1)
        for layer, time in zip(self.hidden, self.time, strict=True):
            x = F.silu(layer(x) + time(condition))
        return self.out(x).view(len(x_t), -1, *x_t.shape[2:])
