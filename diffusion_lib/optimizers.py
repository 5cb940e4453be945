"""Optimizers of a training.

To add one, write one function (parameters, config) that returns a `torch.optim.Optimizer`, and
list it in `__all__`.  The trainer sets the learning rate of every step.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as adamw_update

from diffusion_lib.train_config import TrainConfig

__all__ = ["adamw", "muon"]

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


def muon(
    parameters: Sequence[Tensor],
    config: TrainConfig,
    momentum: float = 0.95,
    beta_1: float = 0.9,
    beta_2: float = 0.98,
) -> torch.optim.Optimizer:
    """Make Muon for matrices and kernels, and AdamW for all else [Jordan 2024].

    For trainings of minutes or hours: after as many steps digits are better by far (LOG.md).

    Args:
        parameters: weights.
        config: settings; the learning rate is AdamW's, to which Muon's is matched [Liu 2025].
        momentum: momentum of Muon, Nesterov's.
        beta_1: decay of AdamW's average of gradients.
        beta_2: decay of AdamW's average of squared gradients.
    """
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    return _Muon(parameters, settings | {"momentum": momentum, "betas": (beta_1, beta_2)})


class _Muon(torch.optim.Optimizer):
    """Steps of one size in every direction of a matrix: U V^T of its momentum U S V^T.

    A kernel [c_out, c_in, k, k] is the matrix [c_out, c_in k^2].  AdamW updates the other weights,
    and those with under 8 rows or columns; embeddings and last layers of more are matrices too.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices, others = defaultdict(list), []  # matrices of one shape are one batch
            for p in group["params"]:
                if p.grad is not None:
                    shape = (len(p), p[0].numel()) if p.ndim >= 2 else (1, p.numel())
                    (matrices[shape] if min(shape) >= 8 else others).append(p)
            for shape, weights in matrices.items():
                self._update_matrices(weights, shape, group)
            self._update_others(others, group)
        return loss

    def _update_matrices(self, weights: list[Any], shape: tuple[int, int], group: Any) -> None:
        rate, directions = group["lr"], []
        for p in weights:
            if not self.state[p]:
                self.state[p] = {"momentum": torch.zeros_like(p)}
            average = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(average, group["momentum"]).reshape(shape))
        # The root mean square of AdamW's steps is about 0.2.
        length = rate * 0.2 * max(shape) ** 0.5
        for p, direction in zip(weights, _orthogonal(torch.stack(directions)), strict=True):
            p.mul_(1 - rate * group["weight_decay"]).sub_(direction.view_as(p), alpha=length)

    def _update_others(self, weights: list[Any], group: Any) -> None:
        for p in weights:
            if not self.state[p]:
                moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p] = {"step": torch.zeros((), device=p.device), **moments}
        names = ("exp_avg", "exp_avg_sq", "step")
        first, second, steps = ([self.state[p][name] for p in weights] for name in names)
        adamw_update(
            weights,
            [p.grad for p in weights],
            first,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def _orthogonal(x: Tensor) -> Tensor:
    """Approximate U V^T of matrices U S V^T, [B, rows, columns]: five steps of Newton and Schulz.

    The polynomial takes singular values of 0.002 and more to 0.7..1.2 [Jordan 2024].
    """
    if x.shape[-2] > x.shape[-1]:
        return _orthogonal(x.mT).mT
    y = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = y @ y.mT
        y = torch.baddbmm(
            y, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), y, beta=3.4445
        )
    return y.to(x.dtype)
