"""Changing images: into the noise, and back with another wish.

    edit          noise to t, denoise [SDEdit, Meng 2022]: the larger t, the less is left
    invert        the noise that DDIM would have made this image of [DDIM section 5.4]
    reconstruct   back from there, with the same denoiser or with one that asks for something else
    interpolate   between two images, along a great circle in their noise [DDIM appendix D.5]
    inpaint       draw what a mask leaves out [RePaint, Lugmayr 2022]

All are made of the samplers and generators like them: `samplers.final` runs one to its end, `viz`
shows its states, of which the first is the start itself.  So t = 0 gives back what it was given.
They see any denoiser, so a class is changed by guidance:

    x_T = final(invert(denoiser, threes, 1000))
    eights = final(reconstruct(guided(denoiser, labels, 4.0), x_T, 1000))

Times are those of the samplers: t in 0..T, and `timesteps` a grid such as `schedule.timesteps(50)`,
of which those below t are used; None is all of them.

To add an edit, write one function that returns an iterator of `SampleStep`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from operator import index

import torch
from torch import Tensor

from diffusion_lib import data, rng
from diffusion_lib.rng import Generator
from diffusion_lib.samplers import (
    DenoiserLike,
    SampleStep,
    check_timesteps,
    ddim,
    ddpm,
    final,
    heun,
)

Sampler = Callable[..., Iterator[SampleStep]]

_ROUNDING = 1e-3  # by which a pixel may lie outside [-1, 1]


def edit(
    denoiser: DenoiserLike,
    x_0: Tensor,
    t: int,
    timesteps: Sequence[int] | None = None,
    sampler: Sampler = ddpm,
    generator: Generator = None,
) -> Iterator[SampleStep]:
    """Noise images to t and denoise them [SDEdit, Meng 2022, algorithm 1].

    Args:
        denoiser: splits x_t into x_0_hat and eps_hat.
        x_0: images in [-1, 1], [B, C, H, W].
        t: 0 gives the images back; T forgets them, but for the signal that the schedule leaves.
        timesteps: grid of the way back, from at most T to 0; all times if None.
        sampler: of the way back, one of `samplers`.
        generator: of eps and of the sampler's noise, see `rng.normal`.

    Raises:
        TypeError, ValueError: images that are not floats, or outside [-1, 1]; t that is no whole
            number in 0..T; timesteps that do not go down to 0.
    """
    x_0 = _check_images(x_0)
    times = _below(denoiser, t, timesteps)
    x_t = x_0  # at t = 0 to the bit
    if times[0] > 0:
        eps = rng.normal(x_0.shape, generator, x_0.device)
        x_t = denoiser.schedule.add_noise(x_0, _at(times[0], x_0), eps)
    return _from(SampleStep(times[0], x_t, x_0), denoiser, times, sampler, generator)


def invert(
    denoiser: DenoiserLike,
    x_0: Tensor,
    t: int,
    timesteps: Sequence[int] | None = None,
    repeats: int = 1,
) -> Iterator[SampleStep]:
    """The x_t from which DDIM comes to these images: its steps, backwards [DDIM section 5.4].

        x_t = signal_t * x_0_hat + noise_t * eps_hat
        x_0_hat = (x_s - noise_s * eps_hat) / signal_s,   s < t

    This undoes DDIM's step from t to s if eps_hat is that of x_t, which is what is looked for: x_s
    is taken in its place, and with more `repeats` the x_t just found [Pan 2023].  Deterministic;
    what DDIM then makes of x_t differs from x_0 by an error that falls with the length of the
    steps, and with its square where repeats is 2.

    Args:
        denoiser: without labels, or guided at a low scale: guidance multiplies the error.
        x_0: images in [-1, 1], [B, C, H, W].
        t: time to arrive at; 0 gives the images back.
        timesteps: grid of the way, falling as everywhere, from at most T to 0; all times if None.
        repeats: network evaluations of a step.

    Raises:
        TypeError, ValueError: as `edit`; repeats that is no whole number, at least 1.
    """
    x_0 = _check_images(x_0)
    _check_repeats(repeats)
    return _invert(denoiser, x_0, _below(denoiser, t, timesteps), repeats)


@torch.no_grad()
def _invert(
    denoiser: DenoiserLike, x_0: Tensor, times: list[int], repeats: int
) -> Iterator[SampleStep]:
    schedule, x_s = denoiser.schedule, x_0
    yield SampleStep(0, x_0, x_0)
    for s, t in pairwise(reversed(times)):
        (signal_s, noise_s), (signal_t, noise_t) = (schedule(_at(time, x_0)) for time in (s, t))
        x_t = x_0_hat = x_s
        for _ in range(repeats):
            eps = denoiser(x_t, _at(t, x_0)).eps
            x_0_hat = (x_s - noise_s * eps) / signal_s
            x_t = signal_t * x_0_hat + noise_t * eps
        x_s = x_t
        yield SampleStep(t, x_t, x_0_hat)


def reconstruct(
    denoiser: DenoiserLike,
    x_t: Tensor,
    t: int,
    timesteps: Sequence[int] | None = None,
    sampler: Sampler = ddim,
) -> Iterator[SampleStep]:
    """From x_t, such as `invert` found it, back to images, deterministically.

    Args:
        denoiser: that of the inversion gives the images back, a guided one changes them.
        x_t: noisy images, [B, C, H, W].
        t: their time; 0 gives them back.
        timesteps: grid of the way, from at most T to 0; all times if None.
        sampler: a deterministic one: `ddim`, `dpm_solver`, `heun`.

    Raises:
        TypeError, ValueError: x_t of whole numbers or another shape; t and timesteps as in `edit`.
    """
    x_t = _check_floats(x_t)
    times = _below(denoiser, t, timesteps)
    return _from(SampleStep(times[0], x_t, x_t), denoiser, times, sampler, None)


def interpolate(
    denoiser: DenoiserLike,
    ends: tuple[Tensor, Tensor],
    t: int,
    shares: Sequence[float] | Tensor,
    timesteps: Sequence[int] | None = None,
    eps: Tensor | None = None,
) -> Iterator[SampleStep]:
    """Images between two: both into the noise, along a great circle there, back by DDIM.

        x_t = (sin((1 - share) * angle) * x_t_a + sin(share * angle) * x_t_b) / sin(angle)

    [Shoemake 1985; DDIM eq. 67].  A straight line would cut through the ball, where no noise is.

    Args:
        denoiser: guided or not.  One with labels has one for each share, and `ends` as many images
            if they are inverted: a.expand(K, -1, -1, -1).
        ends: (a, b), images in [-1, 1], each [B, C, H, W] with B = 1 or one for each share.
        t: how far into the noise: the larger, the more the images between are images of their own.
        shares: of b in each image, [K] in 0..1; 0 is the reconstruction of a, 1 that of b.
        timesteps: grid of the ways, from at most T to 0; all times if None.
        eps: noise [1 or K, C, H, W] that is added to both ends; None inverts them.

    Returns:
        An iterator of states with K images.

    Raises:
        TypeError, ValueError: images as in `edit`; ends, or eps, of another shape; a share outside
            0..1; t and timesteps as in `edit`.
    """
    a, b = ends
    a, b = map(_check_images, (a, b))
    if a.shape != b.shape:
        raise ValueError(
            f"both ends must have one shape; got {list(a.shape)} and {list(b.shape)}: crop or "
            "resize one of them, or repeat it with expand(B, -1, -1, -1)"
        )
    share = torch.as_tensor(shares, dtype=torch.float64, device=a.device)
    if share.ndim != 1 or not len(share) or not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"shares must be a list of numbers in 0..1; got {shares!r:.99}")
    if len(a) not in (1, len(share)):
        raise ValueError(f"{len(a)} pairs of ends for {len(share)} shares: give 1, or one each")
    if eps is not None and (
        eps.shape[1:] != a.shape[1:] or len(eps) not in (1, len(share)) or not eps.isfinite().all()
    ):
        raise ValueError(
            f"eps must be noise of the shape [1 or {len(share)}, C, H, W] of the ends, "
            f"{list(a.shape)}, the same for both; got {list(eps.shape)}"
        )
    return _interpolate(denoiser, a, b, _below(denoiser, t, timesteps), share, eps)


@torch.no_grad()
def _interpolate(
    denoiser: DenoiserLike,
    a: Tensor,
    b: Tensor,
    times: list[int],
    share: Tensor,
    eps: Tensor | None,
) -> Iterator[SampleStep]:
    t = times[0]
    if eps is None:
        a, b = (final(_invert(denoiser, x, times, repeats=1)) for x in (a, b))
    else:
        a, b = (denoiser.schedule.add_noise(x, _at(t, x), eps) for x in (a, b))
    x_t = slerp(a, b, share)
    yield from _from(SampleStep(t, x_t, x_t), denoiser, times, ddim, None)


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """From a to b along a great circle: keeps the norm of ends that have one norm.

    Args:
        a, b: [1 or K, C, H, W].
        share: of b, [K].

    Returns:
        [K, C, H, W].

    Raises:
        ValueError: ends that are opposite, between which every way is as short.
    """
    cosine = torch.cosine_similarity(a.double().flatten(1), b.double().flatten(1))
    angle = cosine.clamp(-1, 1).acos() / torch.pi
    if (angle > 1 - 1e-6).any():
        raise ValueError("the ends are opposite, x and -x: no way between them is the shortest")
    # sin(share * angle) / sin(angle), also where the ends are one and the angle is 0.
    of_a = (1 - share) * torch.sinc((1 - share) * angle) / torch.sinc(angle)
    of_b = share * torch.sinc(share * angle) / torch.sinc(angle)
    of_a, of_b = (w[:, None, None, None].to(a.dtype) for w in (of_a, of_b))
    return of_a * a + of_b * b


def inpaint(
    denoiser: DenoiserLike,
    x_0: Tensor,
    mask: Tensor,
    timesteps: Sequence[int] | None = None,
    repeats: int = 10,
    generator: Generator = None,
) -> Iterator[SampleStep]:
    """Draw the unknown pixels of images [RePaint, Lugmayr 2022, algorithm 1].

    Every step is followed by putting the known pixels in, noised to the same time.  As they do not
    listen to the unknown ones, a jump back by the length of the step and the step itself are
    repeated, so that both come to agree.  So long steps are long jumps.

    It draws from the distribution that is asked for as the repeats grow in number and the steps
    near 0 become short, such as with times that fall by squares.  In few even steps what is known
    is listened to too little, but more than without jumps.

    The steps are Heun's, where RePaint's are DDPM's: those add too little noise when they are long,
    and every repeat takes away more.

    Args:
        denoiser: splits x_t into x_0_hat and eps_hat.
        x_0: images in [-1, 1], [B, C, H, W]; what lies under the mask's zeros is not looked at.
        mask: 1 or True where a pixel is known, else 0: [B or 1, C or 1, H, W].  Known pixels are
            exact at the end.
        timesteps: from at most T to 0; all times if None.
        repeats: how often each step is taken; 1 never jumps.
        generator: see `rng.normal`.

    Raises:
        TypeError, ValueError: images as in `edit`; a mask of another shape, or that is not 0 or 1;
            repeats that is no whole number, at least 1; timesteps that do not go down to 0.
    """
    x_0, mask = _check_floats(x_0), data.as_tensor(mask)
    b, c, h, w = x_0.shape
    if tuple(mask.shape) not in {(n, k, h, w) for n in (1, b) for k in (1, c)}:
        raise ValueError(
            f"the mask must have the shape [{b} or 1, {c} or 1, {h}, {w}] of the images; got "
            f"{list(mask.shape)}. mask[None, None] makes one of [H, W] fit"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "the mask must be 1 where a pixel is known and 0 where it is to be drawn; got values "
            f"from {float(mask.min()):g} to {float(mask.max()):g}. mask > 0.5 makes it so"
        )
    known = mask.to(x_0.device) == 1
    x_0 = torch.where(known, x_0, torch.zeros_like(x_0))
    x_0 = _check_images(x_0)
    _check_repeats(repeats)
    if timesteps is None:
        timesteps = denoiser.schedule.timesteps(denoiser.schedule.num_timesteps)
    times = check_timesteps(denoiser, timesteps)
    return _inpaint(denoiser, x_0, known, times, repeats, generator)


@torch.no_grad()
def _inpaint(
    denoiser: DenoiserLike,
    x_0: Tensor,
    known: Tensor,
    times: list[int],
    repeats: int,
    generator: Generator,
) -> Iterator[SampleStep]:
    schedule = denoiser.schedule
    x_t = rng.normal(x_0.shape, generator, x_0.device)
    yield SampleStep(times[0], x_t, x_0)
    for t, s in pairwise(times):
        # Not at s = 0, as no noise is left there that could be made to agree.
        for left in reversed(range(repeats if s > 0 else 1)):
            step = next(heun(denoiser, x_t, [t, s, 0] if s > 0 else [t, 0]))
            eps = rng.normal(x_0.shape, generator, x_0.device)
            x_s = torch.where(known, schedule.add_noise(x_0, _at(s, x_0), eps), step.x_t)
            yield SampleStep(s, x_s, step.x_0)
            x_t = x_s
            if left:
                kept = float(schedule.alpha_bar[t] / schedule.alpha_bar[s])
                z = rng.normal(x_0.shape, generator, x_0.device)
                x_t = kept**0.5 * x_s + (1 - kept) ** 0.5 * z


def _from(
    start: SampleStep,
    denoiser: DenoiserLike,
    times: list[int],
    sampler: Sampler,
    generator: Generator,
) -> Iterator[SampleStep]:
    """The start and, unless it is the clean image already, the sampler's states from there."""
    steps = sampler(denoiser, start.x_t, times, generator=generator) if start.t > 0 else ()
    return chain([start], steps)


def _below(denoiser: DenoiserLike, t: int, timesteps: Sequence[int] | None) -> list[int]:
    """t, then the times of the grid below it: [t, ..., 0], or [0] for t = 0.

    Raises:
        ValueError: t is no whole number in 0..T; timesteps that do not go down to 0.
    """
    T = denoiser.schedule.num_timesteps
    try:
        time = index(t)
    except TypeError:
        time = -1
    if not 0 <= time <= T:
        raise ValueError(
            f"t must be a whole number in 0..T = {T}, from the clean image to noise; got {t!r:.99}"
        )
    grid = check_timesteps(denoiser, range(T, -1, -1) if timesteps is None else timesteps)
    return [time, *(s for s in grid if s < time)]


def _at(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, device=x.device)


def _check_repeats(repeats: int) -> None:
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be a whole number, at least 1; got {repeats!r:.99}")


def _check_floats(x: Tensor) -> Tensor:
    x = data.as_tensor(x)
    if not x.is_floating_point():
        raise TypeError(
            f"images must be floats in [-1, 1]; got {x.dtype}. data.to_float turns uint8 images "
            "into that"
        )
    if x.ndim != 4 or not len(x):
        raise ValueError(
            f"images must have the shape [B, C, H, W], B >= 1; got {list(x.shape)}. x[None] makes "
            "one image a batch"
        )
    return x


def _check_images(x_0: Tensor) -> Tensor:
    x_0 = _check_floats(x_0)
    if not (x_0.abs() <= 1 + _ROUNDING).all():  # also refuses NaN
        raise ValueError(
            "images must lie in [-1, 1] and hold no NaN; these go from "
            f"{float(x_0.min()):g} to {float(x_0.max()):g}. data.to_float scales uint8 images; "
            "x.clamp(-1, 1) cuts off what lies outside"
        )
    return x_0
