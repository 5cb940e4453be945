"""Begin a sampler late, at the state to which the data's Gaussian would have brought it.

    start = LateStart(images)  # takes seconds, for any schedule and t
    x_t = start(denoiser.schedule, t, x_T)
    steps = editing.reconstruct(denoiser, x_t, t, denoiser.schedule.timesteps(20), samplers.ddim)

While there is little signal, the best denoiser is nearly that of a Gaussian with the mean and the
covariance of the data [Raya & Ambrogioni 2023], whose probability flow is known in closed form, so
its steps need no network.  `survival.speciation` says until when: about where classes part.
"""

import torch
from torch import Tensor

from diffusion_lib import data
from diffusion_lib.schedules import NoiseSchedule


class LateStart:
    """The probability flow of a Gaussian, from T to any t.

    Args:
        images: uint8 [N, C, H, W]; of more than 10,000 the first are taken.

    Raises:
        TypeError, ValueError: as of `data.check`.
    """

    def __init__(self, images: Tensor) -> None:
        x_0 = data.to_float(data.check(images)[:10_000].cpu()).flatten(1).double()
        self.mean = x_0.mean(0)
        self.variances, self.axes = torch.linalg.eigh((x_0 - self.mean).T.cov(correction=0))

    def __call__(self, schedule: NoiseSchedule, t: int, x_T: Tensor) -> Tensor:
        """Compute x_t = signal_t mean + (C_t / C_T)^(1/2) (x_T - signal_T mean).

        C_t = signal_t^2 covariance + noise_t^2 I; x_T and x_t are [B, C, H, W].

        Raises:
            ValueError: t outside 0..T; x_T of another shape than the images.
        """
        if not 0 <= t <= schedule.num_timesteps or x_T[:1].numel() != len(self.mean):
            raise ValueError(
                f"t must lie in 0..{schedule.num_timesteps}, and x_T have {len(self.mean)} numbers "
                f"an image, as those that this was made of; got t = {t}, {list(x_T.shape)}"
            )
        (signal_T, noise_T), (signal, noise) = map(schedule.scales, (schedule.num_timesteps, t))
        variances = self.variances.clamp(min=0)
        ratio = (signal**2 * variances + noise**2) / (signal_T**2 * variances + noise_T**2)
        off = (x_T.flatten(1).cpu().double() - signal_T * self.mean) @ self.axes
        x_t = signal * self.mean + off * ratio.sqrt() @ self.axes.T
        return x_t.view(x_T.shape).to(x_T)
