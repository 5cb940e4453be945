"""Optimizers of a training.

To add one, write one function (parameters, config) that returns a `torch.optim.Optimizer`, and
list it in `__all__`.  The trainer sets the learning rate of every step.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion_lib.train_config import TrainConfig

__all__ = ["adamw"]

MakeOptimizer = Callable[[Sequence[Tensor], TrainConfig], torch.optim.Optimizer]


def adamw(
    parameters: Sequence[Tensor], config: TrainConfig, beta_1: float = 0.9, beta_2: float = 0.999
) -> torch.optim.Optimizer:
    """Make AdamW, fused [Loshchilov & Hutter 2019]; DDPM's Adam where nothing decays."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(beta_1, beta_2),
        weight_decay=config.weight_decay,
        fused=True,
    )
