"""Densities of t: which times a training step draws.

    E_{t ~ p}[loss_t]  =  E_{t uniform}[T p(t) loss_t]

So a density p is the weight T p(t) in expectation; what differs is the spread of the gradient,
which falls where the times are drawn in proportion to what they weigh.

To add a density, write one function (n, T, generator) -> t, int64 [n] in 1..T, and list it in
`__all__`; one that draws by `rng.normal` and `rng.integers` can be divided among processes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_lib import rng

__all__ = ["uniform", "logit_normal"]

Density = Callable[[int, int, torch.Generator | rng.Rows | None], Tensor]


def uniform(n: int, T: int, generator: torch.Generator | rng.Rows | None) -> Tensor:
    """Draw each of 1..T equally often [DDPM algorithm 1]."""
    return rng.integers(1, T + 1, n, generator)


def logit_normal(
    n: int,
    T: int,
    generator: torch.Generator | rng.Rows | None,
    location: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Draw logit(t / T) from N(location, scale^2): mostly times in the middle [Esser 2024, eq. 19].

    A lower `location` draws cleaner images, a larger `scale` more of both ends.

    Raises:
        ValueError: a scale that is not positive.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive; got {scale!r:.99}")
    z = rng.normal((n,), generator)
    return (torch.sigmoid(location + scale * z) * T).ceil().long().clamp(1, T)


def draw(
    density: Density, x_0: Tensor, T: int, generator: torch.Generator | rng.Rows | None
) -> tuple[Tensor, Tensor]:
    """Draw times [B] in 1..T from a density, then noise [B, C, H, W], for images x_0."""
    t = density(len(x_0), T, generator).to(x_0.device)
    return t, rng.normal(x_0.shape, generator, x_0.device)
