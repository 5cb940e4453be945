"""The training loop: AdamW, warm-up, gradient clipping, a moving average, exact resume.

Step n draws its batch, times, noise and dropout from (seed, n) alone.  So a run that was saved,
stopped and loaded ends with the weights of one that never stopped, bit for bit on a CPU.

Under torchrun every process computes its rows of the same batches, and the gradients are averaged
(`DistributedDataParallel`): the run is that of one process, but for rounding, and for dropout,
which draws for each part of a batch.  All keep the same weights; the caller lets the first save.
"""

import math
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffusion_lib import data, losses, rng
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser, check_weights, with_network
from diffusion_lib.guidance import check_labels, with_labels
from diffusion_lib.networks.unet import UNet
from diffusion_lib.rng import TrainingStream
from diffusion_lib.system import files, parallel
from diffusion_lib.system.device import (
    autocast,
    finite_check_interval,
    image_memory_budget,
    optimize_memory_layout,
    should_compile,
)
from diffusion_lib.system.interrupts import defer_interrupts

_FORMAT = "diffusion_lib training state 1"

_LARGEST_BATCH = 10**15  # more than any memory holds the numbers of

# Fields of a TrainConfig that lie in [0, 1].
_SHARES = ("ema_decay", "mirror", "cooldown", "label_dropout")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.  The defaults are those of DDPM's CIFAR-10 run [DDPM appendix B].

    Args:
        num_steps: optimizer updates.
        batch_size: images in each.
        learning_rate: of AdamW, reached after `warmup_steps` of linear growth.
        cooldown: share of the steps, at the end, over which it falls to 0 [Hagele 2024].
        weight_decay: AdamW's; the paper uses none.
        grad_clip: bound on the norm of the whole gradient.
        ema_decay: of the moving average, after its own warm-up: min(ema_decay, (1 + n) / (10 +
            n)) at step n.
        mirror: probability of flipping a training image left to right.
        seed: of the initial weights and of everything that is drawn.
        compile: train through torch.compile on a CPU too: costs a minute or more, needs a C++
            compiler. On a GPU trainings of 5,000 steps or more are compiled unasked.
        label_dropout: share of the images whose label is left out, which teaches a network of
            labels to do without as well, for guidance [Ho & Salimans 2022, algorithm 1].
        accumulate: equal parts in which a process computes its share of a batch, one after the
            other, where all of it does not fit into memory.
    """

    num_steps: int = 800_000
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_steps: int = 5000
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    mirror: float = 0.0
    seed: int = 0
    compile: bool = False
    cooldown: float = 0.0
    label_dropout: float = 0.1
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "warmup_steps", "seed", "accumulate"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} must be a whole number; got {getattr(self, name)!r:.99}")
        for name in ("learning_rate", "weight_decay", "grad_clip", *_SHARES):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number; got {value!r:.99}")
        if type(self.compile) is not bool:
            raise ValueError(f"compile must be True or False; got {self.compile!r:.99}")
        for name in ("num_steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.batch_size > _LARGEST_BATCH:
            raise ValueError(
                f"batch_size must be at most {_LARGEST_BATCH:,}; got {self.batch_size!r:.99}"
            )
        for name in ("learning_rate", "grad_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay must be finite and not negative; got {self.weight_decay}"
            )
        for name in ("seed", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1]; got {getattr(self, name)}")
        if self.warmup_steps > self.num_steps:
            reached = self.num_steps / self.warmup_steps * self.learning_rate
            warnings.warn(
                f"the warm-up of {self.warmup_steps:,} steps is longer than the training of "
                f"{self.num_steps:,}: the learning rate gets to {reached:.2g} of "
                f"{self.learning_rate:g}. Use fewer warmup_steps, or more num_steps",
                stacklevel=3,
            )


@dataclass(frozen=True)
class TrainStep:
    """An update.

    Args:
        step: number of updates so far.
        loss_tensor: its loss, [], on the device.
    """

    step: int
    loss_tensor: Tensor

    @property
    def loss(self) -> float:
        """Its loss.  A GPU works ahead of the program; this waits until it has got here."""
        return self.loss_tensor.item()


class _Part(NamedTuple):
    """Rows of a batch that are computed at once."""

    x_0: Tensor
    labels: Tensor | None
    first: int  # row of the batch


class Trainer:
    """Fits `denoiser` in place and keeps a moving average of its weights in `ema`.

    The network computes in the precision of the device (`system.device`), with its weights in the
    device's memory layout; weights, loss and moving average stay float32.

    Args:
        denoiser: on the device to train on.
        config: how to train.
        loss: (denoiser, x_0, generator=...) -> [], drawing only from the generator; with the
            functions of `rng`, if a batch is to be divided.

    Raises:
        ValueError: a batch that cannot be divided evenly.
        TypeError: weights of less than float32, in which small updates would be rounded away.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        loss: Callable[..., Tensor] = losses.diffusion_loss,
    ) -> None:
        if kinds := {p.dtype for p in denoiser.parameters()} - {torch.float32, torch.float64}:
            raise TypeError(
                f"the weights to train must be float32; got {', '.join(map(str, kinds))}. Use "
                "denoiser.float(): where bfloat16 is faster the network computes in it anyway."
            )
        self.denoiser = optimize_memory_layout(denoiser)
        self.config = config
        self.loss = loss
        self.step = 0
        self._in_update = False
        self._parameters: list[Tensor] = list(denoiser.parameters())
        self.device = self._parameters[0].device
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        network = denoiser.network
        self._classes = network.config.classes if isinstance(network, UNet) else 0
        # Updates refused since the first loss or gradient that was not finite.
        self._refused = torch.zeros((), device=self.device)
        if config.compile or should_compile(self.device, config.num_steps):
            denoiser.network.compile()  # in place: the names of the weights stay
        parts = parallel.size() * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size = {config.batch_size} cannot be divided into {parts} equal parts "
                f"({parallel.size()} processes times accumulate = {config.accumulate}): use a "
                "multiple"
            )
        self._part_size = config.batch_size // parts
        # What computes the loss: its gradients become those of all processes together.
        self._together = denoiser
        if parallel.size() > 1:
            # Gives all processes the weights of the first.
            self._together = with_network(denoiser, DistributedDataParallel(denoiser.network))
        self.ema = deepcopy(denoiser).eval().requires_grad_(False)
        self._averages: list[Tensor] = list(self.ema.parameters())

    def run(self, images: Tensor | Images) -> Generator[TrainStep, None, None]:
        """Train from `step` to `config.num_steps`; yield after each update of weights and EMA.

        Stopping between two updates, by `break`, an exception or an interrupt, leaves a state
        that can be saved and gone on from: an interrupt (Ctrl-C) during an update comes after the
        yield that follows it.

        Args:
            images: uint8 [N, C, H, W]; moved to the device once, if they leave half of its memory.
                With their labels for a network that knows labels.

        Raises:
            TypeError, ValueError: images that do not fit the network, see `data.check`; labels
                that it does not know, or none for a network of labels.
            FloatingPointError: a loss or gradient that is not finite; that update and any after it
                are not applied. On a GPU it comes up to 10 steps late, as every look at a number
                there waits for it.
        """
        images, labels = data.images_and_labels(images)
        network = self.denoiser.network
        built_for = network.config.image_shape if isinstance(network, UNet) else None
        data.check(images, built_for)
        if not self._classes:
            return self._updates(images, None)
        labels = check_labels(labels, self._classes, len(images))
        return self._updates(images, labels)

    def _updates(self, images: Tensor, labels: Tensor | None) -> Generator[TrainStep, None, None]:
        config = self.config
        if images.nbytes < image_memory_budget(self.device):
            images = images.to(self.device)
        labels = labels if labels is None else labels.to(self.device)
        mine = config.batch_size // parallel.size()
        rows = slice(parallel.rank() * mine, (parallel.rank() + 1) * mine)
        left = max(0, config.num_steps - self.step)
        for parts in islice(self._batches(images, labels, rows), min(left, sys.maxsize)):
            with defer_interrupts() as deliver:
                loss = self._update(parts)
                if (
                    self.step % finite_check_interval(self.device) == 0
                    or self.step == config.num_steps
                ):
                    self._check(images, labels)
                self._average()
            yield TrainStep(self.step, loss)
            deliver()

    def _batches(self, images: Tensor, labels: Tensor | None, rows: slice) -> Iterator[list[_Part]]:
        """Those rows of the batches from the coming step on, in parts, on the device."""
        config, size = self.config, self._part_size
        draw = config.batch_size, config.seed, self.step
        batches = data.batches(images, *draw, config.mirror, rows)
        chosen = data.batch_indices(len(images), *draw, self.device)
        for step, x_0 in enumerate(batches, self.step):
            pieces = x_0.to(self.device).split(size)
            told: Sequence[Tensor | None] = [None] * len(pieces)
            if labels is not None:
                g = rng.generator(
                    config.seed, TrainingStream.LABEL_DROPOUT, step, device=self.device
                )
                left_out = torch.rand(config.batch_size, generator=g, device=self.device)
                left_out = left_out < config.label_dropout
                kept = torch.where(left_out, self._classes, labels[next(chosen)])
                told = kept[rows].split(size)
            firsts = range(rows.start, rows.stop, size)
            yield [_Part(*part) for part in zip(pieces, told, firsts, strict=True)]

    def _update(self, parts: list[_Part]) -> Tensor:
        self._together.train()
        loss = parallel.mean(self._backward(self._together, parts))
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.grad_clip)
        # Decided on the device, so that the program need not wait for the numbers.
        refused = (self._refused > 0) | ~torch.isfinite(loss + norm)
        self._refused += refused
        self.optimizer.found_inf = refused.float()  # pyright: ignore[reportAttributeAccessIssue]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self._in_update = True  # until the moving average has followed
        self.optimizer.step()
        self.step += 1
        return loss

    def _backward(self, denoiser: Denoiser, parts: list[_Part]) -> Tensor:
        """The loss of the coming step over these parts, []; its gradient replaces the one before.

        Processes that train together exchange gradients once, with the last part.
        """
        network = denoiser.network
        together = isinstance(network, DistributedDataParallel)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in parts:
            with network.no_sync() if together and part is not parts[-1] else nullcontext():
                loss = self._loss(denoiser, part) / len(parts)
                loss.backward()
            total += loss.detach()
        return total

    def _check(self, images: Tensor, labels: Tensor | None) -> None:
        """Raise where updates were refused, with the weights from before the first of them.

        Where the device is not looked at after every step, the moving average has come some steps
        nearer to these weights.
        """
        refused = int(self._refused)
        if not refused:
            return
        self.step -= refused
        self._refused.zero_()
        self._in_update = False
        # Every process looks at the whole batch, so that all of them tell the same.
        parts = next(self._batches(images, labels, slice(0, self.config.batch_size)))
        loss = self._backward(self.denoiser, parts)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        raise FloatingPointError(
            f"step {self.step + 1}: the loss is {loss.item():g} and the norm of its gradient "
            f"{norm.item():g}, at t = {self._bad_times(parts)}. The update was not applied; "
            "the weights are those before it. Try a lower learning_rate or a longer warm-up."
        )

    def _loss(self, denoiser: Denoiser, part: _Part) -> Tensor:
        """The loss of a part of the coming step; calling it twice gives the same."""
        seed, step, device = self.config.seed, self.step, self.device
        if part.labels is not None:
            denoiser = with_labels(denoiser, part.labels)
        generator = rng.generator(seed, TrainingStream.TIMES_AND_NOISE, step, device=device)
        if len(part.x_0) < self.config.batch_size:
            generator = rng.Rows(generator, part.first, self.config.batch_size)
        dropout = (seed, TrainingStream.DROPOUT, step, *([part.first] if part.first else []))
        cuda = device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if cuda else []), autocast(self.denoiser):
            torch.manual_seed(rng.seed(*dropout))  # dropout draws from torch's global generator
            return self.loss(denoiser, part.x_0, generator=generator)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        average = get_ema_multi_avg_fn(decay)
        average(self._averages, self._parameters, self.step)
        self._in_update = False

    @torch.no_grad()
    def _bad_times(self, parts: list[_Part]) -> list[int]:
        """Times at which the coming step's network output is not finite, or else all its times."""
        seen: list[tuple[int, bool]] = []

        def look(network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            finite = output.isfinite().flatten(1).all(1)
            seen.extend(zip((inputs[1] + 1).tolist(), finite.tolist(), strict=True))

        handle = self.denoiser.network.register_forward_hook(look)
        try:
            with torch.compiler.set_stance("force_eager"):  # compiled code may not see the hook
                for part in parts:
                    self._loss(self.denoiser, part)
        finally:
            handle.remove()
        bad = {t for t, finite in seen if not finite} or {t for t, _ in seen}
        return sorted(bad)

    def check_whole(self) -> None:
        """Refuse to go on from an update that an error ended half-way, as none can be saved.

        Raises:
            RuntimeError: such an error has been raised, for example of too small a memory.
        """
        if self._in_update:
            raise RuntimeError(
                "the last update was ended half-way by an error, so the weights belong to no step; "
                "the last training state that was saved is as it was"
            )

    def save(self, path: str | Path, run: str = "") -> None:
        """Write all that `load` needs to go on exactly: a safetensors file, whole or not at all.

        Args:
            run: a name of what is trained, which `load` asks for again.

        Raises:
            OSError: it could not be written; a file that was there before is untouched.
            RuntimeError: an error ended an update half-way, see `check_whole`.
        """
        self.check_whole()
        tensors = {f"network.{k}": v for k, v in self.denoiser.network.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.network.state_dict().items()}
        for parameter, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{parameter}.{k}": v for k, v in state.items()}
        files.write_tensors(
            path,
            tensors,
            {"format": _FORMAT, "step": str(self.step - int(self._refused)), "run": run},
        )

    def load(self, path: str | Path, run: str = "", *former: str) -> None:
        """Go on from a saved state.

        Args:
            run: the name that it was saved with; a file from before there were names has none.
            former: other names that it may have been saved with.

        Raises:
            FileNotFoundError, ValueError: no such file; a truncated, damaged or foreign one, or
                one of another network or run. The trainer then is as it was.
        """
        tensors, metadata = files.read_tensors(path, _FORMAT)
        if (owner := metadata.get("run", run)) not in (run, *former):
            raise ValueError(
                f"{path} is of another run ({owner!r:.99}) than the one asked for ({run!r}). It "
                "was not loaded; restore the right one, or delete it to start again."
            )
        weights: dict[str, dict[str, Tensor]] = {"network": {}, "ema": {}}
        moments: dict[int, dict[str, Tensor]] = {}
        try:
            step = int(metadata["step"])
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                if part == "optimizer":
                    parameter, _, key = rest.partition(".")
                    moments.setdefault(int(parameter), {})[key] = tensor
                else:
                    weights[part][rest] = tensor
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a training state ({error!r:.99})") from error
        groups = self.optimizer.state_dict()["param_groups"]
        self._check_moments(moments, step, path)
        check_weights(self.denoiser.network, weights["network"], path)
        check_weights(self.ema.network, weights["ema"], path)
        self.denoiser.network.load_state_dict(weights["network"])
        self.ema.network.load_state_dict(weights["ema"])
        for i, parameter in enumerate(self._parameters):
            for key, tensor in moments.get(i, {}).items():
                if tensor.shape == parameter.shape:
                    # A fused update goes through memory in order, so all must have one layout.
                    moments[i][key] = torch.empty_like(parameter).copy_(tensor)
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = step
        self._in_update = False
        self._refused.zero_()

    def _check_moments(
        self, moments: Mapping[int, Mapping[str, Tensor]], step: int, path: str | Path
    ) -> None:
        """Refuse optimizer states that are not those of this network's weights after `step`."""
        parameters = self._parameters if step else []
        expected = {
            i: {"step": [], "exp_avg": list(p.shape), "exp_avg_sq": list(p.shape)}
            for i, p in enumerate(parameters)
        }
        found = {
            i: {key: list(x.shape) for key, x in state.items() if x.is_floating_point()}
            for i, state in moments.items()
        }
        if step < 0 or found != expected:
            raise ValueError(
                f"{path} belongs to another network: the optimizer states after step {step} are "
                "not those of its weights"
            )


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of the update after `step` others: up, level, down."""
    up = (step + 1) / max(1, config.warmup_steps)
    down = (config.num_steps - step) / (config.cooldown * config.num_steps + 1)
    return config.learning_rate * min(1.0, up, down)
