"""An encoder and a decoder without skip connections: (x_t, t) or (x_t, t, label) -> output.

The blocks are the U-Net's.  All that the decoder knows of x_t has passed the bottleneck, so unlike
a U-Net it cannot copy noise from its input to its output.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lib.networks.base import Network, check_config
from diffusion_lib.networks.unet import Block, Downsample, Upsample, group_norm


@dataclass(frozen=True)
class AutoencoderConfig:
    """Size of an `Autoencoder`.

    Args:
        image_shape: shape (C, H, W) of x_t; 2 ** (levels - 1) divides H and W.
        width: channels of the first level, a multiple of 4.
        multipliers: channels of each level, in widths; its length is the number of levels.
        bottleneck: channels between encoder and decoder, at the size of the last level.
        outputs: number of images in the output, see `NetworkConfig`.
        classes: number of class labels, see `NetworkConfig`.
    """

    image_shape: tuple[int, int, int] = (1, 28, 28)
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2, 2)
    bottleneck: int = 8
    outputs: int = 1
    classes: int = 0

    def __post_init__(self) -> None:
        check_config(self, {"width": 4, "bottleneck": 1})
        if self.width % 4 or not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                "width must be a multiple of 4, with a multiplier >= 1 for each level; got width "
                f"= {self.width} and multipliers = {self.multipliers}"
            )
        _, height, width = self.image_shape
        divisor = 2 ** (len(self.multipliers) - 1)
        if height % divisor or width % divisor:
            raise ValueError(
                f"an autoencoder of {len(self.multipliers)} levels needs a height and a width "
                f"divisible by {divisor}; got {height} x {width}: use a shorter `multipliers`"
            )

    def build(self) -> "Autoencoder":
        """Build the network with new weights."""
        return Autoencoder(self)


class Autoencoder(Network):
    """Residual blocks down to a bottleneck and up again."""

    def __init__(self, config: AutoencoderConfig) -> None:
        time = 4 * config.width
        super().__init__(config, config.width, time)
        channels = [config.width * m for m in config.multipliers]
        c = config.image_shape[0]
        self.conv_in = nn.Conv2d(c, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for before, after in zip([channels[0], *channels], channels, strict=False):
            if self.down:
                self.down.append(Downsample(before))
            self.down.append(Block(before, after, time, 0.0, False, None))
        self.squeeze = nn.Conv2d(channels[-1], config.bottleneck, 1)
        self.widen = nn.Conv2d(config.bottleneck, channels[-1], 1)
        for before, after in zip([channels[-1], *channels[::-1]], channels[::-1], strict=False):
            if self.up:
                self.up.append(Upsample(before))
            self.up.append(Block(before, after, time, 0.0, False, None))
        self.norm_out = group_norm(channels[0], None)
        self.conv_out = nn.Conv2d(channels[0], config.outputs * c, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the output, [B, outputs * C, H, W]; arguments and errors as in `condition`."""
        time = self.condition(x_t, t, label)
        h = self.conv_in(x_t.to(self.conv_in.weight.dtype))
        for stage in self.down:
            h = stage(h, time) if isinstance(stage, Block) else stage(h)
        h = self.widen(self.squeeze(h))
        for stage in self.up:
            h = stage(h, time) if isinstance(stage, Block) else stage(h)
        return self.conv_out(F.silu(self.norm_out(h)))
