"""Files that are either whole or absent, and never executed.

Tensors are stored as safetensors: a JSON header and raw numbers, so that reading one cannot run
code.  The header has a checksum of all names, numbers and metadata, because a file with a flipped
bit is as readable as before.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows, where `lock` guards nothing
    fcntl = None

# Names of unfinished files, ours and those of safetensors (Rust's tempfile).
_TEMPORARIES = (".*.part", ".tmp??????")

# What operating systems put into folders, beside names that begin with a dot.
_SYSTEM = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"),
    *("lost+found", "thumbs.db", "desktop.ini"),
}

_CHECKSUM = "crc32"  # key of the metadata


def atomic_write(path: str | Path) -> AbstractContextManager[Path]:
    """Write a file through the yielded temporary path, which replaces `path` on success.

    A full disk, an interrupt or a crash leaves the old file as it was.
    """
    path = Path(path)
    state = f"The previous {path.name} is untouched. " if os.path.exists(path) else ""
    return _replace(path, Path.touch, state)


def atomic_folder(path: str | Path) -> AbstractContextManager[Path]:
    """Make a folder through the yielded temporary folder, which becomes `path` on success.

    A full disk, an interrupt or a crash leaves nothing behind.  A folder with something in it is a
    FileExistsError.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(
            f"{path} exists and is not an empty folder, and nothing is overwritten: choose another"
        )
    return _replace(path.resolve(), Path.mkdir, "Nothing was left there. ")


@contextmanager
def _replace(path: Path, make: Callable[[Path], None], state: str) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)  # of a killed process with the same number
        make(temporary)
        mode = temporary.stat().st_mode & 0o666  # by the umask, unlike that of safetensors
        yield temporary
        for part in (temporary, *temporary.rglob("*")):
            if part.is_file():
                with suppress(OSError):  # some disks have no modes
                    part.chmod(mode)
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
        if temporary.is_dir() and path.exists():
            path.rmdir()  # empty; Windows does not replace it
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error, state) from error
    finally:
        with suppress(OSError):  # on a read-only disk: it must not hide the error above
            _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_error(path: str | Path, error: Exception, state: str = "") -> OSError:
    """Return an error that says which file could not be written, why, and what to do.

    `state` is that of the earlier file, as a sentence with a space behind it.
    """
    return OSError(
        f"could not write {path}: {error}. {state}Free some space or choose a folder that may be "
        "written, then run the same command again."
    )


def is_system(name: str) -> bool:
    """Tell whether a file is hidden or made by an operating system, such as desktop.ini."""
    return name.startswith(".") or name.lower() in _SYSTEM


def leftover_temporaries(folder: Path) -> set[Path]:
    """Find unfinished files in a folder, left by processes that were killed while writing."""
    return {path for pattern in _TEMPORARIES for path in folder.glob(pattern)}


@contextmanager
def lock(path: str | Path) -> Iterator[bool]:
    """Lock an existing file in the block; yields False where another process holds it.

    The lock ends with the process, however that ends.  On a disk without locks the block runs
    without one, with a warning.
    """
    # Some file systems lock only what may be written.
    with open(path, "r+" if os.access(path, os.W_OK) else "r") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            warnings.warn(
                f"the disk of {path} has no locks ({error}): make sure that no other process works "
                "in that folder",
                stacklevel=4,
            )
        yield True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, record: dict[str, Any]) -> None:
    """Write a JSON file atomically, with one measurement on a line.

    A list without objects in it is one measurement, and so is all that has at most 100 characters.
    NaN or infinity, which JSON cannot hold, is a ValueError.
    """
    write_text(path, _json(record, 0) + "\n")


def _json(value: Any, depth: int) -> str:
    line = json.dumps(value, allow_nan=False)
    is_object = isinstance(value, dict)
    is_open = is_object or (isinstance(value, list | tuple) and "{" in line)
    if not value or not is_open or (depth > 0 and len(line) <= 100):
        return line
    names = [f"{json.dumps(name)}: " for name in value] if is_object else [""] * len(value)
    entries = zip(names, value.values() if is_object else value, strict=True)
    margin = "\n" + " " * depth
    lines = ",".join(f"{margin} {name}{_json(entry, depth + 1)}" for name, entry in entries)
    return f"{line[0]}{lines}{margin}{line[-1]}"


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file with a checksum atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    checksum = _checksum(contiguous, metadata)
    with atomic_write(path) as temporary:
        save_file(contiguous, temporary, {**metadata, _CHECKSUM: checksum})


def read_tensors(path: str | Path, format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors, on the CPU, and the metadata of a safetensors file of this `format`.

    Older files have no checksum and are not checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a truncated or damaged file, or one of another kind or format.
    """
    with _open_tensors(path, format) as (file, metadata):
        # Copies, because Windows cannot replace a file that is mapped into memory.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    expected = metadata.pop(_CHECKSUM, None)
    if expected is not None and expected != (checksum := _checksum(tensors, metadata)):
        raise ValueError(
            f"{path} is damaged: its checksum is {checksum}, but {expected!r} was written. It was "
            "not loaded; restore it from a copy, or delete it to start again."
        )
    return tensors, metadata


def read_metadata(path: str | Path, format: str) -> dict[str, str]:
    """Read the metadata as `read_tensors`, without the tensors and their checksum."""
    with _open_tensors(path, format) as (_, metadata):
        return metadata


@contextmanager
def _open_tensors(path: str | Path, format: str) -> Iterator[tuple[Any, dict[str, str]]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != format:
                raise ValueError(
                    f"{path} is not a {format!r} file: its format is {metadata.get('format')!r}. "
                    "Was another file of the run meant?"
                )
            yield file, metadata
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}). It was not loaded; "
            "restore it from a copy, or delete it to start again."
        ) from error


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the CRC-32 of all names, numbers and metadata."""
    crc = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
