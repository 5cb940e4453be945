"""The files of a study: what it asks, and what was measured."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_lib import config
from diffusion_lib.config import Experiment
from diffusion_lib.evaluation import Conditions

_FORMAT = "diffusion_lib study 1"


class Study(NamedTuple):
    """The arguments of `compare`, as a file holds them."""

    arms: dict[str, Experiment]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    conditions: Conditions


def described(arm: Experiment) -> dict[str, Any]:
    """An arm as a record has it: without the seed and steps, which its study decides."""
    told = json.loads(arm.to_json())
    del told["train"]["seed"], told["train"]["num_steps"]
    return told


def read_study(path: str | Path) -> Study:
    """A study from a JSON file.

        {"preset": "mnist", "all": {"train": {"batch_size": 32}},
         "arms": {"eps": {}, "x_0": {"prediction": "x_0"}},
         "seeds": [0, 1, 2], "steps": [500, 1000], "conditions": {"n": 500}}

    An arm is the preset with the changes of "all" and its own; "all" and "conditions" may be left
    out.  Names of functions are looked up, never executed.

    Raises:
        FileNotFoundError, ValueError: no such file; not a study; an unknown name.
    """
    path = Path(path)
    _demand_file(path, "a study")
    try:
        told = json.loads(path.read_text(), object_pairs_hook=_without_repeats)
        if told.get("format") == _FORMAT:
            raise ValueError(
                "it is the record of one that has run. Give the file of the study itself to go on "
                "with it; compare.load reads its record"
            )
        if "network" in told:
            raise ValueError("it is an experiment, such as a run has; a study has arms")
        unknown = told.keys() - {"preset", "all", "arms", "seeds", "steps", "conditions"}
        if unknown:
            raise ValueError(f"it has no {', '.join(sorted(unknown))}")
        preset = config.choose(told["preset"], config.PRESETS, "preset")
        arms = {
            name: preset.changed(told.get("all", {})).changed(changes)
            for name, changes in told["arms"].items()
        }
        seeds, steps = (_whole_numbers(told[name], name) for name in ("seeds", "steps"))
        return Study(arms, seeds, steps, Conditions(**told.get("conditions", {})))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not a study: {reason}") from error


def _whole_numbers(found: Any, name: str) -> tuple[int, ...]:
    if not isinstance(found, list) or any(type(number) is not int for number in found):
        raise ValueError(f"{name} must be a list of whole numbers; got {found!r}")
    return tuple(found)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two entries of one name JSON itself would forget the first."""
    for name, _ in pairs:
        if sum(name == other for other, _ in pairs) > 1:
            raise ValueError(f"{name!r} stands there twice")
    return dict(pairs)


def load(path: str | Path) -> dict[str, Any]:
    """Read the record of a study.

    Raises:
        FileNotFoundError, ValueError: no such file; not such a record.
    """
    _demand_file(Path(path), "the record of a study")
    try:
        record = json.loads(Path(path).read_text())
        found = record.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the record of a study ({error})") from error
    if found != _FORMAT:
        raise ValueError(f"{path} is not the record of a study: its format is {found!r:.99}")
    return record


def _demand_file(path: Path, what: str) -> None:
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder: give the file of {what}, as JSON")
    if not path.is_file():
        same = path.with_name(f"{path.name}.json")
        hint = f"did you mean {same}?" if same.is_file() else f"give the file of {what}, as JSON"
        raise FileNotFoundError(f"{path} does not exist: {hint}")
