"""Data sets as uint8 tensors, pictures of a folder, and batches in [-1, 1]."""

from diffusion_lib.data.batching import batch_indices, batches
from diffusion_lib.data.folders import folder, raise_on_broken, warn_on_broken
from diffusion_lib.data.images import (
    Dataset,
    Images,
    as_tensor,
    check,
    check_labels,
    images_and_labels,
    load,
    load_splits,
    to_float,
    to_uint8,
)
from diffusion_lib.data.sets import cifar10, cifar10_jpeg, cifar10_jpeg_grey, fashion_mnist, mnist
