"""Experiments as data: everything that decides what is trained, in one frozen record.

    experiment = replace(config.MNIST, schedule=schedules.cosine, prediction=predictions.x_0)

A choice among functions (data set, schedule, prediction, weight) is the function itself; in JSON
and on the command line it goes by its `__name__`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion_lib import bound, losses, predictions, rng, schedules
from diffusion_lib.checkpoints import is_same
from diffusion_lib.config.registry import choose, label, resolve
from diffusion_lib.data import Dataset, sets
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.losses import Weight
from diffusion_lib.networks.unet import UNet, UNetConfig, on_meta_device
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system.device import machine_memory
from diffusion_lib.training import TrainConfig, Trainer

LOSSES = {f.__name__: f for f in (losses.diffusion_loss, bound.hybrid_loss, bound.vlb_loss)}

# Fields that came later, with the values that say nothing new: not recorded then, so that older
# runs and files stay what they are.
_LATER = (
    ("network", "outputs", 1),
    ("network", "patch", 1),
    ("network", "classes", 0),
    ("network", "groups", None),
    ("train", "cooldown", 0.0),
    ("train", "label_dropout", 0.1),
    ("train", "accumulate", 1),
)

# What may change while a run goes on: it changes speed and rounding, or nothing that is trained.
_NOT_TRAINED = ("sample_steps", "train.accumulate")


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, and how.  `replace(experiment, field=...)` makes another one.

    Args:
        dataset: one of `data`, or a function like those.
        network: size of the U-Net.
        schedule: one of `schedules`, or a function from T to a `NoiseSchedule`.
        T: number of diffusion steps.
        prediction: one of `predictions`, or a function like those.
        weight: of x_0_hat's error: one of `losses`, or a function of the signal-to-noise ratio;
            None is the plain error of what the network predicts.
        loss: one of `LOSSES`, or a function like those; `bound.hybrid_loss` for a network
            with `outputs=2`.
        train: the training loop's settings.
        sample_steps: steps of its samplers, None for all T; not part of what is trained.

    Raises:
        TypeError, ValueError: a field of another kind, or a number below 1.
    """

    dataset: Dataset
    network: UNetConfig
    schedule: Callable[[int], NoiseSchedule] = schedules.linear
    T: int = 1000
    prediction: Prediction = predictions.eps
    weight: Weight | None = None
    loss: Callable[..., Tensor] = losses.diffusion_loss
    train: TrainConfig = field(default_factory=TrainConfig)
    sample_steps: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (("network", UNetConfig), ("train", TrainConfig)):
            if not isinstance(getattr(self, name), kind):
                value = getattr(self, name)
                again = (
                    ". It was made before its module was reloaded: run the cell that makes it "
                    "again, or restart the kernel"
                    if type(value).__name__ == kind.__name__
                    else ""
                )
                raise TypeError(f"{name} must be a {kind.__name__}; got {value!r:.99}{again}")
        for name in ("dataset", "schedule", "prediction", "loss"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function; got {getattr(self, name)!r:.99}")
        if self.weight is not None and not callable(self.weight):
            raise TypeError(f"weight must be a function or None; got {self.weight!r:.99}")
        if type(self.T) is not int:  # how large it may be is the schedule's to say
            raise ValueError(f"T must be a whole number; got {self.T!r:.99}")
        steps = self.sample_steps
        if steps is not None and (type(steps) is not int or steps < 1):
            raise ValueError(
                f"sample_steps must be a whole number, at least 1, or None; got {steps!r:.99}"
            )

    def build(self) -> Denoiser:
        """The untrained denoiser; equal seeds and networks give equal weights.

        Raises:
            ValueError: settings that no network, schedule or sampler can have, a network larger
                than the memory, or a loss that the network has no output for.
        """
        outputs = self.network.outputs
        if is_same(self.loss, bound.hybrid_loss) and outputs == 1:
            raise ValueError(
                "hybrid_loss teaches a variance, but this network has no output for one: use "
                "UNetConfig(outputs=2), or diffusion_loss"
            )
        if is_same(self.loss, losses.diffusion_loss) and outputs == 2:
            raise ValueError(
                "diffusion_loss never teaches the variance that UNetConfig(outputs=2) puts out: "
                "use outputs=1, or hybrid_loss"
            )
        schedule = self.schedule(self.T)
        schedule.timesteps(self.sample_steps or self.T)  # refuses more sampling steps than T
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
                return Denoiser(UNet(self.network), schedule, self.prediction)

    def trainer(self, device: torch.device | str = "cpu") -> Trainer:
        """A trainer at step 0, on `device`."""
        loss = partial(self.loss, weight=self.weight)
        return Trainer(self.build().to(device), self.train, loss)

    def describe(self) -> dict[str, Any]:
        """Its settings in words, for `viz.table`."""
        network = on_meta_device(self.network)
        c, h, w = self.network.image_shape
        return {
            "data": f"{label(self.dataset)}, {h} x {w}, {c} channel{'s' if c > 1 else ''}",
            "schedule": f"{label(self.schedule)}, T = {self.T}",
            "network predicts": label(self.prediction),
            "loss": f"{label(self.loss)}, weight {label(self.weight)}",
            "network": f"U-Net, {sum(p.numel() for p in network.parameters()):,} parameters",
            "training": f"{self.train.num_steps:,} steps of {self.train.batch_size} images, "
            f"learning rate {self.train.learning_rate:g}, seed {self.train.seed}",
            "sampling": f"{self.sample_steps or self.T} steps",
        }

    def to_json(self) -> str:
        """The experiment as text that `from_json` reads."""
        return json.dumps(self._record(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Experiment":
        """Read what `to_json` wrote.  Names are looked up, never executed.

        Raises:
            ValueError: not such a text; an unknown name; a value that a field cannot have; a
                function of the user's own, which text cannot hold.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not an experiment ({type(error).__name__}: {error})") from error
        try:
            return cls(
                dataset=resolve(record["dataset"], sets, "dataset"),
                network=UNetConfig(**record["network"]),
                schedule=resolve(record["schedule"], schedules, "schedule"),
                T=record["T"],
                prediction=resolve(record["prediction"], predictions, "prediction"),
                weight=record["weight"] and resolve(record["weight"], losses, "weight"),
                loss=choose(record.get("loss", "diffusion_loss"), LOSSES, "loss"),
                train=TrainConfig(**record["train"]),
                sample_steps=record["sample_steps"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an experiment ({type(error).__name__}: {error})") from error

    def changed(self, changes: Mapping[str, Any]) -> "Experiment":
        """Another experiment: some fields replaced, given as they stand in JSON.

            config.MNIST.changed({"schedule": "cosine", "train": {"batch_size": 32}})

        Raises:
            ValueError: an unknown field or name; a value that is refused.
        """
        record: dict[str, Any] = self._record() | {"loss": label(self.loss)}
        record |= {"network": asdict(self.network), "train": asdict(self.train)}
        for name, value in changes.items():
            choose(name, record, "field")
            if isinstance(record[name], dict):
                if not isinstance(value, Mapping):
                    raise ValueError(f"{name} must hold fields of its own; got {value!r}")
                for part in value:
                    choose(part, record[name], f"field of {name}")
                value = record[name] | value
            record[name] = value
        return Experiment.from_json(json.dumps(record))

    def differences(self, other_json: str) -> list[str]:
        """What another experiment, given as JSON, trains differently: "name: value there, here"."""
        here, there = (_flat(trained(r)) for r in (self._record(), json.loads(other_json)))
        return [
            f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]

    def name(self, images: str) -> str:
        """Short name, unique to what is trained: functions, steps and a hash of everything.

        Args:
            images: a fingerprint of the training images, so that other images train anew.
        """
        record = trained(self._record()) | {"images": images}
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
        functions = [self.dataset, self.schedule, self.prediction]
        functions += [self.weight] if self.weight else []
        functions += [] if is_same(self.loss, losses.diffusion_loss) else [self.loss]
        # Letters, digits and _ alone: no disk takes a "<lambda>" amiss then.
        names = [re.sub(r"\W", "", label(function).partition("(")[0]) for function in functions]
        return "-".join([*names, str(self.train.num_steps), digest])

    def _record(self) -> dict[str, Any]:
        """Plain values, in the order of the fields."""
        schedule = self.schedule(self.T)
        times = torch.arange(1, self.T + 1, device="cpu")
        tables = {
            "schedule": lambda: [schedule.betas],
            "prediction": lambda: self.prediction(schedule.signal, schedule.noise),
            "weight": lambda: [
                losses.implied_weight(self.weight, predictions.x_0, schedule, times)
            ],
            "loss": lambda: [self._loss_of_fixed_images()],
        }
        known: dict[str, Mapping[str, Any]] = {
            "schedule": vars(schedules),
            "prediction": vars(predictions),
            "weight": vars(losses),
            "loss": LOSSES,
        }
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record |= {"network": asdict(self.network), "train": asdict(self.train)}
        for part, name, usual in _LATER:
            if record[part][name] == usual:
                del record[part][name]
        if is_same(self.loss, losses.diffusion_loss):
            del record["loss"], known["loss"]
        record["dataset"] = label(self.dataset)
        for name, functions in known.items():
            function = record[name]
            if function is None:
                continue
            record[name] = label(function)
            if not is_same(function, functions.get(record[name])):
                # A function of the user's own is known by its values, as a cell may redefine its
                # name.
                values = repr([[f"{x:.6g}" for x in table.tolist()] for table in tables[name]()])
                record[name] += "#" + hashlib.sha256(values.encode()).hexdigest()[:8]
        return json.loads(json.dumps(record))

    @torch.no_grad()
    def _loss_of_fixed_images(self) -> Tensor:
        images = rng.normal((8, *self.network.image_shape), rng.generator(0))
        return self.loss(self.build(), images, self.weight, rng.generator(1)).reshape(1)


def trained(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The record of an experiment without what may change while a run goes on."""
    return {
        name: trained(value, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in record.items()
        if prefix + name not in _NOT_TRAINED
    } | ({"compile": False} if prefix == "train." else {})  # names have always held this one


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
