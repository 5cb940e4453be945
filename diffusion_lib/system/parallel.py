"""The processes that torchrun starts: collectives and work on rank 0.

Call collectives on every rank; write files on rank 0 only.  A single process is a group of one, so
that callers need no branch for it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

Result = TypeVar("Result")


@contextmanager
def process_group() -> Iterator[None]:
    """Initialize the process group in the block, in a process that torchrun started.

    Each process takes the GPU of its local rank where there are GPUs.  The backend is gloo on CPUs
    and NCCL on GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < gpus < local:
        raise ValueError(
            f"{local} processes on a machine of {gpus} GPUs: each takes one, so use "
            f"--nproc-per-node {gpus}"
        )
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(rendezvous("env://"))
    # Some rendezvous backends keep their store over a restart, with the addresses of processes that
    # ended: waiting for those never ends (pytorch/pytorch issue 135712).  A prefix per restart
    # hides them.  Machines of one job count restarts differently, so that it works on one only.
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = PrefixStore(f"try {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        with suppress(RuntimeError):  # the error that ended the work is the one to read
            dist.destroy_process_group()


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 .. size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Call a function on rank 0 and return its result, which can be pickled, on all ranks.

    Blocks all ranks until it returns; exceptions propagate to all ranks.
    """
    if size() == 1:
        return function()
    outcome: list = [None, None]  # result, exception
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def assert_same_on_all_ranks(name: str, value: str) -> None:
    """Raise a ValueError on all ranks, with all values, if they are not the same."""
    values = [value] * size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        listing = "; ".join(f"process {n}: {value}" for n, value in enumerate(values))
        raise ValueError(
            f"the processes do not have the same {name} ({listing}). Do all of them see the same "
            "folders?"
        )


def mean(value: Tensor) -> Tensor:
    """Average a tensor over all processes; it has the same shape in each."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def gather(images: Tensor, batch_size: int) -> list[Tensor]:
    """Return the batches of all processes by rank, uint8 [at most batch_size, C, H, W] each."""
    if size() == 1:
        return [images]
    count = torch.tensor([len(images)], device=images.device)
    counts = [torch.empty_like(count) for _ in range(size())]
    dist.all_gather(counts, count)
    padded = images.new_zeros(batch_size, *images.shape[1:])
    padded[: len(images)] = images
    batches = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(batches, padded)
    return [batch[: int(n)] for batch, n in zip(batches, counts, strict=True)]
