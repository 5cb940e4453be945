"""Sample images from a denoiser or a run, in batches, each image from its own random numbers."""

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import IO

import numpy as np
import torch
from torch import Tensor

from diffusion_lib import data, rng, samplers
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import guided
from diffusion_lib.networks import config_of, operations
from diffusion_lib.runs.run import GuidedRun, Run
from diffusion_lib.samplers import SampleStep
from diffusion_lib.system import interrupts, parallel
from diffusion_lib.system.device import autocast, should_compile_calls
from diffusion_lib.system.progress import Bar


@interrupts.explain_stop("The images are not saved. Run this again to sample anew.")
def sample(
    source: Denoiser | Run,
    n: int,
    seed: int = 0,
    sampler: Callable[..., Iterator[SampleStep]] = samplers.ddpm,
    num_steps: int | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Sample n images, uint8 [n, C, H, W] on the CPU: the batches of `sample_batches`, joined."""
    return torch.cat(list(sample_batches(source, n, seed, sampler, num_steps, batch_size)))


def sample_batches(
    source: Denoiser | Run,
    n: int,
    seed: int = 0,
    sampler: Callable[..., Iterator[SampleStep]] = samplers.ddpm,
    num_steps: int | None = None,
    batch_size: int = 64,
) -> Iterator[Tensor]:
    """Sample n images in batches, uint8 [B, C, H, W] on the CPU, with one progress bar.

    Needs the memory of one batch, whatever n is.  Image i depends on (seed, i) alone, not on n or
    on the batch it is sampled in, but for rounding.  Several processes sample a batch each at a
    time, and all of them yield all batches.  The network computes in the precision of the device,
    as it does in training; it is compiled for long work
    (`system.device.should_compile_calls`).

    Args:
        source: denoiser (put into evaluation mode), run, or run with labels (`Run.guided`).
        n: number of images.
        seed: random seed.
        sampler: one of `samplers`, or a function like those.
        num_steps: sampler steps; None for all T.
        batch_size: images that are sampled at a time.
    """
    for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(
                f"{name} must be a whole number, at least {least}; got {name} = {value!r:.99}"
            )
    if not callable(sampler):
        raise TypeError(f"sampler must be a function, such as samplers.ddim; got {sampler!r:.99}")
    denoiser = (source if isinstance(source, Denoiser) else source.denoiser).eval()
    schedule = denoiser.schedule
    timesteps = schedule.timesteps(schedule.num_timesteps if num_steps is None else num_steps)
    steps, network = len(timesteps) - 1, config_of(denoiser.network)
    # Counting takes a tenth of a second.
    work = n * steps * operations(network) if network and n * steps > 10_000 else 0
    if should_compile_calls(schedule.signal.device, len(range(0, n, batch_size)) * steps, work):
        denoiser.network.compile()

    def batches() -> Iterator[Tensor]:  # each of several processes samples one of them at a time
        own, stride = batch_size * parallel.rank(), batch_size * parallel.size()
        with Bar(None, f"sampling {n:,} images", len(range(own, n, stride)) * steps) as bar:
            for start in range(own, n + own, stride):
                images = range(n)[start : start + batch_size]  # none for some in the last round
                x_0 = torch.empty(0, *denoiser.config.image_shape, device=schedule.signal.device)
                if images:
                    with_labels = denoiser
                    if isinstance(source, GuidedRun):
                        index = torch.tensor(images, device="cpu") % len(source.labels)
                        with_labels = guided(denoiser, source.labels[index], source.scale)
                    x_T, generators = initial_noise(denoiser, images, seed)
                    with autocast(denoiser):
                        states = sampler(with_labels, x_T, timesteps, generator=generators)
                        x_0 = samplers.final(bar.count(states))
                for batch in parallel.gather(data.to_uint8(x_0), batch_size):
                    if len(batch):
                        yield batch.cpu()

    return batches()


def initial_noise(
    denoiser: Denoiser, images: range, seed: int
) -> tuple[Tensor, list[torch.Generator]]:
    """Draw x_T [B, C, H, W] of the images with these numbers; its generator draws on for each."""
    generators = rng.per_image(seed, len(images), images.start)
    shape = (len(images), *denoiser.config.image_shape)
    schedule = denoiser.schedule
    z = rng.normal(shape, generators, schedule.signal.device)
    return math.sqrt(schedule.power[-1]) * z, generators


def write_npz(file: IO[bytes], batches: Iterable[Tensor], shape: tuple[int, ...]) -> None:
    """Write images as arr_0, uint8 [N, H, W, C], batch by batch, so that N may be large."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        zipfile.ZipFile(file, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as array,
    ):
        np.lib.format.write_array_header_1_0(array, header)
        for images in batches:
            array.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
