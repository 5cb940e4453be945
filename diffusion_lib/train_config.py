"""Settings of a training."""

import math
import warnings
from dataclasses import dataclass

_FRACTIONS = ("ema_decay", "mirror", "cooldown", "label_dropout")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.  The defaults are those of DDPM's CIFAR-10 run [DDPM appendix B].

    Args:
        num_steps: number of optimizer updates.
        batch_size: number of images per update, over all processes.
        learning_rate: peak learning rate, after `warmup_steps` of linear growth.
        warmup_steps: number of updates over which the learning rate grows.
        weight_decay: weight decay of the optimizer; the paper uses none.
        grad_clip: bound on the norm of the whole gradient.
        ema_decay: decay of the moving average; min(ema_decay, (1 + n) / (10 + n)) at step n.
        mirror: probability of flipping a training image left to right.
        seed: random seed of the initial weights and of all draws.
        compile: whether to train through torch.compile on a CPU too: costs a minute or more, needs
            a C++ compiler. On a GPU runs of 5,000 steps or more are compiled automatically.
        cooldown: fraction of the steps, at the end, in which the learning rate falls to 0
            [Hagele 2024].
        label_dropout: fraction of the images whose label is dropped, so that the network also
            learns to do without, for guidance [Ho & Salimans 2022, algorithm 1].
        accumulate: number of gradient accumulation steps, where a batch exceeds the memory.
    """

    num_steps: int = 800_000
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_steps: int = 5000
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    mirror: float = 0.0
    seed: int = 0
    compile: bool = False
    cooldown: float = 0.0
    label_dropout: float = 0.1
    accumulate: int = 1

    def __post_init__(self) -> None:
        least = {"num_steps": 1, "batch_size": 1, "accumulate": 1, "warmup_steps": 0, "seed": 0}
        for name, bound in least.items():
            if type(value := getattr(self, name)) is not int or value < bound:
                raise ValueError(
                    f"{name} must be a whole number, at least {bound}; got {value!r:.99}"
                )
        for name in ("learning_rate", "grad_clip", "weight_decay", *_FRACTIONS):
            value = getattr(self, name)
            number = (
                value if type(value) is not bool and isinstance(value, int | float) else math.nan
            )
            if name in _FRACTIONS and not 0 <= number <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {value!r:.99}")
            if name in ("learning_rate", "grad_clip") and not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {value!r:.99}")
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} must be finite and not negative; got {value!r:.99}")
        if type(self.compile) is not bool:
            raise ValueError(f"compile must be True or False; got {self.compile!r:.99}")
        if self.warmup_steps > self.num_steps:
            reached = self.num_steps / self.warmup_steps * self.learning_rate
            warnings.warn(
                f"the warm-up of {self.warmup_steps:,} steps is longer than the training of "
                f"{self.num_steps:,}: the learning rate gets to {reached:.2g} of "
                f"{self.learning_rate:g}. Use fewer warmup_steps, or more num_steps",
                stacklevel=3,
            )
