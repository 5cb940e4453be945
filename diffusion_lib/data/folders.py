"""The pictures of a folder as a data set, decoded once into a file that is mapped into memory."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any

from diffusion_lib.data import decoding, pictures
from diffusion_lib.data.images import Images
from diffusion_lib.data.pictures import SkippedFile


def warn_on_broken(skipped: Sequence[SkippedFile]) -> None:
    """Warn of files that cannot be read, and leave them out."""
    if skipped:
        warnings.warn(f"{_describe(skipped)}; left out", stacklevel=3)


def raise_on_broken(skipped: Sequence[SkippedFile]) -> None:
    """Refuse a folder with files that cannot be read.

    Raises:
        ValueError: there are some.
    """
    if skipped:
        raise ValueError(
            f"{_describe(skipped)}. Repair, convert or remove them, or use data.warn_on_broken"
        )


def folder(
    path: str | Path,
    size: int | Sequence[int],
    channels: int = 3,
    broken: Callable[[Sequence[SkippedFile]], None] = warn_on_broken,
    background: int | Sequence[int] = 255,
    cache: str | Path | None = None,
) -> Images:
    """Decode all pictures under a folder to uint8 [N, channels, height, width].

    The first folder below `path` that a picture lies in is its class; the class of pictures in
    `path` itself is "".  Classes are numbered by alphabet, and `.classes` holds their names.  The
    order is fixed and mixes the classes.

    Formats are PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF and TGA.  Each picture is
    scaled until it covers `size`, and the middle is cut out.  Pictures with more than 16 bits per
    channel or 89 million pixels cannot be read.  Hidden files and folders (".name") and those of
    systems (__MACOSX, @eaDir) are ignored.

    Decoding happens once, into a folder ".NAME-CxHxW" beside `path` or else in the user's cache
    folder, and again when a file or the background has changed.  A line on stderr sums it up.

    Args:
        path: folder of pictures, at any depth.
        size: (height, width) in pixels, or one number for a square.
        channels: 3 for colors, 1 for the luminance.
        broken: function that receives the files that cannot be read, sorted by name:
            `warn_on_broken` or `raise_on_broken`.
        background: color behind transparent parts: a gray level, 0..255, or (red, green, blue).
        cache: folder for the decoded pictures.

    Raises:
        FileNotFoundError: no such folder, or no picture in it that can be read.
        TypeError: `broken` is no function.
        ValueError: an impossible size, background or number of channels; with `raise_on_broken`,
            files that cannot be read.
        OSError: the decoded pictures could not be written; the message says where.
    """
    path = Path(path)
    depth, sides = _whole_numbers([channels], 1, 1, 3), _whole_numbers(size, 2, 1, 65535)
    if len(sides) != 2 or depth not in ((1,), (3,)):
        raise ValueError(
            "size must be a whole number in 1..65535, or (height, width), and channels 1 or 3; got "
            f"{size!r:.99} and {channels!r:.99}"
        )
    color = _whole_numbers(background, 3, 0, 255)
    if len(color) != 3:
        expected = "a gray level, 0..255, or (red, green, blue)"
        raise ValueError(f"background must be {expected}; got {background!r:.99}")
    if not callable(broken):  # it is called after the decoding, which takes long
        raise TypeError(
            f"broken must be a function, such as data.raise_on_broken; got {broken!r:.99}"
        )
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: give one with pictures in it")
    listing = pictures.find(path)
    if not listing.names:
        others = f"; files of other kinds: {_counts(listing.others)}" if listing.others else ""
        skipped = f"; {_describe(listing.skipped)}" if listing.skipped else ""
        raise FileNotFoundError(
            f"{path} holds no pictures (files such as .png, .jpg, .webp){others}{skipped}"
        )
    job = decoding.Job(path, listing.names, (*depth, *sides), color)
    decoded = decoding.load_or_decode(job, None if cache is None else Path(cache))
    images, skipped = decoded.images, sorted(decoded.skipped + listing.skipped)
    if decoded.is_new:
        line = _summarize(images, skipped, listing.others)
        with suppress(Exception):  # a stream that is closed
            print(f"{_printable(path.resolve().name)}: {line}", file=sys.stderr)
    broken(skipped)
    if decoded.dark_pictures:
        warnings.warn(
            "nearly black, because no value reaches an eighth of the range of 16 bits: "
            f"{_first_five(decoded.dark_pictures)}. If they hold 12 bits, multiply them by 16",
            stacklevel=2,
        )
    if not len(images.images):
        raise FileNotFoundError(
            f"none of the {len(listing.names)} pictures in {path} can be read: "
            f"{_first_five(skipped)}"
        )
    return images


def _whole_numbers(value: Any, count: int, low: int, high: int) -> tuple[int, ...]:
    """Return `count` whole numbers in low..high, given them or one for all; () if they are not."""
    numbers = list(value) if isinstance(value, list | tuple) else [value] * count
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in numbers)
    valid = len(numbers) == count and whole and all(low <= n <= high for n in numbers)
    return tuple(map(int, numbers)) if valid else ()


def _describe(skipped: Sequence[SkippedFile]) -> str:
    """Name the files that are broken, and those that cannot be used."""
    parts = []
    if broken := [file for file in skipped if file.is_broken]:
        parts.append(f"{_plural(len(broken), 'broken image')}: {_first_five(broken)}")
    if others := [file for file in skipped if not file.is_broken]:
        parts.append(f"{_plural(len(others), 'image')} that cannot be used: {_first_five(others)}")
    return "; ".join(parts)


def _summarize(images: Images, skipped: Sequence[SkippedFile], others: Mapping[str, int]) -> str:
    """Count what was decoded and what was left out, in one line."""
    line, classes = _plural(len(images.labels), "picture"), images.classes
    if any(classes):
        counts = dict(zip(classes, images.labels.bincount().tolist(), strict=True))
        line += f" of {_plural(len(classes), 'class', 'es')} ({_counts(counts)})"
    broken = sum(file.is_broken for file in skipped)
    other = (sum(others.values()), f"of other kinds ({_counts(others)})")
    parts = ((broken, "broken"), (len(skipped) - broken, "that cannot be used"), other)
    reasons = ", ".join(f"{n:,} {reason}" for n, reason in parts if n)
    return f"{line}; left out: {reasons}" if reasons else line


def _counts(counts: Mapping[str, int]) -> str:
    return _first_five([f"{name or 'no folder'} {n}" for name, n in counts.items()])


def _first_five(items: Sequence[Any]) -> str:
    more = f" and {len(items) - 5:,} more" if len(items) > 5 else ""
    return _printable(", ".join(map(str, items[:5]))) + more


def _plural(n: int, noun: str, ending: str = "s") -> str:
    return f"{n:,} {noun}{'' if n == 1 else ending}"


def _printable(text: str) -> str:
    """Escape what is no character, or would move the cursor, in the name of a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
