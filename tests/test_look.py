"""What is wrong with a page is named, without a browser."""

import base64
import io

import pytest
from PIL import Image

from tests import look

FINE = {"wide": [], "small": [], "errors": [], "raw": [], "unloaded": [], "overflow": 0}


def png(count):
    pictures = [Image.new("L", (4, 4), 9 * i) for i in range(count)]
    file = io.BytesIO()
    pictures[0].save(file, format="PNG", save_all=True, append_images=pictures[1:])
    return file.getvalue()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_frames_are_counted(count):
    assert look.frames(png(count)) == count


def test_nothing_is_wrong_with_a_page_that_is_fine():
    assert look.page_problems(FINE, 1440) == []
    assert look.front_page_problems(4500, 150) == []


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("wide", [["table 'a'", 900, 830]], "table 'a' is 900 pixels wide where"),
        ("wide", [["pre 'a'", 900, 830]], "pre 'a' is 900 pixels wide where"),
        ("small", [["a digit", 30, 160]], "the picture 'a digit' is shrunk to 30 of 160"),
        ("overflow", 7, "the page is 7 pixels too wide"),
        ("errors", ["Undefined control sequence"], "is an error: Undefined control sequence"),
        ("raw", ["$x_0$"], "a formula is not set: $x_0$"),
        ("unloaded", ["a.png"], "a picture does not load: a.png"),
    ],
)
def test_each_problem_of_a_page_is_named(name, value, problem):
    (text,) = look.page_problems(FINE | {name: value}, 1440)
    assert problem in text


def test_in_a_narrow_window_code_scrolls_and_pictures_are_shrunk():
    facts = FINE | {"wide": [["pre 'a'", 900, 574]], "small": [["plot", 577, 1000]]}
    assert look.page_problems(facts, 1024) == []


def test_a_long_front_page_is_named():
    assert look.front_page_problems(4590, 151) == [
        "5.1 screens tall; at most 5",
        "151 lines; at most 150",
    ]


def test_outputs_of_a_notebook_are_judged():
    still, moving = ({"image/png": base64.b64encode(png(n)).decode()} for n in (1, 2))
    shown = [
        ("viz.animate(steps)", {"output_type": "execute_result", "data": moving}),
        ("viz.animate(steps)", {"output_type": "execute_result", "data": still}),
        ("x", {"output_type": "stream", "name": "stderr", "text": "100 %"}),
        ("x", {"output_type": "error", "ename": "ValueError"}),
        ("viz.grid(x)", {"output_type": "execute_result", "data": still}),
    ]
    cells = [{"source": source, "outputs": [output]} for source, output in shown]
    assert look.output_problems({"cells": [*cells, {"source": "viz.animate(x)"}]}) == [
        "the animation of cell 1 has a single frame",
        "cell 2 wrote to stderr",
        "cell 3 ended with an error",
    ]
