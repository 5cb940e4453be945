"""Experiments as data: everything that decides what is trained, in one frozen record.

    experiment = replace(config.MNIST, schedule=schedules.cosine, prediction=predictions.x_0)

A choice among functions (data set, schedule, prediction, weight, loss, density, optimizer) is the
function itself; in JSON and on the command line it goes by its name, see `config.registry`.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import (
    bound,
    densities,
    losses,
    networks,
    optimizers,
    predictions,
    rng,
    schedules,
)
from diffusion_lib.config.registry import is_known, label, literal, lookup
from diffusion_lib.data import Dataset, sets
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.densities import Density
from diffusion_lib.losses import Weight
from diffusion_lib.networks import NetworkConfig, on_meta_device
from diffusion_lib.optimizers import MakeOptimizer
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system.device import machine_memory
from diffusion_lib.training import TrainConfig, Trainer

LOSSES = {f.__name__: f for f in (losses.diffusion_loss, bound.hybrid_loss, bound.vlb_loss)}

# Added later, to U-Nets, trainings and experiments: omitted from the record at their default, so
# that existing names stay.
_DEFAULTS = {"loss": "diffusion_loss", "density": "uniform", "optimizer": "adamw"}
_OMITTED_AT_DEFAULT = (
    ("network", "outputs", 1),
    ("network", "patch", 1),
    ("network", "classes", 0),
    ("network", "groups", None),
    ("train", "cooldown", 0.0),
    ("train", "label_dropout", 0.1),
    ("train", "accumulate", 1),
)


def _signal_and_noise(experiment: "Experiment") -> tuple[Tensor, Tensor]:
    schedule = experiment.schedule(experiment.T)
    return schedule.signal, schedule.noise


def _implied_weights(experiment: "Experiment") -> Tensor:
    times = torch.arange(1, experiment.T + 1, device="cpu")
    schedule = experiment.schedule(experiment.T)
    return losses.implied_weight(experiment.weight, predictions.x_0, schedule, times)


@torch.no_grad()
def _loss_of_fixed_images(experiment: "Experiment") -> Tensor:
    images = rng.normal((8, *experiment.network.image_shape), rng.generator(0))
    denoiser = experiment.build()
    return experiment.loss(denoiser, images, experiment.weight, rng.generator(1)).reshape(1)


def _updated_weights(experiment: "Experiment") -> Tensor:
    weight = torch.linspace(-1, 1, 16, device="cpu").view(4, 4).requires_grad_()
    optimizer = experiment.optimizer([weight], experiment.train)
    for _ in range(3):
        weight.grad = weight.detach().sin()
        optimizer.step()
    return weight.detach().flatten()


def _function(registry: Any, values: Callable[["Experiment"], Sequence[Tensor]]) -> dict[str, Any]:
    """Describe a field of functions: `values` tell a user's own ones apart, as names may not."""
    return {"registry": registry, "values": values}


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and how.  `replace(experiment, field=...)` makes another one.

    Args:
        dataset: one of `data`, or a function like those.
        network: a config of `networks`, or one like those.
        schedule: one of `schedules`, or a function from T to a `NoiseSchedule`.
        T: number of diffusion steps.
        prediction: one of `predictions`, or a function like those.
        weight: weight of x_0_hat's error: one of `losses`, or a function of the signal-to-noise
            ratio; None is the plain error of what the network predicts.
        loss: one of `LOSSES`, or a function like those; `bound.hybrid_loss` for a network
            with `outputs=2`.
        train: settings of the training.
        density: density of t: one of `densities`, or a function like those.
        optimizer: one of `optimizers`, or a function like those.
        sample_steps: number of sampling steps, None for all T; no part of what is trained.

    Raises:
        TypeError, ValueError: a field of another kind, or a number below 1.
    """

    dataset: Dataset = field(metadata=_function(sets, lambda _: []))
    network: NetworkConfig
    schedule: Callable[[int], NoiseSchedule] = field(
        default=schedules.linear,
        metadata=_function(schedules, lambda e: [*e.schedule(e.T).tables().values()]),
    )
    T: int = 1000
    prediction: Prediction = field(
        default=predictions.eps,
        metadata=_function(predictions, lambda e: e.prediction(*_signal_and_noise(e))),
    )
    weight: Weight | None = field(
        default=None, metadata=_function(losses, lambda e: [_implied_weights(e)])
    )
    loss: Callable[..., Tensor] = field(
        default=losses.diffusion_loss,
        metadata=_function(LOSSES, lambda e: [_loss_of_fixed_images(e)]),
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    sample_steps: int | None = None
    density: Density = field(
        default=densities.uniform,
        metadata=_function(densities, lambda e: [e.density(256, e.T, rng.generator(0)).float()]),
    )
    optimizer: MakeOptimizer = field(
        default=optimizers.adamw, metadata=_function(optimizers, lambda e: [_updated_weights(e)])
    )

    def __post_init__(self) -> None:
        ours = {cls.__name__: cls for cls in (TrainConfig, *networks.KINDS.values())}
        for value in (self.train, self.network):
            name = type(value).__name__
            if name in ours and type(value) is not ours[name]:
                raise TypeError(
                    f"{value!r:.99} was made before its module was reloaded: run the cell that "
                    "makes it again, or restart the kernel"
                )
        if not isinstance(self.train, TrainConfig):
            raise TypeError(f"train must be a TrainConfig; got {self.train!r:.99}")
        parts = ("image_shape", "outputs", "classes", "build", "__dataclass_fields__")
        if isinstance(self.network, type) or not all(hasattr(self.network, x) for x in parts):
            raise TypeError(
                "network must be a config, such as UNetConfig(), or a frozen dataclass of your own "
                f"with image_shape, outputs, classes and build(); got {self.network!r:.99}"
            )
        for f in fields(self):
            value, optional = getattr(self, f.name), f.default is None
            named = callable(value) and (hasattr(value, "__name__") or isinstance(value, partial))
            if f.metadata and not named and not (optional and value is None):
                kind = "a function or None" if optional else "a function"
                raise TypeError(f"{f.name} must be {kind}; got {value!r:.99}")
        if type(self.T) is not int:  # how large it may be is the schedule's to say
            raise ValueError(f"T must be a whole number; got {self.T!r:.99}")
        steps = self.sample_steps
        if steps is not None and (type(steps) is not int or steps < 1):
            raise ValueError(
                f"sample_steps must be a whole number, at least 1, or None; got {steps!r:.99}"
            )

    def build(self) -> Denoiser:
        """Build the untrained denoiser; equal seeds and networks give equal weights.

        Raises:
            ValueError: settings that no network, schedule or sampler can have, a network larger
                than the memory, or a loss that the network has no output for.
        """
        outputs = self.network.outputs
        if outputs not in getattr(self.loss, "outputs", (outputs,)):
            raise ValueError(
                f"{label(self.loss)} teaches a variance, but this network has no output for one: "
                "use outputs=2, or diffusion_loss"
                if outputs == 1
                else f"{label(self.loss)} never teaches the variance that outputs=2 "
                "puts out: use outputs=1, or hybrid_loss"
            )
        if self.density is not densities.uniform:
            parameters = inspect.signature(self.loss).parameters
            if "density" not in parameters:
                raise ValueError(f"the loss {label(self.loss)} takes no density: give it one")
        schedule = self.schedule(self.T)
        schedule.timesteps(self.sample_steps or self.T)  # refuses more sampling steps than T
        t = self.density(64, self.T, rng.generator(0))
        if t.shape != (64,) or t.dtype != torch.int64 or t.min() < 1 or t.max() > self.T:
            raise ValueError(
                f"the density {label(self.density)} must draw whole numbers in 1..{self.T}, int64 "
                f"[n]; got {t.dtype} {list(t.shape)}, such as {t.flatten()[:4].tolist()}"
            )
        size = sum(p.nbytes for p in on_meta_device(self.network).parameters())
        memory = machine_memory()
        if size > memory:
            raise ValueError(
                f"the weights of {self.network} need {size / 1e9:,.0f} GB, and this machine has "
                f"{memory / 1e9:,.0f} GB of memory: use a smaller width"
            )
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            torch.manual_seed(rng.seed(self.train.seed))
            with torch.device("cpu"):  # whatever the default device is: one seed, equal weights
                return Denoiser(networks.build(self.network), schedule, self.prediction)

    def trainer(self, device: torch.device | str = "cpu") -> Trainer:
        """Make a trainer at step 0, on `device`."""
        loss = partial(self.loss, weight=self.weight)
        if self.density is not densities.uniform:  # a loss of one's own may know no other
            loss = partial(loss, density=self.density)
        return Trainer(self.build().to(device), self.train, loss, self.optimizer)

    def describe(self) -> dict[str, Any]:
        """Describe the settings in words, for `viz.table`."""
        network = on_meta_device(self.network)
        c, h, w = self.network.image_shape
        kind = type(network).__name__.replace("UNet", "U-Net")
        density = label(self.density)
        times = "" if density == "uniform" else f", times {density}"
        optimizer = "" if label(self.optimizer) == "adamw" else f", {label(self.optimizer)}"
        few = " (learns nothing)" if self.train.num_steps < 100 else ""
        return {
            "data": f"{label(self.dataset)}, {h} x {w}, {c} channel{'s' if c > 1 else ''}",
            "schedule": f"{label(self.schedule)}, T = {self.T}",
            "network predicts": label(self.prediction),
            "loss": f"{label(self.loss)}, weight {label(self.weight)}{times}",
            "network": f"{kind}, {sum(p.numel() for p in network.parameters()):,} parameters",
            "training": f"{self.train.num_steps:,} steps{few} of {self.train.batch_size} images, "
            f"learning rate {self.train.learning_rate:g}{optimizer}, seed {self.train.seed}",
            "sampling": f"{self.sample_steps or self.T} steps",
        }

    def to_json(self) -> str:
        """Write the experiment as text that `from_json` reads."""
        return json.dumps(self._record(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Experiment":
        """Read what `to_json` wrote.  Names are looked up, never executed.

        Raises:
            ValueError: not such a text; an unknown name, such as that of a function of the user's
                own; a value that a field cannot have.
        """
        try:
            record = _DEFAULTS | json.loads(text)
            for name in record.keys() - {"images"}:  # which experiment.json has besides
                lookup(name, {f.name: f for f in fields(cls)}, "field")
            return cls(**{f.name: _value(f, record[f.name]) for f in fields(cls)})
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"not an experiment: {reason}") from error

    def changed(self, changes: Mapping[str, Any]) -> "Experiment":
        """Replace some fields, given as they stand in JSON.

        config.MNIST.changed({"schedule": "cosine", "train": {"batch_size": 32}})

        Another kind of network, {"network": "transformer(patch=4)"}, keeps the shape of the images,
        the outputs and the classes of the former one.

        Raises:
            ValueError: an unknown field; a value that it cannot have.
        """
        by_name, values = {f.name: f for f in fields(self)}, {}
        for name, value in changes.items():
            lookup(name, by_name, "field")
            if name == "network":
                value = self._network_record(value)
            elif name == "train":
                if not isinstance(value, Mapping):
                    raise ValueError(f"{name} must hold fields of its own; got {value!r:.99}")
                for part in value:
                    lookup(part, asdict(self.train), f"field of {name}")
                value = asdict(self.train) | dict(value)
            values[name] = _value(by_name[name], value)
        return replace(self, **values)

    def assigned(self, assignments: Sequence[str]) -> "Experiment":
        """Replace fields by text.

        config.MNIST.assigned(["schedule=cosine", "train.batch_size=32", "network=mlp(width=512)"])

        Another kind of network is made first, then all other fields are replaced at once.

        Raises:
            ValueError: text without "="; an unknown field; a value that it cannot have.
        """
        experiment, changes = self, {}
        for assignment in assignments:
            name, equals, text = (part.strip() for part in assignment.partition("="))
            if not equals:
                raise ValueError(f"{assignment!r:.99} must be FIELD=VALUE, as in schedule=cosine")
            name, dot, part = name.partition(".")
            value = literal(text)
            if dot:
                changes.setdefault(name, {})[part] = value
            elif name == "network":
                experiment = experiment.changed({name: value})
            else:
                changes[name] = value
        return experiment.changed(changes)

    def _network_record(self, change: Any) -> dict[str, Any]:
        """Describe the present network with a change, or another kind of network."""
        record = networks.to_record(self.network)
        shared = {name: record[name] for name in ("image_shape", "outputs", "classes")}
        if isinstance(change, str):
            choice = lookup(change, networks.KINDS, "network")
            settings = shared | getattr(choice, "keywords", {})
            return networks.to_record(getattr(choice, "func", choice)(**settings))
        if not isinstance(change, Mapping):
            raise ValueError(f"network must hold fields of its own; got {change!r:.99}")
        if change.get("kind", record.get("kind", "unet")) != record.get("kind", "unet"):
            return shared | dict(change)
        for part in change:
            lookup(part, {"kind": None} | record, "field of network")
        return record | dict(change)

    def differences(self, other_json: str) -> list[str]:
        """List what another experiment, given as JSON, trains differently."""
        here, there = (
            _flat(without_runtime_fields(_DEFAULTS | r))
            for r in (self._record(), json.loads(other_json))
        )
        return [
            f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]

    def name(self, images: str) -> str:
        """Name what is trained, also on which `images`: functions, steps and a hash of all."""
        record = self._record()
        names = [record[f.name] for f in fields(self) if f.metadata and record.get(f.name)]
        record = without_runtime_fields(record) | {"images": images}
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
        # Letters, digits and _ alone: no disk takes a "<lambda>" amiss then.
        names = [re.sub(r"\W", "", re.split("[(#]", name)[0]) for name in names]
        return "-".join([*names, str(self.train.num_steps), digest])

    def _record(self) -> dict[str, Any]:
        """Return plain values, in the order of the fields."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        for f in fields(self):
            if f.metadata and (function := record[f.name]) is not None:
                record[f.name] = label(function)
                is_ours = is_known(function, f.metadata["registry"])
                if not is_ours and (values := f.metadata["values"](self)):
                    text = repr([[f"{x:.6g}" for x in table.tolist()] for table in values])
                    record[f.name] += "#" + hashlib.sha256(text.encode()).hexdigest()[:8]
        record |= {"network": networks.to_record(self.network), "train": asdict(self.train)}
        for name, default in _DEFAULTS.items():
            if record[name] == default:
                del record[name]
        for part, name, default in _OMITTED_AT_DEFAULT:
            if "kind" not in record[part] and record[part][name] == default:
                del record[part][name]
        return json.loads(json.dumps(record))


def _value(f: Field[Any], value: Any) -> Any:
    """Read the value of a field from what JSON holds."""
    if f.name == "network":
        return networks.from_record(value)
    if f.name == "train":
        return TrainConfig(**value)
    if not f.metadata or (f.default is None and value in (None, "none")):
        return value
    return lookup(value, f.metadata["registry"], f.name)


def without_runtime_fields(record: dict[str, Any]) -> dict[str, Any]:
    """Drop from the record of an experiment what may change when a run is resumed."""
    train = record["train"] | {"compile": False}  # names have always held this one
    train.pop("accumulate", None)
    return {k: v for k, v in record.items() if k != "sample_steps"} | {"train": train}


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
