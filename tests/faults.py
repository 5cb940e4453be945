"""What is lost when a training is killed, its disk fills up, or its files are damaged?

    python -m tests.faults

Real faults, done to a training of a tiny network that takes a second: processes are killed, a
disk is filled, signals are sent, a notebook's kernel is interrupted.  After each try the run
resumes to its end, which must equal that of an undisturbed run, bit for bit.  Writes
benchmarks/faults.json; `tests/test_faults.py` does the same with fewer tries.
"""

import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import common
from diffusion_lib import cli as command_line
from diffusion_lib import config, rng, runs, schedules
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.networks.unet import UNetConfig
from diffusion_lib.runs import driver
from diffusion_lib.runs import folder as run_folder
from diffusion_lib.system import files
from diffusion_lib.training import TrainConfig, Trainer
from tests.helpers import STATE_FORMAT, assert_same_run, contents
from tests.processes import CONTEXT

CPU = torch.device("cpu")
STATE = "training.safetensors"
ENDED = "ends with the weights, averages and log of an undisturbed run, bit for bit"
_LONG = 1e9  # seconds: no save before the end


def pictures(root: str | Path, train: bool = True) -> Images:
    """A data set made of nothing: 20 images of noise, 8 x 8, to train on, others to test on."""
    generator = rng.generator(int(train))
    images = torch.randint(0, 256, (20, 1, 8, 8), generator=generator).to(torch.uint8)
    return Images(images, torch.zeros(20, dtype=torch.int64))


EXPERIMENT = Experiment(
    dataset=pictures,
    network=UNetConfig((1, 8, 8), 8, (1,), num_blocks=1, attention=(), dropout=0.1),
    schedule=schedules.cosine,
    T=50,
    train=TrainConfig(60, 4, learning_rate=1e-3, warmup_steps=5, ema_decay=0.9, mirror=0.5),
    sample_steps=5,
)


@dataclass
class Fault:
    """What was done, and what came of it.

    Args:
        name: of the fault.
        after: the state after it, which every try has shown.
        lost: steps that were done and had to be done again, of each try.
        unsaved: steps since the last save that was whole, of each try: no more may be lost.
    """

    name: str
    after: str
    lost: list[int] = field(default_factory=list)
    unsaved: list[int] = field(default_factory=list)

    def add(self, lost: int, unsaved: int) -> None:
        """One more try.

        Raises:
            AssertionError: more was lost than the steps since the last save.
        """
        demand(0 <= lost <= unsaved, f"{self.name}: lost {lost} steps, {unsaved} were not saved")
        self.lost.append(lost)
        self.unsaved.append(unsaved)


def demand(held: bool, otherwise: str) -> None:
    """An assertion that no option of Python leaves out."""
    if not held:
        raise AssertionError(otherwise)


# ---- a training, and what is known of it ------------------------------------------------------


def train(folder: Path, between_saves: float = _LONG, experiment: Experiment = EXPERIMENT) -> None:
    """Train in a folder, or go on there."""
    usual, driver.SECONDS_BETWEEN_SAVES = driver.SECONDS_BETWEEN_SAVES, between_saves
    try:
        images, held_out = (pictures("", part).images for part in (True, False))
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            runs.train(experiment, images, held_out, folder, CPU)
    finally:
        driver.SECONDS_BETWEEN_SAVES = usual


class Progress:
    """What a training has done, also when its process has died since."""

    def __init__(self) -> None:
        self.step = CONTEXT.Value("i", 0)
        self.saved = CONTEXT.Value("i", 0)

    @contextmanager
    def follow(self, step: int = -1, act: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Note the steps and saves of trainings in the block; act once `step` is reached."""
        run, save = Trainer.run, Trainer.save

        def running(trainer: Trainer, images: torch.Tensor) -> Iterator[Any]:
            for done in run(trainer, images):
                self.step.value = done.step
                if done.step == step:
                    act()
                yield done

        def saving(trainer: Trainer, *arguments: Any) -> None:
            save(trainer, *arguments)
            self.saved.value = trainer.step

        Trainer.run, Trainer.save = running, saving
        try:
            yield
        finally:
            Trainer.run, Trainer.save = run, save

    def lost(self, folder: Path) -> tuple[int, int]:
        """Steps that are to be done again, and steps since the last save."""
        return self.step.value - saved_step(folder), self.step.value - self.saved.value


def saved_step(folder: Path) -> int:
    """The step of the training state in a folder, 0 without one."""
    path = folder / STATE
    return int(files.read_tensors(path, STATE_FORMAT)[1]["step"]) if path.exists() else 0


def demand_same_end(folder: Path, undisturbed: Path) -> None:
    """A run goes on to its end, which is that of another run.

    Raises:
        AssertionError: it is not.
    """
    train(folder)
    assert_same_run(folder, undisturbed)
    logs = [
        [
            {name: value for name, value in record.items() if name != "seconds"}
            for record in run_folder.read_log(place)
            if "loss" in record
        ]
        for place in (folder, undisturbed)
    ]
    demand(logs[0] == logs[1], f"the log is {logs[0]}")
    left = {path.name for path in folder.iterdir() if path.is_file()}
    demand(
        left == {"experiment.json", "ema.safetensors", STATE, "log.jsonl"}, f"files left: {left}"
    )
    clocks = [record["seconds"] for record in run_folder.read_log(folder) if "seconds" in record]
    demand(clocks == sorted(clocks), f"the seconds of the log go back: {clocks}")


def start(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process of its own for a function."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def wait(process: ForkServerProcess, status: int) -> None:
    """Wait for a process to end with a status.

    Raises:
        AssertionError: it ends otherwise, or not within two minutes.
    """
    process.join(120)
    if process.exitcode is None:
        process.kill()
    demand(process.exitcode == status, f"a process ended with {process.exitcode}, not {status}")


def reach(progress: Progress, step: int, process: ForkServerProcess) -> None:
    """Wait until a training in another process has got to a step."""
    while progress.step.value < step:
        demand(process.is_alive(), "the process ended before it could be disturbed")
        time.sleep(0.001)


# ---- faults -----------------------------------------------------------------------------------


def killed(place: Path, undisturbed: Path, tries: int) -> Fault:
    """SIGKILL after a random number of steps, a random moment later."""
    fault = Fault("SIGKILL at a random moment of training", ENDED)
    for n, draw in _draws(tries):
        progress, folder = Progress(), place / f"killed-{n}"
        process = start(_train_followed, folder, progress, 0.02)
        reach(progress, draw.randrange(1, 50), process)
        time.sleep(draw.random() * 0.02)
        process.kill()
        wait(process, -signal.SIGKILL)
        fault.add(*progress.lost(folder))
        demand_same_end(folder, undisturbed)
    return fault


def killed_while_saving(place: Path, undisturbed: Path, tries: int) -> Fault:
    """SIGKILL in the middle of a random save: a file half written, whole, or just renamed."""
    fault = Fault("SIGKILL in the middle of a save", ENDED)
    for n, draw in _draws(tries):
        progress, folder = Progress(), place / f"saving-{n}"
        moment = draw.randrange(60), draw.choice([_half_written, _written, _renamed])
        wait(start(_train_followed, folder, progress, 0.0, moment), -signal.SIGKILL)
        fault.add(*progress.lost(folder))
        demand_same_end(folder, undisturbed)
    return fault


def _train_followed(
    folder: Path,
    progress: Progress,
    between_saves: float,
    moment: tuple[int, Callable[[str, str], None]] | None = None,
) -> None:
    """Train in this process; die when the file of that number takes its place, if one is given."""
    if moment is not None:
        number, act = moment
        calls, rename = count(), os.replace

        def renaming(source: str, target: str) -> None:
            if next(calls) == number:
                act(source, target)
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = renaming
    with progress.follow():
        train(folder, between_saves)


def _half_written(source: str, target: str) -> None:
    os.truncate(source, os.path.getsize(source) // 2)


def _written(source: str, target: str) -> None:
    pass


def _renamed(source: str, target: str) -> None:
    os.rename(source, target)


def full_disk(place: Path, undisturbed: Path, tries: int) -> Fault:
    """A disk of 1 MB is filled at a random step, up to a random rest.

    Raises:
        PermissionError: this user may not mount a disk.
    """
    fault = Fault("disk full", f"OSError that names the file; once space is freed, the run {ENDED}")
    for n, draw in _draws(tries):
        disk = place / f"disk-{n}"
        disk.mkdir()
        with _disk(disk, 1_000_000):
            step, rest = draw.randrange(1, 50), draw.randrange(190_000)
            progress, filler = Progress(), disk / "filler"

            def fill(disk: Path = disk, filler: Path = filler, rest: int = rest) -> None:
                filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - rest)))

            with progress.follow(step, fill):
                told = _refusal(OSError, lambda disk=disk: train(disk / "run", 0.0))
            demand(f"could not write {disk / 'run'}" in told, told)
            demand("run the same command again" in told, told)
            fault.add(*progress.lost(disk / "run"))
            filler.unlink()
            demand_same_end(disk / "run", undisturbed)
    return fault


@contextmanager
def _disk(place: Path, size: int) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        raise PermissionError("mounting a small disk is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def limited_files(place: Path, undisturbed: Path, tries: int) -> Fault:
    """From a random step on the system refuses files beyond a random size."""
    fault = Fault(
        "files limited in size (RLIMIT_FSIZE)",
        f"OSError that names the file; without the limit the run {ENDED}",
    )
    size = (undisturbed / STATE).stat().st_size
    for n, draw in _draws(tries):
        progress, folder, told = Progress(), place / f"limited-{n}", CONTEXT.SimpleQueue()
        limit = draw.randrange(2_000, size)
        process = start(_train_limited, folder, progress, draw.randrange(1, 50), limit, told)
        wait(process, 0)
        text = told.get()
        demand(f"could not write {folder}" in text and "is untouched" in text, text)
        fault.add(*progress.lost(folder))
        demand_same_end(folder, undisturbed)
    return fault


def _train_limited(folder: Path, progress: Progress, step: int, limit: int, told: Any) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with progress.follow(step, lower):
        told.put(_refusal(OSError, lambda: train(folder, 0.0)))


def damaged(place: Path, undisturbed: Path, tries: int) -> list[Fault]:
    """Checkpoints cut off, with a flipped bit, swapped, of another kind, and made to run code."""
    folder, canary = place / "damaged", place / "executed"
    with Progress().follow(31, _interrupt), suppress(KeyboardInterrupt):
        train(folder)
    other = place / "other"
    train(other, experiment=replace(EXPERIMENT, train=replace(EXPERIMENT.train, seed=1)))
    whole = contents(folder)
    kept = "ValueError that names the file, which is kept; with a copy in its place the run "
    kinds: dict[str, Callable[[random.Random, str], bytes]] = {
        "checkpoint cut off": lambda draw, name: whole[name][: draw.randrange(len(whole[name]))],
        "checkpoint with a flipped bit": lambda draw, name: _flip(whole[name], draw),
        "checkpoint swapped with another": lambda draw, name: draw.choice(
            [
                whole[{STATE: "ema.safetensors", "ema.safetensors": STATE}[name]],
                (other / STATE).read_bytes(),
            ]
        ),
        "checkpoint of another kind": lambda draw, name: draw.choice(_foreign(place)),
        "checkpoint that would run code (pickle)": lambda draw, name: _pickle(canary, draw),
    }
    faults = []
    for kind, damage in kinds.items():
        fault = Fault(kind, f"{kept}{ENDED}; no code was run")
        for _, draw in _draws(tries):
            name = draw.choice([STATE, "ema.safetensors"])
            (folder / name).write_bytes(damage(draw, name))
            before = contents(folder)
            told = _refusal(ValueError, lambda name=name: _load(folder, name))
            demand(str(folder / name) in told, told)
            after = contents(folder)
            demand(before == after, f"{kind}: files were changed")
            demand(not canary.exists(), f"{kind}: code was executed")
            (folder / name).write_bytes(whole[name])
            fault.add(31 - saved_step(folder), 0)
        copy = place / kind
        shutil.copytree(folder, copy)
        demand_same_end(copy, undisturbed)
        faults.append(fault)
    return faults


def _load(folder: Path, name: str) -> None:
    """Whoever reads this file of a run."""
    if name == STATE:
        train(folder)
    else:
        runs.load(folder, CPU)


def _flip(content: bytes, draw: random.Random) -> bytes:
    """One bit flipped, of any but those that say nothing of a run: the checksum's own name."""
    name = content.index(b"crc32")
    at = draw.choice([at for at in range(len(content)) if not name <= at < name + 5])
    changed = bytearray(content)
    changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _foreign(place: Path) -> list[bytes]:
    save_file({"x": torch.zeros(3)}, place / "x.safetensors")
    torch.save({"x": torch.zeros(3)}, place / "x.pt")
    written = [(place / name).read_bytes() for name in ("x.safetensors", "x.pt")]
    return [*written, b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"{}", b"\x00" * 1000]


class _Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.canary, "w")


def _pickle(canary: Path, draw: random.Random) -> bytes:
    bomb = pickle.dumps(_Bomb(canary), protocol=draw.randrange(6))
    if draw.random() < 0.5:
        return bomb
    with tempfile.TemporaryFile() as file:
        torch.save(_Bomb(canary), file)
        file.seek(0)
        return file.read()


def together(place: Path, undisturbed: Path, tries: int) -> list[Fault]:
    """Four processes start at one moment in a new folder: the same experiment, or four."""
    faults = []
    for name, seeds in (("the same experiment", (0, 0, 0, 0)), ("different ones", (0, 1, 2, 3))):
        fault = Fault(
            f"four processes at once in a new folder, {name}",
            f"one trains, three are refused with ValueError and change nothing; it {ENDED}",
        )
        for n, _ in _draws(tries):
            folder = place / f"together-{seeds[-1]}-{n}"
            door, told = CONTEXT.Barrier(4), CONTEXT.SimpleQueue()
            over = CONTEXT.Semaphore(0)
            processes = [start(_compete, folder, seed, door, told, over) for seed in seeds]
            for process in processes:
                wait(process, 0)
            answers = [told.get() for _ in seeds]
            winners = [seed for seed, answer in answers if answer == "trained"]
            demand(len(winners) == 1, f"{len(winners)} processes trained: {answers}")
            for _, answer in answers:
                expected = ("trained", "another process is training in", "belongs to another")
                demand(any(text in answer for text in expected), answer)
            if winners == [0]:
                demand_same_end(folder, undisturbed)
            else:
                alone = place / f"alone-{winners[0]}"
                train(alone, experiment=_seeded(winners[0]))
                assert_same_run(folder, alone)
            fault.add(0, 0)
        faults.append(fault)
    return faults


def _seeded(seed: int) -> Experiment:
    return replace(EXPERIMENT, train=replace(EXPERIMENT.train, seed=seed))


def _compete(folder: Path, seed: int, door: Any, told: Any, over: Any) -> None:
    """Train, or be refused; the one that trains waits at its first step for the others' answers."""
    build = Experiment.trainer

    def built(experiment: Experiment, device: torch.device) -> Trainer:
        trainer = build(experiment, device)
        door.wait(60)  # the folder is claimed next
        return trainer

    def wait_for_others() -> None:
        for _ in range(3):
            demand(over.acquire(timeout=60), "the others never answered")

    Experiment.trainer = built
    try:
        with Progress().follow(1, wait_for_others):
            train(folder, experiment=_seeded(seed))
        told.put((seed, "trained"))
    except ValueError as error:
        told.put((seed, str(error)))
        over.release()


def clock_set_back(place: Path, undisturbed: Path, tries: int) -> Fault:
    """The time of day goes back by up to a year in the middle of a training that saves."""
    fault = Fault("clock set back", f"saves as before; the run {ENDED}; its seconds only grow")
    for n, draw in _draws(tries):
        progress, folder = Progress(), place / f"clock-{n}"
        back = draw.random() * 365 * 86400
        process = start(_train_clock, folder, progress, draw.randrange(1, 30), back)
        reach(progress, draw.randrange(40, 55), process)
        process.kill()
        wait(process, -signal.SIGKILL)
        demand(saved_step(folder) >= 30, "nothing was saved after the clock had been set back")
        fault.add(*progress.lost(folder))
        demand_same_end(folder, undisturbed)
    return fault


def _train_clock(folder: Path, progress: Progress, step: int, back: float) -> None:
    """As if the clock were set back at a step: that of the machine is not ours to set."""
    real = time.time

    def set_back() -> None:
        time.time = lambda: real() - back

    with progress.follow(step, set_back):
        train(folder, 0.0)


def told_to_end(place: Path, undisturbed: Path, tries: int) -> Fault:
    """SIGTERM to the command line, as schedulers of clusters send it."""
    fault = Fault("SIGTERM to the command line", f"saved, exit status 143; the run {ENDED}")
    for n, draw in _draws(tries):
        progress, folder = Progress(), place / f"told-{n}"
        process = start(_command, folder, progress)
        reach(progress, draw.randrange(1, 50), process)
        os.kill(process.pid or 0, signal.SIGTERM)
        wait(process, 128 + signal.SIGTERM)
        lost, unsaved = progress.lost(folder)
        demand(lost == 0, f"{lost} steps were lost")
        fault.add(lost, unsaved)
        demand_same_end(folder, undisturbed)
    return fault


def _command(folder: Path, progress: Progress) -> None:
    config.PRESETS["tiny"] = EXPERIMENT
    arguments = ["train", "tiny", "--budget", "full", "--device", "cpu", "--out", str(folder)]
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), progress.follow():
        status = command_line.main(arguments)
    sys.exit(status)


def notebook(place: Path, undisturbed: Path, tries: int) -> Fault:
    """The stop button of a notebook, in a real kernel; then the same cell again."""
    from jupyter_client.manager import start_new_kernel

    fault = Fault("stop button of a notebook's cell", f"saved; the same cell {ENDED}")
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(common.FOLDER.parent))
    try:
        for n, draw in _draws(tries):
            folder = place / f"notebook-{n}"
            # A rest in the middle, so that the button comes in time on a busy machine too.
            cell = "import time\nfrom pathlib import Path\nfrom tests import faults\n"
            cell += "with faults.Progress().follow(15, lambda: time.sleep(0.5)):\n"
            cell += f"    faults.train(Path({str(folder)!r}), 0.0)\nprint('whole')"
            asked = client.execute(cell)
            while "loss" not in (_read(folder / "log.jsonl")):
                time.sleep(0.01)
            time.sleep(draw.random() * 0.1)
            manager.interrupt_kernel()
            reply = _reply(client, asked)
            demand(reply.get("ename") == "Stopped", f"the cell ended with {reply}")
            step = saved_step(folder)
            sentence = f"Stopped. {folder} is saved at step {step} of 60. Run this again to go on."
            demand(reply["traceback"] == [sentence], f"the cell shows {reply['traceback']}")
            demand(0 < step < 60, f"interrupted at step {step}")
            first, _ = _bars(client, asked)
            fault.add(0, 0)
            asked = client.execute(cell)
            reply = _reply(client, asked)
            demand(reply["status"] == "ok", f"the second cell ended with {reply}")
            second, others = _bars(client, asked)
            for states, last in ((first, step), (second, 60)):
                demand(len(states) > 1, f"one bar a call, not {states}")
                demand(f"training: {last} / 60 in" in states[-1], f"the bar ends with {states[-1]}")
                demand(all("progressbar" in state for state in states[:-1]), f"bars: {states}")
            demand(f">{step + 1} / 60<" in second[1], f"the second bar begins with {second[1]}")
            demand(others == ["whole\n"], f"the second cell also shows {others}")
            demand(saved_step(folder) == 60, "the second cell did not go on to the end")
            demand_same_end(folder, undisturbed)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return fault


def _reply(client: Any, asked: str) -> dict[str, Any]:
    """What a kernel answers to a cell: one slow to start first answers who it is, several times."""
    while True:
        message = client.get_shell_msg(timeout=60)
        if message["parent_header"].get("msg_id") == asked:
            return message["content"]


def _bars(client: Any, asked: str) -> tuple[list[str], list[str]]:
    """The states of the one bar of a cell that has ended, and what else it printed."""
    states, others = [], []
    while True:
        message = client.get_iopub_msg(timeout=60)
        kind, content = message["msg_type"], message["content"]
        if message["parent_header"].get("msg_id") != asked:
            continue
        if kind in ("display_data", "update_display_data"):
            demand((kind == "display_data") == (not states), "a second bar is shown")
            states.append(content["data"]["text/html"])
        if kind == "stream":
            others.append(content["text"])
        if kind == "status" and content["execution_state"] == "idle":
            return states, others


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _interrupt() -> None:
    raise KeyboardInterrupt


def _refusal(kind: type[Exception], call: Callable[[], None]) -> str:
    """The message of the error of that kind that a call ends with.

    Raises:
        AssertionError: it ends without one.
    """
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")


def _draws(tries: int) -> Iterator[tuple[int, random.Random]]:
    """Numbers of tries, each with random numbers of its own."""
    for n in range(tries):
        yield n, random.Random(n)


def main() -> None:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        undisturbed = place / "undisturbed"
        train(undisturbed)
        faults = [
            killed(place, undisturbed, 20),
            killed_while_saving(place, undisturbed, 20),
            full_disk(place, undisturbed, 20),
            limited_files(place, undisturbed, 10),
            *damaged(place, undisturbed, 100),
            *together(place, undisturbed, 20),
            clock_set_back(place, undisturbed, 10),
            told_to_end(place, undisturbed, 10),
            notebook(place, undisturbed, 10),
        ]
    record = common.machine(CPU) | {
        "steps of each training": EXPERIMENT.train.num_steps,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "faults": [
            {
                "fault": fault.name,
                "tries": len(fault.lost),
                "steps lost, at most": max(fault.lost),
                "steps since the last save, at most": max(fault.unsaved),
                "state after": fault.after,
            }
            for fault in faults
        ],
    }
    common.write("faults", CPU, record)


if __name__ == "__main__":
    main()
