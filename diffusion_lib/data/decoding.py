"""The pictures of a folder, decoded once into a file that is mapped into memory.

The file lies beside the folder, in the user's cache folder, or in a folder of choice.  A digest
beside it says which files it was made of; it is made again when they have changed.
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

from diffusion_lib import rng
from diffusion_lib.data import pictures
from diffusion_lib.data.images import Images
from diffusion_lib.data.pictures import SkippedFile
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar

# Errors of a place where nothing can be written.
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


class Job(NamedTuple):
    """Pictures to decode, and the form they take."""

    path: Path
    names: list[str]  # relative to `path`, sorted
    shape: tuple[int, ...]  # (C, H, W)
    background: tuple[int, ...]  # red, green, blue


class Decoded(NamedTuple):
    """Decoded pictures."""

    images: Images  # mapped, in an order that mixes the classes
    skipped: list[SkippedFile]
    dark_pictures: list[str]  # names of pictures that are nearly black in 16 bits
    is_new: bool = False  # decoded by this call


def load_or_decode(job: Job, cache: Path | None) -> Decoded:
    """Read what was decoded of exactly these files, or decode them.

    Args:
        job: pictures to decode.
        cache: folder for the decoded pictures.  None: beside them, or else in the user's cache
            folder, with a warning.

    Raises:
        OSError: nowhere to write; the message says where it was tried.
    """
    digest, places, failures = _digest(job), _places(job, cache), []
    for place in places:
        if decoded := _read(place, job.shape, digest):
            return decoded
    for place in places:
        try:
            decoded = _decode_once(job, place, digest)
        except OSError as error:
            failures.append(f"{place} ({error})")
            if error.errno in _NOT_WRITABLE:
                continue
            break
        if failures:
            warnings.warn(
                f"could not write {failures[0]}: the pictures were decoded into {place}. "
                "data.folder(..., cache=FOLDER) chooses another place",
                stacklevel=3,
            )
        return decoded
    raise OSError(
        f"could not decode {job.path} into {', nor into '.join(failures)}. Free some space or "
        "repair what the message names, then try again, or choose a folder for the decoded "
        "pictures: data.folder(..., cache=FOLDER)"
    )


def _digest(job: Job) -> str:
    """Hash all that the decoded pictures depend on, except their shape."""
    # "2": pictures decoded before there was a background are decoded again.
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
    """List the folders that may hold the decoded pictures, the best one first."""
    path, suffix = job.path.resolve(), "x".join(map(str, job.shape))
    # In a shared place, folders of equal names must not collide.
    unique = f".{path.name[:40]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}-{suffix}"
    if cache is not None:
        with suppress(RuntimeError):  # "~" of an unknown user
            cache = cache.expanduser()
        return [cache.absolute() / unique]
    places = [path.with_name(f".{path.name}-{suffix}")] if path.name else []
    with suppress(RuntimeError):  # a user without a home
        usual = {"win32": "~/AppData/Local", "darwin": "~/Library/Caches"}
        user = os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform, "~/.cache")
        places.append(Path(user).expanduser() / "diffusion_lib" / unique)
    return places


def _read(place: Path, shape: tuple[int, ...], digest: str) -> Decoded | None:
    """Read what was decoded of exactly these files, if it is there and whole."""
    try:
        about = json.loads((place / "about.json").read_text())
        if about["made of"] != digest:
            return None
        skipped = [SkippedFile(name, reason, True) for name, reason in about["broken"].items()]
        skipped += [SkippedFile(name, reason, False) for name, reason in about["not read"].items()]
        # Copy on write: torch requires writable memory, and the file must not change.
        pixels = np.load(place / "images.npy", mmap_mode="c")
        labels = np.load(place / "labels.npy")
        form = pixels.dtype, pixels.shape, labels.dtype, labels.ndim
        whole = form == (np.uint8, (len(labels) + len(skipped), *shape), np.int64, 1)
        if not whole or not np.array_equal(np.unique(labels), np.arange(len(about["classes"]))):
            return None
        images = Images(torch.from_numpy(pixels)[: len(labels)], torch.from_numpy(labels))
        images.classes = (*about["classes"],)
        return Decoded(images, skipped, [*about["dark"]])
    except Exception:  # a damaged file can lead to any of them
        return None


def _decode_once(job: Job, place: Path, digest: str) -> Decoded:
    """Decode into a folder, or wait until another process has done so."""
    lock = place.with_name(f"{place.name}.lock")
    while True:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        with files.lock(lock) as is_locked:
            # Another process may have finished between the first look and the lock.
            if decoded := _read(place, job.shape, digest):
                return decoded
            if is_locked:
                failure = OSError(
                    "what was just decoded cannot be read again: this disk does not map files into "
                    "memory, or something else has changed that folder"
                )
                try:
                    _decode(job, place, digest)
                except OSError as error:
                    failure = error
                # Also after an error: on a disk without locks another process may have been faster.
                if decoded := _read(place, job.shape, digest):
                    return decoded._replace(is_new=True)
                raise failure
        time.sleep(0.5)  # until the other process has decoded them


def _decode(job: Job, place: Path, digest: str) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(job.names), *job.shape)}
    names, skipped, dark = [], [], []
    for leftover in place.parent.glob(f"{glob.escape(place.name)}.*part"):
        if not _is_alive(leftover.name.removesuffix(".part").rpartition(".")[2]):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = place.with_name(f"{place.name}.{os.getpid()}.part")
    temporary.mkdir()
    try:
        # Written, not mapped: a full disk raises an error, and nothing open is renamed.
        with (temporary / "images.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            _reserve(file, file.tell() + math.prod(header["shape"]))
            # In this order, so that the first few are a fair sample of all classes.
            order: list[int] = rng.permutation(len(job.names), 0).tolist()
            for name in Bar([job.names[i] for i in order], f"decoding {job.path.name}"):
                try:
                    raw = (job.path / name).read_bytes()
                    picture = pictures.decode(raw, job.shape, job.background)
                except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
                    skipped.append(SkippedFile(name, error.strerror or str(error), False))
                except OSError as error:  # of the disk
                    error.filename = str(job.path / name)
                    raise
                except ValueError as error:
                    is_broken = not isinstance(error, pictures.UnsupportedError)
                    skipped.append(SkippedFile(name, str(error), is_broken))
                else:
                    file.write(picture.pixels.tobytes())
                    names.append(name)
                    dark += [name] if picture.is_dark else []
            file.flush()
            os.fsync(file.fileno())
        # A class is the first folder of a relative path, "" if it is in none.
        folders = [name.rpartition("/")[0].partition("/")[0] for name in names]
        numbers = {folder: k for k, folder in enumerate(sorted(set(folders)))}
        np.save(temporary / "labels.npy", np.array([numbers[f] for f in folders], np.int64))
        about = {
            "made of": digest,
            "classes": [*numbers],
            "dark": sorted(dark),
            "broken": {file.name: file.reason for file in sorted(skipped) if file.is_broken},
            "not read": {file.name: file.reason for file in sorted(skipped) if not file.is_broken},
        }
        (temporary / "about.json").write_text(json.dumps(about, indent=1))
        shutil.rmtree(place, ignore_errors=True)  # decoded before a file changed
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    """Tell whether another process may be alive, which matters on disks without locks alone."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    if os.name != "posix":  # elsewhere os.kill ends it
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        pass
    return True


def _reserve(file: IO[bytes], size: int) -> None:
    """Give a file its size at once, so that a full disk is noticed before the work."""
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise  # else the disk cannot reserve, and a later write says that it is full
