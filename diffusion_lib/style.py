"""How figures look: a color for a prediction, a line style for a schedule, names at line ends."""

import io
import math
import re
from collections.abc import Iterable, Mapping
from itertools import accumulate, cycle
from typing import Any

import torch
from IPython import display
from matplotlib import rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from PIL import Image

GRAY = "#7a7a7a"  # as much contrast with white as with a dark page
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # [Okabe & Ito 2008]
VERMILLION, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
PREDICTIONS = {"eps": BLUE, "DDPM": BLUE, "x_0": VERMILLION, "v": GREEN, "velocity": PURPLE}
SCHEDULES = {"linear": ("-", SKY), "cosine": ("--", ORANGE), "sigmoid": ("-.", PURPLE)}
SCHEDULES |= {"flow": (":", GREEN)}

_MARKERS = {"s": "\u25a0 ", "^": "\u25b2 ", "D": "\u25c6 ", "v": "\u25bc "}  # of twins in color
_WORDS = {name: f"${name}$" for name in ("x_0", "x_t", "x_T", "v", "L_0", "L_t", "L_T")}
_WORDS |= {"x_0_hat": r"$\hat x_0$", "eps_hat": r"$\hat\epsilon$", "v_hat": r"$\hat v$"}
_WORDS |= {"alpha_bar_T": r"$\bar\alpha_T$", "eps": r"$\epsilon$", "Frechet": "Fréchet"}
_WORDS |= {"snr_1": r"$\mathrm{SNR}_1$", "share_snr_below_0.01": "share with SNR < 0.01"}
_WORDS |= {"amplification_T": "amplification at $T$", "L_T_bits_per_dim": "$L_T$, bits per dim"}
_WORD = re.compile(rf"(?<![^\s(])({'|'.join(_WORDS)})(?![^\s),:;])|`[^`]*`|\$[^$]*\$")

_RC: Any = {f"{part}.color": GRAY for part in ("text", "grid", "xtick", "ytick")}
_RC |= {f"axes.{part}color": GRAY for part in ("edge", "label", "title")}
_RC |= {f"{part}.facecolor": "none" for part in ("figure", "axes", "savefig")}
_RC |= {"axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left"}
_RC |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
look = rc_context(_RC | {"font.size": 9, "figure.dpi": 200, "savefig.dpi": "figure"})
"""The style, transparent and gray, for a function that draws: `@style.look`."""


class Plot(Figure):
    """A figure that notebooks show at half of its pixels, so that it is sharp on every screen."""

    @look  # ticks are made as they are drawn
    def png(self) -> bytes:
        """Draw it; lines in 255 colors, which no eye tells from all, are a fifth of the bytes."""
        self.savefig(file := io.BytesIO(), format="png")
        picture, pixels = Image.open(file), [i.get_array() for a in self.axes for i in a.images]
        if not pixels:
            picture = picture.quantize(255, Image.Quantize.FASTOCTREE)
        elif all(p is not None and p.ndim == 2 for p in pixels):  # gray, as are all texts
            picture = picture.convert("LA")
        picture.save(file := io.BytesIO(), "PNG", optimize=True)
        return file.getvalue()

    def _ipython_display_(self) -> None:
        display.display(display.Image(self.png(), retina=True))


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3)) -> Plot:
    """Make a figure whose panels share their y axis, of a size in inches."""
    made = Plot(figsize=size, layout="constrained")
    made.subplots(rows, columns, sharey=True, squeeze=False)
    return made


def words(text: str) -> str:
    """Write the names of records and code as texts do, outside of code and formulas."""
    return _WORD.sub(lambda match: _WORDS.get(match[0], match[0]), text)


def of_lines(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Choose color, line style and marker by the words in names; others take turns at colors."""
    styles: dict[str, dict[str, Any]] = {}
    parts = {name: re.findall(r"\w+", name) for name in names}
    fixed = {PREDICTIONS.get(part) for own in parts.values() for part in own}
    free = cycle(c for c in (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GRAY) if c not in fixed)
    colors: dict[str, str] = {}  # by what is left of a name without its schedule
    for name, own in parts.items():
        line, color = next((SCHEDULES[part] for part in own if part in SCHEDULES), ("-", GRAY))
        if rest := " ".join(part for part in own if part not in SCHEDULES):
            color = next((PREDICTIONS[part] for part in own if part in PREDICTIONS), None)
            color = colors[rest] = color or colors.get(rest) or next(free)
        same = sum((color, line) == (s["color"], s["linestyle"]) for s in styles.values())
        styles[name] = {"color": color, "linestyle": line, "marker": "os^Dv*Xp"[same % 8]}
    return styles


def draw(axis: Axes, lines: Mapping[str, tuple[Any, ...]], smooth: int = 1) -> None:
    """Draw lines of `viz.curve` on an axis whose scales are set, and plain ticks."""
    axis.margins(x=0.06)
    for k, (name, style) in enumerate(of_lines(lines).items()):
        x, y, *margin = (torch.as_tensor(p, dtype=torch.float64, device="cpu") for p in lines[name])
        if 1 < smooth <= len(y) // 10:  # a few points would lose their beginning
            axis.plot(x, y, linewidth=0.5, alpha=0.3, color=style["color"])
            sums, i = torch.cat([y.new_zeros(1), y.cumsum(0)]), torch.arange(len(y))
            first, end = (i - smooth // 2).clamp(min=0), (i + smooth // 2 + 1).clamp(max=len(y))
            y = (sums[end] - sums[first]) / (end - first)
        if len(y) >= 40:  # a few markers, and only on what color and line do not tell apart
            style |= {"marker": style["marker"].replace("o", ""), "markevery": len(y) // 20}
        style |= {"markersize": 4, "label": name}
        dodge = min(5, 24 / len(lines), 160 / len(lines) / len(x)) if margin else 0
        offset = (k - (len(lines) - 1) / 2) * dodge / 72
        where = axis.transData + ScaledTranslation(offset, 0, axis.figure.dpi_scale_trans)
        axis.plot(x, y, **style)[0].set_transform(where)  # after the limits, which know no offsets
        for m in margin:
            bars = axis.vlines(x, y - m, y + m, style["color"], linewidth=0.8 * dodge, alpha=0.35)
            bars.set_transform(where)
    plain_ticks(axis)


def name_ends(axis: Axes) -> None:
    """Write the names of lines beside a panel, pushed apart, each with a thin line to its end."""
    to_panel, ends = axis.transData - axis.transAxes, []
    for line in (line for line in axis.lines if not str(line.get_label()).startswith("_")):
        points: Any = line.get_xydata()
        seen = [point for point in points if axis.viewLim.contains(*point)]  # none of NaN
        seen.sort(key=lambda point: point[0], reverse=bool(axis.xaxis_inverted()))
        ends += [(to_panel.transform(end)[1], line, end) for end in seen[-1:]]
    ends.sort(key=lambda end: end[0])
    gap = 12 / 72 * axis.figure.dpi / axis.get_window_extent().height
    up = accumulate((end[0] for end in ends), lambda below, y: max(y, below + gap))
    down = accumulate((end[0] for end in ends[::-1]), lambda above, y: min(y, above - gap))
    for low, high, (_, line, end) in zip([*down][::-1], up, ends, strict=True):
        thin = {"arrowstyle": "-", "color": line.get_color(), "alpha": 0.5, "relpos": (0, 0.5)}
        text = {"color": line.get_color(), "va": "center", "weight": "bold", "arrowprops": thin}
        text |= {"xycoords": line.get_transform(), "textcoords": "axes fraction"}
        place = (1.04, (low + high) / 2)
        name = _MARKERS.get(str(line.get_marker()), "") + words(str(line.get_label()))
        axis.annotate(name, end, place, annotation_clip=False, **text)


def plain_ticks(axis: Axes) -> None:
    """Write plain numbers at ticks, below two decades of a logarithmic axis at 1, 2, 3 and 5."""
    for one, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        decades = abs(math.log10(high / low)) if one.get_scale() == "log" else 0
        if 0 < decades < 2:
            few, log = ticker.MaxNLocator(5), ticker.LogLocator(subs=(1, 2, 3, 5))
            one.set_major_locator(few if decades < 0.5 else log)
        if decades < 4:  # else powers of ten
            one.set_major_formatter(lambda x, _: f"{x:,.6g}".replace("-", "\N{MINUS SIGN}"))
    axis.minorticks_off()
