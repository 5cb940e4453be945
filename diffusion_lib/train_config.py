"""Settings of a training."""

import math
import warnings
from dataclasses import dataclass

_LARGEST_BATCH = 10**15  # more indices than any memory holds

_NUMBERS = ("learning_rate", "weight_decay", "grad_clip")  # of a TrainConfig
# Fields of a TrainConfig that lie in [0, 1].
_FRACTIONS = ("ema_decay", "mirror", "cooldown", "label_dropout")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.  The defaults are those of DDPM's CIFAR-10 run [DDPM appendix B].

    Args:
        num_steps: number of optimizer updates.
        batch_size: number of images per update, over all processes.
        learning_rate: peak learning rate of AdamW, after `warmup_steps` of linear growth.
        warmup_steps: number of updates over which the learning rate grows.
        weight_decay: weight decay of AdamW; the paper uses none.
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
        whole = {"num_steps": 1, "batch_size": 1, "accumulate": 1, "warmup_steps": 0, "seed": 0}
        values = {name: getattr(self, name) for name in (*whole, *_NUMBERS, *_FRACTIONS)}
        for name, value in values.items():
            if name in whole and type(value) is not int:
                raise ValueError(f"{name} must be a whole number; got {value!r:.99}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number; got {value!r:.99}")
            if whole.get(name) == 1 and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
            if whole.get(name) == 0 and value < 0:
                raise ValueError(f"{name} must not be negative; got {value}")
            if name in _FRACTIONS and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {value}")
            if name in _NUMBERS and name != "weight_decay" and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {value}")
        if type(self.compile) is not bool:
            raise ValueError(f"compile must be True or False; got {self.compile!r:.99}")
        if self.batch_size > _LARGEST_BATCH:
            raise ValueError(
                f"batch_size must be at most {_LARGEST_BATCH:,}; got {self.batch_size}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay must be finite and not negative; got {self.weight_decay}"
            )
        if self.warmup_steps > self.num_steps:
            reached = self.num_steps / self.warmup_steps * self.learning_rate
            warnings.warn(
                f"the warm-up of {self.warmup_steps:,} steps is longer than the training of "
                f"{self.num_steps:,}: the learning rate gets to {reached:.2g} of "
                f"{self.learning_rate:g}. Use fewer warmup_steps, or more num_steps",
                stacklevel=3,
            )
