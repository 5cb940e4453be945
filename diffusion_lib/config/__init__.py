"""Experiments, presets and budgets, and the names that functions go by."""

from diffusion_lib.config.experiment import LOSSES, Experiment, without_runtime_fields
from diffusion_lib.config.presets import (
    BUDGETS,
    CIFAR10,
    CIFAR10_LABELS,
    CIFAR10_SMALL,
    FASHION_MNIST,
    MNIST,
    MNIST_BEST,
    MNIST_DIFFUSERS,
    MNIST_LABELS,
    PRESETS,
    UNET32,
    UNET64,
    budget,
    data_root,
    full,
    quick,
    read,
    runs_root,
    shorten,
    smoke,
)
from diffusion_lib.config.registry import choices, label, lookup
from diffusion_lib.system.device import default_device as device
