"""Sample images from a denoiser, in batches, each image from its own random numbers."""

from collections.abc import Callable, Iterator
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion_lib import data, rng, samplers
from diffusion_lib.guidance import guided
from diffusion_lib.samplers import SampleStep
from diffusion_lib.system import parallel
from diffusion_lib.system.device import autocast, should_compile
from diffusion_lib.system.progress import progress

if TYPE_CHECKING:
    pass
from diffusion_lib.runs.run import Run


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
