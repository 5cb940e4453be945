"""Train an experiment in a folder: resume, save, log, and show progress.

Under torchrun all processes train one run together; the first alone writes."""

import hashlib
import math
import shutil
import time
import warnings
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import config, data, losses, samplers
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import check_labels
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files, parallel
from diffusion_lib.system.device import autocast
from diffusion_lib.system.guard import Guard
from diffusion_lib.system.interrupts import defer_interrupts
from diffusion_lib.system.progress import progress
from diffusion_lib.training import Trainer, TrainStep

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
from diffusion_lib.runs.folder import (
    _alone,
    _check_final,
    _check_start,
    _claim,
    _cut_log,
    _ema_step,
    _identities,
    _read_log,
    _write_log,
    fingerprint,
)
from diffusion_lib.runs.run import Run
from diffusion_lib.runs.sampling import _states

SECONDS_BETWEEN_SAVES = 30.0

_LOG_EVERY = 10  # steps

_HELD_OUT_MOMENTS = 40  # evenly spaced over a run, at least 30 steps apart

_HELD_OUT_IMAGES = 256

_PICTURES = 4  # of the held-out moments, one in so many has a grid of samples in TensorBoard


def train(
    experiment: Experiment,
    images: Tensor | Images,
    held_out: Tensor | Images,
    folder: str | Path | None = None,
    device: torch.device | None = None,
    start: str | Path | None = None,
) -> Run:
    """Train an experiment, go on with a run that was stopped, or load one that is finished.

    Shows a progress bar.  Saves every half minute, at the end, and when interrupted (Ctrl-C, the
    stop button of a notebook); the same call then goes on where it stopped.

    Args:
        images: to train on, uint8 [N, C, H, W]; with their labels for a network that knows labels.
        held_out: never trained on, uint8 [M, C, H, W]; 256 of them measure the averaged weights
            as it goes, by the squared error whatever the loss is, and without labels.
        folder: None makes one under "runs", named after the experiment: a changed experiment
            trains anew there.
        device: None takes the GPU if there is one.
        start: folder of a finished run of the same experiment with fewer steps: a new run goes on
            from there, and ends as if it had begun at step 0.

    Raises:
        ValueError: the folder belongs to another experiment or other images, or another process
            trains in it; a damaged file in it; `start` is of another experiment.
        TypeError, ValueError: images that do not fit the network.
        FloatingPointError: the loss is no longer finite; the state before that is saved.
        OSError: the run could not be written; the previous checkpoint is whole.
    """
    device = device or config.device()
    shape = experiment.network.image_shape
    images, labels = data.images_and_labels(images)
    held_out, _ = data.images_and_labels(held_out)
    data.check(images, shape)
    data.check(held_out, shape)
    told = fingerprint(images)
    training = images
    if experiment.network.classes:
        labels = check_labels(labels, experiment.network.classes, len(images))
        told += f", of labels {hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()[:16]}"
        training = Images(images, labels)
    folder = Path(folder or config.runs_root() / experiment.name(told))
    files.check_path(folder)
    trainer = experiment.trainer(device)  # refuses impossible settings before anything is written
    state, average = folder / "training.safetensors", folder / "ema.safetensors"
    with ExitStack() as stack:

        def prepare() -> tuple[bool, bool]:
            """Whether there is a training state, and whether there are averaged weights alone."""
            if start is not None:
                _check_start(Path(start), experiment, told)
            _claim(folder, experiment, told)
            stack.enter_context(_alone(folder))
            for unfinished in files.leftover_temporaries(folder):
                with suppress(OSError):  # of a finished run on a read-only disk
                    unfinished.unlink()
            weights_alone = average.exists() and not state.exists()
            if weights_alone:
                _check_final(folder, experiment.train.num_steps)
            elif start is not None and not state.exists():
                # Whole and of this experiment, before it stands in the new folder.
                trainer.load(Path(start) / "training.safetensors", *_identities(Path(start)))
                for name in ("log.jsonl", "training.safetensors"):
                    with files.atomic_write(folder / name) as temporary:
                        shutil.copy(Path(start) / name, temporary)
            return state.exists(), weights_alone

        has_state, weights_alone = parallel.on_rank_zero(prepare)
        if weights_alone:
            trainer.ema.load_weights(average)
        elif has_state:
            trainer.load(state, *_identities(folder))
        parallel.assert_same_on_all_ranks(
            "training images and step", f"{told}, step {trainer.step}"
        )
        if weights_alone:
            return Run(folder, trainer.ema, parallel.on_rank_zero(lambda: _read_log(folder)))
        if trainer.step < experiment.train.num_steps:
            ema_step = parallel.on_rank_zero(lambda: _ema_step(folder))
            parallel.on_rank_zero(lambda: _cut_log(folder, trainer.step))
            started = {
                "device": _devices(trainer.device),
                **hardware.conditions(trainer.device),
                "torch": torch.__version__,
                "images": len(images),
            }
            if parallel.rank() == 0:
                _write_log(folder, started)
            _train(trainer, experiment, trainer.run(training), held_out, folder, ema_step)
        else:
            parallel.on_rank_zero(lambda: _complete(average, trainer))
        return Run(folder, trainer.ema, parallel.on_rank_zero(lambda: _read_log(folder)))


def _train(
    trainer: Trainer,
    experiment: Experiment,
    steps: Generator[TrainStep, None, None],
    held_out: Tensor,
    folder: Path,
    ema_step: int,
) -> None:
    total = experiment.train.num_steps
    moment = math.ceil(max(25, total // _HELD_OUT_MOMENTS) / _LOG_EVERY) * _LOG_EVERY
    x_held_out = data.to_float(held_out[:_HELD_OUT_IMAGES]).to(trainer.device)
    seconds = [record["seconds"] for record in _read_log(folder) if "seconds" in record]
    before = seconds[-1] if seconds else 0.0
    start = saved = time.monotonic()
    writes = parallel.rank() == 0
    validate = Guard("the held-out loss")
    board = _Board(folder, trainer.step) if writes else None
    average, identity = folder / "ema.safetensors", _identities(folder)[0]
    state = folder / "training.safetensors"
    pending: list[dict[str, Any]] = []  # records that a full disk kept from the log

    def save() -> None:
        if not writes:
            return
        for record in pending:
            _write_log(folder, record)
        pending.clear()
        trainer.check_whole()
        first = not state.exists()
        if first:  # averaged weights alone could not be continued from
            trainer.save(state, identity)
        # After a kill between two files, or with an older training state copied here, more steps
        # are behind the averaged weights than behind the state: younger ones never replace them.
        if trainer.step >= ema_step:
            trainer.ema.save(average, trainer.step)
        if not first:  # a finished training state has its final averaged weights beside it
            trainer.save(state, identity)

    def log(step: TrainStep) -> None:
        last = step.step == total
        if board is None or (step.step % _LOG_EVERY and step.step % moment and not last):
            return
        record: dict[str, Any] = {"step": step.step, "loss": step.loss}
        pending.append(record)
        if step.step % moment == 0 or last:
            loss = validate(
                lambda: losses.held_out_loss(trainer.ema, x_held_out, experiment.weight).item()
            )
            record |= {} if loss is None else {"held_out": loss}
        record["seconds"] = round(before + time.monotonic() - start, 3)
        _write_log(folder, record)
        pending.clear()
        board.add_losses(record)
        if step.step % (_PICTURES * moment) == 0 or last:
            board.add_samples(Run(folder, trainer.ema, []), step.step)

    if writes:
        steps = progress(steps, total, "training")
    try:
        # Closed, as a traceback would keep the bar of a stopped training alive.
        with closing(steps):
            while trainer.step < total:
                with defer_interrupts() as deliver:  # no step is saved that is not in the log
                    log(next(steps))
                deliver()
                if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    save()
                    saved = time.monotonic()
            next(steps, None)  # brings the progress bar to its end
    except BaseException as error:
        # Whatever it is: the trainer refuses to save half an update.  Where another process was
        # lost, torchrun sends SIGTERM to those that are left.
        with defer_interrupts():
            try:
                save()
                error.add_note(f"{folder} is saved at step {trainer.step} of {total}.")
            except Exception as failure:  # the error that ended the training is the one to read
                error.add_note(f"Step {trainer.step} of {total} is not saved: {failure}")
        raise
    finally:
        if board is not None:
            board.close()
    save()


class _Board:
    """Losses and samples for TensorBoard, where it is installed and as long as it works.

    What came after `step` is drawn anew.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._look, self._preview = Guard("TensorBoard"), Guard("the preview of samples")
        self._writer = self._look(self._open, folder / "tensorboard", step)

    @staticmethod
    def _open(folder: Path, step: int) -> "SummaryWriter | None":
        if find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(folder, purge_step=step + 1)

    def add_losses(self, record: dict[str, Any]) -> None:
        """Draw a record of the log."""
        if self._writer is not None:
            for name in record.keys() & {"loss", "held_out"}:
                self._look(self._writer.add_scalar, name, record[name], record["step"])

    def add_samples(self, run: Run, step: int) -> None:
        """Draw a grid of samples."""
        if self._writer is not None:
            draw = partial(self._writer.add_image, "samples", dataformats="HWC")
            self._preview(lambda: draw(_look(run), step))

    def close(self) -> None:
        """Write what is left, if it can be: it may find the same full disk."""
        if self._writer is not None:
            with suppress(Exception):
                self._writer.close()


def _look(run: Run) -> Tensor:
    """A grid [H, W, 3] of samples in few steps, always from the same noise, of each label in turn.

    Of images that are neither grey nor RGB the first channels are shown.
    """
    schedule = run.denoiser.schedule
    if run.network.config.classes:
        run = run.guided(range(run.network.config.classes))
    times = schedule.timesteps(min(20, schedule.num_timesteps))
    with autocast(run.denoiser):
        x_0 = samplers.final(_states(run, range(16), 0, samplers.dpm_solver, times))
    from diffusion_lib import viz  # matplotlib, which a training alone does not need

    visible = x_0[:, : 3 if x_0.shape[1] >= 3 else 1]
    return torch.from_numpy(np.array(viz.grid(data.to_uint8(visible).cpu()).convert("RGB")))


def _complete(average: Path, trainer: Trainer) -> None:
    """Write the averaged weights of a finished run where they are missing or of an earlier step."""
    with suppress(OSError, ValueError):  # missing or damaged
        if Denoiser.read_step(average) in (None, trainer.step):
            return
    try:
        trainer.ema.save(average, trainer.step)
    except OSError as error:
        warnings.warn(
            f"{average} is missing, damaged or of an earlier step, and could not be written. The "
            f"run that is returned has the right weights ({error})",
            stacklevel=4,
        )


def _devices(device: torch.device) -> str:
    name, processes = hardware.name(device), parallel.size()
    return name if processes == 1 else f"{processes} processes, each {name}"
