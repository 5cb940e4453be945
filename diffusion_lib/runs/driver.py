"""Train an experiment in a folder: resume, save, log, and show progress.

Under torchrun all processes train one run together; rank 0 alone writes.
"""

import hashlib
import math
import time
from contextlib import ExitStack, closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lib import __version__, checkpoints, config, data, losses, samplers
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import guided
from diffusion_lib.runs.folder import (
    check_start,
    claim,
    fingerprint,
    read_log,
    training_digests,
    write_log,
)
from diffusion_lib.runs.run import Run
from diffusion_lib.runs.sampling import initial_noise
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files, parallel
from diffusion_lib.system.device import autocast
from diffusion_lib.system.guard import Guard
from diffusion_lib.system.interrupts import defer_interrupts, explain_stop
from diffusion_lib.system.progress import progress
from diffusion_lib.training import Trainer, TrainStep

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SECONDS_BETWEEN_SAVES = 30.0
_LOG_EVERY = 10  # steps
_NUM_VALIDATIONS = 40  # evenly spaced over a run, at least 30 steps apart
_NUM_HELD_OUT_IMAGES = 256


def train(
    experiment: Experiment,
    images: Tensor | Images,
    held_out: Tensor | Images,
    folder: str | Path | None = None,
    device: torch.device | None = None,
    start: str | Path | None = None,
) -> Run:
    """Train an experiment, resume a run that was stopped, or load one that is finished.

    Shows a progress bar.  Saves every half minute, at the end, and when interrupted (Ctrl-C, the
    stop button of a notebook); the same call then resumes.

    Args:
        experiment: what to train.
        images: training images, uint8 [N, C, H, W]; with labels for a network that knows labels.
        held_out: images that are never trained on, uint8 [M, C, H, W]; 256 of them measure the
            averaged weights during training, by the squared error whatever the loss is, and
            without labels.
        folder: folder of the run; None makes one under "runs", named after the experiment, so that
            a changed experiment trains anew.
        device: device to train on; None takes the GPU if there is one.
        start: folder of a finished run of the same experiment with fewer steps: a new run starts
            from there, and ends as if it had begun at step 0.

    Raises:
        ValueError: the folder belongs to another experiment or other images, or another process
            trains in it; a damaged file in it; `start` is of another experiment.
        FloatingPointError: the loss is no longer finite; the state before that is saved.
        OSError: the run could not be written; the previous checkpoint is whole.
    """
    device = device or config.device()
    images, labels = data.images_and_labels(images)
    held_out, _ = data.images_and_labels(held_out)
    for part in (images, held_out):
        data.check(part, experiment.network.image_shape)
    images_digest = fingerprint(images)
    training_data: Tensor | Images = images
    if experiment.network.classes:
        labels = data.check_labels(labels, experiment.network.classes, len(images))
        label_digest = hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()[:16]
        images_digest += f", of labels {label_digest}"
        training_data = Images(images, labels)
    folder = Path(folder or config.runs_root() / experiment.name(images_digest))
    trainer = experiment.trainer(device)  # refuses impossible settings before anything is written
    with ExitStack() as stack:

        def prepare() -> Path | None:
            if start is not None:
                check_start(Path(start), experiment, images_digest)
            stack.enter_context(claim(folder, experiment, images_digest))
            return _source(folder, start, experiment.train.num_steps)

        source = parallel.on_rank_zero(prepare)
        digests = parallel.on_rank_zero(lambda: training_digests(folder))
        average = folder / "ema.safetensors"
        if source == average:
            checkpoints.load_weights(trainer.ema.network, average)
        elif source is not None:
            trainer.load(source, *digests)
        position = f"{images_digest}, step {trainer.step}"
        parallel.assert_same_on_all_ranks("training images and step", position)
        is_new = source != average and trainer.step < experiment.train.num_steps
        if is_new:
            former = folder if source is None else source.parent
            parallel.on_rank_zero(lambda: _begin_log(folder, former, trainer, len(images)))
            _Training(trainer, experiment, held_out, folder, digests[0]).run(training_data)
        elif source != average:
            parallel.on_rank_zero(lambda: _complete(average, trainer))
        log = parallel.on_rank_zero(lambda: read_log(folder))
        return Run(folder, trainer.ema, log, is_new=is_new)


def _source(folder: Path, start: str | Path | None, num_steps: int) -> Path | None:
    """Find what to resume from: a training state, or averaged weights alone if they are final."""
    for unfinished in files.leftover_temporaries(folder):
        with suppress(OSError):  # of a finished run on a read-only disk
            unfinished.unlink()
    state, average = folder / "training.safetensors", folder / "ema.safetensors"
    if state.exists():
        return state
    if average.exists():
        step = checkpoints.read_step(average)
        if step is None:  # written before files knew it: the log does
            step = max((record.get("step", 0) for record in read_log(folder)), default=0)
        if step != num_steps:
            raise ValueError(
                f"{folder} holds averaged weights of step {step} of {num_steps}, and no "
                "training.safetensors to resume from: copy it there too, load the weights as they "
                "are with runs.load, or choose another folder"
            )
        return average
    return None if start is None else Path(start) / "training.safetensors"


def _begin_log(folder: Path, former: Path, trainer: Trainer, num_images: int) -> None:
    """Write the log of a former folder up to the trainer's step, and the start of a training."""
    name, processes = hardware.name(trainer.device), parallel.size()
    start = {
        "device": name if processes == 1 else f"{processes} processes, each {name}",
        "processor": torch.cpu.get_capabilities().get("cpu_name", "unknown"),
        **hardware.conditions(trainer.device),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "torch": torch.__version__,
        "diffusion_lib": __version__,
        "images": num_images,
    }
    # What was logged after the checkpoint is trained again.
    records = [record for record in read_log(former) if record.get("step", 0) <= trainer.step]
    write_log(folder, [*records, start])


def _complete(average: Path, trainer: Trainer) -> None:
    """Write the averaged weights of a finished run where they are missing or of an earlier step."""
    with suppress(OSError, ValueError):  # missing or damaged
        if checkpoints.read_step(average) in (None, trainer.step):
            return
    trainer.ema.save(average, trainer.step)


class _Training:
    """The training of a run from its last saved step on: validates, logs, saves."""

    def __init__(
        self, trainer: Trainer, experiment: Experiment, held_out: Tensor, folder: Path, digest: str
    ) -> None:
        self.trainer, self.folder, self.digest = trainer, folder, digest
        self.weight, self.num_steps = experiment.weight, experiment.train.num_steps
        interval = max(25, self.num_steps // _NUM_VALIDATIONS)
        self.interval = _LOG_EVERY * math.ceil(interval / _LOG_EVERY)
        self.x_held_out = data.to_float(held_out[:_NUM_HELD_OUT_IMAGES]).to(trainer.device)
        self.records = read_log(folder)
        seconds = [record["seconds"] for record in self.records if "seconds" in record]
        self.clock = time.monotonic() - (seconds[-1] if seconds else 0.0)
        self.writes = parallel.rank() == 0
        self.validate, self.draw = Guard("the held-out loss"), Guard("TensorBoard")
        self.preview = Guard("the preview of samples")
        self.board = self.draw(_open_board, folder, trainer.step) if self.writes else None

    def run(self, images: Tensor | Images) -> None:
        """Train to the last step; on any error save the last whole one."""
        trainer, total = self.trainer, self.num_steps
        steps = trainer.run(images)
        if self.writes:
            steps = progress(steps, total, "training")
        saved = time.monotonic()
        try:
            # Closed, as a traceback would keep the bar of a stopped training alive.
            with closing(steps):
                while trainer.step < total:
                    with defer_interrupts() as deliver:  # no step is saved that is not in the log
                        self.log(next(steps))
                    deliver()
                    if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                        self.save()
                        saved = time.monotonic()
                next(steps, None)  # brings the progress bar to its end
        except BaseException as error:
            # Whatever it is: the trainer refuses to save half an update.  Where another process was
            # lost, torchrun sends SIGTERM to those that are left.
            with defer_interrupts():
                try:
                    self.save()
                    state = f"{self.folder} is saved at step {trainer.step} of {total}."
                except Exception as failure:  # the error that ended the training is the one to read
                    state = f"Step {trainer.step} of {total} is not saved: {failure}"
            error.add_note(state)
            with explain_stop(f"{state} Run this again to go on."):
                raise
        finally:
            if self.board is not None:
                self.draw(self.board.close)
        self.save()

    def log(self, step: TrainStep) -> None:
        """Record the losses of a step, if it is due, for the log and TensorBoard."""
        last = step.step == self.num_steps
        validations, remainder = divmod(step.step, self.interval)
        validates = remainder == 0 or last
        if not self.writes or (step.step % _LOG_EVERY and not validates):
            return
        record: dict[str, Any] = {"step": step.step, "loss": step.loss}
        ema = self.trainer.ema
        if validates:
            loss = self.validate(
                lambda: losses.held_out_loss(ema, self.x_held_out, self.weight).item()
            )
            record |= {} if loss is None else {"held_out": loss}
        record["seconds"] = round(time.monotonic() - self.clock, 3)
        self.records.append(record)
        if self.board is not None:
            for name in record.keys() & {"loss", "held_out"}:
                self.draw(self.board.add_scalar, name, record[name], step.step)
        # Most changes early: after 1, 2, 4, 8, ... validations, and in the end.
        if last or (validates and validations.bit_count() == 1):
            path = self.folder / "previews" / f"{step.step:07}.png"
            picture = self.preview(_draw_preview, ema, path)
            if picture is not None and self.board is not None:
                pixels = np.array(picture.convert("RGB"))
                self.draw(self.board.add_image, "samples", pixels, step.step, dataformats="HWC")

    def save(self) -> None:
        """Write the log, the training state and the averaged weights."""
        if not self.writes:
            return
        write_log(self.folder, self.records)
        self.trainer.save(self.folder / "training.safetensors", self.digest)
        self.trainer.ema.save(self.folder / "ema.safetensors", self.trainer.step)


def _open_board(folder: Path, step: int) -> "SummaryWriter | None":
    """Open TensorBoard's log where it is installed; what it has after `step` is drawn anew."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


def _draw_preview(denoiser: Denoiser, path: Path) -> Image.Image:
    """Draw a row of samples in few steps, always from the same noise; labels cycle.

    Of images that are neither gray nor RGB the first channels are shown.
    """
    x_T, generators = initial_noise(denoiser, range(16), seed=0)
    timesteps = denoiser.schedule.timesteps(min(20, denoiser.schedule.num_timesteps))
    if classes := denoiser.config.classes:
        denoiser = guided(denoiser, [i % classes for i in range(16)])
    with autocast(denoiser):
        steps = samplers.dpm_solver(denoiser, x_T, timesteps, generator=generators)
        x_0 = samplers.final(steps)
    visible = data.to_uint8(x_0[:, : 3 if x_0.shape[1] >= 3 else 1]).cpu()
    row = torch.cat([*visible], dim=2).permute(1, 2, 0)  # [H, 16 W, C]
    picture = Image.fromarray(row.squeeze(-1).numpy())
    path.parent.mkdir(exist_ok=True)
    with files.atomic_write(path) as temporary:
        picture.save(temporary, "PNG")
    return picture
