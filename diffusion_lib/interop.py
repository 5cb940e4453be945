"""Networks of Hugging Face diffusers, with their weights.

diffusers itself is not needed to read this; it is needed to make what these functions take.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from diffusion_lib.unet import UNet, UNetConfig

# What DDPM's network is, in the words of diffusers' UNet2DModel.
_DDPM = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "attention_head_dim": None,
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}


@torch.no_grad()
def unet_from_diffusers(theirs: nn.Module) -> UNet:
    """The same network with the same weights: same input, same output.

    Args:
        theirs: a `UNet2DModel` of the DDPM family, such as that of google/ddpm-cifar10-32.

    Returns:
        Its twin, float32 on the CPU, in training mode where `theirs` is.

    Raises:
        ValueError: it has a part that this library's network does not have, named.
    """
    ours = UNet(_config(theirs.config))  # pyright: ignore[reportArgumentType]
    for name, their_names in _counterparts(ours):
        mine, others = ours.get_submodule(name), [theirs.get_submodule(n) for n in their_names]
        if isinstance(mine, nn.GroupNorm):
            for fact in ("num_groups", "eps"):
                here, there = getattr(mine, fact), getattr(others[0], fact)
                if here != there:
                    raise ValueError(
                        f"not this library's network: {fact} of {their_names[0]} is {there}, of "
                        f"{mine.num_channels} channels; it would be {here} here"
                    )
        for part in ("weight", "bias"):
            own = getattr(mine, part)
            own.copy_(torch.cat([getattr(other, part) for other in others]).reshape(own.shape))
    return ours.train(theirs.training)


def _config(told: Mapping[str, Any]) -> UNetConfig:
    different = [
        f"{name} is {told[name]!r}, not {expected!r}"
        for name, expected in _DDPM.items()
        if told.get(name, expected) != expected
    ]
    channels, widths = told["in_channels"], told["block_out_channels"]
    attends = {"DownBlock2D": False, "AttnDownBlock2D": True}
    down, up = list(told["down_block_types"]), list(told["up_block_types"])
    if not set(down) <= set(attends) or [kind.replace("Up", "Down") for kind in up[::-1]] != down:
        different.append(f"the blocks are {down} and {up}, not plain or Attn ones, alike both ways")
    size = told["sample_size"]
    if size is None:
        different.append("sample_size is None, so the size of its images is unknown")
    if told.get("time_embedding_dim") not in (None, 4 * widths[0]):
        different.append(f"time_embedding_dim is {told['time_embedding_dim']}, not {4 * widths[0]}")
    if told["out_channels"] not in (channels, 2 * channels):
        different.append(f"{told['out_channels']} channels of output for {channels} of input")
    if any(width % widths[0] for width in widths):
        different.append(f"block_out_channels are {widths}, not multiples of the first")
    if different or size is None:
        raise ValueError(f"not this library's network: {'; '.join(different)}")
    height, width = (size, size) if isinstance(size, int) else size
    return UNetConfig(
        image_shape=(channels, height, width),
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        num_blocks=told["layers_per_block"],
        attention=tuple(height // 2**i for i, kind in enumerate(down) if attends[kind]),
        dropout=told["dropout"],
        outputs=told["out_channels"] // channels,
    )


def _counterparts(ours: UNet) -> Iterator[tuple[str, list[str]]]:
    """Our name of each module that has weights, and diffusers' for the same, or for its parts."""
    yield "conv_in", ["conv_in"]
    yield "embed_time.0", ["time_embedding.linear_1"]
    yield "embed_time.2", ["time_embedding.linear_2"]
    blocks, levels = ours.config.num_blocks, len(ours.config.multipliers)
    down, up = iter(range(len(ours.down))), iter(range(len(ours.up)))
    for level in range(levels):
        if level > 0:
            yield f"down.{next(down)}.conv", [f"down_blocks.{level - 1}.downsamplers.0.conv"]
        for j in range(blocks):
            yield from _of_block(ours, f"down.{next(down)}", f"down_blocks.{level}", j)
    for j in range(2):
        yield from _of_block(ours, f"middle.{j}", "mid_block", j)
    for level in range(levels):
        for j in range(blocks + 1):
            yield from _of_block(ours, f"up.{next(up)}", f"up_blocks.{level}", j)
        if level < levels - 1:
            yield f"up.{next(up)}.conv", [f"up_blocks.{level}.upsamplers.0.conv"]
    yield "norm_out", ["conv_norm_out"]
    yield "conv_out", ["conv_out"]


def _of_block(ours: UNet, name: str, theirs: str, j: int) -> Iterator[tuple[str, list[str]]]:
    block, resnet = ours.get_submodule(name), f"{theirs}.resnets.{j}"
    for mine in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{name}.{mine}", [f"{resnet}.{mine}"]
    yield f"{name}.time", [f"{resnet}.time_emb_proj"]
    if not isinstance(block.skip, nn.Identity):
        yield f"{name}.skip", [f"{resnet}.conv_shortcut"]
    if not isinstance(block.attention, nn.Identity):
        attention = f"{theirs}.attentions.{j}"
        yield f"{name}.attention.norm", [f"{attention}.group_norm"]
        yield f"{name}.attention.qkv", [f"{attention}.to_{part}" for part in "qkv"]
        yield f"{name}.attention.project", [f"{attention}.to_out.0"]
