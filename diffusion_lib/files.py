"""Files that are either whole or absent, and never executed.

Tensors are kept as safetensors: a JSON header and raw numbers, so that reading one cannot run
code.  The header holds a checksum of all names, numbers and metadata, as a flipped bit would leave
the file as readable as before.
"""

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows, where nothing guards a file against a second process
    fcntl = None

# Names that unfinished files have, ours and those of safetensors (Rust's tempfile).
_LITTER = (".*.part", ".tmp??????")

_CHECKSUM = "crc32"  # of the metadata: what it holds is made by `_checksum`


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to the yielded path; on success it takes the place of `path` in one step.

    Whatever goes wrong before that (a full disk, an interrupt, a crash) leaves the old file as it
    was.

    Raises:
        OSError: the file could not be written; the message says that the old one is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        kept = f"The previous {path.name} is untouched. " if path.exists() else ""
        raise OSError(
            f"could not write {path}: {error}. {kept}Free some space or choose another folder, "
            "then run the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def litter(folder: Path) -> set[Path]:
    """Unfinished files that processes left in a folder as they were killed while they wrote."""
    return {path for pattern in _LITTER for path in folder.glob(pattern)}


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Fill the yielded folder; on success it becomes `path`, in one step.

    Whatever goes wrong before that leaves nothing behind.

    Raises:
        FileExistsError: `path` is a file, or a folder with something in it.
        OSError: it could not be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(
            f"{path} exists and is not an empty folder, and nothing is overwritten: choose another"
        )
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same number
        temporary.mkdir(parents=True)
        yield temporary
        for written in temporary.rglob("*"):
            if written.is_file():
                with written.open("rb+") as file:
                    os.fsync(file.fileno())
        if target.exists():
            target.rmdir()  # empty; Windows renames to a free name only
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write {path}: {error}. Nothing was left there. Free some space or choose "
            "another folder, then run the same command again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def lock(path: str | Path) -> Iterator[bool]:
    """Hold a file that exists against other processes; yields False where another one holds it.

    A process that ends, however it ends, holds nothing.
    """
    with Path(path).open("r+") as file:  # some file systems lock only what may be written
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text`, or leave it as it was."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Replace `path` by a safetensors file, or leave it as it was.

    Its metadata is given a checksum, which takes about a tenth of the time of the writing.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    checksum = _checksum(contiguous, metadata)
    with replacing(path) as temporary:
        save_file(contiguous, temporary, {**metadata, _CHECKSUM: checksum})


def read_tensors(path: str | Path, format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a safetensors file that says it is of this `format`.

    A file without a checksum, from before there was one, is read as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a truncated file, another kind of file, a safetensors file of another format,
            or one whose names, numbers or metadata are not those that were written.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            if found != format:
                raise ValueError(
                    f"{path} is not a {format!r} file: its format is {found!r}. "
                    "Was another file of the run meant?"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({error}). It was not loaded; "
            "restore it from a copy, or delete it to start again."
        ) from error
    expected = metadata.pop(_CHECKSUM, None)
    if expected is not None and expected != (found := _checksum(tensors, metadata)):
        raise ValueError(
            f"{path} is damaged: its checksum is {found}, but {expected!r} was written. It was not "
            "loaded; restore it from a copy, or delete it to start again."
        )
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of all that a file says: finds every flipped bit, at the speed of memory."""
    found = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
