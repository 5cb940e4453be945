"""Networks by name, and their configs as JSON."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from diffusion_lib.networks.autoencoder import AutoencoderConfig
from diffusion_lib.networks.base import NetworkConfig, build, config_of, on_meta_device, operations
from diffusion_lib.networks.mlp import MLPConfig
from diffusion_lib.networks.transformer import TransformerConfig
from diffusion_lib.networks.unet import UNetConfig

KINDS: dict[str, Any] = {
    "unet": UNetConfig,
    "transformer": TransformerConfig,
    "mlp": MLPConfig,
    "autoencoder": AutoencoderConfig,
}


def kind(config: NetworkConfig) -> str | None:
    """Name the kind of a config, None for a class of one's own."""
    return next((name for name, cls in KINDS.items() if cls is type(config)), None)


def to_record(config: NetworkConfig) -> dict[str, Any]:
    """Describe a network as JSON holds it; a class of one's own by its name and what it computes.

    Only U-Nets, which came first, do not say their kind.
    """
    name = kind(config)
    if name is None:
        name = f"{type(config).__name__}#{_digest(config)}"
    return ({} if name == "unet" else {"kind": name}) | asdict(config)  # pyright: ignore[reportArgumentType]


def from_record(record: Mapping[str, Any]) -> NetworkConfig:
    """Make the config that `to_record` described.

    Raises:
        ValueError: a kind that is none of `KINDS`, or settings that no network can have.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"a network is described by its fields; got {record!r:.99}")
    settings = dict(record)
    name = settings.pop("kind", "unet")
    if name not in KINDS:
        raise ValueError(
            f"its network is of the kind {name!r:.99}, none of {', '.join(KINDS)}: a class of your "
            "own, which no file can hold. Where the class is, runs.train with the same experiment "
            "loads what was trained"
        )
    return KINDS[name](**settings)


@torch.no_grad()
def _digest(config: NetworkConfig) -> str:
    """Hash what a network computes: its first weights, and its output with others, as in training.

    In float64, so that processors agree.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        network = build(config).double()
        values = [torch.stack([p.mean(), p.abs().mean()]) for p in network.parameters()]
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        x_t = torch.randn(2, *config.image_shape, dtype=torch.float64)
        values.append(network(x_t, torch.tensor([0, 1])).flatten())
    text = repr([f"{x:.5g}" for x in torch.cat(values).tolist()])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
