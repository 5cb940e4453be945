"""What the network is trained to output.

Every target in common use is a mix of image and noise,

    target = c_x * x_0 + c_eps * eps,

so a prediction type is one function from the scales (signal, noise) to (c_x, c_eps).  Together
with x_t = signal * x_0 + noise * eps it is a 2 x 2 linear system, and `solve` is the only place
in the library that inverts it.

To add a prediction type, write one such function and list it in `__all__`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["eps", "x_0", "v", "velocity"]

Prediction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def eps(signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Predict the noise [DDPM eq. 14]."""
    return torch.zeros_like(signal), torch.ones_like(noise)


def x_0(signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Predict the clean image [DDPM section 3.2]."""
    return torch.ones_like(signal), torch.zeros_like(noise)


def v(signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Predict v = signal * eps - noise * x_0 [Salimans & Ho 2022, appendix D]."""
    return -noise, signal


def velocity(signal: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Predict eps - x_0, the velocity along a straight line [Lipman 2023, Liu 2023]."""
    return -torch.ones_like(signal), torch.ones_like(noise)


def solve(
    prediction: Prediction, output: Tensor, x_t: Tensor, signal: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Convert a network's output for x_t into (x_0_hat, eps_hat).

    Images are [B, C, H, W]; the scales `signal` and `noise` of x_t are [B, 1, 1, 1].
    """
    c_x, c_eps = prediction(signal, noise)
    determinant = signal * c_eps - noise * c_x
    x_0_hat = (c_eps * x_t - noise * output) / determinant
    eps_hat = (signal * output - c_x * x_t) / determinant
    return x_0_hat, eps_hat
