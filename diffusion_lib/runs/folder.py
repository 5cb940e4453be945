"""The files of a run: who owns the folder, what it was trained on, its log."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lib import config
from diffusion_lib.config import Experiment
from diffusion_lib.system import files


def fingerprint(images: Tensor) -> str:
    """Summarize images [N, C, H, W] by their number and hash: other images make another run."""
    digest = hashlib.sha256()
    for part in images.split(1000):  # a mapped file may be larger than the memory
        digest.update(part.cpu().numpy().tobytes())
    return f"{len(images)} images, sha256 {digest.hexdigest()[:16]}"


def training_digests(folder: Path) -> list[str]:
    """Hash what is trained in a folder, whatever the number of steps.

    A training state holds the first, so that one of another run is noticed; in older states it
    depends on `compile`, which may change now.
    """
    record = config.without_runtime_fields(json.loads((folder / "experiment.json").read_text()))
    del record["train"]["num_steps"]
    digests = []
    for compiled in (False, True):
        record["train"]["compile"] = compiled
        text = json.dumps(record, sort_keys=True)
        digests.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return digests


@contextmanager
def claim(folder: Path, experiment: Experiment, fingerprint: str) -> Iterator[None]:
    """Hold a folder for a training: lock its experiment.json, which is written where none is there.

    Raises:
        ValueError: another process trains in the folder; another experiment or anything else is
            in it.
        OSError: it cannot be written.
    """
    path = folder / "experiment.json"
    names = sorted(entry.name for entry in folder.glob("*") if not files.is_system(entry.name))
    if names and not path.exists():
        raise ValueError(
            f"{folder} is not empty and holds no run (it holds {', '.join(names[:5])}): choose "
            "another folder"
        )
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise files.write_error(path, error) from error
    with files.lock(path) as is_locked:
        if not is_locked:
            raise ValueError(
                f"another process is training in {folder}: wait for it, or choose another folder"
            )
        if names in ([], ["experiment.json"]) and not _is_whole(path):
            # In place, because all processes lock the same file.
            record = json.loads(experiment.to_json()) | {"images": fingerprint}
            path.write_text(json.dumps(record, indent=2) + "\n")
        if different := _differences(path, experiment, fingerprint):
            raise ValueError(
                f"{folder} belongs to another experiment ({'; '.join(different)}). Choose another "
                "folder, or the settings of the run that is there; to train it for more steps, "
                "give a new folder and start=FOLDER (--start on the command line)."
            )
        yield


def _is_whole(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except (ValueError, RecursionError):
        return False


def _differences(path: Path, experiment: Experiment, fingerprint: str) -> list[str]:
    """List what the run of an experiment.json trains differently."""
    try:
        record = json.loads(path.read_text())
        images = record.pop("images")
        different = experiment.differences(json.dumps(record))
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): choose another folder") from error
    if images != fingerprint:
        different.append(f"training images: {images} there, {fingerprint} here")
    return different


def check_start(start: Path, experiment: Experiment, fingerprint: str) -> None:
    """Refuse to resume with more steps where the result is not that of a training from step 0."""
    if not (start / "training.safetensors").is_file():
        raise FileNotFoundError(f"{start} has no training.safetensors to resume from")
    reasons = _differences(start / "experiment.json", experiment, fingerprint)
    reasons = [reason for reason in reasons if not reason.startswith("train.num_steps: ")]
    steps = json.loads((start / "experiment.json").read_text())["train"]["num_steps"]
    if steps >= experiment.train.num_steps:
        reasons.append(f"it has {steps} steps, not fewer than {experiment.train.num_steps}")
    if experiment.train.cooldown > 0:
        reasons.append("its learning rate has already fallen at the end (cooldown)")
    if reasons:
        raise ValueError(
            f"{start} cannot be resumed: only its number of steps may differ ({'; '.join(reasons)})"
        )


def write_log(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write the records of the log, each as a line."""
    lines = (json.dumps(record) + "\n" for record in records)
    files.write_text(folder / "log.jsonl", "".join(lines))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the records of the log, without lines that are damaged."""
    path = folder / "log.jsonl"
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            if isinstance(record := json.loads(line), dict):
                records.append(record)
    return records
