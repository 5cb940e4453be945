"""The pictures of a folder as a data set, decoded once into a file that is mapped into memory.

The file lies beside the folder, in the user's cache folder, or in a folder of choice.  A digest
beside it says which files it was made of; it is made again when they have changed.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion_lib import rng
from diffusion_lib.data import pictures
from diffusion_lib.data.images import Images
from diffusion_lib.data.pictures import SkippedFile
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar


class _Job(NamedTuple):
    """Pictures to decode, and the form they take."""

    path: Path
    names: list[str]  # relative to `path`, sorted
    shape: tuple[int, ...]  # (C, H, W)
    background: tuple[int, ...]  # red, green, blue


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
    job = _Job(path, names, (int(channels), *sides), color)
    digest, place = _digest(job), _place(job, cache)
    decoded = None
    with suppress(Exception):  # absent, damaged or of other files
        decoded = _read(place, digest)
    images, skipped = decoded or _decode(job, place, digest)
    skipped = sorted(skipped + unreadable)
    if decoded is None:
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


def _digest(job: _Job) -> str:
    """Hash all that the decoded pictures depend on, except their shape."""
    digest = hashlib.sha256(f"3 {job.background}\n".encode())  # 3: of the format
    for name in job.names:
        stat = (job.path / name).stat()
        state = f"{stat.st_size} {stat.st_mtime_ns} {os.access(job.path / name, os.R_OK)}"
        digest.update(f"{name} {state}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _place(job: _Job, cache: str | Path | None) -> Path:
    """Choose the folder of the decoded pictures."""
    path, suffix = job.path.resolve(), "x".join(map(str, job.shape))
    place = path.with_name(f".{path.name}-{suffix}")
    if cache is None:
        if place.exists() or os.access(path.parent, os.W_OK):
            return place
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "diffusion_lib")
    # In a shared place, folders of equal names must not collide.
    unique = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return Path(cache).expanduser().absolute() / f".{path.name[:40]}-{unique}-{suffix}"


def _read(place: Path, digest: str) -> tuple[Images, list[SkippedFile]]:
    """Read what was decoded of exactly these files, or raise."""
    about = json.loads((place / "about.json").read_text())
    # Copy on write: torch requires writable memory, and the file must not change.
    pixels = np.load(place / "images.npy", mmap_mode="c")
    labels = torch.from_numpy(np.load(place / "labels.npy"))
    if about["made of"] != digest:
        raise ValueError(f"{place} was made of other pictures")
    images = Images(torch.from_numpy(pixels)[: len(labels)], labels)
    images.classes = (*about["classes"],)
    return images, [SkippedFile(*file) for file in about["skipped"]]


def _decode(job: _Job, place: Path, digest: str) -> tuple[Images, list[SkippedFile]]:
    """Decode into a new folder, and read it."""
    shutil.rmtree(place, ignore_errors=True)
    try:
        with files.atomic_folder(place) as temporary:
            _write(job, temporary, digest)
    except OSError as error:
        with suppress(Exception):  # another process may have been faster
            return _read(place, digest)
        error.add_note("data.folder(..., cache=FOLDER) decodes the pictures into another folder.")
        raise
    return _read(place, digest)


def _write(job: _Job, folder: Path, digest: str) -> None:
    """Write the pixels and labels of all pictures that can be read."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(job.names), *job.shape)}
    names, skipped = [], []
    # Written, not mapped: so a full disk raises an error.
    with (folder / "images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + math.prod(header["shape"])
        # In this order, so that the first few are a fair sample of all classes.
        order: list[int] = rng.permutation(len(job.names), 0).tolist()
        for name in Bar([job.names[i] for i in order], f"decoding {job.path.name}"):
            try:
                raw = (job.path / name).read_bytes()  # any other OSError is one of the disk
                file.write(pictures.decode(raw, job.shape, job.background).tobytes())
                names.append(name)
            except PermissionError as error:
                skipped.append(SkippedFile(name, str(error.strerror)))
            except ValueError as error:
                skipped.append(SkippedFile(name, str(error)))
        file.truncate(size)  # with rows for those that were skipped
    # A class is the first folder of a relative path, "" if it is in none.
    folders = [name.rpartition("/")[0].partition("/")[0] for name in names]
    classes, labels = np.unique(folders, return_inverse=True)
    np.save(folder / "labels.npy", labels.astype(np.int64))
    about = {"made of": digest, "classes": classes.tolist(), "skipped": sorted(skipped)}
    (folder / "about.json").write_text(json.dumps(about, indent=1))
