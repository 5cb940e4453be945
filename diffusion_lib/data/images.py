"""Images as one uint8 tensor [N, C, H, W], and the scale [-1, 1] that networks work in."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_lib.system import parallel


class _Pair(NamedTuple):
    images: Tensor  # uint8, [N, C, H, W]
    labels: Tensor  # int64, [N]


class Images(_Pair):
    """A data set in memory: a pair of images and labels, with the names of the classes."""

    classes: tuple[str, ...] = ()  # class k has the name classes[k]; () for one without names


Dataset = Callable[[str | Path, bool], Images]


def load(dataset: Dataset, root: str | Path, train: bool) -> Images:
    """Return a part of a data set as `Images`, also where its function returns a plain pair."""
    part = dataset(root, train)
    images = Images(*images_and_labels(part))
    images.classes = getattr(part, "classes", ())
    return images


def load_splits(dataset: Dataset, root: str | Path) -> tuple[Images, Images]:
    """Return the images to train and to test on; only rank 0 downloads them."""
    splits: list[Images] = []

    def read() -> None:
        splits.extend(load(dataset, root, train) for train in (True, False))

    parallel.on_rank_zero(read)
    if not splits:  # on another rank
        read()
    train, test = splits
    return train, test


def images_and_labels(images: Any) -> tuple[Tensor, Any]:
    """Return a tensor of images, without a copy where possible, and their labels or None.

    `images` is a tensor or array, or a pair of one and its labels, such as `Images`.
    """
    labels = None
    is_batch = isinstance(images, list) and len(images) == 2 and getattr(images[0], "ndim", 0) == 4
    if is_batch or (isinstance(images, tuple) and len(images) == 2):  # a DataLoader's is a list
        images, labels = images
    if isinstance(images, np.ndarray) and images.dtype.kind in "biuf":
        with warnings.catch_warnings():  # of a read-only array: nothing here writes
            warnings.simplefilter("ignore", UserWarning)
            native = images.dtype.newbyteorder("=")
            images = torch.from_numpy(np.ascontiguousarray(images, native))
    if isinstance(images, Tensor):
        return images, labels
    raise TypeError(
        "images must be one tensor or array, uint8 [N, C, H, W], or a pair of it and its labels; "
        f"got {type(images).__name__}. {_way_out(images)}"
    )


def _way_out(images: Any) -> str:
    """Say how to make images of something else."""
    if isinstance(images, str | Path):
        return f"data.folder({str(images)!r}, size=32) reads the pictures of a folder."
    if isinstance(images, torch.utils.data.DataLoader):
        return "Give all at once: data.to_uint8(torch.cat([x for x, _ in loader])) if in [-1, 1]."
    if isinstance(images, torch.utils.data.Dataset):
        return (
            "Give all at once, such as data.Images(torch.as_tensor(dataset.data)[:, None], "
            "dataset.targets) of torchvision's MNIST, or use data.mnist."
        )
    if isinstance(images, list) and images and isinstance(images[0], list | tuple):
        return "Try data.Images(torch.stack([x for x, _ in images]), [y for _, y in images])."
    return "torch.stack(images) or np.stack(images) makes one of a list of equal ones."


def as_tensor(images: Any) -> Tensor:
    """Return the images of whatever `images_and_labels` takes."""
    return images_and_labels(images)[0]


def check(images: Any, shape: Sequence[int] | None = None) -> Tensor:
    """Return images as a uint8 tensor [N, C, H, W] with N >= 1, or raise.

    `images` are what `images_and_labels` takes; `shape` is the (C, H, W) that they must have, or
    None for any.
    """
    images = as_tensor(images)
    if images.dtype != torch.uint8:
        way = "images.to(torch.uint8) makes that of values in 0..255."
        if images.is_floating_point():
            way = "data.to_uint8 turns float images in [-1, 1] into that."
        raise TypeError(f"images must be uint8 in 0..255; got {images.dtype}. {way}")
    if shape is None and images.ndim != 4:
        raise ValueError(f"images must have the shape [N, C, H, W]; got {list(images.shape)}")
    if shape is not None and images.shape[1:] != tuple(shape):
        c, h, w = shape
        way = "Give other images, or another image_shape."
        if images.shape[1:] == (h, w, c):
            way = "Their channels come last: images.permute(0, 3, 1, 2) puts them first."
        elif images.shape[1:] == (h, w) and c == 1:
            way = "Their channel is missing: images[:, None] adds it."
        raise ValueError(
            f"images must have the shape [N, {', '.join(map(str, shape))}] that the network was "
            f"built for; got {list(images.shape)}. {way}"
        )
    if len(images) == 0:
        raise ValueError(f"there are no images: the tensor has shape {list(images.shape)}")
    return images


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 0..255 to float32 [-1, 1], the scale of every network and sampler."""
    return as_tensor(images).float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Convert float [-1, 1] to uint8 0..255, rounded and clipped; the inverse of `to_float`."""
    x = as_tensor(x)
    if not x.isfinite().all():
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        raise ValueError(
            f"{bad} of {len(x)} images hold NaN or infinity: the training of their denoiser has "
            "diverged, or its weights are damaged"
        )
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def check_labels(
    labels: Tensor | Sequence[int] | None, classes: int, n: int | None = None
) -> Tensor:
    """Convert a tensor, array or list of labels to int64 [n]; n = None takes any number of them.

    Raises:
        ValueError: no labels, or not n of them; no whole numbers in 0..classes - 1.
    """
    if labels is None:
        raise ValueError(
            "this network is trained on labels: give data.Images(images, labels), as the functions "
            "of `data` return them, in place of the images alone"
        )
    try:
        if isinstance(labels, np.ndarray):
            array: Any = labels
            labels = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        elif not isinstance(labels, Tensor):
            labels = torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"labels must be whole numbers in 0..{classes - 1}, one for each image: a tensor, an "
            f"array or a list; got {labels!r:.60} ({error})"
        ) from error
    fraction = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    whole = labels if fraction else labels.long()
    if fraction or whole.ndim != 1 or not len(whole) or whole.min() < 0 or whole.max() >= classes:
        raise ValueError(
            f"labels must be whole numbers in 0..{classes - 1}, one for each image; got "
            f"{labels.dtype} {str(labels.tolist())[:60]}"
        )
    if n is not None and len(whole) != n:
        raise ValueError(f"{len(whole)} labels for {n} images; one each is needed")
    return whole
