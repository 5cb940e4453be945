"""Diffusion models to learn from and do research with: small, exact, measured."""

__version__ = "0.1.0"
