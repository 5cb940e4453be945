"""How near to the limit of the machine is each part of a training step?

    python -m benchmarks.parts

Runs the bare step of `train_step` and a call of its network, and measures the time of each
operation and its floating-point operations, or where it does not multiply the bytes that it reads
and writes, beside the speed of a product of matrices and of a copy.  Takes the CPU, and writes
parts.json beside itself, or parts-bfloat16.json.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import common, train_step
from diffusion_lib.system import device as hardware

REPEATS, BATCH_SIZE = 5, 32
COPIED = 2**28  # bytes, many times the processor's caches


class Meter(TorchDispatchMode):
    """Measures the operations that run inside it: seconds, operations and bytes, by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        total = self.totals[train_step.kind(func.name())]
        total["seconds"] += seconds
        if count := flop_registry.get(func.overloadpacket):
            total["operations"] += count(*args, **(kwargs or {}), out_val=out)
        total["bytes"] += traffic(func, args, kwargs or {}, out)
        return out


def traffic(func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> int:
    """Count the bytes that an operation reads and writes, by its schema; a view moves none."""
    if func.is_view:
        return 0
    schema = func._schema
    moved = [[*args], kwargs, out if all(r.alias_info is None for r in schema.returns) else []]
    for k, (value, argument) in enumerate(zip(args, schema.arguments, strict=False)):
        if argument.alias_info is not None and argument.alias_info.is_write:
            moved.append(value)
            if "copy_" in func.name() or "fill" in func.name():  # what is there is not read
                moved[0][k] = None
    tensors = [x for x in tree_leaves(moved) if isinstance(x, Tensor)]
    return sum(x.numel() * x.element_size() for x in tensors)


def copy_speed() -> float:
    """Measure the bytes that a copy reads and writes in a second, at best."""
    source, target = torch.ones(2, COPIED // 4).unbind()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * COPIED / min(seconds)


def measure(work: Callable[[], Any], limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """Measure the parts of some work that is done several times, longest first.

    Args:
        work: the work.
        limits: speeds of the machine, by their units "GFLOP/s" and "GB/s".
    """
    work()
    with Meter() as meter:
        for _ in range(REPEATS):
            work()
    parts = []
    for name, total in meter.totals.items():
        unit, amount = ("GFLOP/s", "operations") if total["operations"] else ("GB/s", "bytes")
        speed = total[amount] / total["seconds"] / 1e9
        part = {"part": name, "ms": round(1e3 * total["seconds"] / REPEATS, 1)}
        parts.append(part | {unit: round(speed, 1), "share": round(speed / limits[unit], 3)})
    return sorted(parts, key=lambda part: -part["ms"])


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    device = torch.device("cpu")
    record = common.machine(device) | {"GB/s": round(copy_speed() / 1e9, 1)}
    product = record["GFLOP/s, bfloat16" if record["bfloat16 chosen"] else "GFLOP/s, float32"]
    limits = {"GFLOP/s": product, "GB/s": record["GB/s"]}
    denoiser = common.as_the_library_runs_it(False, device)
    x_t, t, _ = common.draw(0, BATCH_SIZE, device)

    def call() -> None:
        with torch.no_grad(), hardware.autocast(denoiser):
            denoiser.output(x_t, t)

    record |= {"batch size": BATCH_SIZE, "repeats": REPEATS}
    record |= {"parts": measure(train_step.bare(False, BATCH_SIZE, device), limits)}
    record |= {"parts of a call": measure(call, limits)}
    common.write("parts" + common.record_suffix(device), device, record)


if __name__ == "__main__":
    main()
