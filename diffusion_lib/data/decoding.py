"""The pictures of a folder, decoded once into a file that is mapped into memory.

The file lies beside the folder, in the user's cache folder, or in a folder of choice.  A record
beside it says what it was made of; it is made again when that has changed.
"""

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import rng
from diffusion_lib.data import pictures
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar

# Errors of a place where nothing can be written at all.
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


class Job(NamedTuple):
    """Which pictures are decoded, and how."""

    path: Path
    names: list[str]  # relative to `path`, sorted
    shape: tuple[int, int, int]  # (C, H, W)
    background: tuple[int, int, int]  # red, green, blue


class Decoded(NamedTuple):
    """Decoded pictures, in an order that mixes the classes."""

    images: Tensor  # uint8 [N, C, H, W], mapped
    labels: Tensor  # int64 [N]
    classes: tuple[str, ...]  # by alphabet: class k has the name classes[k]
    broken: dict[str, str]  # names of damaged files, and why they cannot be decoded
    unread: dict[str, str]  # the same for files that may be intact
    dark: list[str]  # names of pictures that are nearly black in 16 bits


def load_or_decode(job: Job, cache: Path | None) -> tuple[Decoded, bool]:
    """Read what was decoded of just these files, or decode them; say whether they were decoded now.

    Args:
        cache: folder for the decoded pictures.  None: beside them, or else in the user's cache
            folder, with a warning.

    Raises:
        OSError: nowhere to write; the message says where it was tried.
    """
    digest, places, refusals = _digest(job), _places(job, cache), []
    for place in places:
        if decoded := _read(place, job.shape, digest):
            return decoded, False
    for place in places:
        try:
            decoded, is_new = _decode_once(job, place, digest)
        except OSError as error:
            refusals.append(f"{place} ({error})")
            if error.errno in _NOT_WRITABLE:
                continue
            break
        if refusals:
            warnings.warn(
                f"could not write {refusals[0]}: the pictures were decoded into {place}. "
                "data.folder(..., cache=FOLDER) chooses another place",
                stacklevel=3,
            )
        return decoded, is_new
    raise OSError(
        f"could not decode {job.path} into {', nor into '.join(refusals)}. Free some space or "
        "repair what the message names, then try again, or choose a folder for the decoded "
        "pictures: data.folder(..., cache=FOLDER)"
    )


def _digest(job: Job) -> str:
    """Summarize all that the decoded pictures depend on, beside their shape."""
    # "2": what was decoded before there was a background is decoded again.
    digest = hashlib.sha256(f"2 {job.background}\n".encode())
    for name in job.names:
        try:
            stat = (job.path / name).stat()
            state = f"{stat.st_size} {stat.st_mtime_ns} {os.access(job.path / name, os.R_OK)}"
        except OSError as error:
            state = str(error.errno)
        digest.update(f"{name} {state}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _places(job: Job, cache: Path | None) -> list[Path]:
    """List where the decoded pictures may lie, the best place first."""
    path, suffix = job.path.resolve(), "x".join(map(str, job.shape))
    # Far from the pictures, folders of one name must not meet.
    far = f".{path.name[:40]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}-{suffix}"
    if cache is not None:
        if str(cache).startswith("~"):  # of no user that is known
            with suppress(RuntimeError):
                cache = cache.expanduser()
        return [cache.absolute() / far]
    places = [path.with_name(f".{path.name}-{suffix}")] if path.name else []
    with suppress(RuntimeError):  # a user without a home
        usual = {"win32": "~/AppData/Local", "darwin": "~/Library/Caches"}
        user = os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform, "~/.cache")
        places.append(Path(user).expanduser() / "diffusion_lib" / far)
    return places


def _read(place: Path, shape: tuple[int, int, int], digest: str) -> Decoded | None:
    """Read what was decoded of just these files, if it is there and whole."""
    try:
        about = json.loads((place / "about.json").read_text())
        if about["made of"] != digest:
            return None
        classes, broken, unread = about["classes"], about["broken"], about["not read"]
        # Copy on write: torch asks for memory that may be written; the file must stay as it is.
        images = np.load(place / "images.npy", mmap_mode="c")
        labels = np.load(place / "labels.npy")
        rows = len(labels) + len(broken) + len(unread)
        whole = images.shape == (rows, *shape) and images.dtype == np.uint8
        whole = whole and labels.ndim == 1 and labels.dtype == np.int64
        if not whole or not np.array_equal(np.unique(labels), np.arange(len(classes))):
            return None
        pixels = torch.from_numpy(images)[: len(labels)]
        return Decoded(
            pixels, torch.from_numpy(labels), (*classes,), {**broken}, {**unread}, [*about["dark"]]
        )
    except Exception:  # whatever a damaged file leads to
        return None


def _decode_once(job: Job, place: Path, digest: str) -> tuple[Decoded, bool]:
    """Decode into a folder, or wait until another process has done so."""
    lock = place.with_name(f"{place.name}.lock")
    while True:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        with files.lock(lock) as mine:
            # Another process may have finished between the look and the lock.
            if decoded := _read(place, job.shape, digest):
                return decoded, False
            if mine:
                try:
                    _decode(job, place, digest)
                except OSError:  # on a disk without locks another process may have been faster
                    if decoded := _read(place, job.shape, digest):
                        return decoded, False
                    raise
                if decoded := _read(place, job.shape, digest):
                    return decoded, True
                raise OSError(
                    "what was just decoded cannot be read again: this disk does not map files into "
                    "memory, or something else has changed that folder"
                )
        time.sleep(0.5)  # until the other process has decoded them


def _decode(job: Job, place: Path, digest: str) -> None:
    path, names, (channels, height, width) = job.path, job.names, job.shape
    # In this order, so that the first few are a fair sample of all classes.
    order: list[int] = rng.permutation(len(names), 0).tolist()
    mixed = [names[i] for i in order]
    whole = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *job.shape)}
    read, broken, unread, dark = [], {}, {}, []
    for old in place.parent.glob(f"{glob.escape(place.name)}.*part"):
        if not _is_at_work(old):
            shutil.rmtree(old, ignore_errors=True)
    work = place.with_name(f"{place.name}.{os.getpid()}.part")
    work.mkdir()
    try:
        # Written, not mapped: a full disk raises an error, and nothing open is renamed.
        with (work / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, whole)
            _reserve(file, file.tell() + math.prod(whole["shape"]))
            for name in Bar(mixed, f"decoding {path.name}"):
                try:
                    raw = _read_bytes(path / name)
                    picture = pictures.decode(raw, (height, width), channels, job.background)
                except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
                    unread[name] = error.strerror
                except pictures.UnsupportedError as error:
                    unread[name] = str(error)
                except ValueError as error:
                    broken[name] = str(error)
                else:
                    file.write(picture.pixels.tobytes())
                    read.append(name)
                    dark += [name] if picture.dark else []
            file.flush()
            os.fsync(file.fileno())
        classes = sorted({_class(name) for name in read})
        numbers = {name: k for k, name in enumerate(classes)}
        labels = np.array([numbers[_class(name)] for name in read], np.int64)
        np.save(work / "labels.npy", labels)
        about = {"made of": digest, "classes": classes, "dark": sorted(dark)}
        about |= {"broken": dict(sorted(broken.items())), "not read": dict(sorted(unread.items()))}
        (work / "about.json").write_text(json.dumps(about, indent=1))
        shutil.rmtree(place, ignore_errors=True)  # of files that have changed since
        work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_at_work(work: Path) -> bool:
    """Tell whether the process of a folder that is being filled may be alive: its name has the pid.

    It matters on disks without locks alone.
    """
    pid = work.name.removesuffix(".part").rpartition(".")[2]
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    if os.name != "posix":  # to ask there would be to end it
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _read_bytes(path: Path) -> bytes:
    """Read a file; an error of the disk names it too."""
    try:
        return path.read_bytes()
    except OSError as error:
        error.filename = str(path)
        raise


def _reserve(file: IO[bytes], size: int) -> None:
    """Give a file its size at once, so that a full disk is noticed before the work."""
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise  # else the disk cannot reserve, and a later write says that it is full


def _class(name: str) -> str:
    """Take the first folder of a relative path, "" if it is in none."""
    return name.rpartition("/")[0].partition("/")[0]
