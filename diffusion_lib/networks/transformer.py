"""A transformer over patches of pixels: (x_t, t) or (x_t, t, label) -> output.

[Dosovitskiy 2021; Peebles & Xie 2023 (DiT), with its adaLN-Zero blocks]

Every square of `patch` pixels becomes a vector of `width` numbers; blocks of attention and of a
small network change them, scaled and shifted by time and label; the last layer writes the squares.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lib.networks.base import Network, attention, check_config, patches


@dataclass(frozen=True)
class TransformerConfig:
    """Size of a `Transformer`.

    Args:
        image_shape: shape (C, H, W) of x_t.
        patch: side of the squares of pixels; a divisor of H and W.
        width: numbers for each square; a multiple of `heads` and of 4.
        depth: number of blocks.
        heads: attention heads.
        outputs: number of images in the output, see `NetworkConfig`.
        classes: number of class labels, see `NetworkConfig`.
    """

    image_shape: tuple[int, int, int] = (3, 32, 32)
    patch: int = 4
    width: int = 192
    depth: int = 6
    heads: int = 3
    outputs: int = 1
    classes: int = 0

    def __post_init__(self) -> None:
        check_config(self, {"patch": 1, "width": 4, "depth": 1, "heads": 1})
        patches(self)
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width must be a multiple of heads and of 4; got width = {self.width} for "
                f"{self.heads} heads"
            )

    def build(self) -> "Transformer":
        """Build the network with new weights."""
        return Transformer(self)


class Transformer(Network):
    """A transformer over patches of pixels.

    It outputs zero at first, as every branch and the last layer begin at zero.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, config.width, config.width)
        channels, height, width = patches(config)
        self.embed_patch = nn.Linear(channels, config.width)
        self.position = nn.Parameter(torch.empty(height * width, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.modulate_out = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.outputs * channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.position, std=0.02)
        for layer in (self.modulate_out, self.out):
            nn.init.zeros_(layer.weight)
        for block in self.blocks:
            nn.init.zeros_(block.get_submodule("modulate").get_parameter("weight"))

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the output, [B, outputs * C, H, W]; arguments and errors as in `condition`."""
        condition = self.condition(x_t, t, label)
        squares = F.pixel_unshuffle(x_t.to(self.position.dtype), self.config.patch)
        x = self.embed_patch(squares.flatten(2).mT) + self.position  # [B, squares, width]
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulate_out(condition)[:, None].chunk(2, dim=-1)
        x = self.out(_modulated(x, shift, scale)).mT.unflatten(2, squares.shape[2:])
        return F.pixel_shuffle(x, self.config.patch)


class Block(nn.Module):
    """Attention, then a network of one hidden layer, each scaled by time and label [DiT, fig. 3].

    Both are added to their input through a gate that starts at zero.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = self.modulate(condition)[:, None].chunk(6, dim=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts
        x = x + gate_1 * self.attend(_modulated(x, shift_1, scale_1))
        h = F.gelu(self.widen(_modulated(x, shift_2, scale_2)), approximate="tanh")
        return x + gate_2 * self.narrow(h)

    def attend(self, x: Tensor) -> Tensor:
        """Let every square read all others, [B, squares, width]."""
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        h = attention(q, k, v)  # [B, heads, squares, width / heads]
        return self.project(h.transpose(1, 2).reshape(b, n, width))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
