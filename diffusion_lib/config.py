"""Experiments as data: everything that decides what is trained, in one frozen record.

    experiment = replace(config.MNIST, schedule=schedules.cosine, prediction=predictions.x_0)

A choice among functions (data set, schedule, prediction, weight) is the function itself; in JSON
and on the command line it goes by its `__name__`.  A budget is a function from an experiment to one
that takes less time.

To add a preset, write one `Experiment` and list it in `PRESETS`.
"""

import difflib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lib import bound, data, losses, predictions, rng, schedules
from diffusion_lib.data import Dataset
from diffusion_lib.denoiser import Denoiser, is_same
from diffusion_lib.losses import Weight
from diffusion_lib.networks.unet import UNet, UNetConfig, blank
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system.device import default_device as device
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

_CPU_SPEED = 2e11  # FLOP/s that a training step reaches on two cores of a server processor


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
        size, memory = sum(p.nbytes for p in blank(self.network).parameters()), machine_memory()
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
        network = blank(self.network)
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
                dataset=resolve(record["dataset"], data, "dataset"),
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


MNIST = Experiment(
    dataset=data.mnist,
    # The paper's network scaled down to what two CPU cores train within minutes.
    network=UNetConfig((1, 28, 28), 16, (1, 2, 4), num_blocks=1, attention=(7,), dropout=0.0),
    train=TrainConfig(
        num_steps=10_000, batch_size=64, learning_rate=1e-3, warmup_steps=100, ema_decay=0.9995
    ),
)
# With one number of groups in every GroupNorm, which is all that diffusers' network can hold: its
# runs can be exported.
MNIST_DIFFUSERS = replace(MNIST, network=replace(MNIST.network, groups=4))
FASHION_MNIST = replace(MNIST, dataset=data.fashion_mnist)
CIFAR10 = Experiment(
    dataset=data.cifar10,
    network=UNetConfig(),
    train=TrainConfig(mirror=0.5),
)


def smoke(experiment: Experiment) -> Experiment:
    """Seconds: proves that everything runs, learns nothing."""
    train = replace(shorten(experiment.train, 4), batch_size=8)
    return replace(experiment, train=train, sample_steps=4)


def quick(experiment: Experiment) -> Experiment:
    """Minutes on two CPU cores, for MNIST: digits that a person reads.

    At most 3,000 steps.  What is left as the MNIST preset has it becomes what suits so few: a
    learning rate twice as high that falls in the end, and a network without the first level, which
    takes more than half of the time: 2 x 2 pixels become one.

    Warns of experiments that take hours on a CPU all the same.
    """
    network, train = experiment.network, experiment.train
    train = shorten(train, min(3000, train.num_steps))
    if network == replace(MNIST.network, outputs=network.outputs):
        network = replace(network, width=32, multipliers=(1, 2), patch=2)
    elif device().type == "cpu" and (hours := _hours(network, train)) > 1:
        warnings.warn(
            "the quick budget takes minutes for the network of the MNIST presets; for this one it "
            f"takes about {hours:.0f} hours of two CPU cores. Use a GPU, a smaller network, or "
            "fewer steps (TrainConfig.num_steps, --steps)",
            stacklevel=2,
        )
    if experiment.train == replace(MNIST.train, seed=train.seed):
        train = replace(train, learning_rate=2e-3, cooldown=0.5, ema_decay=0.995)
    return replace(experiment, network=network, train=train)


def shorten(train: TrainConfig, num_steps: int) -> TrainConfig:
    """Cut the settings to fewer steps, of which at most a tenth are warm-up."""
    if num_steps >= train.num_steps:
        return train
    warmup_steps = min(train.warmup_steps, num_steps // 10)
    return replace(train, num_steps=num_steps, warmup_steps=warmup_steps)


def _hours(network: UNetConfig, train: TrainConfig) -> float:
    """Estimate a training on two CPU cores: a step takes three times the operations of a call."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        blank(network)(torch.empty(1, *network.image_shape), torch.zeros(1, dtype=torch.int64))
    operations = 3 * counter.get_total_flops() * train.batch_size * train.num_steps
    return operations / _CPU_SPEED / 3600


def full(experiment: Experiment) -> Experiment:
    """The preset as it is: a GPU, or for MNIST about an hour of CPU."""
    return experiment


# Of what was tried without labels, this gave the most digits that a classifier is sure of after
# eight minutes on two CPU cores (`benchmarks.time_to_digits`).  It was chosen after half of that:
# of 500 samples (DDPM, 100 steps; give or take 3.5 %) it was sure of 78 % with eps and the linear
# schedule, of 79 % with v and the cosine one, of 76 % at twice the learning rate, and of 83 % with
# the weight `uniform`, which looks less at nearly clean pictures.  Training twice as long (82 %),
# or a width of 48 in the same time (76 %), brought no more.
MNIST_FAST = replace(
    quick(MNIST), schedule=schedules.cosine, prediction=predictions.v, weight=losses.uniform
)

# The same with labels: ten digits to ask for.  This is what gives the most real digits in eight
# minutes, by far.  After half of that, of 500 digits asked for in turn (seed 0, DDPM, 100 steps)
# the classifier was sure of 94 % without guidance, of 98 % at scale 1.5 and of all of them at 2.
MNIST_LABELS = replace(MNIST_FAST, network=replace(MNIST_FAST.network, classes=10))

PRESETS = {
    "mnist": MNIST,
    "mnist_fast": MNIST_FAST,
    "mnist_labels": MNIST_LABELS,
    "mnist_diffusers": MNIST_DIFFUSERS,
    "fashion_mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
}

BUDGETS = {"smoke": smoke, "quick": quick, "full": full}


def budget() -> Callable[[Experiment], Experiment]:
    """`full` on a GPU, `quick` elsewhere, or what the environment variable DIFFUSION_BUDGET names.

    Raises:
        ValueError: it names no budget.
    """
    name = os.environ.get("DIFFUSION_BUDGET") or ("quick" if device().type == "cpu" else "full")
    return choose(name, BUDGETS, "DIFFUSION_BUDGET")


def data_root() -> str:
    """Folder of the data sets: the environment variable DIFFUSION_DATA, or "data".

    Anywhere in a checkout of the repository that is the one in its root.
    """
    return os.environ.get("DIFFUSION_DATA") or _in_root("data")


def runs_root() -> Path:
    """Folder of the runs: the environment variable DIFFUSION_RUNS, or "runs", as `data_root`."""
    return Path(os.environ.get("DIFFUSION_RUNS") or _in_root("runs"))


def _in_root(name: str) -> str:
    """A path from the working folder to that name in the checkout around it, if it is in one."""
    root = Path(__file__).resolve().parent.parent
    checkout = (root / "pyproject.toml").exists()  # and no installed copy
    return os.path.relpath(root / name) if checkout and Path.cwd().is_relative_to(root) else name


def label(function: Callable[..., Any] | None) -> str:
    """Its name, "none" for None; with the arguments that a `functools.partial` was given."""
    if function is None:
        return "none"
    if isinstance(function, partial):
        given = [*map(str, function.args), *(f"{k}={v}" for k, v in function.keywords.items())]
        return f"{label(function.func)}({', '.join(given)})"
    return function.__name__


def choose(name: str, choices: dict[str, Any], what: str) -> Any:
    """The choice of that name.

    Raises:
        ValueError: there is none; the message has the close matches and all choices.
    """
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{what} {name!r:.99} is unknown{_suggest(str(name)[:99], choices)}")
    return choices[name]


def resolve(name: str, module: ModuleType, what: str) -> Any:
    """The function of that name in a module's `__all__`; an error calls it `what`.

    Raises:
        ValueError: it lists none; the message has the close matches and all choices.
    """
    return choose(name, {choice: getattr(module, choice) for choice in module.__all__}, what)


def _suggest(name: str, choices: Collection[str]) -> str:
    lower = name.lower()
    close = [lower] if lower in choices else difflib.get_close_matches(lower, choices, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return f"{hint} Choose one of: {', '.join(choices)}."


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
