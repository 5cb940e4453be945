"""The training loop: warm-up, gradient clipping, a moving average, exact resume.

Step n draws its batch, times, noise and dropout from (seed, n) alone.  So a run that was saved,
stopped and loaded ends with the weights of one that never stopped, bit for bit on a CPU.

Under torchrun every process computes its rows of the same batches, and the gradients are averaged
(`DistributedDataParallel`): the run is that of one process, but for rounding, and for dropout,
which draws for each part of a batch.  All keep the same weights; the caller lets the first save.
"""

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffusion_lib import data, losses, rng
from diffusion_lib.checkpoints import check_weights
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser, with_network
from diffusion_lib.guidance import with_labels
from diffusion_lib.networks import config_of
from diffusion_lib.optimizers import MakeOptimizer, adamw
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
from diffusion_lib.train_config import TrainConfig

_FORMAT = "diffusion_lib training state 1"

# Rows of a batch that are computed at once: x_0, their labels, and the number of the first row.
MicroBatch = tuple[Tensor, Tensor | None, int]


@dataclass(frozen=True)
class TrainStep:
    """A finished training step: the number of updates so far, and the loss of its batch, []."""

    step: int
    loss_tensor: Tensor  # on the device

    @property
    def loss(self) -> float:
        """The loss as a float.  Synchronizes with the GPU."""
        return self.loss_tensor.item()


class Trainer:
    """Fits `denoiser` in place and keeps a moving average of its weights in `ema`.

    The network computes in the precision of the device (`system.device`) at the time the trainer
    is made, with its weights in the device's memory layout; weights, loss and moving average stay
    float32.

    Args:
        denoiser: denoiser to train, on the device to train on.
        config: settings of the training.
        loss: (denoiser, x_0, generator=...) -> [], drawing only from the generator; with the
            functions of `rng`, if a batch is to be divided.
        optimizer: one of `optimizers`, or a function like those.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        loss: Callable[..., Tensor] = losses.diffusion_loss,
        optimizer: MakeOptimizer = adamw,
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
        self._parameters: list[Tensor] = list(denoiser.parameters())
        self.device = self._parameters[0].device
        self._make_optimizer = optimizer
        self.optimizer = optimizer(self._parameters, config)
        # Of the learning rate of a step, where groups of weights differ.
        self._shares = [group["lr"] / config.learning_rate for group in self.optimizer.param_groups]
        self._network_config = config_of(denoiser.network)
        self._classes = self._network_config.classes if self._network_config else 0
        self._autocast = autocast(denoiser)
        # Fused optimizers of torch skip an update by `found_inf`; before others it is checked.
        self._can_skip = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self._check_interval = finite_check_interval(self.device) if self._can_skip else 1
        # Updates skipped since the first loss or gradient that was not finite.
        self._num_skipped = torch.zeros((), device=self.device)
        self._in_update = False
        if config.compile or should_compile(self.device, config.num_steps):
            denoiser.network.compile()  # in place: the names of the weights stay
        parts = parallel.size() * config.accumulate
        if config.batch_size % parts:
            raise ValueError(
                f"batch_size = {config.batch_size} cannot be divided into {parts} equal parts "
                f"({parallel.size()} processes times accumulate = {config.accumulate}): use a "
                "multiple"
            )
        self._micro_batch_size = config.batch_size // parts
        self._ddp_denoiser = denoiser  # averages the gradients over all processes
        if parallel.size() > 1:
            # Gives all processes the weights of the first.
            self._ddp_denoiser = with_network(denoiser, DistributedDataParallel(denoiser.network))
        self.ema = deepcopy(denoiser).eval().requires_grad_(False)
        self._averages: list[Tensor] = list(self.ema.parameters())
        self._buffers = list(
            zip(self.ema.network.buffers(), denoiser.network.buffers(), strict=True)
        )

    def run(self, images: Tensor | Images) -> Generator[TrainStep, None, None]:
        """Train from `step` to `config.num_steps`; yield after each update of weights and EMA.

        Stopping between two updates, by `break`, an exception or an interrupt, leaves a state
        that can be saved and resumed: an interrupt (Ctrl-C) during an update is raised after the
        yield that follows it.

        Args:
            images: uint8 [N, C, H, W]; moved to the device once, if they leave half of its memory.
                With their labels for a network that knows labels.

        Raises:
            FloatingPointError: a loss or gradient that is not finite; that update and any after it
                are not applied. On a GPU it is raised up to 10 steps late, because reading a
                number there synchronizes.
        """
        images, labels = data.images_and_labels(images)
        config = self._network_config
        data.check(images, config.image_shape if config else None)
        if not self._classes:
            return self._train(images, None)
        return self._train(images, data.check_labels(labels, self._classes, len(images)))

    def _train(self, images: Tensor, labels: Tensor | None) -> Generator[TrainStep, None, None]:
        if images.nbytes < image_memory_budget(self.device):
            images = images.to(self.device)
        self._data = images, None if labels is None else labels.to(self.device)
        rows_per_process = self.config.batch_size // parallel.size()
        first = parallel.rank() * rows_per_process
        batches = self._batches(slice(first, first + rows_per_process))
        remaining = max(0, self.config.num_steps - self.step)
        for micro_batches in islice(batches, min(remaining, sys.maxsize)):
            with defer_interrupts() as deliver:
                loss = self.train_step(micro_batches)
            yield TrainStep(self.step, loss)
            deliver()

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> Tensor:
        """Update the weights and their average on this process's rows of a batch, in equal parts.

        Returns the loss, [], averaged over all processes.
        """
        config, denoiser = self.config, self._ddp_denoiser
        denoiser.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        for part in micro_batches:
            if isinstance(denoiser.network, DistributedDataParallel):  # once, with the last part
                denoiser.network.require_backward_grad_sync = part is micro_batches[-1]
            part_loss = self._loss(denoiser, part) / len(micro_batches)
            part_loss.backward()
            loss += part_loss.detach()
        if denoiser is not self.denoiser:
            loss = parallel.mean(loss)
        norm = nn.utils.clip_grad_norm_(self._parameters, config.grad_clip)
        self._skip_unless_finite(loss + norm)
        for group, share in zip(self.optimizer.param_groups, self._shares, strict=True):
            group["lr"] = share * learning_rate(config, self.step)
        self._in_update = True
        self.optimizer.step()
        self.step += 1
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)(self._averages, self._parameters, self.step)
            for average, buffer in self._buffers:  # such as the statistics of a BatchNorm
                average.copy_(buffer)
        self._in_update = False
        return loss

    def _batches(self, rows: slice) -> Iterator[list[MicroBatch]]:
        """Yield these rows of each batch from `step` on, in micro-batches on the device."""
        config, size = self.config, self._micro_batch_size
        images, labels = self._data
        key = config.batch_size, config.seed, self.step
        indices = data.batch_indices(len(images), *key, self.device)
        first_rows = range(rows.start, rows.stop, size)
        for step, x_0 in enumerate(data.batches(images, *key, config.mirror, rows), self.step):
            pieces = x_0.to(self.device).split(size)
            piece_labels: Sequence[Tensor | None] = [None] * len(pieces)
            if labels is not None:
                key = config.seed, TrainingStream.LABEL_DROPOUT, step
                generator = rng.generator(*key, device=self.device)
                uniform = torch.rand(config.batch_size, generator=generator, device=self.device)
                dropped = uniform < config.label_dropout
                batch_labels = torch.where(dropped, self._classes, labels[next(indices)])
                piece_labels = batch_labels[rows].split(size)
            yield list(zip(pieces, piece_labels, first_rows, strict=True))

    def _loss(self, denoiser: Denoiser, part: MicroBatch) -> Tensor:
        """Compute the loss of a micro-batch of the present step."""
        seed, step, device = self.config.seed, self.step, self.device
        x_0, labels, first_row = part
        if labels is not None:
            denoiser = with_labels(denoiser, labels)
        generator = rng.generator(seed, TrainingStream.TIMES_AND_NOISE, step, device=device)
        if len(x_0) < self.config.batch_size:
            generator = rng.Rows(generator, first_row, self.config.batch_size)
        row_key = [first_row] if first_row else []
        dropout_seed = rng.seed(seed, TrainingStream.DROPOUT, step, *row_key)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self._autocast:
            torch.manual_seed(dropout_seed)  # dropout draws from torch's global generator
            return self.loss(denoiser, x_0, generator=generator)

    def _skip_unless_finite(self, loss_and_norm: Tensor) -> None:
        """Make the optimizer skip this update and all after it where a number is not finite.

        Decided on the device; the program reads the decision at intervals, and then raises.  By
        then the moving average of a GPU has come some steps nearer to the last weights.
        """
        skipped = (self._num_skipped > 0) | ~torch.isfinite(loss_and_norm)
        self._num_skipped += skipped
        if self._can_skip:
            self.optimizer.found_inf = skipped.float()  # pyright: ignore[reportAttributeAccessIssue]
        step = self.step + 1
        if step % self._check_interval and step != self.config.num_steps:
            return
        if num_skipped := int(self._num_skipped):
            self.step -= num_skipped - 1
            self._num_skipped.zero_()
            raise FloatingPointError(
                f"step {self.step + 1}: the loss or its gradient is not finite. The update was not "
                "applied; the weights are those before it. Try a lower learning_rate or a longer "
                "warm-up."
            )

    def save(self, path: str | Path, run: str = "") -> None:
        """Write all that `load` needs to resume exactly: a safetensors file, whole or not at all.

        `run` names what is trained, which `load` compares.

        Raises:
            OSError: it could not be written; a file that was there before is untouched.
            RuntimeError: an error, such as of too small a memory, ended an update half-way.
        """
        if self._in_update:
            raise RuntimeError(
                "the last update was ended half-way by an error, so the weights belong to no step; "
                "the last training state that was saved is as it was"
            )
        tensors = self._weights() | _named(self.optimizer)
        step = self.step - int(self._num_skipped)
        files.write_tensors(path, tensors, {"format": _FORMAT, "step": str(step), "run": run})

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights and their moving averages, by their names in a training state."""
        networks = {"network": self.denoiser.network, "ema": self.ema.network}
        return {f"{n}.{k}": v for n, net in networks.items() for k, v in net.state_dict().items()}

    def load(self, path: str | Path, run: str = "", *former: str) -> None:
        """Load what `save` wrote, of the same `run`; files from before there were names have none.

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
        if not (step := metadata.get("step", "")).isdecimal():
            raise ValueError(f"{path} is not a training state: its step is {step!r:.99}")
        weights = self._weights()
        # The state of this optimizer after one update has the names, shapes and layout of any.
        others = [torch.zeros_like(p, requires_grad=p.requires_grad) for p in self._parameters]
        for i, other in enumerate(others):
            if any(name.startswith(f"optimizer.{i}.") for name in tensors):
                other.grad = torch.zeros_like(other)  # others never had one
        optimizer = self._make_optimizer(others, self.config)
        if int(step):
            optimizer.step()
        own = weights | _named(optimizer)
        check_weights(own, tensors, path)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.optimizer.load_state_dict(optimizer.state_dict())
        self.step = int(step)
        self._in_update = False
        self._num_skipped.zero_()


def _named(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state, by their names in a training state."""
    states = optimizer.state_dict()["state"].items()
    named = {f"optimizer.{i}.{k}": v for i, state in states for k, v in state.items()}
    named = {name: value for name, value in named.items() if value is not None}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {value!r:.99}: only tensors can be saved and resumed from")
    return named


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of the update after `step` others: up, level, down."""
    up = (step + 1) / max(1, config.warmup_steps)
    down = (config.num_steps - step) / (config.cooldown * config.num_steps + 1)
    return config.learning_rate * min(1.0, up, down)
