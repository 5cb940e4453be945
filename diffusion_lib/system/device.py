"""What the hardware decides, in one place: precision, memory layout, compilation, threads.

The environment variables DIFFUSION_PRECISION ("float32" or "bfloat16") and DIFFUSION_LAYOUT
("contiguous" or "channels_last") override it, OMP_NUM_THREADS sets the threads of a CPU, and the
options --precision, --layout and --threads of the command line set all three.
"""

import ctypes
import math
import os
import platform
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any, TypeVar

import torch
from torch import nn

PRECISIONS = ("float32", "bfloat16")
LAYOUTS = ("contiguous", "channels_last")

# The faster precision of a CPU: that of the first row whose features it has.
# Measured with products of 2048 x 2048 matrices, in GFLOP/s of float32 and bfloat16.
_CPU_PRECISION = (
    ({"amx_bf16"}, "bfloat16"),
    # Intel from Sapphire Rapids on, where a virtual machine hides AMX: 322 and 165 on two cores.
    ({"avx512_bf16", "avx512_fp16"}, "float32"),
    # AMD from Zen 4 on: 99 and 406 on one core.
    ({"avx512_bf16"}, "bfloat16"),
)

CPU_SPEED = 2e11  # FLOP/s that a training step reaches on two cores of a server processor
_SECONDS_THAT_PAY = 600  # of calls on a CPU, for a minute of compiling

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h

Module = TypeVar("Module", bound=nn.Module)


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> str:
    """Name the precision in which networks compute: "float32" or "bfloat16".

    Weights, losses and averages are float32 in any case.  The default is the faster precision of
    the kind of processor, not a measurement, so that a resumed run computes in the same one.
    """
    if choice := _choice("DIFFUSION_PRECISION", PRECISIONS):
        return choice
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast else "float32"
    return _cpu_precision(torch.cpu.get_capabilities()) if device.type == "cpu" else "float32"


def _cpu_precision(capabilities: Mapping[str, Any]) -> str:
    features = {name for name, present in capabilities.items() if present is True}
    return next((name for needed, name in _CPU_PRECISION if needed <= features), "float32")


def layout(device: torch.device) -> str:
    """Name the memory layout of a network's weights: "contiguous" or "channels_last".

    By default channels_last on a GPU in bfloat16 (not measured yet) and on a CPU in float32, where
    a training step of MNIST's network takes 0.85 of the time; in bfloat16 on a CPU it would take
    1.4 times as long.
    """
    if choice := _choice("DIFFUSION_LAYOUT", LAYOUTS):
        return choice
    fast = {"cpu": "float32", "cuda": "bfloat16"}.get(device.type) == precision(device)
    return "channels_last" if fast else "contiguous"


def conditions(device: torch.device) -> dict[str, Any]:
    """Describe how networks compute on a device, for records."""
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {"precision": precision(device), "layout": layout(device), **threads}


def name(device: torch.device) -> str:
    """Describe the device, without the name of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


@contextmanager
def overridden(
    precision: str | None = None, layout: str | None = None, threads: int | None = None
) -> Iterator[None]:
    """Set the precision, layout and threads in the block, and in processes started there."""
    before, threads_before = dict(os.environ), torch.get_num_threads()
    values = {"DIFFUSION_PRECISION": precision, "DIFFUSION_LAYOUT": layout}
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1; got {threads}")
    try:
        os.environ.update({variable: value for variable, value in values.items() if value})
        torch.set_num_threads(threads or threads_before)
        yield
    finally:
        torch.set_num_threads(threads_before)
        os.environ.clear()
        os.environ.update(before)


def _choice(variable: str, choices: tuple[str, ...]) -> str | None:
    value = os.environ.get(variable)
    if value and value not in choices:
        raise ValueError(f"{variable} must be {' or '.join(choices)}; got {value!r:.99}")
    return value or None


def autocast(module: nn.Module) -> torch.autocast:
    """Return the autocast of a module of float32 weights to its device's precision."""
    weight = next(module.parameters())
    low = weight.dtype == torch.float32 and precision(weight.device) == "bfloat16"
    return torch.autocast(weight.device.type, torch.bfloat16, enabled=low)


def optimize_memory_layout(module: Module) -> Module:
    """Convert a module's weights in place to the fastest memory layout, and return the module.

    On a CPU the process also keeps freed memory from then on.
    """
    device = next(module.parameters()).device
    if device.type == "cpu":
        _disable_malloc_trim()
    if layout(device) == "channels_last":
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return module


def should_compile(device: torch.device, steps: int) -> bool:
    """Tell whether torch.compile works here and saves time: on a new GPU, from 5,000 steps on.

    It compiles with triton, which needs a C compiler and Python's own headers.
    """
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    able = able and find_spec("triton") is not None and steps >= 5000
    return able and _has_headers() and any(map(which, ("cc", "gcc", "clang")))


def should_compile_calls(device: torch.device, steps: int, operations: float) -> bool:
    """Tell whether torch.compile saves time in calls without gradients, also on a CPU.

    There a call takes about 0.9 of the time after up to a minute of compiling; a step of training
    gains as much, but compiles for minutes.

    Args:
        device: device of the network.
        steps: number of calls.
        operations: floating-point operations of all of them.
    """
    if device.type != "cpu":
        return should_compile(device, steps)
    speed = CPU_SPEED / 2 * torch.get_num_threads()
    able = sys.platform == "linux" and _has_headers() and which(os.environ.get("CXX") or "g++")
    return operations / speed > _SECONDS_THAT_PAY and bool(able)


def _has_headers() -> bool:
    """Tell whether Python's own headers are there: what is compiled includes them."""
    return Path(sysconfig.get_config_var("INCLUDEPY") or "", "Python.h").exists()


def finite_check_interval(device: torch.device) -> int:
    """Return the number of steps between checks of the loss: on a GPU each one synchronizes."""
    return 1 if device.type == "cpu" else 10


def image_memory_budget(device: torch.device) -> float:
    """Return the bytes of images that may be kept on the device."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf


def machine_memory() -> float:
    """Return the bytes of memory of the machine, infinite where they are unknown."""
    known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else math.inf


@cache
def _disable_malloc_trim() -> None:
    """Let the C library keep freed memory, as torch does on a GPU.

    Otherwise it returns every large tensor to the system, and each new one costs a page fault for
    every 4 kB: a tenth of a training step.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
