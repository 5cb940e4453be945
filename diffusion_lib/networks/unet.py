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

To change the network, pass another `UNetConfig`; to replace it, write any module with this call.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNet", "UNetConfig", "on_meta_device"]

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
        # Tuples, also when read from JSON, so that equal configurations compare equal.
        for name in ("image_shape", "multipliers", "attention"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or any(type(n) is not int for n in value):
                raise ValueError(f"{name} must be a list of whole numbers; got {value!r:.99}")
            object.__setattr__(self, name, tuple(value))
        for name in ("width", "num_blocks", "outputs", "patch", "classes"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} must be a whole number; got {getattr(self, name)!r:.99}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float):
            raise ValueError(f"dropout must be a number; got {self.dropout!r:.99}")
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(
                f"image_shape is (channels, height, width), each at least 1; got {self.image_shape}"
            )
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width must be a positive multiple of 4; got {self.width}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"multipliers needs one integer >= 1 for each level; got {self.multipliers}"
            )
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1; got {self.num_blocks}")
        if self.num_blocks * len(self.multipliers) > _MAX_BLOCKS:
            raise ValueError(
                f"a network may have {_MAX_BLOCKS} blocks on the way down; got num_blocks = "
                f"{self.num_blocks} in each of {len(self.multipliers)} levels"
            )
        if self.outputs not in (1, 2):
            raise ValueError(
                f"outputs must be 1, or 2 for a learned variance as well; got {self.outputs}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1); got {self.dropout}")
        if self.patch < 1:
            raise ValueError(f"patch must be at least 1, which is no patches; got {self.patch}")
        if self.classes < 0:
            raise ValueError(f"classes must be at least 0, which is no labels; got {self.classes}")
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
            patches = f" of patches of {self.patch}" if self.patch > 1 else ""
            raise ValueError(
                f"a U-Net of {len(self.multipliers)} levels{patches} halves the image "
                f"{len(self.multipliers) - 1} times, so height and width must be divisible by "
                f"{divisor}; got {height} x {width}, image_shape = {self.image_shape}. Pad or "
                "resize the images, or use fewer levels (a shorter `multipliers`)."
            )
        heights = [height // self.patch // 2**level for level in range(len(self.multipliers))]
        if not set(self.attention) <= set(heights):
            raise ValueError(
                f"attention is {self.attention}, but the feature maps have the heights {heights}"
            )


class UNet(nn.Module):
    """DDPM's network; its `config` lets a saved network describe itself."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        image_channels, height, _ = config.image_shape
        pixel_channels = image_channels * config.patch**2
        height //= config.patch
        time_channels = 4 * config.width
        levels = [(config.width * m, height // 2**i) for i, m in enumerate(config.multipliers)]

        def block(c_in: int, c_out: int, attend: bool) -> Block:
            return Block(c_in, c_out, time_channels, config.dropout, attend, config.groups)

        self.embed_time = nn.Sequential(
            nn.Linear(config.width, time_channels),
            nn.SiLU(),
            nn.Linear(time_channels, time_channels),
        )
        if config.classes:
            # The last row stands for no label [Ho & Salimans 2022, section 3.2].
            self.embed_label = nn.Embedding(config.classes + 1, time_channels)
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

        self.norm_out = _group_norm(c, config.groups)
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
        """Compute the output, [B, outputs * C, H, W].

        Args:
            x_t: noisy images, [B, C, H, W].
            t: time index counted from 0, [B]; `Denoiser` passes t - 1.
            label: class label of each image, [B] in 0..classes - 1; `classes` is no label, and so
                is None for all images.

        Raises:
            ValueError: images of another shape than `config.image_shape`; labels for an
                unconditional network.
        """
        if x_t.shape[1:] != self.config.image_shape:
            raise ValueError(
                f"the network was built for images of shape {self.config.image_shape}; "
                f"got {tuple(x_t.shape[1:])}"
            )
        # Computes in the precision of the weights, whatever that of x_t and t.
        dtype = self.conv_in.weight.dtype
        condition = self.embed_time(_sinusoids(t, self.config.width).to(dtype))  # [B, 4 * width]
        if self.config.classes:
            none = torch.full_like(t, self.config.classes)
            condition = condition + self.embed_label(none if label is None else label)
        elif label is not None:
            raise ValueError(
                "this network knows no labels: build it with UNetConfig(classes=...), and train it "
                "on labelled images"
            )
        time = F.silu(condition)

        h = self.conv_in(F.pixel_unshuffle(x_t.to(dtype), self.config.patch))
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


def on_meta_device(config: UNetConfig) -> UNet:
    """Build a network on torch's "meta" device, which has shapes and takes no memory.

    Raises:
        ValueError: weights of 2^63 bytes or more.
    """
    try:
        with torch.device("meta"):
            return UNet(config)
    except (RuntimeError, TypeError) as error:  # a number of bytes beyond 64 bits
        raise ValueError(f"no memory holds the weights of {config}: use a smaller width") from error


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
        self.norm1 = _group_norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_channels, c_out)
        self.norm2 = _group_norm(c_out, groups)
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
        self.norm = _group_norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # [B, H * W, 3 C]
        q, k, v = qkv[:, None].chunk(3, dim=-1)  # each [B, 1 head, H * W, C]
        h = F.scaled_dot_product_attention(q, k, v)
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
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def _group_norm(channels: int, groups: int | None) -> nn.GroupNorm:
    """Make a GroupNorm; see `UNetConfig.groups`."""
    return nn.GroupNorm(groups or math.gcd(32, channels // 4), channels, eps=1e-6)


def _sinusoids(t: Tensor, channels: int) -> Tensor:
    """Embed t [B] as [B, channels]: frequencies 1 to 1 / 10000 [Vaswani 2017, section 3.5]."""
    half = channels // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, device=t.device) / max(half - 1, 1)
    )
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
