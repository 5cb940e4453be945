"""The denoiser: a network plus the meaning of its output."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lib import checkpoints, predictions
from diffusion_lib.networks import NetworkConfig, config_of
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule


class Denoised(NamedTuple):
    """Both halves of a noisy image: x_t = signal_t * x_0 + noise_t * eps.  Each [B, C, H, W].

    A learned `variance_fraction` places the log-variance of each pixel between those of beta_tilde
    (0) and beta (1), see `posterior.log_range`.  It holds for a step from t to any s < t.
    """

    x_0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None


class Denoiser(nn.Module):
    """Splits a noisy image into its predicted image and noise.

    Samplers call only this, so none of them knows what the network predicts.

    Args:
        network: module (x_t [B, C, H, W], t - 1 [B]) -> output of x_t's shape; 0-based times, as
            in Ho's code and every released checkpoint.  Only this class knows of that.  An output
            of 2 C channels has the fractions of a learned variance in its second half, -1 for
            beta_tilde and 1 for beta [Improved DDPM section 3.1].
        schedule: forward process that the network is trained on.
        prediction: meaning of the output, one of `predictions` or a function like those.
        clip: bound of |x_0_hat|, or None; images live in [-1, 1].

    Raises:
        ValueError: eps-prediction with a schedule that leaves no signal at T; a bound that is not
            a positive number.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        prediction: Prediction = predictions.eps,
        clip: float | None = 1.0,
    ) -> None:
        super().__init__()
        if clip is not None and not (isinstance(clip, int | float) and clip > 0):
            raise ValueError(f"clip must be a positive number, or None; got {clip!r:.99}")
        # From the tables on the CPU, so that nothing waits for a GPU; in float32, as images are.
        alpha_bar, noise_variance = schedule.alpha_bar[-1], schedule.noise_variance[-1]
        signal, noise = alpha_bar.sqrt().float(), noise_variance.sqrt().float()
        c_x, c_eps = prediction(signal, noise)
        if signal * c_eps == noise * c_x:
            raise ValueError(
                f"x_T holds no signal in this schedule (alpha_bar_T is {alpha_bar:g}), so no image "
                f"follows from {checkpoints.prediction_name(prediction)} there: predict v or x_0"
            )
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.clip = clip

    @property
    def config(self) -> NetworkConfig:
        """Description of the network, with `image_shape`, `outputs` and `classes`.

        Raises:
            TypeError: the network has none.
        """
        if (config := config_of(self.network)) is None:
            raise TypeError(
                f"a {type(self.network).__name__} has no config with the shape of its images: use "
                "a network of `networks`, with labels run.guided(labels), or a sampler with an x_T"
            )
        return config

    def forward(self, x_t: Tensor, t: Tensor) -> Denoised:
        """Denoise images x_t [B, C, H, W] at times t [B] in 1..T."""
        signal, noise = self.schedule(t)
        output, fraction = self.predict(x_t, t)
        x_0, eps = predictions.solve(self.prediction, output, x_t, signal, noise)
        if self.clip is not None:
            # At high noise an eps-prediction multiplies the network's error by noise / signal, up
            # to 157 (linear) or 20 290 (cosine): bound x_0 first, then let eps agree with it.
            x_0 = x_0.clamp(-self.clip, self.clip)
            eps = (x_t - signal * x_0) / noise
        return Denoised(x_0, eps, fraction)

    def output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Evaluate the network at x_t [B, C, H, W] and t [B] in 1..T: float32 [B, C, H, W]."""
        return self.predict(x_t, t)[0]

    def predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Evaluate the network: `output` and the fractions of its learned variance, or None.

        Raises:
            ValueError: an output of neither C nor 2 C channels.
        """
        output = self.network(x_t, t - 1)
        output = output.to(torch.promote_types(x_t.dtype, torch.float32))
        if output.shape[1] == x_t.shape[1]:
            return output, None
        if output.shape[1] != 2 * x_t.shape[1]:
            raise ValueError(
                f"images of {x_t.shape[1]} channels need an output of as many, or of twice as many "
                f"with a learned variance; the network's has {output.shape[1]}"
            )
        output, fraction = output.chunk(2, dim=1)
        return output, (fraction + 1) / 2

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Mix x_0 and eps [B, C, H, W] into what an ideal network would return at t [B]."""
        c_x, c_eps = self.prediction(*self.schedule(t))
        return c_x * x_0 + c_eps * eps

    def save(self, path: str | Path, step: int | None = None) -> None:
        """Write a safetensors file that `load` needs no other information for.

        Args:
            path: file to write.
            step: number of training steps behind the weights, if known.

        Raises:
            TypeError: the network has no config to describe it.
            OSError: it could not be written; a file that was there before is untouched.
        """
        checkpoints.write(path, self.network, self.schedule, self.prediction, self.clip, step)

    @classmethod
    def load(cls, path: str | Path) -> "Denoiser":
        """Read what `save` wrote: float32 on the CPU, in evaluation mode.  Executes nothing of it.

        Raises:
            FileNotFoundError, ValueError: no such file; a truncated, damaged or foreign one; a
                prediction type of the user's own, whose function no file can hold.
        """
        return checkpoints.read(path, cls).eval()


def with_network(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    """Replace the network, keeping the meaning of its output."""
    return Denoiser(network, denoiser.schedule, denoiser.prediction, denoiser.clip)
