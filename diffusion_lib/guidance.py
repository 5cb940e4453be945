"""Labels and classifier-free guidance: networks around a denoiser's network.

    denoiser = guided(denoiser, labels=range(10), scale=2.0)

Losses and samplers take the result in the denoiser's place.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_lib import data
from diffusion_lib.denoiser import Denoiser, with_network
from diffusion_lib.networks import config_of


def guided(denoiser: Denoiser, labels: Tensor | Sequence[int], scale: float = 1.0) -> Denoiser:
    """Guide a denoiser to labels without a classifier [Ho & Salimans 2022, eq. 6].

        output = output_without + scale * (output_with - output_without)

    In the paper scale is 1 + w.  Predictions of x_0, eps and v are guided alike, because each is
    linear in x_0 and eps.  The network is evaluated twice, or once where scale is 1 (labels without
    guidance) or 0 (no labels).

    Args:
        denoiser: denoiser of a network with labels, trained with some of them left out.
        labels: label of each image, [B] in 0..classes - 1.
        scale: strength of the guidance; above 1 images are more typical and less diverse.

    Raises:
        ValueError: a network without labels; a label outside 0..classes - 1; a scale that is not
            finite.
    """
    network = denoiser.network
    config = config_of(network)
    classes = config.classes if config else 0
    if isinstance(network, _Labelled):
        raise ValueError("this denoiser has labels already: guide the one that it was made of")
    if not classes:
        raise ValueError(
            "this network knows no labels: build it with classes=..., such as the "
            "preset mnist_labels, and train it on labelled images"
        )
    labels = data.check_labels(labels, classes)
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"scale must be finite, such as 1 for no guidance; got {scale!r:.99}")
    labels = labels.to(denoiser.schedule.signal.device)
    if scale == 0:
        return denoiser
    if scale == 1:
        return with_labels(denoiser, labels)
    return with_network(denoiser, _Guided(network, labels, classes, scale))


def with_labels(denoiser: Denoiser, labels: Tensor) -> Denoiser:
    """Pass labels [B] in 0..classes to a denoiser's network, which is shared; `classes` is none."""
    return with_network(denoiser, _Labelled(denoiser.network, labels))


class _Labelled(nn.Module):
    """A network with its labels, [B]: (x_t, t) -> output."""

    def __init__(self, network: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.network = network
        self.labels = labels

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        _check_batch(x_t, self.labels)
        return self.network(x_t, t, self.labels)


class _Guided(_Labelled):
    """A network whose difference between output with and without labels is scaled."""

    def __init__(self, network: nn.Module, labels: Tensor, none: int, scale: float) -> None:
        super().__init__(network, torch.cat([labels, torch.full_like(labels, none)]))
        self.scale = scale

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        _check_batch(x_t, self.labels.chunk(2)[0])  # with and without
        outputs = super().forward(torch.cat([x_t, x_t]), torch.cat([t, t]))
        conditional, unconditional = outputs.chunk(2)
        c = x_t.shape[1]
        # Of the prediction alone: a learned variance is that with the label.
        guided = torch.lerp(unconditional[:, :c].float(), conditional[:, :c].float(), self.scale)
        return torch.cat([guided, conditional[:, c:]], dim=1)


def _check_batch(x_t: Tensor, labels: Tensor) -> None:
    if len(x_t) != len(labels):
        raise ValueError(
            f"this denoiser has {len(labels)} labels but was given {len(x_t)} images: "
            "one label for each image is needed"
        )
