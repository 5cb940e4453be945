"""Files of denoisers: safetensors that say all about the denoiser they hold.

    tensors     network.NAME for each weight of the network; betas of the schedule, or its signal
                and noise
    metadata    format; denoiser, a JSON object {network, prediction, clip}; step, where it is known

`Denoiser.save` and `Denoiser.load` write and read them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from diffusion_lib import networks, predictions
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import files

_FORMAT = "diffusion_lib denoiser 1"

D = TypeVar("D")


def write(
    path: str | Path,
    network: nn.Module,
    schedule: NoiseSchedule,
    prediction: Prediction,
    clip: float | None,
    step: int | None,
) -> None:
    """Write the parts of a denoiser; arguments and errors as in `Denoiser` and `Denoiser.save`."""
    if (config := networks.config_of(network)) is None:
        raise TypeError(
            "only a network with a config can be saved with its shape; this "
            f"{type(network).__name__} has none. Save its state_dict() yourself."
        )
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    description = {
        "network": networks.to_record(config),
        "prediction": prediction_name(prediction),
        "clip": clip,
    }
    metadata = {"format": _FORMAT, "denoiser": json.dumps(description)}
    if step is not None:
        metadata["step"] = str(step)
    files.write_tensors(path, {**tensors, **schedule.tables()}, metadata)


def read(path: str | Path, build: Callable[..., D]) -> D:
    """Build a denoiser from (network, schedule, prediction, clip); errors as in `Denoiser.load`."""
    weights, tables, metadata = _read_tensors(path)
    try:
        description = json.loads(metadata["denoiser"])
        make = NoiseSchedule.from_betas if "betas" in tables else NoiseSchedule
        schedule = make(**tables)
        network = networks.on_meta_device(networks.from_record(description["network"]))
        if (prediction := description["prediction"]) not in predictions.__all__:
            raise ValueError(
                f"it was trained to predict {prediction!r:.99}, which is not one of "
                f"{', '.join(predictions.__all__)}: add that function to predictions.py"
            )
        denoiser = build(network, schedule, getattr(predictions, prediction), description["clip"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not describe a denoiser ({error})") from error
    check_weights(network.state_dict(), weights, path)
    network.load_state_dict({name: x.float() for name, x in weights.items()}, assign=True)
    return denoiser


def read_step(path: str | Path) -> int | None:
    """Read the number of training steps behind the weights of a file; None if it is unknown."""
    step = files.read_metadata(path, _FORMAT).get("step", "")
    return int(step) if step.isdecimal() else None


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Replace the weights of a network by those of a saved denoiser, or raise and leave them."""
    weights, _, _ = _read_tensors(path)
    check_weights(network.state_dict(), weights, path)
    network.load_state_dict(weights)


def check_weights(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse tensors of a file that do not fit one's own, by name and shape, or of whole numbers.

    Raises:
        ValueError: the first of them is named, together with `path`.
    """

    def describe(tensor: Tensor | None) -> str:
        if tensor is None:
            return "nothing"
        return f"{list(tensor.shape)}{'' if tensor.is_floating_point() else f' {tensor.dtype}'}"

    for name in sorted(own.keys() | saved.keys()):
        here, there = describe(own.get(name)), describe(saved.get(name))
        if here != there:
            raise ValueError(
                f"{path} belongs to another network: {name} is {there} there, {here} here"
            )


def prediction_name(prediction: Prediction) -> str:
    """Name a prediction as files do; a user's own never has the name of one of the library."""
    name = getattr(prediction, "__name__", repr(prediction))
    is_ours = is_same(prediction, getattr(predictions, name, None))
    return name if is_ours else f"{name} (your own)"


def is_same(function: Callable[..., Any], other: Callable[..., Any] | None) -> bool:
    """Tell whether two functions are one, also where its module was reloaded in between.

    Compares the place of their code, because decorators such as `functools.wraps` copy names.
    """

    def place(f: Callable[..., Any] | None) -> tuple[str, str] | None:
        code = getattr(f, "__code__", None)
        return code and (code.co_filename, code.co_qualname)

    return function is other or (place(function) == place(other) is not None)


def _read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Read the weights, named as in the network, the tables of the schedule, and the metadata."""
    tensors, metadata = files.read_tensors(path, _FORMAT)
    names = ("betas", "signal", "noise")
    tables = {name: tensors.pop(name) for name in names if name in tensors}
    return {name.removeprefix("network."): x for name, x in tensors.items()}, tables, metadata
