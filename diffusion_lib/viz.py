"""Pictures, plots, tables and progress bars of results; `style` has how plots look."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from IPython.display import Image as InlineImage
from IPython.display import Markdown
from PIL import Image
from torch import Tensor

from diffusion_lib import data, style
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
    size = (scale * picture.width, scale * picture.height)
    picture = picture.resize(size, Image.Resampling.NEAREST)
    picture.__dict__["_repr_jpeg_"] = None  # else a notebook would store it twice
    return picture


def strip(steps: Sequence[SampleStep], columns: int = 10) -> style.Plot:
    """Draw the first image of a sampler's states, `list(sampler(...))`, at evenly spaced times.

    x_t stands above, the prediction x_0_hat that led there below; the last state is included.
    """
    steps = _spread(steps, columns)
    rows = [("$x_t$", [s.x_t[0] for s in steps]), ("$\\hat{x}_0$", [s.x_0[0] for s in steps])]
    return table_of_images(rows, [f"t = {step.t}" for step in steps])


@style.look
def table_of_images(
    rows: Sequence[tuple[str, Sequence[Tensor]]], columns: Sequence[str]
) -> style.Plot:
    """Draw rows (name, images), images [C, H, W] as in `grid`, below the names of the columns."""
    width = len(columns) + max(1, *(len(name) / 14 for name, _ in rows))  # in inches
    figure = style.figure(len(rows), len(columns), (width, 1.06 * len(rows) + 0.3))
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    axes = np.array(figure.axes).reshape(len(rows), len(columns))
    for row, (name, images) in zip(axes, rows, strict=True):
        for axis, image in zip(row, images, strict=True):
            pixels = _to_uint8(image).permute(1, 2, 0).squeeze(-1).numpy()
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(style.words(name), rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=8, weight="normal", loc="center")
    return figure


def forward_process(
    schedule: NoiseSchedule, x_0: Tensor, times: Sequence[int], generator: torch.Generator
) -> style.Plot:
    """Draw one image x_0, [C, H, W] in [-1, 1], at several times with the same noise."""
    eps = torch.randn(x_0.shape, generator=generator, device=generator.device)
    x_t = schedule.add_noise(x_0.cpu()[None], torch.tensor(times, device="cpu"), eps[None])
    return table_of_images([("$x_t$", list(x_t))], [f"t = {time}" for time in times])


@style.look
def curve(
    lines: Mapping[str, Any], x_label: str, y_label: str, smooth: int = 1, y_scale: str = "linear"
) -> style.Plot:
    """Plot lines name -> (x, y), or (x, y, margin) with bars; or panels title -> lines in a row.

    A moving average of `smooth` points is drawn over the raw points of a line that has ten times as
    many.  `y_scale` is matplotlib's name, such as "log".
    """
    panels = lines if isinstance(next(iter(lines.values())), Mapping) else {"": lines}
    figure = style.figure(1, len(panels), (min(10, 5 + 2 * len(panels)), 3))
    for axis, (title, own) in zip(figure.axes, panels.items(), strict=True):
        axis.set(xlabel=style.words(x_label), yscale=y_scale, title=style.words(title))
        style.draw(axis, own, smooth)
    figure.axes[0].set_ylabel(style.words(y_label))
    for axis, own in zip(figure.axes, panels.values(), strict=True):  # their y axis is known now
        if axis is figure.axes[-1] or own.keys() != [*panels.values()][-1].keys():
            style.name_ends(axis)
    return figure


@style.look
def forest(rows: Sequence[tuple[str, Any, str]], x_label: str, title: str = "") -> style.Plot:
    """Draw differences with intervals, (name, `Interval`, verdict): below 0 green, above orange."""
    figure = style.figure(size=(8, 0.7 + 0.26 * len(rows)))
    (axis,) = figure.axes
    for place, (_, interval, verdict) in enumerate(rows):
        side = style.GREEN if interval.value < 0 else style.VERMILLION
        color = style.GRAY if 0 in interval else side
        axis.hlines(place, interval.low, interval.high, color=color, linewidth=2.5)  # butt caps
        axis.plot(interval.value, place, "o", color=color)
        where = axis.get_yaxis_transform()  # beside the panel, at the height of the row
        axis.text(1.02, place, verdict, color=color, va="center", weight="bold", transform=where)
    axis.axvline(0, color=style.GRAY, linewidth=1)
    axis.set(xlabel=style.words(x_label), title=title, ylim=(len(rows) - 0.5, -0.5))
    style.plain_ticks(axis)
    axis.set_yticks(range(len(rows)), [style.words(name) for name, *_ in rows])
    axis.tick_params("y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
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


def markdown(records: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """Write a table: one record as rows of name and value, several as rows.

    Numbers have four significant digits, from 1,000 on no fraction; their columns stand right.
    Five intervals in a row may break where they do not fit beside each other.
    """
    if isinstance(records, Mapping):
        rows = [("", ""), *records.items()]
    else:
        rows = [[*records[0]], *([record[name] for name in records[0]] for record in records)]
    cells = [[_cell(x) if type(x) in (int, float) else f"{x}" for x in row] for row in rows]
    numbers = re.compile(r"[-+*±\d.,e%\[\]\s]*")
    columns = zip(*cells[1:], strict=True)
    cells.insert(1, ["---:" if all(map(numbers.fullmatch, c)) else "---" for c in columns])
    text = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return text.replace("\xa0", " ") if re.search(r"(\xa0\[.*){5}", text) else text


def table(records: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Markdown:
    """Make the table of `markdown` for a notebook: formulas as texts have them, hashes short."""
    return Markdown(style.words(re.sub(r"\b(\w{8})[0-9a-f]{56}\b", r"\1", markdown(records))))


def _cell(number: float) -> str:
    return f"{number:{',.0f' if number % 1 == 0 or abs(number) >= 1000 else '.4g'}}"


def _to_uint8(images: Any) -> Tensor:
    images = data.as_tensor(images)
    return (images if images.dtype == torch.uint8 else data.to_uint8(images)).cpu()


def _spread(steps: Sequence[SampleStep], count: int) -> list[SampleStep]:
    """Choose at most `count` states, evenly spaced, with the last one."""
    n, count = len(steps), min(count, len(steps))
    return [steps[math.ceil((i + 1) * n / count) - 1] for i in range(count)]
