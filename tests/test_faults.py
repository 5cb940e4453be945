"""Real faults, each a few times; `tests.faults` does them more often, for the README."""

import os
import signal
import sys

import pytest
from PIL import Image

from diffusion_lib import data, losses
from diffusion_lib.runs import folder as run_folder
from tests import faults
from tests.helpers import assert_same_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and locks"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    faults.train(folder)
    return folder


def test_a_killed_run_goes_on_to_the_same_end(undisturbed, tmp_path):
    assert len(faults.killed(tmp_path, undisturbed, 2).lost) == 2


def test_a_run_killed_while_it_saves_goes_on_to_the_same_end(undisturbed, tmp_path):
    assert len(faults.killed_while_saving(tmp_path, undisturbed, 2).lost) == 2


def test_a_full_disk_stops_a_run_and_it_goes_on(undisturbed, tmp_path):
    try:
        found = faults.full_disk(tmp_path, undisturbed, 2)
    except PermissionError as error:
        pytest.skip(str(error))
    assert len(found.lost) == 2


def test_a_limit_on_files_stops_a_run_and_it_goes_on(undisturbed, tmp_path):
    assert len(faults.limited_files(tmp_path, undisturbed, 1).lost) == 1


def test_bad_checkpoints_are_named_kept_and_never_executed(undisturbed, tmp_path):
    assert [len(found.lost) for found in faults.damaged(tmp_path, undisturbed, 6)] == [6] * 5


def test_of_several_processes_in_a_new_folder_one_trains(undisturbed, tmp_path):
    assert [len(found.lost) for found in faults.together(tmp_path, undisturbed, 1)] == [1, 1]


def test_a_clock_that_is_set_back_changes_nothing(undisturbed, tmp_path):
    assert len(faults.clock_set_back(tmp_path, undisturbed, 1).lost) == 1


def test_a_picture_is_read_again_though_its_time_went_back(tmp_path):
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "a.bmp"  # as long whatever it shows
    Image.new("L", (8, 8), 10).save(path)
    assert data.folder(tmp_path / "set", 8).images.unique().tolist() == [10]
    Image.new("L", (8, 8), 20).save(path)
    os.utime(path, (1, 1))
    assert data.folder(tmp_path / "set", 8).images.unique().tolist() == [20]


def test_sigterm_saves_and_the_command_goes_on(undisturbed, tmp_path):
    assert len(faults.told_to_end(tmp_path, undisturbed, 1).lost) == 1


def test_a_notebooks_stop_button_saves_and_the_cell_goes_on(undisturbed, tmp_path):
    assert len(faults.notebook(tmp_path, undisturbed, 1).lost) == 1


def test_a_fault_that_loses_more_than_was_unsaved_fails():
    with pytest.raises(AssertionError, match="lost 3 steps, 2 were not saved"):
        faults.Fault("any", "lost").add(3, 2)


def test_another_end_is_noticed(undisturbed, tmp_path):
    faults.train(tmp_path / "run", experiment=faults._seeded(1))
    with pytest.raises(ValueError, match="belongs to another experiment"):
        faults.demand_same_end(tmp_path / "run", undisturbed)
    with pytest.raises(AssertionError, match="differ"):
        assert_same_run(tmp_path / "run", undisturbed)


def test_averaged_weights_that_were_deleted_are_written_again(undisturbed, tmp_path):
    faults.train(tmp_path / "run")
    (tmp_path / "run" / "ema.safetensors").unlink()
    faults.demand_same_end(tmp_path / "run", undisturbed)


def test_a_damaged_line_of_the_log_costs_no_other(undisturbed, tmp_path):
    with faults.Progress().follow(45, faults._interrupt), pytest.raises(KeyboardInterrupt):
        faults.train(tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[2] = b"\xff" + lines[2]
    log.write_bytes(b"".join(lines))
    faults.train(tmp_path / "run")
    assert [r["step"] for r in run_folder.read_log(tmp_path / "run") if "step" in r] == [
        10,
        30,
        40,
        50,
        60,
    ]


def test_an_interrupt_while_a_step_is_logged_leaves_no_gap(undisturbed, tmp_path, monkeypatch):
    """As it comes while the held-out loss is computed, which takes the longest."""
    real = losses.held_out_loss

    def held_out_loss(*arguments):
        monkeypatch.setattr(losses, "held_out_loss", real)
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(losses, "held_out_loss", held_out_loss)
    with pytest.raises(KeyboardInterrupt):
        faults.train(tmp_path / "run")
    faults.demand_same_end(tmp_path / "run", undisturbed)


def test_a_state_of_another_run_is_refused(tmp_path):
    """Of the same network: only its name tells it apart.  Older states have none."""
    experiment = faults._seeded(0)
    trainer = experiment.trainer()
    trainer.save(tmp_path / "a", "one")
    with pytest.raises(ValueError, match=r"a is of another run \('one'\) .* \('other'\)"):
        trainer.load(tmp_path / "a", "other")
    trainer.load(tmp_path / "a", "one")
