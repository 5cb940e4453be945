"""The files of a study: its arms and conditions, and the record of what was measured.

The record of a study is a JSON file with one measurement on a line.  Its samples are one picture
beside it, NAME.samples.png: a row for each arm, and in it, from left to right, the first samples of
the first seed after each number of steps.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffusion_lib import config
from diffusion_lib.config import Experiment
from diffusion_lib.evaluation import Conditions
from diffusion_lib.evaluation import record as records
from diffusion_lib.system import files

FORMAT = "diffusion_lib study 1"


class Study(NamedTuple):
    """What a comparison trains and measures, which a file can hold.

    Args:
        arms: by name; `train.seed` and `train.num_steps` of an arm are replaced by the study's.
        seeds: random seeds of the trainings.
        steps: numbers of training steps at which every arm is measured.
        conditions: how to measure; n = 0 samples nothing, for data sets without features.
    """

    arms: Mapping[str, Experiment]
    seeds: Sequence[int]
    steps: Sequence[int]
    conditions: Conditions


def describe(arm: Experiment) -> dict[str, Any]:
    """Return an arm as a record has it: without the seed and steps, which its study decides."""
    fields = json.loads(arm.to_json())
    del fields["train"]["seed"], fields["train"]["num_steps"]
    return fields


def read_study(path: str | Path) -> Study:
    """Read a study from a JSON file.

        {"preset": "mnist", "all": {"train": {"batch_size": 32}},
         "arms": {"eps": {}, "x_0": {"prediction": "x_0"}},
         "seeds": [0, 1, 2], "steps": [500, 1000], "conditions": {"n": 500}}

    An arm is the preset with the changes of "all" and its own; "all" and "conditions" may be left
    out.  Names of functions are looked up, never executed.
    """
    study = records.read(path, "a study")
    try:
        fields = "preset", "all", "arms", "seeds", "steps", "conditions"
        if unknown := study.keys() - {*fields}:
            raise ValueError(
                f"it has {', '.join(fields)}, but no {', '.join(sorted(unknown))}; its record, "
                "which compare.load reads, and the experiment of a run are other files"
            )
        preset = config.lookup(study["preset"], config.PRESETS, "preset")
        arms = {
            name: preset.changed(study.get("all", {})).changed(changes)
            for name, changes in study["arms"].items()
        }
        conditions = Conditions(**study.get("conditions", {}))
        return Study(arms, tuple(study["seeds"]), tuple(study["steps"]), conditions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not a study: {reason}") from error


def load(path: str | Path) -> dict[str, Any]:
    """Read the record of a study, with its samples where their picture is beside it."""
    record = records.read(path, "the record of a study", FORMAT)
    if isinstance(name := record.pop("samples", None), str):
        with suppress(OSError, ValueError):  # the numbers are read without their picture
            picture = (Path(path).parent / Path(name).name).read_bytes()
            record["samples"] = base64.b64encode(picture).decode()
    return record


def save(record: dict[str, Any], path: str | Path) -> None:
    """Write what `compare` returned, and beside NAME.record.json the picture NAME.samples.png."""
    path = Path(path)
    if "samples" in record:
        stem = path.name.removesuffix(".json").removesuffix(".record")
        picture = path.with_name(f"{stem}.samples.png")
        with files.atomic_write(picture) as temporary:
            temporary.write_bytes(base64.b64decode(record["samples"]))
        record = record | {"samples": picture.name}
    files.write_json(path, record)


NUM_SAMPLES = 8
"""Samples of a run that a record holds."""

_GAP = 4  # gray columns behind the samples of a number of steps


def to_png(images: Tensor) -> str:
    """Encode images, uint8 [N, C, H, W], side by side as a PNG in base64."""
    return _encode(torch.cat(list(images), dim=2))


def sheet(strips: list[list[str]]) -> str:
    """Join pictures from `to_png`, rows below each other, into one; smaller ones at top left."""
    pixels = [[_decode(strip) for strip in row] for row in strips]
    size = [max(strip.shape[k] for row in pixels for strip in row) for k in range(3)]

    def pad(strip: Tensor) -> Tensor:
        c, h, w = (largest - own for largest, own in zip(size, strip.shape, strict=True))
        return F.pad(strip, (0, w + _GAP, 0, h, 0, c), value=128)

    return _encode(torch.cat([torch.cat([*map(pad, row)], 2) for row in pixels], 1))


def stored_samples(record: Mapping[str, Any], arm: str, steps: int) -> Tensor:
    """Return the first samples of an arm's first seed, uint8 [N, C, H, W], N <= 8.

    Image i starts from the same x_T in all arms.
    """
    (row, *_) = rows(record, arm, steps)
    channels, height, width = record["arms"][arm]["network"]["image_shape"]
    if "samples" in row:  # a record from before there were sheets
        pixels = _decode(row["samples"])
    elif "samples" in record:
        whole = _decode(record["samples"])
        i, j = list(record["arms"]).index(arm), record["steps"].index(steps)
        top, left = i * whole.shape[1] // len(record["arms"]), j * whole.shape[2]
        left //= len(record["steps"])
        n = min(NUM_SAMPLES, record["conditions"][record["arms"][arm]["dataset"]]["n"])
        pixels = whole[:channels, top : top + height, left : left + n * width]
    else:
        raise ValueError(
            "this record has no samples: its study sampled nothing (n = 0), or its picture, "
            "NAME.samples.png, is not beside it"
        )
    return torch.stack(pixels.split(width, dim=2))


def rows(record: Mapping[str, Any], arm: str, steps: int) -> list[dict[str, Any]]:
    """Return what was measured of an arm after a number of steps, for each seed."""
    config.lookup(arm, record["arms"], "arm")
    config.lookup(str(steps), {str(n): n for n in record["steps"]}, "number of steps")
    return [row for row in record["measured"] if (row["arm"], row["steps"]) == (arm, steps)]


def _encode(pixels: Tensor) -> str:
    file = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
    image.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _decode(text: str) -> Tensor:
    """Decode a PNG in base64: uint8 [C, H, W]."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
