"""The U-Net is DDPM's: same parameters and same output as diffusers' with the same weights."""

from dataclasses import replace
from shutil import which

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffusion_lib import interop
from diffusion_lib.networks.unet import Attention, Downsample, UNet, UNetConfig, Upsample

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


@pytest.mark.slow
def test_is_the_network_of_google_ddpm_cifar10_32():
    theirs = randomise(UNet2DModel(**DDPM_CIFAR10))
    ours = interop.unet_from_diffusers(theirs).eval()
    assert ours.config == UNetConfig(dropout=0.0)
    assert count(ours) == count(theirs) == 35_746_307
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
        ({"attention": (15,)}, r"attention is \(15,\).*\[32, 16, 8, 4\]"),
        ({"image_shape": (32, 32)}, "channels, height, width"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**change)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 28, 28\).*got \(3, 28, 28\)"):
        UNet(SMALL)(torch.zeros(1, 3, 28, 28), torch.tensor([0]))


SMALL_OF_THEIRS = {
    **DDPM_CIFAR10,
    "sample_size": (16, 8),
    "in_channels": 1,
    "out_channels": 2,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "norm_num_groups": 8,
}


@pytest.mark.parametrize(
    ("theirs", "groups"),
    [
        (lambda: UNet2DModel(**SMALL_OF_THEIRS), 8),
        (lambda: UNet2DModel(**SMALL_OF_THEIRS | {"norm_num_groups": 1}), 1),
    ],
)
def test_takes_over_other_networks_of_diffusers(theirs, groups):
    theirs = theirs()
    ours = interop.unet_from_diffusers(randomise(theirs))
    assert ours.config.groups == groups
    x_t, t = torch.randn(2, 1, 16, 8), torch.tensor([3, 977])
    with torch.no_grad():
        torch.testing.assert_close(ours(x_t, t), theirs(x_t, t).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu", "freq_shift": 0}, "freq_shift is 0, not 1; act_fn is 'gelu'"),
        ({"down_block_types": ("DownBlock2D", "DownBlock2D")}, "the blocks are"),
        ({"block_out_channels": (32, 48)}, "not multiples of the first"),
        ({"out_channels": 3}, "3 channels of output for 1 of input"),
        ({"sample_size": None}, "sample_size is None"),
        ({"mid_block_type": None}, "mid_block_type is None, not 'UNetMidBlock2D'"),
        ({"time_embedding_dim": 64}, "time_embedding_dim is 64, not 128"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05, not 1e-06"),
    ],
)
def test_a_network_that_is_not_ddpms_is_refused_by_name(change, words):
    with pytest.raises(ValueError, match=words):
        interop.unet_from_diffusers(UNet2DModel(**SMALL_OF_THEIRS | change))


@pytest.mark.slow
def test_groups_are_those_of_every_layer_or_as_many_as_suit_it():
    def groups(config: UNetConfig) -> set[int]:
        norms = (m for m in UNet(config).modules() if isinstance(m, nn.GroupNorm))
        return {norm.num_groups for norm in norms}

    assert groups(SMALL) == {2, 4, 8}
    assert groups(replace(SMALL, groups=4)) == {4}
    assert groups(UNetConfig()) == {32}


@pytest.mark.parametrize("groups", [0, -2, 3, 16])
def test_groups_that_do_not_divide_the_width_are_refused(groups):
    with pytest.raises(ValueError, match=f"groups must divide the width, 8, .* got {groups}"):
        replace(SMALL, groups=groups)


def test_patches_are_pixels_of_the_first_level():
    config = UNetConfig((1, 28, 28), 8, (1, 2), num_blocks=1, attention=(7,), patch=2, outputs=2)
    network = randomise(UNet(config))
    inner = randomise(UNet(replace(config, image_shape=(4, 14, 14), patch=1)))
    assert count(network) == count(inner)
    x_t, t = torch.randn(2, 1, 28, 28), torch.tensor([3, 977])
    squares = x_t.reshape(2, 1, 14, 2, 14, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 4, 14, 14)
    expected = inner(squares, t).reshape(2, 2, 2, 2, 14, 14).permute(0, 1, 4, 2, 5, 3)
    torch.testing.assert_close(network(x_t, t), expected.reshape(2, 2, 28, 28))


@pytest.mark.parametrize(
    ("patch", "words"), [(0, "patch must be at least 1"), (4, "of patches of 4")]
)
def test_impossible_patches_are_refused(patch, words):
    with pytest.raises(ValueError, match=words):
        UNetConfig((1, 28, 28), 8, (1, 2), attention=(), patch=patch)


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="compiles with g++")
def test_compiling_keeps_the_gradient_below_an_upsampling():
    """In bfloat16 on a CPU torch 2.13 loses it where `F.interpolate` follows attention."""
    torch.manual_seed(0)
    below, above, x = Attention(8, None), Upsample(8), torch.randn(2, 8, 4, 4)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return above(below(x)).float().square().sum()

    weights = [*below.parameters(), *above.parameters()]
    gradients = (torch.autograd.grad(f(), weights) for f in (loss, torch.compile(loss)))
    for expected, compiled in zip(*gradients, strict=True):
        assert (compiled - expected).norm() <= 0.05 * expected.norm()
