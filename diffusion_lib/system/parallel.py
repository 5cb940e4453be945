"""Many processes, as torchrun starts them, that do one thing together.

A single process is a group of one: nothing here needs to be asked whether there are others.
Whatever is said by all to all is said by every process; only what writes is left to the first.
"""

import os
import pickle
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
    """Join the processes that torchrun started beside this one, if it was torchrun; once only.

    Each takes the GPU of its local rank where there are GPUs.  On the CPU they talk by gloo, on
    GPUs by NCCL.
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
    # Some of torchrun's rendezvous keep their store over a restart; in it the addresses of the
    # processes that are gone would be waited for, for ever (pytorch/pytorch issue 135712).  Several
    # machines do not count restarts alike: there torchrun has to be told to make a new store.
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
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 .. size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """Call a function in process 0 alone; all processes return what it returned.

    All wait for it.  An exception it raises is raised in all of them.
    """
    if size() == 1:
        return function()
    told: list = [None, None]
    if rank() == 0:
        try:
            told[0] = function()
        except Exception as error:
            told[1] = error
    try:
        dist.broadcast_object_list(told)
    except (pickle.PicklingError, TypeError, AttributeError):
        raise told[1] or TypeError("process 0 can only tell what can be pickled") from None
    if told[1] is not None:
        raise told[1]
    return told[0]


def assert_same_on_all_ranks(what: str, value: str) -> None:
    """Refuse to go on where the processes differ.

    Raises:
        ValueError: they do; in all of them, with the value of each.
    """
    if size() == 1:
        return
    values: list = [None] * size()
    dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        told = "; ".join(f"process {n}: {one}" for n, one in enumerate(values))
        raise ValueError(
            f"the processes do not have the same {what} ({told}). Do all of them see the same "
            "folders?"
        )


def mean(value: Tensor) -> Tensor:
    """The mean over all processes of a tensor of one shape."""
    if size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / size()


def gather(images: Tensor, batch_size: int) -> list[Tensor]:
    """The batches of all processes, in order: uint8 [at most batch_size, C, H, W] each."""
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
