"""The pictures of a folder as a data set, decoded once into a file that is mapped into memory."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffusion_lib.data import decoding, pictures
from diffusion_lib.data.images import Images
from diffusion_lib.data.pictures import SkippedFile


def warn_on_broken(skipped: Sequence[SkippedFile]) -> None:
    """Warn of files that cannot be read, and leave them out."""
    warnings.warn(f"{_describe(skipped)}; left out", stacklevel=3)


def raise_on_broken(skipped: Sequence[SkippedFile]) -> None:
    """Raise a ValueError on files that cannot be read."""
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

    Formats are PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF and TGA, with at most 16 bits
    per channel.  Each picture is scaled until it covers `size`, and the middle is cut out.  Hidden
    files and folders (".name") and those of systems (__MACOSX, @eaDir) are ignored.

    Decoding happens once, into a folder ".NAME-CxHxW" beside `path` or, where nothing can be
    written there, in the user's cache folder; and again when a file or the background has changed.
    A line on stderr sums it up.

    Args:
        path: folder of pictures, at any depth.
        size: (height, width) in pixels, or one number for a square.
        channels: 3 for colors, 1 for the luminance.
        broken: function that receives the files that cannot be read, if there are some, sorted by
            name: `warn_on_broken` or `raise_on_broken`.
        background: color behind transparent parts: a gray level, 0..255, or (red, green, blue).
        cache: folder for the decoded pictures.

    Raises:
        FileNotFoundError: no such folder, or no picture in it that can be read.
        ValueError: an impossible size, background or number of channels; with `raise_on_broken`,
            files that cannot be read.
        OSError: the decoded pictures could not be written; the message says where.
    """
    path = Path(path)
    sides = _whole_numbers("size", size, "(height, width)", range(1, 65536))
    color = _whole_numbers("background", background, "(red, green, blue)", range(256))
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 for colors or 1 for gray; got {channels!r:.99}")
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: give one with pictures in it")
    names, unreadable, others = pictures.find(path)
    if not names:
        content = [*map(str, unreadable), *_counts(others)]
        raise FileNotFoundError(
            f"{path} holds no pictures (files such as .png, .jpg, .webp), but: "
            f"{_first_five(content) or 'nothing'}"
        )
    job = decoding.Job(path, names, (int(channels), *sides), color)
    images, skipped, is_new = decoding.load_or_decode(job, cache)
    skipped = sorted(skipped + unreadable)
    if is_new:
        line = _summarize(images, skipped, others)
        with suppress(Exception):  # a stream that is closed
            print(f"{_printable(path.resolve().name)}: {line}", file=sys.stderr)
    if skipped:
        broken(skipped)
    if not len(images.labels):
        raise FileNotFoundError(
            f"none of the {len(names)} pictures in {path} can be read: {_first_five(skipped)}"
        )
    return images


def _whole_numbers(name: str, value: Any, form: str, allowed: range) -> tuple[int, ...]:
    """Return as many whole numbers as `form` has, given them or one for all."""
    count = form.count(",") + 1
    numbers = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(numbers) != count or not all(number in allowed for number in numbers):
        least, most = allowed[0], allowed[-1]
        raise ValueError(
            f"{name} must be one whole number in {least}..{most}, or {form}; got {value!r:.99}"
        )
    return tuple(map(int, numbers))


def _describe(skipped: Sequence[SkippedFile]) -> str:
    return f"images that cannot be read: {_first_five(skipped)}"


def _summarize(images: Images, skipped: Sequence[SkippedFile], others: Mapping[str, int]) -> str:
    """Count what was decoded and what was left out, in one line."""
    counts = dict(zip(images.classes, images.labels.bincount().tolist(), strict=True))
    line = f"{len(images.labels):,} pictures ({_first_five(_counts(counts))})"
    left_out = [f"{len(skipped):,} that cannot be read"] if skipped else []
    if others:
        kinds = _first_five(_counts(others))
        left_out.append(f"{sum(others.values()):,} of other kinds ({kinds})")
    return f"{line}; left out: {', '.join(left_out)}" if left_out else line


def _counts(counts: Mapping[str, int]) -> list[str]:
    return [f"{name or 'no folder'} {n}" for name, n in counts.items()]


def _first_five(items: Sequence[Any]) -> str:
    more = f" and {len(items) - 5:,} more" if len(items) > 5 else ""
    return _printable(", ".join(map(str, items[:5]))) + more


def _printable(text: str) -> str:
    """Escape what is no character, or would move the cursor, in the name of a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
