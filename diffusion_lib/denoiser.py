"""The denoiser: a network plus the meaning of its output."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lib import predictions
from diffusion_lib.networks.unet import UNet, UNetConfig, on_meta_device
from diffusion_lib.predictions import Prediction
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import files

_FORMAT = "diffusion_lib denoiser 1"


class Denoised(NamedTuple):
    """Both halves of a noisy image: x_t = signal_t * x_0 + noise_t * eps.  Each [B, C, H, W].

    `variance_fraction`, where it was learned, places each pixel's log-variance between those of
    beta_tilde (0) and beta (1), see `posterior.log_range`.  Being a share it holds for a step to
    any s, where a log-variance would hold for t - 1 alone.
    """

    x_0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None


class Denoiser(nn.Module):
    """Splits a noisy image into its predicted image and noise.

    Samplers call only this, so none of them knows what the network predicts.

    Args:
        network: maps (x_t [B, C, H, W], t - 1 [B]) to an output of x_t's shape; 0-based times, as
            in Ho's code and every released checkpoint.  Only this class knows of that.  An output
            of twice as many channels holds the shares of a learned variance in its second half,
            -1 for beta_tilde and 1 for beta [Improved DDPM section 3.1].
        schedule: the forward process that the network is trained on.
        prediction: what the output stands for, see `predictions`.
        clip: bound put on x_0_hat, or None; images live in [-1, 1].

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
        # Of the tables on the CPU, so that nothing waits for a GPU; in the float32 that images are
        # computed in.
        alpha_bar = schedule.alpha_bar[-1]
        signal, noise = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
        c_x, c_eps = prediction(signal, noise)
        if signal * c_eps == noise * c_x:
            raise ValueError(
                f"x_T holds no signal in this schedule (alpha_bar_T is {alpha_bar:g}), so no image "
                f"follows from the prediction of {prediction.__name__} there: predict v or x_0"
            )
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.clip = clip

    def forward(self, x_t: Tensor, t: Tensor) -> Denoised:
        """(x_0_hat, eps_hat) of noisy images x_t [B, C, H, W] at times t [B] in 1..T."""
        signal, noise = self.schedule(t)
        output, share = self.predict(x_t, t)
        x_0, eps = predictions.solve(self.prediction, output, x_t, signal, noise)
        if self.clip is not None:
            # At high noise an eps-prediction multiplies the network's error by noise / signal, up
            # to 157 (linear) or 20 290 (cosine): bound x_0 first, then let eps agree with it.
            x_0 = x_0.clamp(-self.clip, self.clip)
            eps = (x_t - signal * x_0) / noise
        return Denoised(x_0, eps, share)

    def output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's prediction, float32 [B, C, H, W], for x_t [B, C, H, W], t [B] in 1..T."""
        return self.predict(x_t, t)[0]

    def predict(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """The network's prediction and, where it has learned them, its variance shares.

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
        output, share = output.chunk(2, dim=1)
        return output, (share + 1) / 2

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What an ideal network would return for x_0 and eps [B, C, H, W] mixed at t [B]."""
        c_x, c_eps = self.prediction(*self.schedule(t))
        return c_x * x_0 + c_eps * eps

    def save(self, path: str | Path, step: int | None = None) -> None:
        """Write a safetensors file that `load` needs no other information for.

        Args:
            step: number of training steps behind the weights, if known, see `read_step`.

        Raises:
            TypeError: the network is not a `UNet`, so its shape could not be told from a file.
            OSError: it could not be written; a file that was there before is untouched.
        """
        if not isinstance(self.network, UNet):
            raise TypeError(
                f"only a UNet can be saved with its shape; this network is a "
                f"{type(self.network).__name__}. Save its state_dict() yourself."
            )
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        description = {
            "network": asdict(self.network.config),
            "prediction": prediction_name(self.prediction),
            "clip": self.clip,
        }
        metadata = {"format": _FORMAT, "denoiser": json.dumps(description)}
        if step is not None:
            metadata["step"] = str(step)
        files.write_tensors(path, {**tensors, "betas": self.schedule.betas}, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Denoiser":
        """Read what `save` wrote: on the CPU, in evaluation mode.  Never executes what it reads.

        Nothing larger than the file is made before its weights are known to fit the network that
        it describes.

        Raises:
            FileNotFoundError, ValueError: no such file; a truncated, damaged or foreign one; a
                prediction type of the user's own, whose function no file can hold.
        """
        tensors, metadata = files.read_tensors(path, _FORMAT)
        try:
            description = json.loads(metadata["denoiser"])
            schedule = NoiseSchedule(tensors.pop("betas"))
            shape = UNetConfig(**description["network"])
            if (prediction := description["prediction"]) not in predictions.__all__:
                raise ValueError(
                    f"it was trained to predict {prediction!r:.99}, which is not one of "
                    f"{', '.join(predictions.__all__)}: add that function to predictions.py"
                )
            denoiser = cls(
                on_meta_device(shape),
                schedule,
                getattr(predictions, prediction),
                description["clip"],
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} does not describe a denoiser ({error})") from error
        weights = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
        check_weights(denoiser.network, weights, path)
        with torch.device("cpu"):  # whatever the default device is
            denoiser.network = UNet(shape)
        denoiser.network.load_state_dict(weights)
        return denoiser.eval()

    def load_weights(self, path: str | Path) -> None:
        """Replace the network's weights by those of a file that `save` wrote.

        Raises:
            FileNotFoundError, ValueError: no such file; a truncated, damaged or foreign one, or
                one of another network. The weights then are as they were.
        """
        tensors, _ = files.read_tensors(path, _FORMAT)
        weights = {
            name.removeprefix("network."): x for name, x in tensors.items() if name != "betas"
        }
        check_weights(self.network, weights, path)
        self.network.load_state_dict(weights)

    @staticmethod
    def read_step(path: str | Path) -> int | None:
        """Number of training steps behind the weights of a file; None if it does not say.

        Raises:
            FileNotFoundError, ValueError: no such file; a truncated, damaged or foreign one.
        """
        step = files.read_metadata(path, _FORMAT).get("step", "")
        return int(step) if step.isdecimal() else None


def with_network(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    """The same reading of another network's output."""
    return Denoiser(network, denoiser.schedule, denoiser.prediction, denoiser.clip)


def prediction_name(prediction: Prediction) -> str:
    """Name by which `Denoiser.load` finds a prediction; a user's own never has a library's name."""
    name = prediction.__name__
    ours = is_same(prediction, getattr(predictions, name, None))
    return name if ours else f"{name} (your own)"


def is_same(function: Callable[..., Any], other: Callable[..., Any] | None) -> bool:
    """Tell whether two functions are one, also where its module was reloaded in between.

    By the place of their code, which no decorator copies, as `functools.wraps` copies the names.
    """

    def place(f: Callable[..., Any] | None) -> tuple[str, str] | None:
        code = getattr(f, "__code__", None)
        return code and (code.co_filename, code.co_qualname)

    return function is other or (place(function) == place(other) is not None)


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that do not fit a module.

    Raises:
        ValueError: a missing, unexpected or differently shaped weight, or one of whole numbers,
            named together with `path`.
    """

    def told(weight: Tensor | None) -> str:
        if weight is None:
            return "nothing"
        return f"{list(weight.shape)}{'' if weight.is_floating_point() else f' {weight.dtype}'}"

    own = module.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        here, there = told(own.get(name)), told(weights.get(name))
        if here != there:
            raise ValueError(
                f"{path} belongs to another network: {name} is {there} there, {here} here"
            )
