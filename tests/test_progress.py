"""Bars show where the work is, and nothing that happens to a bar reaches the work."""

import errno
import gc
import io
import os
import re
import sys
import warnings

import pytest
import torch

from diffusion_lib import viz
from diffusion_lib.system import progress
from diffusion_lib.system.progress import Bar
from diffusion_lib.training import TrainStep


class Handle:
    """IPython's handle of an output, which holds what was drawn last."""

    def __init__(self, texts):
        self.texts, self.n = texts, len(texts)

    def update(self, content, raw):
        self.texts[self.n] = content["text/html"]


@pytest.fixture
def outputs(monkeypatch):
    """Outputs of a notebook's cells, one text each."""
    texts = []

    def display(content, raw, display_id):
        handle = Handle(texts)
        texts.append(content["text/html"])
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(Bar, "outputs", (0, [], []))
    in_cell(monkeypatch, 1)
    return texts


class Shell:
    """A notebook's shell, which knows who runs the cell: a person can answer questions."""

    kernel = object()

    def __init__(self, number, person=True):
        self.execution_count, self.person = number, person

    def get_parent(self):
        return {"content": {"allow_stdin": self.person}}


def in_cell(monkeypatch, number, person=True):
    monkeypatch.setattr("IPython.get_ipython", lambda: Shell(number, person))


def lines(output):
    """The texts of an output's lines, without tags."""
    return [re.sub("<.*?>", " ", line).strip() for line in output.split("</div>")[:-1]]


@pytest.fixture
def clock(monkeypatch):
    """tqdm's clock, in seconds, which stands still."""
    seconds = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: seconds[0])
    return seconds


def last(text):
    """The line of a terminal as it stands in the end."""
    return text.strip("\n").split("\r")[-1].rstrip()


# ---- what it shows ---------------------------------------------------------------------------


def test_a_bar_goes_over_items(capsys):
    assert list(Bar(["a", "b"], "letters")) == ["a", "b"]
    assert last(capsys.readouterr().err).startswith("letters: 100%")


def test_what_was_done_before_is_not_part_of_the_rate(capsys, clock):
    with Bar(None, "study", 200, 100, " steps", smoothing=0) as bar:
        clock[0] += 10
        bar.update(50)
    assert last(capsys.readouterr().err).endswith("150/200 [00:10<00:10,  5.00 steps/s]")


def test_a_training_that_goes_on_shows_its_own_rate_from_the_first_step_on(capsys, clock):
    def trained():
        for n in range(248, 260):
            clock[0] += 2.0
            yield TrainStep(n, torch.tensor(0.5))

    steps = viz.progress(trained(), 3000, "training")
    next(steps)
    assert "| 248/3000 [00:02<1:31:44,  2.00s/it" in last(capsys.readouterr().err)
    list(steps)
    assert "| 259/3000 [00:24<1:31:22,  2.00s/it" in last(capsys.readouterr().err)


def test_a_note_is_shown_at_once(capsys):
    with Bar(description="study", total=3) as bar:
        bar.note("eps, seed 0")
        assert last(capsys.readouterr().err).endswith("eps, seed 0]")


# ---- a notebook ------------------------------------------------------------------------------


def test_a_bar_of_a_notebook_has_the_time_left_and_is_a_gray_line_in_the_end(
    outputs, clock, capsys
):
    for _ in Bar(range(1000), "<one>"):
        clock[0] += 1
        assert len(outputs) == 1
        if clock[0] == 1201:
            assert "width: 20.00%" in outputs[0]
            assert re.fullmatch("&lt;one&gt; +200 / 1000 +13:20 left", *lines(outputs[0]))
    assert lines(outputs[0]) == ["&lt;one&gt;: 1000 / 1000 in 16:40"]
    assert "progressbar" not in outputs[0]
    assert "#888" in outputs[0]
    assert capsys.readouterr() == ("", "")


def test_one_bar_after_another_takes_its_place(outputs):
    for name in "ab":
        for _ in Bar(range(5), name):
            pass
    assert len(outputs) == 1
    assert lines(outputs[0]) == ["b: 5 / 5 in 00:00"]


def test_a_bar_inside_of_another_has_a_line_below_it_as_long_as_it_is_open(outputs):
    with Bar(description="outer", total=2) as outer:
        for name in "ab":
            with Bar(description=name, total=3) as inner:
                inner.note("now")
                assert [line.split()[0] for line in lines(outputs[0])] == ["outer", name]
                assert lines(outputs[0])[1].endswith("now")
            outer.update()
    assert len(outputs) == 1
    assert lines(outputs[0]) == ["outer: 2 / 2 in 00:00"]


def test_a_bar_without_a_known_end_counts(outputs):
    with Bar(description="one") as bar:
        bar.update(7)
        bar.note("now")
        assert "width: 0.00%" in outputs[0]
    assert lines(outputs[0]) == ["one: 7 / ? in 00:00 now"]


def test_bars_of_different_cells_have_different_outputs(outputs, monkeypatch):
    bar = Bar(description="one", total=2)
    in_cell(monkeypatch, 2)
    with Bar(description="two", total=2):
        bar.update()
    bar.close()
    assert [lines(output) for output in outputs] == [
        ["one: 1 / 2 in 00:00"],
        ["two: 0 / 2 in 00:00"],
    ]


def test_a_notebook_that_a_program_runs_keeps_no_bars(outputs, monkeypatch, capsys):
    in_cell(monkeypatch, 1, person=False)
    assert list(Bar(range(3), "one")) == [0, 1, 2]
    assert outputs == []
    assert capsys.readouterr() == ("", "")


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    assert progress._notebook() is None
    in_cell(monkeypatch, 7)
    assert progress._notebook().execution_count == 7
    monkeypatch.delattr(Shell, "kernel")  # IPython in a terminal
    assert progress._notebook() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert progress._notebook() is None


# ---- work that ends early --------------------------------------------------------------------


def test_a_bar_of_work_that_an_error_ended_does_not_stand_above_the_next(capsys, monkeypatch):
    """The traceback that a notebook keeps holds the loop that was stopped."""
    stopped = viz.progress((TrainStep(n, torch.tensor(0.5)) for n in range(1, 5)), 4, "stopped")
    next(stopped)
    monkeypatch.setattr(sys, "last_value", KeyboardInterrupt(), raising=False)
    capsys.readouterr()
    list(Bar(range(3), "next"))
    shown = capsys.readouterr().err
    assert "\x1b[A" not in shown  # how tqdm goes back up to a bar above
    assert last(shown).startswith("next: 100%")
    assert next(stopped).step == 2


@pytest.mark.slow
def test_a_bar_that_is_thrown_away_is_closed(capsys):
    steps = viz.progress((TrainStep(n, torch.tensor(0.5)) for n in range(1, 5)), 4, "thrown away")
    next(steps)
    bar = Bar(description="beneath", total=3)
    del steps, bar
    gc.collect()
    capsys.readouterr()
    list(Bar(range(3), "next"))
    assert "\x1b[A" not in capsys.readouterr().err


# ---- a bar that cannot be drawn --------------------------------------------------------------


class Broken(io.StringIO):
    def write(self, text):
        raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))


class Wrong(io.StringIO):
    def write(self, text):
        raise TypeError("not of this kind")


class Breaking(io.StringIO):
    broken = False

    def write(self, text):
        if self.broken:
            raise TypeError("not of this kind")
        return super().write(text)


def closed():
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize("make", [Broken, Wrong, closed, lambda: None])
def test_a_place_that_takes_no_bars_costs_the_bars_alone(make, monkeypatch):
    steps = [TrainStep(n, torch.tensor(0.5)) for n in range(1, 4)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        monkeypatch.setattr(sys, "stderr", make())
        for _ in range(2):
            assert list(viz.progress(iter(steps), 3)) == steps
            with Bar(description="b", total=2) as bar:
                bar.note("words")
                bar.update()
        monkeypatch.undo()
    assert len(told) <= 1
    assert all("nothing else is affected" in str(warning.message) for warning in told)


def test_a_bar_that_breaks_on_the_way_warns_once(monkeypatch, clock):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        monkeypatch.setattr(sys, "stderr", Breaking())
        done = []
        for n in Bar(range(5), "numbers"):
            done.append(n)
            clock[0] += 1
            sys.stderr.broken = True
        monkeypatch.undo()
    assert done == [0, 1, 2, 3, 4]
    assert [str(w.message) for w in told] == [
        "the progress bar failed and is left out from here on; nothing else is affected "
        "(TypeError: not of this kind)"
    ]


def test_a_warning_that_is_an_error_is_none_here(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(sys, "stderr", Wrong())
        assert list(Bar(range(3))) == [0, 1, 2]
        monkeypatch.undo()


def test_a_notebook_that_shows_nothing_costs_the_bars_alone(outputs, monkeypatch):
    def display(*arguments, **keywords):
        raise RuntimeError("the frontend is gone")

    monkeypatch.setattr("IPython.display.display", display)
    with pytest.warns(UserWarning, match="the frontend is gone"):
        assert list(Bar(range(3))) == [0, 1, 2]


def test_settings_of_tqdm_that_make_no_sense_cost_the_bars_alone(monkeypatch):
    def refuse(*arguments, **keywords):
        raise ValueError("no such color")

    monkeypatch.setattr("tqdm.std.tqdm.__init__", refuse)
    with pytest.warns(UserWarning, match="no such color"):
        assert list(Bar(range(3))) == [0, 1, 2]
