"""JSON records: written whole, and read back only where they are what they should be."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_lib.system import files

FORMAT = "diffusion_lib metrics 1"


def load(path: str | Path) -> dict[str, Any]:
    """Read the record of a run.

    Raises:
        FileNotFoundError, ValueError: no such file; not a record.
    """
    return read(path, FORMAT, "a record of measurements")


def read(path: str | Path, format: str, kind: str) -> dict[str, Any]:
    """Read a record of a format.

    Args:
        path: JSON file.
        format: value of its "format".
        kind: name of such a record, for messages.

    Raises:
        FileNotFoundError, ValueError: no such file; not such a record.
    """
    record = parse(path, kind, dict)
    if record.get("format") != format:
        raise ValueError(f"{path} is not {kind}: its format is {record.get('format')!r:.99}")
    return record


def parse(
    path: str | Path, kind: str, build: Callable[[list[tuple[str, Any]]], dict[str, Any]]
) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: JSON file.
        kind: name of what it holds, for messages.
        build: function from the (name, value) pairs of an object to the object.

    Raises:
        FileNotFoundError, ValueError: no such file; not a JSON object.
    """
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder: give the file of {kind}, as JSON")
    if not path.is_file():
        near = path.with_name(f"{path.name}.json")
        hint = f"did you mean {near}?" if near.is_file() else f"give the file of {kind}, as JSON"
        raise FileNotFoundError(f"{path} does not exist: {hint}")
    try:
        record = json.loads(path.read_text(), object_pairs_hook=build)
        if not isinstance(record, dict):
            raise ValueError("it holds no JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not {kind}: {error}") from error
    return record


def read_if(path: Path, expected: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a record if it has these values; None where it has others, is damaged or missing."""
    try:
        record = json.loads(path.read_text())
        matches = all(record.get(name) == value for name, value in expected.items())
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return record if matches else None


def write_or_warn(
    path: Path, record: Mapping[str, Any], state: str, way: str, stacklevel: int
) -> None:
    """Write a record, or warn: what took minutes to measure is not lost with its file."""
    try:
        files.write_json(path, dict(record))
    except OSError as error:
        warnings.warn(f"{state} ({error}). {way}", stacklevel=stacklevel)


def digest(value: Any) -> str:
    """Return 8 hexadecimal digits that name a JSON value: the start of its SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
