"""Noise schedules: how fast the forward process turns an image into noise.

    q(x_t | x_0) = N(x_t; signal_t * x_0, noise_t^2 * I)          [DDPM eq. 4]

Any path from image to noise is two tables, signal_t and noise_t, t = 0, 1, ..., T.  DDPM's paths
preserve the variance of data that have variance 1, and follow from its betas:

    alpha_bar_t = (1 - beta_1) (1 - beta_2) ... (1 - beta_t)
    signal_t = sqrt(alpha_bar_t),  noise_t = sqrt(1 - alpha_bar_t)

Entry 0 of every table is the clean image (signal_0 = 1, noise_0 = 0), so t counts exactly as in
the papers and no caller needs a special case for the first or the last step.

To add a schedule, write one function that returns a `NoiseSchedule` and list it in `__all__`.
"""

import math
import warnings
from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["linear", "cosine", "sigmoid", "flow"]

_LONGEST = 1_000_000  # T: more steps than anyone samples, and tables of 8 MB

# Above this alpha_bar_T the image is still visible in x_T: its mean is 0.03 x_0.
_NOT_NOISE = 1e-3
# Below this alpha_bar_T an eps-prediction's error grows more than a thousandfold in x_0_hat.
_VANISHING = 1e-6


class NoiseSchedule(nn.Module):
    """Path from image to noise, given by how much of each is in x_t.

    Args:
        signal: scale of the image, signal_0 = 1 .. signal_T, [T + 1], none below 0.
        noise: scale of the noise, noise_0 = 0 .. noise_T, [T + 1].

    Attributes:
        num_timesteps: last time, T.
        alpha_bar, noise_variance: signal^2 and noise^2, exact: float64 on the CPU, [T + 1].
        betas: beta_1 .. beta_T of a schedule made by `from_betas`, float64 [T]; else None.
        signal, noise: float32 buffers that follow the module's device, [T + 1].

    Raises:
        ValueError: tables of other shapes, that do not start at the clean image, or whose ratio
            signal / noise does not fall at every step.
    """

    signal: Tensor
    noise: Tensor

    def __init__(self, signal: Tensor, noise: Tensor) -> None:
        super().__init__()
        signal, noise = (torch.as_tensor(x, device="cpu").double() for x in (signal, noise))
        if signal.ndim != 1 or signal.shape != noise.shape or len(signal) < 2:
            raise ValueError(
                "signal and noise must be lists of T + 1 >= 2 numbers each; got shapes "
                f"{list(signal.shape)} and {list(noise.shape)}"
            )
        if signal[0] != 1 or noise[0] != 0:
            raise ValueError(
                "a schedule starts at the clean image, signal_0 = 1 and noise_0 = 0; got "
                f"{signal[0]:g} and {noise[0]:g}"
            )
        if (signal[:-1].float() == 0).any():
            t = int((signal.float() == 0).nonzero()[0])
            raise ValueError(
                f"no signal is left at t = {t}, before the end at T = {len(signal) - 1}: use "
                "smaller betas, or fewer of them"
            )
        ratio = signal / noise
        falls = (signal[1:] >= 0) & (noise[1:] > 0) & (ratio[1:] < ratio[:-1])  # False for NaN
        if not falls.all():
            t = int((~falls).nonzero()[0]) + 1
            raise ValueError(
                "signal / noise must fall at every step, with no signal below 0; at t = "
                f"{t} signal goes from {signal[t - 1]:g} to {signal[t]:g} and noise from "
                f"{noise[t - 1]:g} to {noise[t]:g}"
            )
        self.num_timesteps = len(signal) - 1
        self.betas: Tensor | None = None
        self.alpha_bar, self.noise_variance = signal.square(), noise.square()
        self.register_buffer("signal", signal.float(), persistent=False)
        self.register_buffer("noise", noise.float(), persistent=False)

    @classmethod
    def from_betas(cls, betas: Tensor) -> "NoiseSchedule":
        """Make a variance-preserving schedule [DDPM eq. 4].

        Args:
            betas: beta_1 .. beta_T, the fraction of the variance that each step replaces by noise,
                [T], each in (0, 1].

        Raises:
            ValueError: no betas, one outside (0, 1], or betas that leave no signal before T.
        """
        betas = torch.as_tensor(betas, device="cpu").double()
        if betas.ndim != 1 or len(betas) < 1:
            raise ValueError(
                f"betas must be a list of T >= 1 numbers; got shape {list(betas.shape)}"
            )
        is_inside = (betas > 0) & (betas <= 1)  # also False for NaN
        if not is_inside.all():
            t = int((~is_inside).nonzero()[0]) + 1
            raise ValueError(f"every beta must lie in (0, 1]; beta_{t} is {betas[t - 1]:g}")
        # In float64: float32 would lose noise_1 to 1e-4, as 1 - alpha_bar_1 is 1e-4 itself.
        alpha_bar = torch.cat([torch.ones_like(betas[:1]), (1 - betas).cumprod(0)])
        schedule = cls(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
        # Exactly these: the square of a root is rounded.
        schedule.alpha_bar, schedule.noise_variance = alpha_bar, 1 - alpha_bar
        schedule.betas = betas
        return schedule

    @property
    def power(self) -> Tensor:
        """signal^2 + noise^2, float64 [T + 1]: exactly 1 where betas made the schedule."""
        return self.alpha_bar + self.noise_variance

    def tables(self) -> dict[str, Tensor]:
        """Return what the schedule was made of: {"betas"}, or {"signal", "noise"}, float64."""
        if self.betas is not None:
            return {"betas": self.betas}
        return {"signal": self.alpha_bar.sqrt(), "noise": self.noise_variance.sqrt()}

    def scales(self, t: int) -> tuple[float, float]:
        """Look up (signal_t, noise_t) in float64: exact, and nothing waits for a GPU."""
        return math.sqrt(self.alpha_bar[t]), math.sqrt(self.noise_variance[t])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NoiseSchedule":
        """Follow a module to its device but not to its precision: rounding cannot be undone."""
        super()._apply(fn, recurse)
        device = self.signal.device
        tables = self.alpha_bar.sqrt().float(), self.noise_variance.sqrt().float()
        self.signal, self.noise = (table.to(device) for table in tables)
        return self

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Look up (signal_t, noise_t), each [B, 1, 1, 1], for t [B] in 0..T."""
        return self.signal[t][:, None, None, None], self.noise[t][:, None, None, None]

    def snr(self, t: Tensor) -> Tensor:
        """Compute the signal-to-noise ratio (signal / noise)^2, [B]; infinite at t = 0."""
        return (self.signal[t] / self.noise[t]) ** 2

    def add_noise(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Mix x_t = signal_t * x_0 + noise_t * eps [DDPM eq. 4].  Images [B, C, H, W], t [B]."""
        signal, noise = self(t)
        return signal * x_0 + noise * eps

    def timesteps(self, num_steps: int) -> list[int]:
        """Space the times of `num_steps` sampling steps evenly: `num_steps` + 1 from T to 0.

        Raises:
            ValueError: num_steps outside 1..T.
        """
        T = self.num_timesteps
        if not isinstance(num_steps, Integral) or not 1 <= num_steps <= T:
            raise ValueError(
                f"{num_steps!r:.99} sampling steps, but this schedule has T = {T}: choose 1 to {T} "
                "steps"
            )
        return [(T * left + num_steps // 2) // num_steps for left in range(num_steps, -1, -1)]

    def describe(self) -> dict[str, Any]:
        """Diagnose the forward process; warn if x_T is not noise.

        Returns:
            T: number of steps.
            alpha_bar_T: fraction of the image's power left in x_T; about 0, because sampling starts
                from pure noise.
            amplification_T: factor from an error of eps_hat to that of x_0_hat at T.
            snr_1: signal-to-noise ratio after the first step.
            share_snr_below_0.01: fraction of the steps that go from noise to noise.
            L_T_bits_per_dim: KL(q(x_T | x_0) || N(0, I)) for pixels with x_0^2 = 1 [DDPM eq. 5].
            warnings: where x_T is not noise, or eps-prediction meets a vanishing alpha_bar_T.
        """
        snr = self.alpha_bar[1:] / self.noise_variance[1:]
        last = float(self.alpha_bar[-1] / self.power[-1])
        amplification = last**-0.5 if last > 0 else math.inf
        problem = "none"
        if last > _NOT_NOISE:
            problem = (
                f"x_T is not noise: {last:.2g} of the image's power is left (alpha_bar_T), while "
                "sampling starts from none. Use larger betas: schedules.linear and cosine reach "
                "noise at every T, and zero_terminal(schedule) ends any schedule there"
            )
            warnings.warn(problem, stacklevel=2)
        elif last == 0:
            problem = "x_T holds no signal: eps-prediction is refused, predict v or x_0"
        elif last < _VANISHING:
            problem = (
                f"alpha_bar_T vanishes: an eps-prediction's error grows {amplification:,.0f} times "
                "in x_0_hat at T, so x_0_hat must be clipped there"
            )
        return {
            "T": self.num_timesteps,
            "alpha_bar_T": last,
            "amplification_T": amplification,
            "snr_1": float(snr[0]),
            "share_snr_below_0.01": float((snr < 0.01).double().mean()),
            "L_T_bits_per_dim": -math.log1p(-last) / (2 * math.log(2)),
            "warnings": problem,
        }


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> NoiseSchedule:
    """Raise beta linearly [DDPM section 4], scaled by 1000 / T so that x_T is noise for every T.

    Raises:
        ValueError: T < 1, or so small that the scaled betas reach 1 (T <= 20 by default).
    """
    _check_length(T)
    if beta_T * 1000 / T >= 1:
        raise ValueError(
            f"linear(T={T}) would need beta_T = {beta_T * 1000 / T:g} >= 1 to reach noise: "
            f"use T > {1000 * beta_T:g}, or schedules.cosine"
        )
    scale = 1000 / T
    betas = torch.linspace(scale * beta_1, scale * beta_T, T, dtype=torch.float64, device="cpu")
    return NoiseSchedule.from_betas(betas)


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """Let alpha_bar follow a squared cosine; betas are cut at `max_beta` [Improved DDPM eq. 17]."""
    f = torch.cos((_times(T) + s) / (1 + s) * math.pi / 2) ** 2
    return NoiseSchedule.from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def sigmoid(
    T: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> NoiseSchedule:
    """Let alpha_bar fall along a sigmoid [Jabri 2022; Chen 2023, section 2.1].

    A smaller `tau` makes the fall steeper: more of the steps go to clean and to noisy images.
    """
    f = torch.sigmoid(-(start + _times(T) * (end - start)) / tau)
    f = (f - f[-1]) / (f[0] - f[-1])
    return NoiseSchedule.from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def flow(T: int = 1000) -> NoiseSchedule:
    """Mix image and noise along a straight line, the path of flow matching [Lipman 2023, Liu 2023].

        x_t = (1 - t / T) x_0 + t / T eps

    x_T is pure noise: predict `velocity`, v or x_0 with it.
    """
    times = _times(T)
    return NoiseSchedule(1 - times, times)


def zero_terminal(schedule: NoiseSchedule) -> NoiseSchedule:
    """Shift and scale a schedule's signal to end at exactly 0 [Lin 2023, algorithm 1].

    x_T then is pure noise, signal_1 as it was: predict v or x_0.  For an experiment, wrap it:
    `def schedule(T): return zero_terminal(linear(T))`.

    Raises:
        ValueError: T = 1, whose only step cannot both stay and end at 0; a schedule without betas.
    """
    if schedule.betas is None:
        raise ValueError(
            "zero_terminal needs betas, as of linear; make NoiseSchedule(signal, noise) end at 0"
        )
    if schedule.num_timesteps < 2:
        raise ValueError("zero_terminal needs a schedule of T >= 2 steps; got T = 1")
    signal = schedule.alpha_bar.sqrt()
    first, last = signal[1], signal[-1]
    alpha_bar = torch.cat([signal[:1], (signal[1:] - last) * first / (first - last)]).square()
    return NoiseSchedule.from_betas(1 - alpha_bar[1:] / alpha_bar[:-1])


def _times(T: int) -> Tensor:
    """Return t / T for t = 0..T, float64 on the CPU."""
    _check_length(T)
    return torch.arange(T + 1, dtype=torch.float64, device="cpu") / T


def _check_length(T: int) -> None:
    if not isinstance(T, Integral) or T > _LONGEST:
        raise ValueError(f"T must be a whole number of at most {_LONGEST:,}; got {T!r:.99}")
    if T < 1:
        raise ValueError(f"T must be at least 1; got {T}")
