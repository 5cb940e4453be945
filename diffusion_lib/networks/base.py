"""What every network here has: a config that describes it, an image shape, times and labels.

A network is a module (x_t, t) or (x_t, t, label) -> output whose `config` is a frozen dataclass of
plain values with the fields `image_shape`, `outputs` and `classes` and a method `build`.  To add
one, write both in one file and list the config in `networks.KINDS`; or write them in a cell.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class NetworkConfig(Protocol):
    """Description of a network, a frozen dataclass.

    Attributes:
        image_shape: shape (C, H, W) of x_t.
        outputs: number of images in the output: 1, the prediction, or 2, with the fractions of a
            learned variance after it (see `Denoiser`).
        classes: number of class labels; 0 for an unconditional network.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def outputs(self) -> int: ...
    @property
    def classes(self) -> int: ...

    def build(self) -> nn.Module:
        """Build the network with new weights."""
        ...


def check_config(config: Any, least: Mapping[str, int]) -> None:
    """Check the kinds of a config's fields and what all configs share; lists become tuples.

    Args:
        config: config of a network.
        least: smallest value of some fields, by name.

    Raises:
        ValueError: a value of another kind, or that no network can have; the message names it.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if kind is int and type(value) is not int:
            raise ValueError(f"{name} must be a whole number; got {value!r:.99}")
        if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} must be a number; got {value!r:.99}")
        if getattr(kind, "__origin__", None) is tuple:
            if not isinstance(value, tuple | list) or any(type(n) is not int for n in value):
                raise ValueError(f"{name} must be a list of whole numbers; got {value!r:.99}")
            # Tuples, also when read from JSON, so that equal configs compare equal.
            object.__setattr__(config, name, tuple(value))
    if len(config.image_shape) != 3 or min(config.image_shape) < 1:
        raise ValueError(
            f"image_shape is (channels, height, width), each at least 1; got {config.image_shape}"
        )
    if config.outputs not in (1, 2):
        raise ValueError(
            f"outputs must be 1, or 2 for a learned variance as well; got {config.outputs}"
        )
    if config.classes < 0:
        raise ValueError(f"classes must be at least 0, which is no labels; got {config.classes}")
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise ValueError(f"{name} must be at least {smallest}; got {getattr(config, name)}")


class Network(nn.Module):
    """A network with an embedding of time and label, [B, channels].

    Args:
        config: its description.
        width: number of sinusoids of the time.
        channels: channels of the embedding.
    """

    def __init__(self, config: Any, width: int, channels: int) -> None:
        super().__init__()
        self.config = config
        self._num_sinusoids = width
        self.embed_time = nn.Sequential(
            nn.Linear(width, channels), nn.SiLU(), nn.Linear(channels, channels)
        )
        if config.classes:
            # The last row stands for no label [Ho & Salimans 2022, section 3.2].
            self.embed_label = nn.Embedding(config.classes + 1, channels)

    def condition(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        """Embed times and labels, [B, channels], in the precision of the weights.

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
        dtype = next(self.embed_time.parameters()).dtype
        condition = self.embed_time(_sinusoids(t, self._num_sinusoids).to(dtype))
        if self.config.classes:
            none = torch.full_like(t, self.config.classes)
            condition = condition + self.embed_label(none if label is None else label)
        elif label is not None:
            raise ValueError(
                "this network knows no labels: build it with classes=..., such as "
                "UNetConfig(classes=10), and train it on labelled images"
            )
        return F.silu(condition)


def build(config: NetworkConfig) -> nn.Module:
    """Build a network with new weights, which knows its config.

    Raises:
        TypeError: `build` of the config returns no module.
    """
    network = config.build()
    if not isinstance(network, nn.Module):
        raise TypeError(f"{type(config).__name__}.build must return a module; got {network!r:.99}")
    if config_of(network) is None:
        network.config = config  # pyright: ignore[reportArgumentType]
    return network


def on_meta_device(config: NetworkConfig) -> nn.Module:
    """Build a network on torch's "meta" device, which has shapes and takes no memory.

    Raises:
        ValueError: weights of 2^63 bytes or more.
    """
    try:
        with torch.device("meta"):
            return build(config)
    except (RuntimeError, TypeError) as error:  # a number of bytes beyond 64 bits
        if not type(config).__module__.startswith("diffusion_lib."):
            raise  # from a class of one's own
        message = f"no memory holds the weights of {config} ({error}): use a smaller width"
        raise ValueError(message) from error


def operations(config: NetworkConfig) -> int:
    """Count the floating-point operations of a call on one image.

    0 where they cannot be counted: of a network of one's own that needs values, not only shapes.
    """
    try:
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            on_meta_device(config)(
                torch.empty(1, *config.image_shape), torch.zeros(1, dtype=torch.int64)
            )
    except Exception:  # whatever a network of one's own raises: only an estimate is lost
        return 0
    return counter.get_total_flops()


def config_of(network: nn.Module) -> NetworkConfig | None:
    """Return the config of a network, None of a module that has none."""
    config = getattr(network, "config", None)
    parts = ("image_shape", "outputs", "classes", "build", "__dataclass_fields__")
    return config if all(hasattr(config, part) for part in parts) else None


def patches(config: Any) -> tuple[int, int, int]:
    """Return (channels, height, width) of images whose squares of `patch` pixels are one.

    Raises:
        ValueError: squares that do not fill the image.
    """
    channels, height, width = config.image_shape
    if height % config.patch or width % config.patch:
        sides = [n for n in range(1, height + 1) if height % n == 0 and width % n == 0]
        raise ValueError(
            f"patches of {config.patch} do not fill images of {height} x {width}: patch must be "
            f"one of {', '.join(map(str, sides))}"
        )
    return channels * config.patch**2, height // config.patch, width // config.patch


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v, [B, heads, N, D] [Vaswani 2017, eq. 1].

    In bfloat16 on a CPU this formula is twice as fast as torch's fused kernel: forward and backward
    of 32 images on an AMD EPYC, torch 2.13, take 14.7 ms in place of 31.1 for one head of 256
    positions x 128 channels, and 51 in place of 106 for six heads of 256 x 64.  It keeps heads *
    N^2 numbers of each image, so it is for small N; in float32 the fused one is as fast or faster.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= 256:
        return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v  # softmax adds up in float32
    return F.scaled_dot_product_attention(q, k, v)


def _sinusoids(t: Tensor, channels: int) -> Tensor:
    """Embed t [B] as [B, channels]: frequencies 1 to 1 / 10000 [Vaswani 2017, section 3.5]."""
    half = channels // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, device=t.device) / max(half - 1, 1)
    )
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
