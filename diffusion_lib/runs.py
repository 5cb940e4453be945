"""Runs on disk: a folder that notebooks and the command line train, resume, load and sample alike.

experiment.json        the experiment and a fingerprint of its images
training.safetensors   everything that training needs to go on exactly
ema.safetensors        the denoiser with averaged weights; `Denoiser.load` takes nothing else
log.jsonl              one JSON object a line: a "device" line for each start, then losses by step
tensorboard            the same losses, and samples, where the package tensorboard is installed

Under torchrun all processes train one run, or sample one set of images, together; the first alone
writes.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import config, data, losses, rng, samplers
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import check_labels, guided
from diffusion_lib.networks.unet import UNet
from diffusion_lib.samplers import SampleStep
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files, parallel
from diffusion_lib.system.device import autocast, optimize_memory_layout, should_compile
from diffusion_lib.system.guard import Guard
from diffusion_lib.system.interrupts import defer_interrupts
from diffusion_lib.system.progress import progress
from diffusion_lib.training import Trainer, TrainStep

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SECONDS_BETWEEN_SAVES = 30.0
_LOG_EVERY = 10  # steps
_HELD_OUT_MOMENTS = 40  # evenly spaced over a run, at least 30 steps apart
_HELD_OUT_IMAGES = 256
_PICTURES = 4  # of the held-out moments, one in so many has a grid of samples in TensorBoard
_CLAIM = ".claim.part"  # is locked by the process that writes experiment.json


@dataclass(frozen=True)
class Run:
    """A trained (or partly trained) run.

    Attributes:
        folder: where it lies.
        denoiser: with the averaged weights, in evaluation mode.
        log: the records of log.jsonl.
        labels: what its images are asked to show: image i shows labels[i % len(labels)]; None asks
            for nothing.
        scale: of the guidance to these labels, see `guidance.guided`.
    """

    folder: Path
    denoiser: Denoiser
    log: list[dict[str, Any]]
    labels: Tensor | None = None
    scale: float = 1.0

    def guided(self, labels: Tensor | Sequence[int], scale: float = 1.0) -> "Run":
        """The same run, asked for labels in turn: `run.guided(range(10), 2.0)`.

        Raises:
            ValueError: its network knows no labels, or not these; a scale that is not finite.
        """
        guided(self.denoiser, labels, scale)  # refuses
        asked = check_labels(labels, self.network.config.classes)
        return replace(self, labels=asked.cpu(), scale=scale)

    @property
    def network(self) -> UNet:
        """Of its denoiser."""
        network = self.denoiser.network
        assert isinstance(network, UNet)  # nothing else can be saved
        return network

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.network.config.image_shape

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of "loss" or "held_out" in the log, for `viz.curve`."""
        points = [(record["step"], record[name]) for record in self.log if name in record]
        return [step for step, _ in points], [value for _, value in points]

    def describe(self) -> dict[str, Any]:
        """What made it, for `viz.table`: device, images, steps, minutes, last held-out loss."""
        starts = [record for record in self.log if "device" in record]
        steps = [record for record in self.log if "seconds" in record]
        held_out = self.series("held_out")[1]
        return {
            "run": self.folder.name,
            "device": _in_turn(starts, "device"),
            "precision": _in_turn(starts, "precision"),
            "memory layout": _in_turn(starts, "layout"),
            "training images": f"{starts[-1]['images']:,}" if starts else "unknown",
            "steps": f"{steps[-1]['step']:,}" if steps else "0",
            "minutes of training": steps[-1]["seconds"] / 60 if steps else 0.0,
            "held-out loss": held_out[-1] if held_out else "not measured",
        }


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
            for unfinished in files.litter(folder):
                with suppress(OSError):  # of a finished run on a read-only disk
                    unfinished.unlink()
            weights_alone = average.exists() and not state.exists()
            if weights_alone:
                _check_final(folder, experiment.train.num_steps)
            elif start is not None and not state.exists():
                # Whole and of this experiment, before it stands in the new folder.
                trainer.load(Path(start) / "training.safetensors", *_identities(Path(start)))
                for name in ("log.jsonl", "training.safetensors"):
                    with files.replacing(folder / name) as temporary:
                        shutil.copy(Path(start) / name, temporary)
            return state.exists(), weights_alone

        has_state, weights_alone = parallel.first(prepare)
        if weights_alone:
            trainer.ema.load_weights(average)
        elif has_state:
            trainer.load(state, *_identities(folder))
        parallel.check_alike("training images and step", f"{told}, step {trainer.step}")
        if weights_alone:
            return Run(folder, trainer.ema, parallel.first(lambda: _read_log(folder)))
        if trainer.step < experiment.train.num_steps:
            ema_step = parallel.first(lambda: _ema_step(folder))
            parallel.first(lambda: _cut_log(folder, trainer.step))
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
            parallel.first(lambda: _complete(average, trainer))
        return Run(folder, trainer.ema, parallel.first(lambda: _read_log(folder)))


def fingerprint(images: Tensor) -> str:
    """Number and hash of images, [N, C, H, W]: other images make another run."""
    digest = hashlib.sha256()
    for part in images.split(1000):  # a mapped file may be larger than the memory
        digest.update(part.cpu().numpy().tobytes())
    return f"{len(images)} images, sha256 {digest.hexdigest()[:16]}"


def load(folder: str | Path, device: torch.device | None = None) -> Run:
    """Read a run.

    Raises:
        FileNotFoundError: no run is there, or it has not been saved yet.
        ValueError: a damaged file.
    """
    folder = Path(folder)
    if not (folder / "ema.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no trained run (ema.safetensors is missing). "
            f"Train one: python -m diffusion_lib train mnist --out {folder}"
        )
    denoiser = Denoiser.load(folder / "ema.safetensors").to(device or config.device())
    return Run(folder, optimize_memory_layout(denoiser), _read_log(folder))


def sample(
    run: Run,
    n: int,
    seed: int = 0,
    sampler: Callable[..., Iterator[SampleStep]] = samplers.ddpm,
    num_steps: int | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Sample n images, uint8 [n, C, H, W] on the CPU: what `stream` yields, in one tensor."""
    return torch.cat(list(stream(run, n, seed, sampler, num_steps, batch_size)))


def stream(
    run: Run,
    n: int,
    seed: int = 0,
    sampler: Callable[..., Iterator[SampleStep]] = samplers.ddpm,
    num_steps: int | None = None,
    batch_size: int = 64,
) -> Iterator[Tensor]:
    """Sample n images in batches, uint8 [B, C, H, W] on the CPU, each with a progress bar.

    Needs the memory of one batch, whatever n is.  Image i depends on (seed, i) alone, not on n or
    on the batch it is sampled in, but for rounding.  Several processes sample a batch each at a
    time, and all of them yield all batches.  Where the device is fast in bfloat16 the network
    computes in it, as it does in training; on a GPU it is compiled for long work.

    Args:
        sampler: one of `samplers`, or a function like those.
        num_steps: steps of the sampler; all T if None.

    Raises:
        ValueError, TypeError: n < 1, more steps than T, or a sampler that is no function.
    """
    if not isinstance(n, Integral) or n < 1:
        raise ValueError(f"at least 1 image must be sampled; got n = {n!r:.99}")
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number, at least 1; got {batch_size!r:.99}")
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must not be negative, and a whole number; got {seed!r:.99}")
    if not callable(sampler):
        raise TypeError(f"sampler must be a function, such as samplers.ddim; got {sampler!r:.99}")
    schedule = run.denoiser.schedule
    timesteps = schedule.timesteps(schedule.num_timesteps if num_steps is None else num_steps)
    if should_compile(schedule.signal.device, len(range(0, n, batch_size)) * len(timesteps)):
        run.denoiser.network.compile()
    return _stream(run, n, seed, sampler, timesteps, batch_size)


def _stream(
    run: Run,
    n: int,
    seed: int,
    sampler: Callable[..., Iterator[SampleStep]],
    timesteps: list[int],
    batch_size: int,
) -> Iterator[Tensor]:
    device, step = run.denoiser.schedule.signal.device, batch_size * parallel.size()
    for start in range(0, n, step):
        first = min(start + batch_size * parallel.rank(), n)
        size = min(batch_size, n - first)
        x_0 = torch.empty(0, *run.image_shape, device=device)
        if size:
            steps = _states(run, range(first, first + size), seed, sampler, timesteps)
            name = f"images {first + 1} to {first + size} of {n}"
            with autocast(run.denoiser):
                x_0 = samplers.final(progress(steps, len(timesteps) - 1, name))
        for batch in parallel.gather(data.to_uint8(x_0), batch_size):
            if len(batch):
                yield batch.cpu()


def _states(
    run: Run,
    numbers: range,
    seed: int,
    sampler: Callable[..., Iterator[SampleStep]],
    timesteps: list[int],
) -> Iterator[SampleStep]:
    """The sampler's states of the images of these numbers, asked for what the run is asked for."""
    denoiser = run.denoiser
    generators = rng.per_image(seed, len(numbers), numbers.start)
    device = denoiser.schedule.signal.device
    x_T = rng.normal((len(numbers), *run.image_shape), generators, device)
    if run.labels is not None:
        asked = run.labels[torch.tensor(numbers, device="cpu") % len(run.labels)]
        denoiser = guided(denoiser, asked, run.scale)
    return sampler(denoiser, x_T, timesteps, generator=generators)


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


def _ema_step(folder: Path) -> int:
    """Read the training steps behind averaged weights, 0 where none can be read.

    They know their steps themselves; of those from before they did, the log tells.
    """
    try:
        step = Denoiser.read_step(folder / "ema.safetensors")
    except (OSError, ValueError):
        return 0
    if step is None:
        return max((record.get("step", 0) for record in _read_log(folder)), default=0)
    return step


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


def _claim(folder: Path, experiment: Experiment, fingerprint: str) -> None:
    """Write experiment.json, or make sure that the one in the folder is this experiment's.

    Once written it is never replaced, so that all processes lock the same file (see `_alone`).
    """
    path = folder / "experiment.json"
    if os.path.exists(folder) and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another name for the folder of the run")
    present = {entry for entry in folder.glob("*") if not files.is_system(entry.name)}
    present -= files.litter(folder)
    if present and not path.exists():  # in this order: another process may claim it meanwhile
        names = sorted(entry.name for entry in present)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(
            f"{folder} is not empty and holds no run (it holds {', '.join(names[:5])}{more}): "
            "choose another folder"
        )
    while not path.exists():
        claim = folder / _CLAIM
        try:
            folder.mkdir(parents=True, exist_ok=True)
            claim.touch()
        except OSError as error:
            raise files.not_written(path, error) from error
        with suppress(FileNotFoundError), files.lock(claim) as mine:
            if mine and not path.exists():  # another process may have been faster
                record = json.loads(experiment.to_json()) | {"images": fingerprint}
                files.write_text(path, json.dumps(record, indent=2) + "\n")
        if path.exists():
            claim.unlink(missing_ok=True)
        else:
            time.sleep(0.01)  # until the process that holds it has written
    if different := _differences(path, experiment, fingerprint):
        raise ValueError(
            f"{folder} belongs to another experiment ({'; '.join(different)}). Choose another "
            f"folder, or the settings of the run that is there.{_way(folder, different)}"
        )


def _way(folder: Path, different: Sequence[str]) -> str:
    """Name a further way out of a folder of another experiment, where there is one."""
    if not any((folder / name).exists() for name in ("training.safetensors", "ema.safetensors")):
        return " Nothing has been saved there yet, so it can also be deleted."
    if [name.partition(":")[0] for name in different] != ["train.num_steps"]:
        return ""
    return (
        " To train it for more steps, give a new folder and start=FOLDER (--start on the command "
        "line); a learning rate that has fallen at the end (cooldown) needs a new training."
    )


def _differences(path: Path, experiment: Experiment, fingerprint: str) -> list[str]:
    """What the run of an experiment.json trains differently."""
    try:
        record = json.loads(path.read_text())
        images = record.pop("images")
        different = experiment.differences(json.dumps(record))
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): choose another folder") from error
    if images != fingerprint:
        different.append(f"training images: {images} there, {fingerprint} here")
    return different


def _check_start(start: Path, experiment: Experiment, fingerprint: str) -> None:
    for name in ("experiment.json", "training.safetensors", "log.jsonl"):
        if not (start / name).is_file():
            raise FileNotFoundError(
                f"{start} cannot be gone on from: {name} is missing there. Give the folder of a "
                "whole run, as runs.train leaves it."
            )
    different = [
        told
        for told in _differences(start / "experiment.json", experiment, fingerprint)
        if not told.startswith("train.num_steps: ")
    ]
    if different:
        raise ValueError(
            f"{start} cannot be gone on from: it belongs to another experiment "
            f"({'; '.join(different)}); only the number of steps may differ"
        )
    if experiment.train.cooldown > 0:
        raise ValueError(
            f"{start} cannot be gone on from: its learning rate has already fallen at the end "
            "(cooldown), so more steps would not end as if they had begun at step 0"
        )
    steps = json.loads((start / "experiment.json").read_text())["train"]["num_steps"]
    if steps >= experiment.train.num_steps:
        raise ValueError(
            f"{start} has {steps} steps, not fewer than the {experiment.train.num_steps} asked for"
        )


def _check_final(folder: Path, num_steps: int) -> None:
    """Refuse averaged weights that are not final, where there is no training state to go on from.

    Raises:
        ValueError: they are not, or they are damaged.
    """
    Denoiser.read_step(folder / "ema.safetensors")  # refuses damaged ones
    step = _ema_step(folder)
    if step != num_steps:
        known = f"those of step {step} of {num_steps}" if step else "of a step that nothing tells"
        raise ValueError(
            f"{folder} holds averaged weights (ema.safetensors), {known}, and no training state "
            "(training.safetensors) to go on from. Training from step 0 would replace them, so "
            "nothing was done: copy training.safetensors there too, load the weights as they are "
            "with runs.load, choose another folder, or move ema.safetensors away to train from "
            "step 0."
        )


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


def _identities(folder: Path) -> list[str]:
    """Digests of what is trained in a folder, whatever the number of steps.

    A training state holds the first, so that one copied from another run is noticed; in older
    states it depends on `compile`, which may change now.
    """
    record = config.trained(json.loads((folder / "experiment.json").read_text()))
    del record["train"]["num_steps"]
    digests = []
    for compiled in (False, True):
        record["train"]["compile"] = compiled
        text = json.dumps(record, sort_keys=True)
        digests.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return digests


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse to train in a folder in which another process trains; a killed one holds nothing."""
    with files.lock(folder / "experiment.json") as mine:
        if not mine:
            raise ValueError(
                f"another process is training in {folder}: wait for it, or choose another folder"
            )
        yield


def _in_turn(starts: Sequence[dict[str, Any]], name: str) -> str:
    """List what the starts of a training say, without repeats."""
    return ", then ".join(dict.fromkeys(start.get(name, "not recorded") for start in starts))


def _devices(device: torch.device) -> str:
    name, processes = hardware.name(device), parallel.size()
    return name if processes == 1 else f"{processes} processes, each {name}"


def _write_log(folder: Path, record: dict[str, Any]) -> None:
    path = folder / "log.jsonl"
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            line = json.dumps(record).encode() + b"\n"
            if file.write(line) != len(line):  # a full disk takes a part
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise files.not_written(path, error, "The last checkpoint is whole. ") from error


def _read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of the log; a line that a kill cut short, or that is damaged, is left out."""
    path = folder / "log.jsonl"
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            if isinstance(record := json.loads(line), dict):
                records.append(record)
    return records


def _cut_log(folder: Path, step: int) -> None:
    """Drop what was logged after the checkpoint at `step`: those steps are trained again."""
    path = folder / "log.jsonl"
    records = [record for record in _read_log(folder) if record.get("step", 0) <= step]
    text = "".join(json.dumps(record) + "\n" for record in records)
    if path.exists() and path.read_bytes() != text.encode():
        files.write_text(path, text)
