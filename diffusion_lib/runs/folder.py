"""The files of a run: who owns the folder, what it was trained on, its log."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lib import checkpoints, config
from diffusion_lib.config import Experiment
from diffusion_lib.system import files

_CLAIM = ".claim.part"  # is locked by the process that writes experiment.json


def fingerprint(images: Tensor) -> str:
    """Summarize images [N, C, H, W] by their number and hash: other images make another run."""
    digest = hashlib.sha256()
    for part in images.split(1000):  # a mapped file may be larger than the memory
        digest.update(part.cpu().numpy().tobytes())
    return f"{len(images)} images, sha256 {digest.hexdigest()[:16]}"


def read_ema_step(folder: Path) -> int:
    """Read the training steps behind averaged weights, 0 where none can be read.

    They know their steps themselves; of those from before they did, the log tells.
    """
    try:
        step = checkpoints.read_step(folder / "ema.safetensors")
    except (OSError, ValueError):
        return 0
    if step is None:
        return max((record.get("step", 0) for record in read_log(folder)), default=0)
    return step


def create_or_match_experiment_file(folder: Path, experiment: Experiment, fingerprint: str) -> None:
    """Write experiment.json, or make sure that the one in the folder is this experiment's.

    Once written it is never replaced, so that all processes lock the same file (see `exclusive`).
    """
    path = folder / "experiment.json"
    if os.path.exists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another name for the folder of the run")
    present = {entry for entry in folder.glob("*") if not files.is_system(entry.name)}
    present -= files.leftover_temporaries(folder)
    if present and not path.exists():  # in this order: another process may claim it meanwhile
        names = sorted(entry.name for entry in present)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(
            f"{folder} is not empty and holds no run (it holds {', '.join(names[:5])}{more}): "
            "choose another folder"
        )
    while not path.exists():
        claim = folder / _CLAIM
        try:
            folder.mkdir(parents=True, exist_ok=True)
            claim.touch()
        except OSError as error:
            raise files.write_error(path, error) from error
        with suppress(FileNotFoundError), files.lock(claim) as is_locked:
            if is_locked and not path.exists():  # another process may have been faster
                record = json.loads(experiment.to_json()) | {"images": fingerprint}
                files.write_text(path, json.dumps(record, indent=2) + "\n")
        if path.exists():
            claim.unlink(missing_ok=True)
        else:
            time.sleep(0.01)  # until the process that holds it has written
    if different := _differences(path, experiment, fingerprint):
        raise ValueError(
            f"{folder} belongs to another experiment ({'; '.join(different)}). Choose another "
            f"folder, or the settings of the run that is there.{_way_out(folder, different)}"
        )


def _way_out(folder: Path, different: Sequence[str]) -> str:
    """Name a further way out of a folder of another experiment, where there is one."""
    if not any((folder / name).exists() for name in ("training.safetensors", "ema.safetensors")):
        return " Nothing has been saved there yet, so it can also be deleted."
    if [name.partition(":")[0] for name in different] != ["train.num_steps"]:
        return ""
    return (
        " To train it for more steps, give a new folder and start=FOLDER (--start on the command "
        "line); a learning rate that has fallen at the end (cooldown) needs a new training."
    )


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
    """Refuse to resume from a run of another experiment, or from one that has no state for it."""
    for name in ("experiment.json", "training.safetensors", "log.jsonl"):
        if not (start / name).is_file():
            raise FileNotFoundError(
                f"{start} cannot be resumed: {name} is missing there. Give the folder of a "
                "whole run, as runs.train leaves it."
            )
    different = [
        difference
        for difference in _differences(start / "experiment.json", experiment, fingerprint)
        if not difference.startswith("train.num_steps: ")
    ]
    if different:
        raise ValueError(
            f"{start} cannot be resumed: it belongs to another experiment "
            f"({'; '.join(different)}); only the number of steps may differ"
        )
    if experiment.train.cooldown > 0:
        raise ValueError(
            f"{start} cannot be resumed: its learning rate has already fallen at the end "
            "(cooldown), so more steps would not end as if they had begun at step 0"
        )
    steps = json.loads((start / "experiment.json").read_text())["train"]["num_steps"]
    if steps >= experiment.train.num_steps:
        raise ValueError(
            f"{start} has {steps} steps, not fewer than the {experiment.train.num_steps} asked for"
        )


def check_final_weights(folder: Path, num_steps: int) -> None:
    """Refuse averaged weights that are not final, where there is no training state to go on from.

    Raises:
        ValueError: they are not, or they are damaged.
    """
    checkpoints.read_step(folder / "ema.safetensors")  # refuses damaged ones
    step = read_ema_step(folder)
    if step != num_steps:
        known = f"those of step {step} of {num_steps}" if step else "of a step that nothing tells"
        raise ValueError(
            f"{folder} holds averaged weights (ema.safetensors), {known}, and no training state "
            "(training.safetensors) to go on from. Training from step 0 would replace them, so "
            "nothing was done: copy training.safetensors there too, load the weights as they are "
            "with runs.load, choose another folder, or move ema.safetensors away to train from "
            "step 0."
        )


def experiment_digests(folder: Path) -> list[str]:
    """Digests of what is trained in a folder, whatever the number of steps.

    A training state holds the first, so that one copied from another run is noticed; in older
    states it depends on `compile`, which may change now.
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
def exclusive(folder: Path) -> Iterator[None]:
    """Refuse to train in a folder in which another process trains; a killed one holds nothing."""
    with files.lock(folder / "experiment.json") as is_locked:
        if not is_locked:
            raise ValueError(
                f"another process is training in {folder}: wait for it, or choose another folder"
            )
        yield


def append_to_log(folder: Path, record: dict[str, Any]) -> None:
    """Write a record as a line of the log, whole or not at all."""
    path = folder / "log.jsonl"
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            line = json.dumps(record).encode() + b"\n"
            if file.write(line) != len(line):  # a full disk takes a part
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise files.write_error(path, error, "The last checkpoint is whole. ") from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the records of the log, without lines that are damaged or that a kill cut short."""
    path = folder / "log.jsonl"
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            if isinstance(record := json.loads(line), dict):
                records.append(record)
    return records


def truncate_log(folder: Path, step: int) -> None:
    """Drop what was logged after the checkpoint at `step`: those steps are trained again."""
    path = folder / "log.jsonl"
    records = [record for record in read_log(folder) if record.get("step", 0) <= step]
    text = "".join(json.dumps(record) + "\n" for record in records)
    if path.exists() and path.read_bytes() != text.encode():
        files.write_text(path, text)
