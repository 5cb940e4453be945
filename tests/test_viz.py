import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from diffusion_lib import schedules, style, viz
from diffusion_lib.metrics import Interval
from diffusion_lib.samplers import SampleStep
from diffusion_lib.training import TrainStep


def states(n, shape=(4, 1, 6, 6)):
    generator = torch.Generator().manual_seed(0)
    return [
        SampleStep(n - 1 - i, torch.randn(shape, generator=generator), torch.zeros(shape))
        for i in range(n)
    ]


def test_grid_puts_every_pixel_in_its_place():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    images[1, 0, 0, 1] = 200
    picture = viz.grid(images, columns=2, scale=1)
    assert picture.mode == "L"
    assert picture.size == (2 * 3 + 1, 2 * 3 + 1)  # one pixel between the images and around them
    assert picture.getpixel((1 + 3 + 1, 1)) == 200
    assert picture.getpixel((1 + 3, 1)) == 0
    assert picture.getpixel((0, 0)) == 64  # the frame
    assert viz.grid(images, columns=2, scale=3).size == (21, 21)


def test_grid_shows_colors_and_floats():
    images = torch.full((1, 3, 2, 2), -1.0)
    images[0, 1] = 1.0
    picture = viz.grid(images, scale=1)
    assert picture.mode == "RGB"
    assert picture.getpixel((1, 1)) == (0, 255, 0)


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (2, 2, 4, 4), (4, 4)])
def test_grid_refuses_what_is_not_a_set_of_images(shape):
    with pytest.raises(ValueError, match=r"\[N, 1 or 3, H, W\]"):
        viz.grid(torch.zeros(shape))


@pytest.mark.slow
def test_strip_shows_evenly_spaced_states_and_the_last():
    figure = viz.strip(states(1000), columns=5)
    titles = [axis.get_title() for axis in figure.axes[:5]]
    assert titles == ["t = 800", "t = 600", "t = 400", "t = 200", "t = 0"]
    assert len(figure.axes) == 10
    assert len(viz.strip(states(3), columns=5).axes) == 6


def test_animate_plays_and_falls_back_to_the_last_state():
    steps = states(50)
    shown = viz.animate(steps, frames=10, columns=2)
    picture = Image.open(io.BytesIO(shown.data))
    assert picture.n_frames == 11  # ten states and the picture for viewers that cannot play
    last = viz.grid(steps[-1].x_t, columns=2).point([v // 17 * 17 for v in range(256)])
    assert (np.asarray(picture.convert("L")) == np.asarray(last)).all()


def test_a_line_without_a_number_is_drawn_without_its_name():
    nan = float("nan")
    (axis,) = viz.curve({"none": ([1, 2], [nan, nan]), "one": ([1, 2], [1, 2])}, "x", "y").axes
    assert [text.get_text() for text in axis.texts] == ["one"]


def test_curve_smooths_by_averaging_around_each_point():
    x, y = list(range(1, 31)), [2.0 * i for i in range(30)]
    lines = {"long": (x, y), "short": ([1, 2, 3], [1.0, 2.0, 3.0])}
    raw, smooth, short = viz.curve(lines, "step", "loss", smooth=3).axes[0].lines
    assert raw.get_ydata().tolist() == y
    assert smooth.get_xdata().tolist() == x  # from the first step on
    assert smooth.get_ydata().tolist() == [1.0, *y[1:-1], 57.0]
    assert short.get_ydata().tolist() == [1, 2, 3]


def test_lines_have_the_color_of_their_prediction_and_the_style_of_their_schedule():
    styles = style.of_lines(["eps, linear", "x_0, cosine", "x_0, snr, cosine", "v", "real"])
    assert [s["color"] for s in styles.values()][:4] == [
        style.BLUE,
        style.VERMILLION,
        style.VERMILLION,
        style.GREEN,
    ]
    assert styles["real"]["color"] not in (style.BLUE, style.VERMILLION, style.GREEN)
    assert [s["linestyle"] for s in styles.values()] == ["-", "--", "--", "-", "-"]
    assert styles["x_0, cosine"]["marker"] != styles["x_0, snr, cosine"]["marker"]


def test_long_lines_of_one_color_differ_in_their_markers():
    long = range(40), range(40)
    lines = dict.fromkeys(("x_0", "x_0, SNR-weighted", "v"), long)
    axis = viz.curve(lines, "x", "y").axes[0]
    one, other, free = axis.lines
    names = sorted(text.get_text() for text in axis.texts)
    assert names == ["$v$", "$x_0$", "\N{BLACK SQUARE} $x_0$, SNR-weighted"]
    assert one.get_color() == other.get_color() != free.get_color()
    assert [line.get_marker() for line in (one, other, free)] == ["", "s", ""]
    assert other.get_markevery() == 2


def test_names_at_line_ends_do_not_overlap():
    lines = {f"line {k}": ([1, 2], [0.0, 0.001 * k]) for k in range(5)}
    (axis,) = viz.curve(lines, "x", "y").axes
    heights = sorted(text.xyann[1] for text in axis.texts)
    assert len(heights) == 5
    assert min(b - a for a, b in pairwise(heights)) > 0.05


def test_names_stand_at_the_right_ends_of_lines():
    (axis,) = viz.curve({"falling": ([3, 2, 1], [0.1, 0.2, 0.3])}, "log2 SNR", "y").axes
    assert [text.xy[0] for text in axis.texts] == [3]


def test_ticks_are_plain_numbers():
    (axis,) = viz.curve({"loss": ([1, 1000], [0.03, 0.9])}, "x", "y", y_scale="log").axes
    axis.figure.draw_without_rendering()
    shown = [text.get_text() for text in axis.get_yticklabels()]
    assert {"0.05", "0.1", "0.2", "0.3", "0.5"} <= {*shown}
    assert "1,000" in [text.get_text() for text in axis.get_xticklabels()]


def test_panels_share_their_names():
    lines = {"eps": ([1, 2], [1.0, 2.0], [0.1, 0.1])}
    left, right = viz.curve({"linear": lines, "cosine": lines}, "x", "y").axes
    assert (len(left.texts), len(right.texts)) == (0, 1)


def test_forest_has_a_row_for_each_difference():
    rows = [("x_0", Interval(-2, -3, -1), "better"), ("v", Interval(0, -1, 1), "undecided")]
    figure = viz.forest(rows, "Frechet distance")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["$x_0$", "$v$"]
    assert [text.get_color() for text in axis.texts] == [style.GREEN, style.GRAY]
    assert axis.get_xlabel() == "Fréchet distance"
    picture = Image.open(io.BytesIO(figure.png())).convert("RGBA")
    assert picture.getpixel((0, 0))[3] == 0  # nothing behind it, on white and on dark pages


def test_grid_is_stored_once():
    shown, _ = DisplayFormatter().format(viz.grid(torch.zeros(1, 1, 2, 2)))
    assert {*shown} == {"text/plain", "image/png"}


def test_forward_process_shows_the_given_times():
    figure = viz.forward_process(
        schedules.linear(), torch.zeros(1, 6, 6), [0, 500, 1000], torch.Generator()
    )
    assert [axis.get_title() for axis in figure.axes] == ["t = 0", "t = 500", "t = 1000"]
    first = figure.axes[0].images[0].get_array()
    assert (first == 128).all()  # the image itself, gray


def test_progress_passes_everything_on_and_shows_where_it_is(capsys):
    steps = states(5)
    assert list(viz.progress(iter(steps), 5, "sampling")) == steps
    shown = capsys.readouterr().err
    assert "sampling: 100%" in shown
    assert "5/5" in shown
    assert "t = 0" in shown


def test_progress_ends_with_the_last_loss(capsys):
    list(viz.progress((TrainStep(n, torch.tensor(float(n))) for n in range(8, 404)), 403))
    assert "loss 403.0000" in capsys.readouterr().err


def test_progress_of_a_resumed_training_starts_part_of_the_way(capsys):
    steps = [TrainStep(n, torch.tensor(0.5)) for n in range(8, 11)]
    assert list(viz.progress(iter(steps), 10)) == steps
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "loss 0.5000" in shown


def test_intervals_break_where_five_stand_in_a_row():
    row = {str(k): Interval(0.5, 0.4, 0.6) for k in range(5)}
    assert "0.50 [0.40, 0.60]" in viz.markdown([row])
    del row["4"]
    assert "0.50\xa0[0.40,\xa00.60]" in viz.markdown([row])


def test_table_renders_one_record_and_several():
    assert (
        viz.table({"a": 0.123456, "b": "x"}).data
        == "|  |  |\n| --- | --- |\n| a | 0.1235 |\n| b | x |"
    )
    several = viz.table([{"a": 1, "b": 2.0}, {"a": 3, "b": 4e-7}]).data
    shown = viz.markdown([{"a": 20290.6, "b": 640_000, "c": True}])
    assert "| 20,291 | 640,000 | True |" in shown
    assert several == "| a | b |\n| ---: | ---: |\n| 1 | 2 |\n| 3 | 4e-07 |"
    row = {"prediction": "x_0", "Frechet distance": Interval(0.4237, 0.2194, 0.7272)}
    assert viz.table([row]).data.splitlines()[1:] == [
        "| --- | ---: |",
        "| $x_0$ | 0.42\xa0[0.22,\xa00.73] |",
    ]
    assert "Fréchet distance" in viz.table([row]).data
    assert "| 01234567 |" in viz.table({"sha256": "0123456789abcdef" * 4}).data
    assert "| x_0 |" in viz.markdown([row])  # a terminal has no formulas
