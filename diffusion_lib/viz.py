"""Pictures, plots, tables and progress bars of results."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from IPython.display import Image as InlineImage
from IPython.display import Markdown
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from diffusion_lib import data
from diffusion_lib.samplers import SampleStep
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system.progress import progress as progress


def grid(images: Tensor, columns: int = 8, scale: int = 2) -> Image.Image:
    """Put images side by side.

    Args:
        images: images [N, C, H, W] with C = 1 or 3, uint8 or float in [-1, 1].
        columns: number of images in a row.
        scale: screen pixels for a pixel of an image.
    """
    images = data.as_tensor(images)
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"grid shows images [N, 1 or 3, H, W], N >= 1; got {list(images.shape)}")
    from diffusion_lib.system.torchvision import utils  # takes seconds to import

    columns = min(columns, len(images))
    tiles = utils.make_grid(_to_uint8(images), nrow=columns, padding=1, pad_value=64)
    if images.shape[1] == 1:
        tiles = tiles[:1]  # make_grid repeats gray three times
    picture = Image.fromarray(tiles.permute(1, 2, 0).squeeze(-1).numpy())
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)


def strip(steps: Sequence[SampleStep], columns: int = 10) -> Figure:
    """Draw the first image of a sampler's states, `list(sampler(...))`, at evenly spaced times.

    x_t stands above, the prediction x_0_hat that led there below; the last state is included.
    """
    steps = _spread(steps, columns)
    rows = [("$x_t$", [s.x_t[0] for s in steps]), ("$\\hat{x}_0$", [s.x_0[0] for s in steps])]
    return table_of_images(rows, [f"t = {step.t}" for step in steps])


def table_of_images(rows: Sequence[tuple[str, Sequence[Tensor]]], columns: Sequence[str]) -> Figure:
    """Draw rows (name, images), images [C, H, W] as in `grid`, below the names of the columns."""
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(len(columns), 1.05 * len(rows) + 0.2), squeeze=False
    )
    for row, (name, images) in zip(axes, rows, strict=True):
        for axis, image in zip(row, images, strict=True):
            pixels = _to_uint8(image).permute(1, 2, 0).squeeze(-1).numpy()
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name.replace(", ", ",\n"))  # a long name would run into its neighbors
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    plt.close(figure)  # else a notebook would show it twice
    return figure


def forward_process(
    schedule: NoiseSchedule, x_0: Tensor, times: Sequence[int], generator: torch.Generator
) -> Figure:
    """Draw one image x_0, [C, H, W] in [-1, 1], at several times with the same noise."""
    eps = torch.randn(x_0.shape, generator=generator, device=generator.device)
    x_t = schedule.add_noise(x_0.cpu()[None], torch.tensor(times, device="cpu"), eps[None])
    return table_of_images([("$x_t$", list(x_t))], [f"t = {time}" for time in times])


def curve(
    lines: Mapping[str, tuple[Sequence[float], ...]],
    x_label: str,
    y_label: str,
    smooth: int = 1,
    y_scale: str = "linear",
) -> Figure:
    """Plot lines name -> (x, y), or (x, y, margin) for a band of y - margin to y + margin.

    A moving average of `smooth` points is drawn over the raw points of a line that has ten times as
    many.  `y_scale` is matplotlib's name, such as "log".
    """
    figure, axis = plt.subplots(figsize=(7, 3))
    for name, line in lines.items():
        x, y, *margin = (torch.as_tensor(part, dtype=torch.float64, device="cpu") for part in line)
        if 1 < smooth <= len(y) // 10:  # a few points would lose their beginning
            (pale,) = axis.plot(x, y, linewidth=0.5, alpha=0.3)
            means = y.unfold(0, smooth, 1).mean(1)
            axis.plot(x[smooth - 1 :], means, color=pale.get_color(), label=name)
        else:
            (curve,) = axis.plot(x, y, marker="." if len(y) < 40 else None, label=name)
            for m in margin:
                axis.fill_between(x, y - m, y + m, color=curve.get_color(), alpha=0.15)
    axis.set(xlabel=x_label, ylabel=y_label, yscale=y_scale)
    axis.grid(alpha=0.3)
    if len(lines) > 5:  # a box of so many names would hide the lines
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    else:
        axis.legend()
    figure.tight_layout()
    plt.close(figure)
    return figure


def animate(
    steps: Sequence[SampleStep], frames: int = 24, columns: int = 8, scale: int = 2
) -> InlineImage:
    """Play at most `frames` states x_t of a sampler, `list(sampler(...))`, as `grid` shows them."""
    return play([grid(step.x_t, columns, scale) for step in _spread(steps, frames)])


def play(pictures: Sequence[Image.Image]) -> InlineImage:
    """Make an animated PNG of pictures of one size: eight a second, two seconds for the last.

    A viewer without animation shows the last picture.
    """
    if pictures[0].mode == "L":  # 16 grays: noise hardly compresses, and a notebook must stay small
        levels = [value // 17 * 17 for value in range(256)]
        pictures = [picture.point(levels) for picture in pictures]
    file = io.BytesIO()
    pictures[-1].save(
        file,
        format="PNG",
        save_all=True,
        default_image=True,  # the first picture is for viewers without animation
        append_images=pictures,
        duration=[120] * (len(pictures) - 1) + [2000],
        loop=0,
    )
    return InlineImage(data=file.getvalue(), format="png")


def table(records: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Markdown:
    """Make a table that notebooks render: one record as rows of name and value, several as rows.

    Floats have four significant digits.
    """
    if isinstance(records, Mapping):
        rows = [("", ""), *records.items()]
    else:
        rows = [[*records[0]], *([record[name] for name in records[0]] for record in records)]
    rows.insert(1, ["---"] * len(rows[0]))
    cells = ([f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in rows)
    return Markdown("\n".join(f"| {' | '.join(row)} |" for row in cells))


def _to_uint8(images: Any) -> Tensor:
    images = data.as_tensor(images)
    return (images if images.dtype == torch.uint8 else data.to_uint8(images)).cpu()


def _spread(steps: Sequence[SampleStep], count: int) -> list[SampleStep]:
    """Choose at most `count` states, evenly spaced, with the last one."""
    n, count = len(steps), min(count, len(steps))
    return [steps[math.ceil((i + 1) * n / count) - 1] for i in range(count)]
