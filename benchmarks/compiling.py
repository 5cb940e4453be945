"""What does torch.compile save in a training step on a CPU, and how long does it take?

    python -m benchmarks.compiling

Presets whose full budget the library compiles on a CPU, each trained as it comes and compiled, in
turns.  Writes compiling.json beside itself, or compiling-bfloat16.json.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from benchmarks import common
from diffusion_lib import config
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.metrics import Interval
from diffusion_lib.training import TrainStep

PRESETS = {"mnist_labels": config.MNIST_LABELS, "cifar10_labels": config.CIFAR10_LABELS}
STEPS, PLAIN, COMPILED = 5, "as it comes", "compiled"


def main() -> None:
    options = common.options(__doc__)
    cpu = torch.device("cpu")
    record = common.machine(cpu) | {"steps a turn": STEPS, "rounds": options.rounds, "presets": {}}
    for name, preset in PRESETS.items():
        timings = common.interleaved_timings([ways], options.rounds, preset)
        images = STEPS * preset.train.batch_size
        seconds = timings[COMPILED].results[0]
        record["presets"][name] = {
            "batch size": preset.train.batch_size,
            "ways": common.speeds(timings, COMPILED, images),
            "seconds until the first step": round(seconds, 1),
        }
    common.write("compiling" + common.record_suffix(cpu), cpu, record)


def summary(records: Mapping[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    """Make the table and its conditions, or nothing before there is a record.

    Args:
        records: all records of the benchmarks.
    """
    if not (record := records.get("compiling-bfloat16")):
        return ()
    rows = []
    for name, measured in record["presets"].items():
        plain, compiled = (measured["ways"][way] for way in (PLAIN, COMPILED))
        rows.append(
            {"preset": f"`{name}`", "images a second": f"{plain['images a second']:.0f}"}
            | {"compiled": f"{compiled['images a second']:.0f}"}
            | {"times": f"{Interval(*plain['ours is faster by']):.2f}"}
            | {"seconds until the first step": f"{measured['seconds until the first step']:.0f}"}
        )
    return rows, (
        f"Means of {record['rounds']} ratios of turns and their 95 % interval. {record['device']}, "
        f"{record['processor']}, torch {record['torch']} (`python -m benchmarks.compiling`)."
    )


def ways(preset: Experiment) -> dict[str, Callable[[], float]]:
    """Make the turns of a preset, which return the seconds until its first step."""
    made = {}
    for name, compiled in ((PLAIN, False), (COMPILED, True)):
        settings = replace(preset.train, compile=compiled, num_steps=common.SHORT, warmup_steps=0)
        experiment, classes = replace(preset, train=settings), preset.network.classes
        images = torch.zeros(1000, *preset.network.image_shape, dtype=torch.uint8)
        labels = torch.arange(1000) % classes
        clock = time.perf_counter()
        updates = experiment.trainer().run(Images(images, labels))
        next(updates)
        made[name] = partial(turn, updates, time.perf_counter() - clock)
    return made


def turn(updates: Iterator[TrainStep], seconds: float) -> float:
    """Train for STEPS, and return the seconds again."""
    for _ in islice(updates, STEPS):
        pass
    return seconds


if __name__ == "__main__":
    main()
