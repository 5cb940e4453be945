import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import schedules, viz
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


def test_grid_shows_colours_and_floats():
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


def test_curve_smooths_by_averaging():
    x, y = list(range(1, 21)), [2.0 * i for i in range(20)]
    lines = {"long": (x, y), "short": ([1, 2, 3], [1.0, 2.0, 3.0])}
    raw, smooth, short = viz.curve(lines, "step", "loss", smooth=2).axes[0].lines
    assert raw.get_ydata().tolist() == y
    assert smooth.get_xdata().tolist() == x[1:]
    assert smooth.get_ydata().tolist() == [2 * i + 1 for i in range(19)]
    assert short.get_ydata().tolist() == [1, 2, 3]


def test_forward_process_shows_the_given_times():
    figure = viz.forward_process(
        schedules.linear(), torch.zeros(1, 6, 6), [0, 500, 1000], torch.Generator()
    )
    assert [axis.get_title() for axis in figure.axes] == ["t = 0", "t = 500", "t = 1000"]
    first = figure.axes[0].images[0].get_array()
    assert (first == 128).all()  # the image itself, grey


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


def test_table_renders_one_record_and_several():
    assert (
        viz.table({"a": 0.123456, "b": "x"}).data
        == "|  |  |\n| --- | --- |\n| a | 0.1235 |\n| b | x |"
    )
    several = viz.table([{"a": 1, "b": 2.0}, {"a": 3, "b": 4e-7}]).data
    assert several == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4e-07 |"
