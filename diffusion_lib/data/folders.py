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

_UNREAD = "(not read: "  # the reason beside the name of a file that is not broken


def warn_on_broken(names: Sequence[str]) -> None:
    """Go on without the images that cannot be read."""
    if names:
        warnings.warn(f"{_describe(names)}; left out", stacklevel=3)


def raise_on_broken(names: Sequence[str]) -> None:
    """Stop at images that cannot be read.

    Raises:
        ValueError: there are some.
    """
    if names:
        raise ValueError(
            f"{_describe(names)}. Repair, convert or remove them, or use data.warn_on_broken"
        )


def folder(
    path: str | Path,
    size: int | Sequence[int],
    channels: int = 3,
    broken: Callable[[Sequence[str]], None] = warn_on_broken,
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
        broken: called with "NAME (REASON)" of each file that cannot be read: `warn_on_broken` or
            `raise_on_broken`.
        background: what shows through transparent parts: a grey, 0..255, or (red, green, blue).
        cache: folder for the decoded pictures.

    Raises:
        FileNotFoundError: no such folder, or no picture that can be read in it.
        TypeError: `broken` is no function.
        ValueError: a size, number of channels or background that no picture has; pictures that
            cannot be read, with `raise_on_broken`.
        OSError: the decoded pictures could not be written; the message says where.
    """
    path = Path(path)
    shape, color = _shape(size, channels), _color(background)
    if not callable(broken):  # else found out after the work
        raise TypeError(
            f"broken must be a function, such as data.raise_on_broken; got {broken!r:.99}"
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
