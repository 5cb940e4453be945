"""Networks by name, and their configs as JSON."""

from dataclasses import asdict
from typing import Any

from diffusion_lib.networks.autoencoder import AutoencoderConfig
from diffusion_lib.networks.base import NetworkConfig, config_of, on_meta_device
from diffusion_lib.networks.mlp import MLPConfig
from diffusion_lib.networks.transformer import TransformerConfig
from diffusion_lib.networks.unet import UNetConfig

KINDS: dict[str, Any] = {
    "unet": UNetConfig,
    "transformer": TransformerConfig,
    "mlp": MLPConfig,
    "autoencoder": AutoencoderConfig,
}
