"""How near to the limit of the machine is each part of a training step?

    python -m benchmarks.parts

Runs the bare step of `train_step`, and measures the time of each operation and its floating-point
operations, or where it does not multiply the bytes that it reads and writes, beside the speed of a
product of matrices and of a copy.  Writes parts.json beside itself, or parts-bfloat16.json.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import common, train_step

STEPS, BATCH_SIZE = 5, 32
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


def main() -> None:
    device = torch.device("cpu")
    record = common.machine(device) | {"GB/s of a copy": round(copy_speed() / 1e9, 1)}
    step = train_step.bare(False, BATCH_SIZE, device)
    step()
    with Meter() as meter:
        for _ in range(STEPS):
            step()
    chosen = "bfloat16" if record["bfloat16 chosen"] else "float32"
    parts = []
    for name, total in meter.totals.items():
        part = {"part": name, "ms a step": round(1e3 * total["seconds"] / STEPS, 1)}
        if total["operations"]:
            speed = total["operations"] / total["seconds"] / 1e9
            part |= {"GFLOP/s": round(speed)}
            limit = record[f"GFLOP/s, {chosen}"]
        else:
            speed = total["bytes"] / total["seconds"] / 1e9
            part |= {"GB/s": round(speed, 1)}
            limit = record["GB/s of a copy"]
        parts.append(part | {"share": round(speed / limit, 3)})
    parts.sort(key=lambda part: -part["ms a step"])
    common.write(
        "parts" + common.record_suffix(device),
        device,
        record | {"batch size": BATCH_SIZE, "steps": STEPS, "parts": parts},
    )


if __name__ == "__main__":
    main()
