"""Fixtures and imports that all tests share."""

from diffusion_lib import _torchvision  # noqa: F401  (first: diffusers imports torchvision too)
