"""Experiments, presets and budgets, and the names that functions go by."""

from diffusion_lib.config.experiment import LOSSES, Experiment, trained
from diffusion_lib.config.presets import (
    BUDGETS,
    CIFAR10,
    FASHION_MNIST,
    MNIST,
    MNIST_DIFFUSERS,
    MNIST_FAST,
    MNIST_LABELS,
    PRESETS,
    budget,
    data_root,
    full,
    quick,
    runs_root,
    shorten,
    smoke,
)
from diffusion_lib.config.registry import choose, label, resolve
from diffusion_lib.system.device import default_device as device
