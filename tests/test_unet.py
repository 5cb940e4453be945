"""The U-Net is DDPM's: same parameters and same output as diffusers' with the same weights."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffusion_lib.unet import Block, Downsample, UNet, UNetConfig

# The architecture of google/ddpm-cifar10-32: DDPM's CIFAR-10 network.
DDPM_CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
SMALL = UNetConfig((1, 28, 28), 8, (1, 2, 2), num_blocks=1, attention=(14,), dropout=0.1)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def randomise(network: nn.Module) -> nn.Module:
    """Weights of unit gain; the zero-initialised ends would hide what lies before them."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5 / max(1, parameter[0].numel()) ** 0.5)
    return network.eval()


def copy_block(ours: Block, resnet: nn.Module, attention: nn.Module | None) -> None:
    pairs = [("norm1", "norm1"), ("conv1", "conv1"), ("time", "time_emb_proj")]
    pairs += [("norm2", "norm2"), ("conv2", "conv2")]
    if resnet.conv_shortcut is not None:
        pairs.append(("skip", "conv_shortcut"))
    for mine, theirs in pairs:
        ours.get_submodule(mine).load_state_dict(resnet.get_submodule(theirs).state_dict())
    assert (attention is None) == isinstance(ours.attention, nn.Identity)
    if attention is not None:
        as_conv = lambda linear: linear.weight[:, :, None, None]  # noqa: E731
        qkv = [attention.to_q, attention.to_k, attention.to_v]
        ours.attention.norm.load_state_dict(attention.group_norm.state_dict())
        ours.attention.qkv.weight.copy_(torch.cat([as_conv(linear) for linear in qkv]))
        ours.attention.qkv.bias.copy_(torch.cat([linear.bias for linear in qkv]))
        ours.attention.project.weight.copy_(as_conv(attention.to_out[0]))
        ours.attention.project.bias.copy_(attention.to_out[0].bias)


@torch.no_grad()
def copy_from_diffusers(theirs: UNet2DModel, ours: UNet) -> None:
    stages = iter([*ours.down, *ours.middle, *ours.up])

    def attentions(block: nn.Module) -> list[nn.Module | None]:
        return list(getattr(block, "attentions", None) or [None] * len(block.resnets))

    for block in theirs.down_blocks:
        for resnet, attention in zip(block.resnets, attentions(block), strict=True):
            copy_block(next(stages), resnet, attention)
        for downsample in block.downsamplers or []:
            next(stages).conv.load_state_dict(downsample.conv.state_dict())
    middle = theirs.mid_block
    for resnet, attention in zip(middle.resnets, [*middle.attentions, None], strict=True):
        copy_block(next(stages), resnet, attention)
    for block in theirs.up_blocks:
        for resnet, attention in zip(block.resnets, attentions(block), strict=True):
            copy_block(next(stages), resnet, attention)
        for upsample in block.upsamplers or []:
            next(stages).conv.load_state_dict(upsample.conv.state_dict())
    assert next(stages, None) is None
    ours.embed_time[0].load_state_dict(theirs.time_embedding.linear_1.state_dict())
    ours.embed_time[2].load_state_dict(theirs.time_embedding.linear_2.state_dict())
    ours.conv_in.load_state_dict(theirs.conv_in.state_dict())
    ours.norm_out.load_state_dict(theirs.conv_norm_out.state_dict())
    ours.conv_out.load_state_dict(theirs.conv_out.state_dict())


def test_is_the_network_of_google_ddpm_cifar10_32():
    theirs = randomise(UNet2DModel(**DDPM_CIFAR10))
    ours = UNet(UNetConfig()).eval()
    assert count(ours) == count(theirs) == 35_746_307
    copy_from_diffusers(theirs, ours)
    x_t, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 977])
    with torch.no_grad():
        expected: Tensor = theirs(x_t, t).sample
        actual = ours(x_t, t)
    assert expected.std() > 0.1  # the comparison is not of two zeros
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32), (3, 16, 32)])
def test_keeps_the_shape(shape):
    network = UNet(UNetConfig(shape, 8, (1, 2), num_blocks=1, attention=(shape[1] // 2,)))
    assert network(torch.zeros(2, *shape), torch.tensor([0, 5])).shape == (2, *shape)


def test_starts_at_zero_and_every_weight_learns():
    """The last convolutions are zero; after two steps of descent every parameter has a gradient."""
    network = UNet(SMALL)
    x_t, t = torch.randn(4, 1, 28, 28), torch.tensor([0, 3, 500, 999])
    assert network(x_t, t).abs().max() == 0
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x_t, t) - x_t).square().mean().backward()
        optimizer.step()
    still = [name for name, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert still == []


def test_uses_the_time():
    network = randomise(UNet(SMALL))
    x_t = torch.randn(1, 1, 28, 28).expand(2, -1, -1, -1)
    early, late = network(x_t, torch.tensor([10, 900]))
    assert (early - late).abs().max() > 1e-4  # rounding is 1e-6


def test_downsampling_pads_below_and_right_like_tensorflow():
    layer = Downsample(1)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    out = layer(torch.ones(1, 1, 4, 4))
    torch.testing.assert_close(out[0, 0], torch.tensor([[9.0, 6.0], [6.0, 4.0]]))


def test_size_that_the_depth_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="divisible by 8; got 28 x 28"):
        UNetConfig((1, 28, 28), multipliers=(1, 2, 2, 2), attention=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 6}, "multiple of 4; got 6"),
        ({"multipliers": ()}, "one integer >= 1 for each level"),
        ({"num_blocks": 0}, "at least 1; got 0"),
        ({"dropout": 1.0}, r"\[0, 1\); got 1.0"),
        ({"attention": (15,)}, r"attention at \[15\].*\[32, 16, 8, 4\]"),
        ({"image_shape": (32, 32)}, "channels, height, width"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**change)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 28, 28\).*got \(3, 28, 28\)"):
        UNet(SMALL)(torch.zeros(1, 3, 28, 28), torch.tensor([0]))
