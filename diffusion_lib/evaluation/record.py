"""JSON records: written whole, and read back only where they are what they should be."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lib.system import files

FORMAT = "diffusion_lib metrics 1"


def load(path: str | Path) -> dict[str, Any]:
    """Read the record of a run."""
    return read(path, "a record of measurements", FORMAT)


def read(path: str | Path, kind: str, format: str | None = None) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: JSON file.
        kind: name of what it holds, for messages.
        format: value of its "format", None for any.

    Raises:
        FileNotFoundError, ValueError: no such file; not such an object.
    """
    path = Path(path)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {state}: give {kind}, a file of JSON")
    try:
        record = json.loads(path.read_text(), object_pairs_hook=_without_repeats)
        if not isinstance(record, dict):
            raise ValueError("it holds no JSON object")
        if format not in (None, record.get("format")):
            raise ValueError(f"its format is {record.get('format')!r:.99}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not {kind}: {error}") from error
    return record


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two entries of one name JSON itself drops the first."""
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{name!r} stands there twice")
        entries[name] = value
    return entries


def read_if(path: Path, expected: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a record if it has these values; None where it has others, is damaged or missing."""
    try:
        record = read(path, "a record")
    except (OSError, ValueError):
        return None
    return record if all(record.get(name) == expected[name] for name in expected) else None


def write_or_warn(path: Path, record: dict[str, Any]) -> None:
    """Write a record, or warn: what took minutes to measure is not lost with its file."""
    try:
        files.write_json(path, record)
    except OSError as error:
        warnings.warn(
            f"what was measured of {path.parent} is returned, but not kept there ({error})",
            stacklevel=3,
        )


def digest(value: Any) -> str:
    """Return 8 hexadecimal digits that name a JSON value: the start of its SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
