"""Edit images: into the noise, and back with another label.

    edit          noise to t, denoise [SDEdit, Meng 2022]: a larger t keeps less of the image
    invert        compute the noise from which DDIM makes this image [DDIM section 5.4]
    reconstruct   denoise from there, with the same denoiser or a guided one
    interpolate   between two images, along a great circle in their noise [DDIM appendix D.5]
    inpaint       draw the pixels outside a mask [RePaint, Lugmayr 2022]

Each is an iterator of `SampleStep`, as samplers are; its first state is the start itself, so t = 0
gives the images back.  Each takes any denoiser, so guidance changes a class:

    x_T = final(invert(denoiser, threes, 1000))
    eights = final(reconstruct(guided(denoiser, labels, 4.0), x_T, 1000))

t is in 0..T, and `timesteps` a grid such as `schedule.timesteps(50)`, of which the times below t
are used; None is all of them.

To add an edit, write one function that returns an iterator of `SampleStep`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from math import sqrt
from operator import index

import torch
from torch import Tensor

from diffusion_lib import data, posterior, rng
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

_TOLERANCE = 1e-3  # a pixel may lie outside [-1, 1] by this rounding error


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
        denoiser: model that splits x_t into x_0_hat and eps_hat.
        x_0: images in [-1, 1], [B, C, H, W].
        t: time to noise to; 0 gives the images back, T replaces them.
        timesteps: times of the denoising, from at most T to 0; all times if None.
        sampler: method of the denoising, one of `samplers`.
        generator: source of eps and of the sampler's noise, see `rng.normal`.

    Raises:
        TypeError, ValueError: images that are not floats, or outside [-1, 1]; t that is no whole
            number in 0..T; timesteps that do not fall to 0.
    """
    x_0 = _check_images(x_0)
    times = _times_from(denoiser, t, timesteps)
    x_t = x_0  # at t = 0 to the bit
    if times[0] > 0:
        eps = rng.normal(x_0.shape, generator, x_0.device)
        x_t = denoiser.schedule.add_noise(x_0, _at(times[0], x_0), eps)
    return _denoise_from(SampleStep(times[0], x_t, x_0), denoiser, times, sampler, generator)


def invert(
    denoiser: DenoiserLike,
    x_0: Tensor,
    t: int,
    timesteps: Sequence[int] | None = None,
    repeats: int = 1,
) -> Iterator[SampleStep]:
    """Compute the x_t from which DDIM makes these images: its steps, backwards [DDIM section 5.4].

        x_t = signal_t * x_0_hat + noise_t * eps_hat
        x_0_hat = (x_s - noise_s * eps_hat) / signal_s,   s < t

    This undoes DDIM's step from t to s if eps_hat is that of the unknown x_t; it is approximated by
    that of x_s, and improved by fixed-point iteration with more `repeats` [Pan 2023].
    Deterministic.  The error of DDIM's reconstruction falls with the length of the steps, and with
    its square where repeats is 2.

    Args:
        denoiser: model without labels, or guided at a low scale: guidance multiplies the error.
        x_0: images in [-1, 1], [B, C, H, W].
        t: time of the noise; 0 gives the images back.
        timesteps: times of the steps, from at most T to 0 as everywhere; all times if None.
        repeats: number of network evaluations in a step.

    Raises:
        TypeError, ValueError: as in `edit`; repeats that is no whole number, at least 1.
    """
    x_0 = _check_images(x_0)
    _check_repeats(repeats)
    return _invert(denoiser, x_0, _times_from(denoiser, t, timesteps), repeats)


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
    """Denoise x_t [B, C, H, W] at time t, such as the result of `invert`, deterministically.

    The denoiser of the inversion gives the images back, a guided one changes them.  `sampler` is
    `ddim`, `dpm_solver` or `heun`; other arguments and errors as in `edit`.
    """
    x_t = _check_floats(x_t)
    times = _times_from(denoiser, t, timesteps)
    return _denoise_from(SampleStep(times[0], x_t, x_t), denoiser, times, sampler, None)


def interpolate(
    denoiser: DenoiserLike,
    ends: tuple[Tensor, Tensor],
    t: int,
    weights: Sequence[float] | Tensor,
    timesteps: Sequence[int] | None = None,
    eps: Tensor | None = None,
) -> Iterator[SampleStep]:
    """Interpolate between two images along a great circle in their noise at t; denoise by DDIM.

        x_t = (sin((1 - w) * angle) * x_t_a + sin(w * angle) * x_t_b) / sin(angle)

    [Shoemake 1985; DDIM eq. 67].  A straight line would leave the sphere on which noise lies.

    Args:
        denoiser: model, guided or not.  One with labels has one for each weight, and `ends` as many
            images if they are inverted: a.expand(K, -1, -1, -1).
        ends: (a, b), images in [-1, 1], each [B, C, H, W] with B = 1 or one for each weight.
        t: time of the noise; a larger t makes the images between less like the ends.
        weights: weight w of b in each image, [K] in 0..1; 0 reconstructs a, 1 reconstructs b.
        timesteps: times of the steps, from at most T to 0; all times if None.
        eps: noise [1 or K, C, H, W] that is added to both ends; None inverts them.

    Returns:
        An iterator of states with K images.

    Raises:
        TypeError, ValueError: as in `edit`; ends, or eps, of another shape; a weight outside 0..1.
    """
    a, b = ends
    a, b = map(_check_images, (a, b))
    if a.shape != b.shape:
        raise ValueError(
            f"both ends must have one shape; got {list(a.shape)} and {list(b.shape)}: crop or "
            "resize one of them, or repeat it with expand(B, -1, -1, -1)"
        )
    w = torch.as_tensor(weights, dtype=torch.float64, device=a.device)
    if w.ndim != 1 or not len(w) or not ((w >= 0) & (w <= 1)).all():
        raise ValueError(f"weights must be a list of numbers in 0..1; got {weights!r:.99}")
    if len(a) not in (1, len(w)):
        raise ValueError(f"{len(a)} pairs of ends for {len(w)} weights: give 1, or one each")
    if eps is not None and (
        eps.shape[1:] != a.shape[1:] or len(eps) not in (1, len(w)) or not eps.isfinite().all()
    ):
        raise ValueError(
            f"eps must be noise of the shape [1 or {len(w)}, C, H, W] of the ends, "
            f"{list(a.shape)}, the same for both; got {list(eps.shape)}"
        )
    return _interpolate(denoiser, (a, b), _times_from(denoiser, t, timesteps), w, eps)


@torch.no_grad()
def _interpolate(
    denoiser: DenoiserLike,
    ends: tuple[Tensor, Tensor],
    times: list[int],
    w: Tensor,
    eps: Tensor | None,
) -> Iterator[SampleStep]:
    t = times[0]
    if eps is None:
        a, b = (final(_invert(denoiser, x, times, repeats=1)) for x in ends)
    else:
        a, b = (denoiser.schedule.add_noise(x, _at(t, x), eps) for x in ends)
    x_t = slerp(a, b, w)
    yield from _denoise_from(SampleStep(t, x_t, x_t), denoiser, times, ddim, None)


def slerp(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """Interpolate from a to b, [1 or K, C, H, W], along a great circle; w [K] is the weight of b.

    Raises:
        ValueError: opposite ends, between which no way is the shortest.
    """
    cosine = torch.cosine_similarity(a.double().flatten(1), b.double().flatten(1))
    angle = cosine.clamp(-1, 1).acos() / torch.pi
    if (angle > 1 - 1e-6).any():
        raise ValueError("the ends are opposite, x and -x: no way between them is the shortest")
    # sin(w * angle) / sin(angle), also where the ends are equal and the angle is 0.
    w_a = (1 - w) * torch.sinc((1 - w) * angle) / torch.sinc(angle)
    w_b = w * torch.sinc(w * angle) / torch.sinc(angle)
    w_a, w_b = (x[:, None, None, None].to(a.dtype) for x in (w_a, w_b))
    return w_a * a + w_b * b


def inpaint(
    denoiser: DenoiserLike,
    x_0: Tensor,
    mask: Tensor,
    timesteps: Sequence[int] | None = None,
    repeats: int = 10,
    generator: Generator = None,
) -> Iterator[SampleStep]:
    """Draw the unknown pixels of images [RePaint, Lugmayr 2022, algorithm 1].

    After every step the known pixels are pasted in, noised to the same time.  The pasted pixels
    ignore the generated ones, so each step is undone by re-noising and repeated `repeats` times.

    The distribution of the result tends to that of the unknown pixels given the known ones as
    `repeats` grows and the steps near 0 become short, such as with times that fall by squares.  Few
    even steps condition too weakly, but more than without repeats.

    The steps are Heun's, where RePaint's are DDPM's, because long steps of DDPM add too little
    noise, and every repeat removes more.

    Args:
        denoiser: model that splits x_t into x_0_hat and eps_hat.
        x_0: images in [-1, 1], [B, C, H, W]; unknown pixels are ignored.
        mask: 1 or True where a pixel is known, else 0: [B or 1, C or 1, H, W].  Known pixels are
            exact at the end.
        timesteps: times of the steps, from at most T to 0; all times if None.
        repeats: number of times that each step is taken.
        generator: source of the noise, see `rng.normal`.

    Raises:
        TypeError, ValueError: as in `edit`; a mask of another shape, or that is not 0 or 1;
            repeats that is no whole number, at least 1.
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
    x_0 = _check_images(torch.where(known, x_0, torch.zeros_like(x_0)))
    _check_repeats(repeats)
    return _inpaint(denoiser, x_0, known, _grid(denoiser, timesteps), repeats, generator)


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
    x_t = sqrt(schedule.power[times[0]]) * rng.normal(x_0.shape, generator, x_0.device)
    yield SampleStep(times[0], x_t, x_0)
    for t, s in pairwise(times):
        # Not at s = 0, where no noise is left to adapt.
        for left in reversed(range(repeats if s > 0 else 1)):
            step = next(heun(denoiser, x_t, [t, s, 0] if s > 0 else [t, 0]))
            eps = rng.normal(x_0.shape, generator, x_0.device)
            x_s = torch.where(known, schedule.add_noise(x_0, _at(s, x_0), eps), step.x_t)
            yield SampleStep(s, x_s, step.x_0)
            x_t = x_s
            if left:
                ratio = float(schedule.alpha_bar[t] / schedule.alpha_bar[s])
                variance = float(posterior.beta(schedule, t, s))
                z = rng.normal(x_0.shape, generator, x_0.device)
                x_t = ratio**0.5 * x_s + variance**0.5 * z


def _denoise_from(
    start: SampleStep,
    denoiser: DenoiserLike,
    times: list[int],
    sampler: Sampler,
    generator: Generator,
) -> Iterator[SampleStep]:
    """Return the start and, unless it is clean already, the sampler's states from there."""
    steps = sampler(denoiser, start.x_t, times, generator=generator) if start.t > 0 else ()
    return chain([start], steps)


def _times_from(denoiser: DenoiserLike, t: int, timesteps: Sequence[int] | None) -> list[int]:
    """Return t, then the times of the grid below it: [t, ..., 0], or [0] for t = 0."""
    T = denoiser.schedule.num_timesteps
    try:
        time = index(t)
    except TypeError:
        time = -1
    if not 0 <= time <= T:
        raise ValueError(
            f"t must be a whole number in 0..T = {T}, from the clean image to noise; got {t!r:.99}"
        )
    return [time, *(s for s in _grid(denoiser, timesteps) if s < time)]


def _grid(denoiser: DenoiserLike, timesteps: Sequence[int] | None) -> list[int]:
    every = range(denoiser.schedule.num_timesteps, -1, -1)
    return check_timesteps(denoiser, every if timesteps is None else timesteps)


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
    if not (x_0.abs() <= 1 + _TOLERANCE).all():  # also refuses NaN
        raise ValueError(
            "images must lie in [-1, 1] and hold no NaN; these go from "
            f"{float(x_0.min()):g} to {float(x_0.max()):g}. data.to_float scales uint8 images; "
            "x.clamp(-1, 1) cuts off what lies outside"
        )
    return x_0
