"""Plots of the study of bottlenecks, from its records."""

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean

from matplotlib.axes import Axes

from diffusion_lib import style
from other_tests.mnist.bottleneck import answers, toy
from other_tests.mnist.bottleneck.answers import PREDICTIONS, WEIGHTS, Record

MARKERS = dict(zip(WEIGHTS, "os^D", strict=True))
WINDOW_MARKERS = {"noisier": "<", "inside": "o", "cleaner": ">", "min_snr": "D"}
FAMILIES = {"MLP": "o", "U-Net": "s", "transformer": "^", "encoder-decoder": "D"}
# Networks whose points are named, and where: to the right of it and above it.
NAMED = {
    "MLP 128": (-4, 8),
    "MLP 1024": (6, -9),
    "MLP 1568": (-6, 4),
    "U-Net 7/32": (6, -9),
    "U-Net 14/256": (-6, 4),
    "U-Net 2/16": (6, -9),
    "U-Net 2/32": (6, -9),
    "U-Net 14/64 + skip": (6, -9),
    "MLP 256 + skip": (6, -3),
    "transformer 14/256": (6, 2),
    "encoder-decoder": (6, -9),
}


@style.look
def floor(by_study: Mapping[str, Record]) -> style.Plot:
    """Draw the error of the outputs against the share of the noise that cannot be output.

    A point for each network and seed.
    """
    figure = style.figure(size=(7, 4))
    (axis,) = figure.axes
    axis.plot([0, 1], [0, 1], color=style.GRAY, linewidth=1)
    axis.text(0.93, 0.95, "floor", color=style.GRAY, ha="right")
    for network, share in answers.floors(by_study).items():
        errors = answers.output_measure(by_study, network, "error at 900")
        marker, color = FAMILIES[network.split()[0]], _color(share > 0)
        axis.plot([share] * len(errors), errors, marker, color=color, markersize=4)
    for family, marker in FAMILIES.items():
        axis.plot([], [], marker, color=style.GRAY, markersize=4, label=family)
    axis.legend(loc="upper left", frameon=False)
    axis.set(
        xlabel="1 - H/D: the share of the noise that the last layer cannot output",
        ylabel=r"error of $\hat{\epsilon}$ at $t$ = 900",
        xlim=(-0.03, 1),
        ylim=(-0.03, 1),
    )
    return figure


def _color(is_narrow: bool) -> str:
    return style.BLUE if is_narrow else style.SKY


@style.look
def errors(by_study: Mapping[str, Record], time: int = 100) -> style.Plot:
    """Draw the distance of samples of eps against the error of the outputs, a point a network."""
    figure = style.figure(size=(7, 4))
    (axis,) = figure.axes
    floors = answers.floors(by_study)
    for network, point in answers.errors_and_distances(by_study, time).items():
        around = network.endswith("+ skip")
        color = style.GREEN if around else _color(floors.get(network, 1) > 0)
        axis.plot(*point, FAMILIES[network.split()[0]], color=color, markersize=4)
        if place := NAMED.get(network):
            ha = "left" if place[0] > 0 else "right"
            axis.annotate(network, point, place, ha=ha, textcoords="offset points")
    colors = {"H < D": style.BLUE, "H ≥ D": style.SKY, "with a connection": style.GREEN}
    for name, color in colors.items():
        axis.plot([], [], "o", color=color, markersize=4, label=name)
    axis.legend(loc="lower right", frameon=False)
    axis.set(
        xlabel=rf"error of $\hat{{\epsilon}}$ at $t$ = {time}",
        ylabel="Fréchet distance",
        xlim=(0, 1),
        ylim=(0, 75),
    )
    return figure


@style.look
def cells(
    by_study: Mapping[str, Record], networks: Sequence[str] = (*answers.NARROW, *answers.WIDE)
) -> style.Plot:
    """Draw the distance of samples to real digits for each prediction and weight.

    A panel for each network.
    """
    records = [by_study[study] for study in ("cells", "control")]
    sizes = dict.fromkeys(answers.NARROW, ": H < D") | dict.fromkeys(answers.WIDE, ": H > D")
    figure = style.figure(1, len(networks), (2.5 * len(networks), 3.2))
    for axis, network in zip(figure.axes, networks, strict=True):
        _draw_distances(axis, records, f"{network}: ", MARKERS)
        axis.set(title=network + sizes.get(network, ""))
    _name_markers(figure, MARKERS)
    return figure


@style.look
def window(by_study: Mapping[str, Record]) -> style.Plot:
    """Draw the distance of samples for each prediction and each part of the noise levels."""
    figure = style.figure(size=(5, 3.2))
    _draw_distances(figure.axes[0], [by_study["window"]], "", WINDOW_MARKERS)
    _name_markers(figure, WINDOW_MARKERS)
    return figure


def _draw_distances(
    axis: Axes, records: Sequence[Record], network: str, markers: Mapping[str, str]
) -> None:
    """Draw the distances of a network's arms, those of a prediction side by side."""
    for (place, prediction), (k, weight) in product(enumerate(PREDICTIONS), enumerate(markers)):
        arm = f"{network}{prediction}, {weight}"
        for record in (record for record in records if arm in record["arms"]):
            distance = answers.interval(answers.measured(record, arm))
            x, color = place + 0.17 * (k - 1.5), style.PREDICTIONS[prediction]
            axis.plot([x] * 2, [distance.low, distance.high], color=color, alpha=0.4, linewidth=3)
            axis.plot(x, distance.value, markers[weight], color=color, markersize=5)
    axis.set_xticks(range(len(PREDICTIONS)), [style.words(p) for p in PREDICTIONS])


def _name_markers(figure: style.Plot, markers: Mapping[str, str]) -> None:
    """Write below a figure which weight each marker is."""
    figure.axes[0].set_ylabel("Fréchet distance")
    for weight, marker in markers.items():
        figure.axes[0].plot([], [], marker, color=style.GRAY, markersize=5, label=weight)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)


@style.look
def mixes(by_study: Mapping[str, Record]) -> style.Plot:
    """Draw the best mix of the toy against D, a line for each d, and the law as dashes.

    A panel for each H; each point is the mean over the seeds.
    """
    figure = style.figure(1, len(toy.WIDTHS), (8, 3.4))
    for axis, width in zip(figure.axes, toy.WIDTHS, strict=True):
        axis.set(xscale="log", xlabel="D", title=f"H = {width}", ylim=(-0.05, 1.05))
        lines: dict[str, tuple[list[int], list[float]]] = {}
        for (d, D), best in answers.best_mixes(by_study["toy"], width).items():
            x, y = lines.setdefault(f"d = {d}", ([], []))
            x.append(D)
            y.append(fmean(best.values()))
        style.draw(axis, lines)
        for name, line in style.of_lines(lines).items():
            x, d = lines[name][0], int(name.split()[-1])
            axis.plot(x, [D / (D + d) for D in x], "--", color=line["color"], label="_")
        style.name_ends(axis)
    figure.axes[0].set_ylabel("k with the smallest error")
    figure.suptitle("The best mix, and D / (D + d) (dashes)")
    return figure
