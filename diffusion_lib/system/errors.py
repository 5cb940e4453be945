"""Messages for errors that a user can act on."""

import re

import torch
from torch.distributed import DistError  # pyright: ignore[reportPrivateImportUsage]

# Texts of errors that are bare RuntimeErrors: of too small a memory; of a device, a driver or
# another process.
_MEMORY = re.compile(r"out of memory|can('|no)t allocate|not enough memory|ALLOC_FAILED", re.I)
_OUTSIDE = re.compile(
    r"(CUDA|HIP|XPU|cuDNN) (error|driver)|_STATUS_|MPS (backend|device)|NCCL|gloo|NVIDIA driver"
)


def explain(error: Exception, memory_advice: str) -> str | None:
    """Return a message for an error that a user can act on; None for a bug.

    Args:
        error: error that ended a command.
        memory_advice: way out where memory is too small.
    """
    text = str(error) or type(error).__name__
    first = text.splitlines()[0]
    raised_outside = isinstance(error, RuntimeError | OSError)
    if isinstance(error, MemoryError) or (raised_outside and _MEMORY.search(text)):
        return f"out of memory ({first}). {memory_advice}"
    if isinstance(error, ValueError | TypeError | OSError | ImportError | FloatingPointError):
        return text
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return (
            f"the network could not be compiled ({' '.join(text.split())[:300]}). Install what is "
            "missing, or do without: set the environment variable TORCHDYNAMO_DISABLE=1"
        )
    foreseeable = isinstance(error, torch.AcceleratorError | DistError)
    return first if foreseeable or (raised_outside and _OUTSIDE.search(first)) else None
