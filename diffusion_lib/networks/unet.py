"""The U-Net: (x_t, t) or (x_t, t, label) -> one or two images of x_t's shape.

[Ronneberger 2015; DDPM appendix B]

Down: residual blocks, and a strided convolution between levels.  Middle: block, attention, block.
Up: the same levels backwards; each block also reads the features of the way down (skip).

    28 x 28 ---------------- skip ----------------> 28 x 28
        14 x 14 ------------ skip --------> 14 x 14
              7 x 7 -------- skip --> 7 x 7
                      middle

The last convolution of every residual branch starts at zero, so that each block begins as the
identity and the whole network outputs zero, as in Ho's code.

To change the network, pass another `UNetConfig`; `networks.base` says how to replace it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lib.networks.base import Network, attention, check_config

_MAX_BLOCKS = 1000  # on the way down; a file with more does not describe a network


@dataclass(frozen=True)
class UNetConfig:
    """Size of a `UNet`.  The defaults are the paper's CIFAR-10 network, 35.7 million parameters.

    Args:
        image_shape: shape (C, H, W) of x_t; patch * 2 ** (levels - 1) divides H and W.
        width: channels of the first level; a multiple of 4, because a GroupNorm group holds at
            least 4 channels.
        multipliers: channels of each level, in widths; its length is the number of levels.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        attention: heights of the feature maps that get self-attention: some of H / patch,
            half of that, ...
        dropout: dropout probability inside each residual block.
        outputs: number of images in the output: 1, the prediction, or 2, with the fractions of a
            learned variance after it (see `Denoiser`).
        patch: side of the squares of pixels that are folded into channels at the input and unfolded
            at the output; the first level then has H / patch x W / patch positions.
        classes: number of class labels; 0 for an unconditional network.
        groups: groups of every GroupNorm, a divisor of `width`; None gives each as many as its
            channels allow: 32 as in the paper, fewer where a group would have under 4 channels.
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.1
    outputs: int = 1
    patch: int = 1
    classes: int = 0
    groups: int | None = None

    def __post_init__(self) -> None:
        check_config(self, {"num_blocks": 1, "patch": 1})
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a positive multiple of 4; got {self.width}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"multipliers needs one integer >= 1 for each level; got {self.multipliers}"
            )
        if self.num_blocks * len(self.multipliers) > _MAX_BLOCKS:
            raise ValueError(
                f"a network may have {_MAX_BLOCKS} blocks on the way down; got num_blocks = "
                f"{self.num_blocks} in each of {len(self.multipliers)} levels"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1); got {self.dropout}")
        # Every GroupNorm, also after a skip is joined, sees a multiple of `width` channels.
        is_positive = type(self.groups) is int and self.groups >= 1
        if self.groups is not None and not (is_positive and self.width % self.groups == 0):
            raise ValueError(
                f"groups must divide the width, {self.width}, and with it the channels of every "
                f"layer; got {self.groups!r:.99}. None chooses them by the channels of each layer."
            )
        _, height, width = self.image_shape
        divisor = self.patch * 2 ** (len(self.multipliers) - 1)
        if height % divisor or width % divisor:
            patches_of = f" of patches of {self.patch}" if self.patch > 1 else ""
            fit = " x ".join(str(max(1, round(n / divisor)) * divisor) for n in (height, width))
            raise ValueError(
                f"a U-Net of {len(self.multipliers)} levels{patches_of} halves the image "
                f"{len(self.multipliers) - 1} times, so height and width must be divisible by "
                f"{divisor}; got {height} x {width}, image_shape = {self.image_shape}. Resize the "
                f"images, such as to {fit}, or use fewer levels (a shorter `multipliers`)"
            )
        heights = [height // self.patch // 2**level for level in range(len(self.multipliers))]
        if not set(self.attention) <= set(heights):
            raise ValueError(
                f"attention is {self.attention}, but for images of {self.image_shape}, patch = "
                f"{self.patch} and multipliers = {self.multipliers} the feature maps have the "
                f"heights {heights}"
            )

    def build(self) -> "UNet":
        """Build the network with new weights."""
        return UNet(self)


class UNet(Network):
    """DDPM's network; its `config` lets a saved network describe itself."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, config.width, 4 * config.width)
        image_channels, height, _ = config.image_shape
        pixel_channels = image_channels * config.patch**2
        height //= config.patch
        time_channels = 4 * config.width
        levels = [(config.width * m, height // 2**i) for i, m in enumerate(config.multipliers)]

        def block(c_in: int, c_out: int, attend: bool) -> Block:
            return Block(c_in, c_out, time_channels, config.dropout, attend, config.groups)

        self.conv_in = nn.Conv2d(pixel_channels, config.width, 3, padding=1)

        c = config.width
        skips = [c]
        self.down = nn.ModuleList()
        for level, (c_out, height) in enumerate(levels):
            if level > 0:
                self.down.append(Downsample(c))
                skips.append(c)
            for _ in range(config.num_blocks):
                self.down.append(block(c, c_out, height in config.attention))
                c = c_out
                skips.append(c)

        self.middle = nn.ModuleList([block(c, c, True), block(c, c, False)])

        self.up = nn.ModuleList()
        for level, (c_out, height) in reversed(list(enumerate(levels))):
            for _ in range(config.num_blocks + 1):
                self.up.append(block(c + skips.pop(), c_out, height in config.attention))
                c = c_out
            if level > 0:
                self.up.append(Upsample(c))

        self.norm_out = group_norm(c, config.groups)
        self.conv_out = nn.Conv2d(c, config.outputs * pixel_channels, 3, padding=1)
        self._initialize()

    def _initialize(self) -> None:
        """Set Xavier-uniform weights, zero biases, zero ends of branches [DDPM appendix B]."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, Attention):
                nn.init.zeros_(module.project.weight)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the output, [B, outputs * C, H, W]; arguments and errors as in `condition`."""
        time = self.condition(x_t, t, label)
        # Computes in the precision of the weights, whatever that of x_t and t.
        x_t = x_t.to(self.conv_in.weight.dtype)
        h = self.conv_in(F.pixel_unshuffle(x_t, self.config.patch))
        skips = [h]
        for stage in self.down:
            h = stage(h, time) if isinstance(stage, Block) else stage(h)
            skips.append(h)
        for stage in self.middle:
            h = stage(h, time)
        for stage in self.up:
            if isinstance(stage, Block):
                h = stage(torch.cat([h, skips.pop()], dim=1), time)
            else:
                h = stage(h)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.config.patch)


class Block(nn.Module):
    """Twice GroupNorm, SiLU, convolution; the time is added in between [DDPM appendix B]."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        time_channels: int,
        dropout: float,
        attend: bool,
        groups: int | None,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_channels, c_out)
        self.norm2 = group_norm(c_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attention = Attention(c_out, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(time)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.attention(self.skip(x) + h)


class Attention(nn.Module):
    """Self-attention over all pixels, one head [DDPM appendix B]."""

    def __init__(self, channels: int, groups: int | None) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # [B, H * W, 3 C]
        q, k, v = qkv[:, None].chunk(3, dim=-1)  # each [B, 1 head, H * W, C]
        h = attention(q, k, v)
        return x + self.project(h[:, 0].transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Strided convolution; pads below and to the right, as TensorFlow's SAME does in Ho's code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbor upsampling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # where torch 2.13 loses gradients below `interpolate`
            twice = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
            return self.conv(twice.flatten(4).flatten(2, 3))
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def group_norm(channels: int, groups: int | None) -> nn.GroupNorm:
    """Make a GroupNorm; see `UNetConfig.groups`."""
    return nn.GroupNorm(groups or math.gcd(32, channels // 4), channels, eps=1e-6)
