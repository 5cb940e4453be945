"""The pictures of a folder, decoded once into a file that is mapped into memory.

The file lies beside the folder, in the user's cache folder, or in a folder of choice.  A digest
beside it says which files it was made of; it is made again when they have changed.
"""

import hashlib
import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from diffusion_lib import rng
from diffusion_lib.data import pictures
from diffusion_lib.data.images import Images
from diffusion_lib.data.pictures import SkippedFile
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar


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
    is_new: bool = False  # decoded by this call


def load_or_decode(job: Job, cache: str | Path | None) -> Decoded:
    """Read what was decoded of exactly these files, or decode them.

    Args:
        job: pictures to decode.
        cache: folder for the decoded pictures.  None: beside them, or in the user's cache folder
            where nothing can be written beside them.

    Raises:
        OSError: a picture could not be read, or the decoded ones not be written.
    """
    digest, place = _digest(job), _place(job, cache)
    with suppress(Exception):  # absent, damaged or of other files
        return _read(place, job.shape, digest)
    shutil.rmtree(place, ignore_errors=True)
    try:
        with files.atomic_folder(place) as temporary:
            _decode(job, temporary, digest)
    except OSError as error:
        with suppress(Exception):  # another process may have been faster
            return _read(place, job.shape, digest)
        error.add_note("data.folder(..., cache=FOLDER) decodes the pictures into another folder.")
        raise
    return _read(place, job.shape, digest)._replace(is_new=True)


def _digest(job: Job) -> str:
    """Hash all that the decoded pictures depend on, except their shape."""
    # "3": the format of what is decoded.
    digest = hashlib.sha256(f"3 {job.background}\n".encode())
    for name in job.names:
        stat = (job.path / name).stat()
        state = f"{stat.st_size} {stat.st_mtime_ns} {os.access(job.path / name, os.R_OK)}"
        digest.update(f"{name} {state}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _place(job: Job, cache: str | Path | None) -> Path:
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


def _read(place: Path, shape: tuple[int, ...], digest: str) -> Decoded:
    """Read what was decoded of exactly these files.

    Raises:
        ValueError: it is of others.
    """
    about = json.loads((place / "about.json").read_text())
    # Copy on write: torch requires writable memory, and the file must not change.
    pixels = np.load(place / "images.npy", mmap_mode="c")
    labels = torch.from_numpy(np.load(place / "labels.npy"))
    if about["made of"] != digest or pixels.shape[1:] != shape:
        raise ValueError(f"{place} was made of other pictures")
    images = Images(torch.from_numpy(pixels)[: len(labels)], labels)
    images.classes = (*about["classes"],)
    return Decoded(images, [SkippedFile(*file) for file in about["skipped"]])


def _decode(job: Job, folder: Path, digest: str) -> None:
    """Write the pixels, labels and names of all pictures that can be read."""
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
