"""Run every check and benchmark that needs a GPU, in one command of a quarter of an hour.

    python -m benchmarks.gpu [--minutes 15] [--out FOLDER] [PART ...]

The most important part comes first.  Each has a process of its own and a limit on its time, so that
one that fails or hangs leaves the rest alone, and writes its own records beside itself.  After each
gpu.json says what became of it, and the new records are copied to --out, beside what parts print.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import common, speedrun
from diffusion_lib import config
from diffusion_lib.system import files

LAST = 2000  # characters of a part's output that are printed, and recorded where it fails


class Part(NamedTuple):
    """A command that is run by itself.

    Attributes:
        name: name of the part.
        arguments: arguments of Python.
        limit: seconds after which it is stopped.
        needs: file or folder without which it is left out.
    """

    name: str
    arguments: Sequence[str]
    limit: float
    needs: Path = Path()


def benchmark(name: str, limit: float, *options: str) -> Part:
    """Make the part of a benchmark on the GPU."""
    return Part(name, ["-m", f"benchmarks.{name}", "--device", "cuda", *options], limit)


# Without the options of pyproject.toml, which need pytest-xdist.
TESTS = ["-m", "pytest", "-o", "addopts=", "-q", "-m", "gpu", "--continue-on-collection-errors"]
PAPER = ("--paper", "--batch-size", "128", "--rounds", "4")
PARTS = [
    Part("tests", [*TESTS, "tests"], 60),
    benchmark("train_step", 330, *PAPER),
    benchmark("forward", 180, *PAPER),
    benchmark("sampling", 120, *PAPER),
    benchmark("memory", 120, *PAPER),
    benchmark("same_images", 60),
    benchmark("cifar10", 120, "--rounds", "4"),
    # They run on two CPU cores, here too; a seed that is not of the board leaves its records alone.
    *(
        Part(
            f"speedrun {path.stem}",
            ["-m", "benchmarks.speedrun", path.stem, "--seed", "100"],
            300,
            Path(config.data_root()) / "MNIST",
        )
        for path in sorted(speedrun.RECIPES.glob("*.py"))
    ),
]


def main() -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=15, help="time of all parts together")
    parser.add_argument("--out", type=Path, help="folder that gets copies of the records")
    parser.add_argument("parts", nargs="*", metavar="PART", default=names, help=", ".join(names))
    options = parser.parse_args()
    if unknown := {*options.parts} - {*names}:
        parser.error(f"no part is called {unknown.pop()!r}; there are {', '.join(names)}")
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here, so nothing was run")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and the part with it
    parts = [part for part in PARTS if part.name in options.parts]
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        report = run(parts, 60 * options.minutes, common.FOLDER, out)
    sys.exit(any(entry.get("exit status") for entry in report.values()))


def run(parts: Sequence[Part], seconds: float, folder: Path, out: Path) -> dict[str, Any]:
    """Run the parts in turn and return what became of each, by its name.

    Args:
        parts: parts, the most important first.
        seconds: time of all parts together; those that it ends before are left out.
        folder: folder of the records; gpu.json is written there after each part.
        out: folder that gets copies of the new records, and NAME.log with the output of each part.
    """
    out.mkdir(parents=True, exist_ok=True)
    start, deadline = time.time(), time.monotonic() + seconds
    report: dict[str, Any] = {}
    for part in parts:
        left = deadline - time.monotonic()
        if left <= 0:
            report[part.name] = {"left out": "no time was left"}
        elif not part.needs.exists():
            report[part.name] = {"left out": f"{part.needs} does not exist"}
        else:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            report[part.name] = {"started": now}
            files.write_json(folder / "gpu.json", report)
            print(f"{part.name}: at most {min(part.limit, left):.0f} s", flush=True)
            report[part.name] |= launch(part, min(part.limit, left), out / f"{part.name}.log")
        print(f"{part.name}: {report[part.name]}", flush=True)
        files.write_json(folder / "gpu.json", report)
        for path in folder.glob("*.json"):
            if path.stat().st_mtime > start - 1:  # a clock of files may be some ticks late
                shutil.copy(path, out)
    return report


def launch(part: Part, limit: float, log: Path) -> dict[str, Any]:
    """Run a part for at most `limit` seconds; return its seconds and its exit status."""
    start = time.monotonic()
    result: dict[str, Any] = {}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=common.FOLDER.parent,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            result["stopped"] = f"it took longer than {limit:.0f} s"
        finally:  # with the processes that it started, which would keep the GPU busy
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            result |= {"seconds": round(time.monotonic() - start, 1), "exit status": process.wait()}
    last = log.read_text(errors="replace")[-LAST:]
    print(last, flush=True)
    return result | ({"last output": last} if result["exit status"] else {})


if __name__ == "__main__":
    main()
