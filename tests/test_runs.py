"""Runs on disk, by function and by command line: killed, interrupted, damaged and shared."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import config, data, losses, metrics, predictions, runs, samplers, schedules
from diffusion_lib.cli import main
from diffusion_lib.data import Images, check_labels
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.runs import driver
from diffusion_lib.runs import folder as run_folder
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from diffusion_lib.training import Trainer
from tests.helpers import assert_same_run, contents, full_disk, random_images, tiny, write_idx

EXPERIMENT = replace(
    tiny(config.MNIST),
    train=replace(config.MNIST.train, num_steps=30, batch_size=4),
    sample_steps=5,
)
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("small_convolutions")
IMAGES = random_images(40, 1, 28, 28)
TRAIN, HELD_OUT = IMAGES[:30], IMAGES[30:]


def train(folder, experiment=EXPERIMENT, images=TRAIN):
    return runs.train(experiment, images, HELD_OUT, folder, CPU)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(folder)
    return folder


def test_a_run_describes_itself(finished):
    assert set(contents(finished)) == {
        "experiment.json",
        "training.safetensors",
        "ema.safetensors",
        "log.jsonl",
    }
    run = runs.load(finished, CPU)
    assert run.image_shape == (1, 28, 28)
    assert run.describe()["steps"] == "30"
    assert run.describe()["training images"] == "30"
    steps, values = run.series("loss")
    assert steps == [10, 20, 30]
    assert values[-1] < values[0]
    assert run.series("held_out")[0] == [30]
    assert run.log[0].items() >= hardware.conditions(CPU).items()
    assert run.describe()["precision"] == "float32"  # of these tests
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(f"loaded, trained {date}", run.describe()["weights"])
    del run.log[0]["date"]  # which earlier versions did not record
    assert run.describe()["weights"] == "loaded, trained earlier"


def test_a_finished_run_is_loaded_not_trained_again(finished, monkeypatch):
    before = contents(finished)
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("trained again"))
    run = train(finished)
    assert contents(finished) == before
    assert run.describe()["steps"] == "30"
    assert run.describe()["weights"].startswith("loaded, ")


def test_an_experiment_names_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=2))
    one = train(None, short)
    other = train(None, replace(short, prediction=predictions.v))
    assert one.folder.parent == other.folder.parent == Path("runs")
    assert one.folder != other.folder
    assert train(None, short).folder == one.folder
    assert train(None, short, images=TRAIN.flip(0)).folder not in (one.folder, other.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": predictions.v}, "prediction: 'eps' there, 'v' here"),
        ({"T": 500, "sample_steps": 5}, "T: 1000 there, 500 here"),
        ({"train": replace(EXPERIMENT.train, num_steps=31)}, "train.num_steps: 30 there, 31 here"),
    ],
)
def test_a_folder_of_another_experiment_is_refused(finished, change, message):
    before = contents(finished)
    with pytest.raises(ValueError, match=f"belongs to another experiment .*{message}"):
        train(finished, replace(EXPERIMENT, **change))
    assert contents(finished) == before


def test_a_folder_of_other_images_is_refused(finished):
    with pytest.raises(ValueError, match=r"training images: 30 images.* there, 29 images"):
        train(finished, images=TRAIN[:29])


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / ".experiment.json.123.part").write_text("{")
    (tmp_path / ".tmpClRA3k").write_bytes(b"half")  # safetensors' own
    train(tmp_path, replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=1)))
    assert not list(tmp_path.glob(".*"))


def test_impossible_settings_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="2000 sampling steps"):
        train(tmp_path / "new", replace(EXPERIMENT, sample_steps=2000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_prediction_of_ones_own_trains_and_goes_on(tmp_path):
    def half(signal, noise):
        return 0.5 - noise, signal

    experiment = replace(EXPERIMENT, prediction=half)
    assert train(tmp_path, experiment).denoiser.prediction is half
    assert train(tmp_path, experiment).describe()["steps"] == "30"
    with pytest.raises(ValueError, match="your own"):
        runs.load(tmp_path, CPU)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        train(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("name", ["training.safetensors", "experiment.json"])
def test_a_damaged_file_stops_the_run_and_is_kept(finished, tmp_path, name):
    for file, content in contents(finished).items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / name).write_bytes(contents(finished)[name][:60])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is (truncated|damaged)"):
        train(tmp_path)
    assert contents(tmp_path) == before


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no trained run.*diffusion_lib train"):
        runs.load(tmp_path / "nothing")


def test_a_second_process_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    Stops(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    before = contents(tmp_path)
    with (
        files.lock(tmp_path / "experiment.json"),
        pytest.raises(ValueError, match="another process is training in"),
    ):
        train(tmp_path)
    assert contents(tmp_path) == before


class Stops:
    """Makes training raise once, after a given step."""

    def __init__(self, monkeypatch, after, error):
        real = Trainer.train_step

        def update(trainer, x_0):
            if trainer.step == after:
                monkeypatch.setattr(Trainer, "train_step", real)
                raise error
            return real(trainer, x_0)

        monkeypatch.setattr(Trainer, "train_step", update)


@pytest.mark.slow
def test_a_stopped_run_is_saved_and_goes_on_to_the_same_end(finished, tmp_path, monkeypatch):
    Stops(monkeypatch, 17, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path)
    sentence = f"Stopped. {tmp_path} is saved at step 17 of 30. Run this again to go on."
    assert caught.value._render_traceback_() == [sentence]  # what a notebook shows
    assert Denoiser.load(tmp_path / "ema.safetensors")
    run = train(tmp_path)
    assert run.describe()["weights"].startswith("trained now, ")
    assert_same_run(tmp_path, finished)
    assert run.series("loss") == runs.load(finished, CPU).series("loss")


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(finished, tmp_path, monkeypatch):
    Stops(monkeypatch, 12, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    before = contents(tmp_path)["training.safetensors"]
    monkeypatch.setattr(driver, "SECONDS_BETWEEN_SAVES", 0.0)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full_disk)
        with pytest.raises(OSError, match=r"No space left.*training\.safetensors is untouched"):
            train(tmp_path)
    assert contents(tmp_path)["training.safetensors"] == before
    train(tmp_path)
    assert_same_run(tmp_path, finished)


# ---- what only looks at a training -----------------------------------------------------------


SHORT = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=2))


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_any_number_of_channels_train_go_on_and_are_sampled(tmp_path, channels):
    """Also where TensorBoard, which shows one or three, is installed."""
    network = replace(EXPERIMENT.network, image_shape=(channels, 8, 8), patch=1)
    images = IMAGES[:, :, :8, :8].expand(-1, channels, -1, -1).contiguous()
    experiment = replace(SHORT, network=network)
    for _ in range(2):
        run = runs.train(experiment, images[:30], images[30:], tmp_path / "run", CPU)
    assert run.describe()["steps"] == "2"
    assert (tmp_path / "run" / "tensorboard").exists()
    out = tmp_path / "x.npz"
    arguments = ["sample", str(tmp_path / "run"), "--n", "3", "--steps", "2", "--out", str(out)]
    assert main(arguments) == 0
    assert np.load(out)["arr_0"].shape == (3, 8, 8, channels)


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
@pytest.mark.parametrize("error", [TypeError("Descriptors"), ImportError("x"), AttributeError("y")])
def test_a_tensorboard_that_cannot_be_imported_costs_a_warning(
    finished, tmp_path, monkeypatch, error
):
    class Broken:
        def find_spec(self, name, *_):
            if name == "torch.utils.tensorboard":
                raise error

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.warns(UserWarning, match=f"TensorBoard failed .*{error}") as caught:
        train(tmp_path)
    assert sum("TensorBoard" in str(warning.message) for warning in caught) == 1
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
@pytest.mark.parametrize("call", ["add_scalar", "add_image", "close"])
def test_a_tensorboard_that_fails_while_it_draws_costs_at_most_a_warning(
    finished, tmp_path, monkeypatch, call
):
    from torch.utils.tensorboard import SummaryWriter

    def fail(*_, **__):
        raise ValueError("nothing to draw with")

    monkeypatch.setattr(SummaryWriter, call, fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path)
    about = [str(w.message) for w in caught if "nothing to draw with" in str(w.message)]
    assert len(about) == 1
    assert_same_run(tmp_path, finished)


@pytest.mark.usefixtures("tensorboard")
def test_where_warnings_are_errors_what_only_looks_still_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_open_board", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(tmp_path)
    assert runs.load(tmp_path, CPU).describe()["steps"] == "30"


@pytest.mark.slow
def test_a_held_out_loss_that_fails_costs_itself_and_a_warning(finished, tmp_path, monkeypatch):
    """Its batch may be larger than that of the training, and the memory too small for it alone."""

    def fail(*_):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(losses, "held_out_loss", fail)
    with pytest.warns(UserWarning, match="the held-out loss failed .*too large"):
        run = train(tmp_path)
    assert_same_run(tmp_path, finished)
    assert run.series("held_out") == ([], [])
    assert run.describe()["held-out loss"] == "not measured"


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        ValueError("a loss of one's own"),
        FloatingPointError("step 18: nan"),
        SystemExit(3),
        MemoryError("full"),
    ],
)
def test_whatever_ends_a_training_its_last_whole_step_is_saved(
    finished, tmp_path, monkeypatch, error
):
    Stops(monkeypatch, 17, error)
    with pytest.raises(type(error)) as caught:
        train(tmp_path)
    assert "is saved at step 17 of 30" in caught.value.__notes__[0]
    train(tmp_path)
    assert_same_run(tmp_path, finished)


def test_where_the_last_step_cannot_be_saved_the_first_error_stays(tmp_path, monkeypatch):
    Stops(monkeypatch, 17, FloatingPointError("step 18: nan"))

    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(FloatingPointError, match="step 18: nan") as caught:
        train(tmp_path)
    assert re.search(r"Step 17 of 30 is not saved: .*No space left", caught.value.__notes__[0])


# ---- weights that cannot be trained again -----------------------------------------------------


def copy(finished, folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes((finished / name).read_bytes())
    return contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_a_finished_run_of_which_the_small_files_were_kept_is_loaded(finished, tmp_path, old):
    copy(finished, tmp_path, "ema.safetensors", "experiment.json", "log.jsonl")
    if old:  # as averaged weights were written before they knew their step
        tensors, metadata = files.read_tensors(
            tmp_path / "ema.safetensors", "diffusion_lib denoiser 1"
        )
        del metadata["step"]
        files.write_tensors(tmp_path / "ema.safetensors", tensors, metadata)
    before = contents(tmp_path)
    run = train(tmp_path)
    assert contents(tmp_path) == before
    expected = runs.load(finished, CPU)
    assert run.log == expected.log
    for a, b in zip(run.denoiser.parameters(), expected.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_that_know_that_they_are_final_need_no_log(finished, tmp_path):
    before = copy(finished, tmp_path, "ema.safetensors", "experiment.json")
    assert train(tmp_path).describe()["steps"] == "0"
    assert contents(tmp_path) == before


def test_weights_without_a_training_state_that_are_not_final_are_refused(tmp_path, monkeypatch):
    Stops(monkeypatch, 17, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    (tmp_path / "training.safetensors").unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"averaged weights of step 17 of 30, and no training"):
        train(tmp_path)
    assert contents(tmp_path) == before


def test_weights_of_ones_own_prediction_are_loaded_too(tmp_path):
    def half(signal, noise):
        return 0.5 - noise, signal

    experiment = replace(SHORT, prediction=half)
    expected = train(tmp_path, experiment).denoiser
    (tmp_path / "training.safetensors").unlink()
    found = train(tmp_path, experiment).denoiser
    assert found.prediction is half
    assert torch.equal(found.network.conv_in.weight, expected.network.conv_in.weight)


@pytest.mark.slow
def test_a_first_save_that_a_full_disk_ended_is_continued_from_step_0(
    finished, tmp_path, monkeypatch
):
    """Averaged weights alone, which are smaller, would be in the way of every later try."""
    Stops(monkeypatch, 17, KeyboardInterrupt())
    save = Trainer.save

    monkeypatch.setattr(Trainer, "save", full_disk)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.setattr(Trainer, "save", save)
    train(tmp_path)
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
def test_averaged_weights_of_an_earlier_step_beside_a_finished_state_are_replaced(
    finished, tmp_path, monkeypatch
):
    Stops(monkeypatch, 17, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "young")
    copy(finished, tmp_path, "training.safetensors", "experiment.json", "log.jsonl")
    copy(tmp_path / "young", tmp_path, "ema.safetensors")
    train(tmp_path)
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 12])
def test_an_error_in_the_middle_of_an_update_saves_no_half_of_it(
    finished, tmp_path, monkeypatch, step
):
    """Such as where the first update asks for the memory of the optimizer's states."""
    real = torch.optim.AdamW.step

    def half(optimizer, *arguments):
        if optimizer.half == step:
            first = optimizer.param_groups[0]["params"][0]
            first.data.add_(1)
            optimizer.state[first]["step"] = torch.tensor(1.0)
            raise torch.OutOfMemoryError("out of memory")
        optimizer.half += 1
        return real(optimizer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "half", 0, raising=False)
        patch.setattr(torch.optim.AdamW, "step", half)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            train(tmp_path)
    assert "is not saved: the last update was ended half-way" in caught.value.__notes__[0]
    train(tmp_path)
    assert_same_run(tmp_path, finished)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_damaged_averaged_weights_of_a_finished_run_are_written_anew(finished, tmp_path, content):
    copy(finished, tmp_path, *contents(finished))
    (tmp_path / "ema.safetensors").unlink()
    if content is not None:
        (tmp_path / "ema.safetensors").write_bytes(content)
    train(tmp_path)
    assert_same_run(tmp_path, finished)


def test_a_damaged_start_is_named_and_leaves_nothing_in_the_new_folder(finished, tmp_path):
    before = copy(finished, tmp_path / "start", *contents(finished))["training.safetensors"]
    state = tmp_path / "start" / "training.safetensors"
    state.write_bytes(before[:-50])
    longer = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=31))

    def go_on():
        return runs.train(longer, TRAIN, HELD_OUT, tmp_path / "run", CPU, start=tmp_path / "start")

    with pytest.raises(ValueError, match=r"start.training.safetensors is truncated"):
        go_on()
    assert set(contents(tmp_path / "run")) == {"experiment.json"}
    state.write_bytes(before)
    assert go_on().describe()["steps"] == "31"


# ---- rights, disks and litter -----------------------------------------------------------------


def test_files_get_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        train(tmp_path, SHORT)
    finally:
        os.umask(before)
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()
    }
    assert len(modes) == 4
    assert set(modes.values()) == {0o640}


@pytest.fixture
def read_only(finished, tmp_path):
    """A finished run on a disk that takes nothing."""
    copy(finished, tmp_path / "run", *contents(finished))
    (tmp_path / "run" / ".ema.safetensors.1.part").write_bytes(b"half")
    remount = ["mount", "-o", "bind,ro", str(tmp_path / "run"), str(tmp_path / "run")]
    bind = ["mount", "--bind", str(tmp_path / "run"), str(tmp_path / "run")]
    for mount in (bind, [*remount[:2], "bind,remount,ro", str(tmp_path / "run")]):
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
    yield tmp_path / "run"
    subprocess.run(["umount", str(tmp_path / "run")], check=True)


def test_a_finished_run_on_a_read_only_disk_is_loaded(finished, read_only):
    assert train(read_only).log == runs.load(finished, CPU).log
    longer = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=31))
    with pytest.raises(ValueError, match="belongs to another experiment"):
        train(read_only, longer)
    with pytest.raises(
        OSError, match=r"could not write .*new.*choose a folder that may be written"
    ):
        train(read_only / "new")


@pytest.mark.parametrize("name", [".DS_Store", "desktop.ini", ".gitkeep", ".ipynb_checkpoints/a"])
def test_litter_of_systems_is_no_reason_to_refuse_a_folder(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    (tmp_path / "lost+found").mkdir()
    train(tmp_path, SHORT)
    assert (tmp_path / name).exists()


def test_what_lies_in_a_folder_that_is_refused_is_named(tmp_path):
    for n in range(7):
        (tmp_path / f"{n}.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds 0.txt, 1.txt, .* 4.txt\)"):
        train(tmp_path)
    with pytest.raises(OSError, match=r"File exists: .*0.txt.* choose a folder"):
        train(tmp_path / "0.txt")


# ---- going on ---------------------------------------------------------------------------------


def test_more_steps_for_a_finished_run_are_refused_with_the_way_to_get_them(finished):
    longer = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=31))
    with pytest.raises(ValueError, match=r"give a new folder and start=FOLDER \(--start on"):
        train(finished, longer)


@pytest.mark.parametrize("name", ["experiment.json", "training.safetensors"])
def test_a_start_that_is_no_whole_run_is_refused(finished, tmp_path, name):
    copy(finished, tmp_path / "start", *contents(finished))
    (tmp_path / "start" / name).unlink()
    longer = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=31))
    with pytest.raises(FileNotFoundError, match=rf"start.*{name}"):
        runs.train(longer, TRAIN, HELD_OUT, tmp_path / "run", CPU, start=tmp_path / "start")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_may_go_on_without_the_compiler_that_it_began_with(tmp_path, monkeypatch):
    """What only changes speed is no part of what is trained, nor of its name."""
    compiled = replace(EXPERIMENT, train=replace(EXPERIMENT.train, compile=True))
    assert compiled.name("x") == EXPERIMENT.name("x")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: None)
    Stops(monkeypatch, 3, RuntimeError("No working C++ compiler"))
    with pytest.raises(RuntimeError, match="compiler"):
        train(tmp_path, compiled)
    assert train(tmp_path).describe()["steps"] == "30"
    assert json.loads((tmp_path / "experiment.json").read_text())["train"]["compile"] is True
    longer = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=31))
    run = runs.train(longer, TRAIN, HELD_OUT, tmp_path / "longer", CPU, start=tmp_path)
    assert run.describe()["steps"] == "31"


# ---- what is taken for images -----------------------------------------------------------------


@pytest.mark.slow
def test_arrays_of_numpy_and_pairs_with_labels_are_taken_for_tensors(tmp_path):
    labels = [i % 3 for i in range(30)]
    with_labels = replace(SHORT, network=replace(SHORT.network, classes=3))
    read_only = TRAIN.numpy().copy()
    read_only.flags.writeable = False
    kinds = [
        (TRAIN, torch.tensor(labels)),
        (TRAIN.numpy(), np.array(labels, np.uint16)),
        (read_only, labels),
        (np.asfortranarray(TRAIN.numpy()), labels),
    ]
    found = [
        runs.train(with_labels, pair, (HELD_OUT.numpy(), None), tmp_path / str(i), CPU)
        for i, pair in enumerate(kinds)
    ]
    for run in found[1:]:
        assert_same_run(run.folder, found[0].folder)
    run = runs.train(SHORT, TRAIN.numpy(), (HELD_OUT, [0] * 10), tmp_path / "plain", CPU)
    one, other = (
        runs.sample(found[0].guided(asked, 2.0), 3, num_steps=2) for asked in ([1], range(1, 2))
    )
    assert torch.equal(one, other)
    assert run.describe()["training images"] == "30"


DATASET = torch.utils.data.TensorDataset(TRAIN)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("photos", r"got str. data.folder\('photos', size=32\)"),
        (Path("photos"), r"data.folder\('photos'"),
        (torch.utils.data.DataLoader(DATASET), r"got DataLoader. .*torch.cat"),
        (DATASET, r"got TensorDataset. .* data.Images"),
        (list(TRAIN), r"got list. torch.stack"),
        (None, "got NoneType"),
        (TRAIN.float().numpy(), r"uint8 in 0..255; got torch.float32.*data.to_uint8"),
        (np.array(["a"]), "got ndarray"),
        (TRAIN.permute(0, 2, 3, 1).numpy(), r"images.permute\(0, 3, 1, 2\) puts them first"),
        (TRAIN[:, 0], r"images\[:, None\] adds it"),
    ],
)
def test_what_are_no_images_is_refused_with_what_to_give(tmp_path, images, message):
    for call in (
        lambda: train(tmp_path / "run", SHORT, images),
        lambda: SHORT.trainer().run(images),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("images", "way"),
    [
        (list(TRAIN.numpy()), r"np.stack\(images\)"),
        ([(x, 0) for x in TRAIN], r"data.Images\(torch.stack\(\[x for x, _ in images\]\)"),
        (TRAIN > 9, r"images.to\(torch.uint8\)"),
    ],
)
def test_the_way_from_what_are_no_images_fits_what_was_given(images, way):
    with pytest.raises(TypeError, match=way):
        data.check(images)


def test_a_batch_of_a_data_loader_and_numbers_of_another_machine_are_taken():
    loader = torch.utils.data.DataLoader(Pairs(), batch_size=30)
    images, labels = data.images_and_labels(next(iter(loader)))
    assert images.shape == TRAIN.shape
    assert torch.equal(check_labels(labels.numpy().astype(">i8"), 3), labels)
    x_0 = data.to_float(TRAIN[:2].numpy())
    assert torch.equal(data.to_uint8(x_0.numpy()), TRAIN[:2])


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, i):
        return TRAIN[i], i % 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_run_of_any_precision_is_sampled(finished, dtype):
    """The sum of weights in other precisions than float32 is none of autocast's."""
    run = runs.load(finished, CPU)
    expected = runs.sample(run, 2, num_steps=3).int()
    run.denoiser.to(dtype)
    assert (runs.sample(run, 2, num_steps=3) - expected).abs().float().mean() < 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2.5}, "got n = 2.5"),
        ({"n": "3"}, "got n = '3'"),
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1; got batch_size = 0"),
        ({"seed": None}, "seed must be a whole number, at least 0; got seed = None"),
        ({"sampler": "ddim"}, r"such as samplers.ddim; got 'ddim'"),
    ],
)
def test_impossible_requests_for_samples_are_refused_by_name(finished, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        runs.sample(runs.load(finished, CPU), **({"n": 2} | arguments))


@pytest.mark.slow
def test_a_default_device_of_ones_own_breaks_nothing(tmp_path):
    """Every tensor is made where it belongs: "meta" would hold no number that is asked for."""
    network = replace(EXPERIMENT.network, classes=3, dropout=0.1)
    experiment = replace(SHORT, network=network, train=replace(SHORT.train, mirror=0.5))
    images = Images(TRAIN, torch.arange(30) % 3)

    def made(folder):
        run = runs.train(experiment, images, HELD_OUT, folder, CPU)
        return run, runs.sample(run.guided([0, 1, 2], 2.0), 3, num_steps=3)

    expected, samples = made(tmp_path / "a")
    torch.set_default_device("meta")
    try:
        run, others = made(tmp_path / "b")
        bits = metrics.bits_per_dim(run.denoiser, HELD_OUT, 4).total.mean
    finally:
        torch.set_default_device(None)
    assert_same_run(run.folder, expected.folder)
    assert torch.equal(samples, others)
    assert bits == metrics.bits_per_dim(run.denoiser, HELD_OUT, 4).total.mean


# ---- the command line ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder with a tiny MNIST in torchvision's layout."""
    folder = tmp_path_factory.mktemp("data")
    write_idx(folder / "MNIST" / "raw", n_train=20, n_test=8)
    return folder


def command(root, out, steps=20, **options):
    flags = {"--budget": "smoke", "--steps": steps, "--data": root, "--device": "cpu"} | options
    return ["train", "mnist", "--out", str(out), *(str(x) for pair in flags.items() for x in pair)]


def process(arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_lib", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def log_of(folder):
    path = folder / "log.jsonl"
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def trained(root, small_preset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "a"
    assert main(command(root, folder, steps=60)) == 0
    return folder


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_cleanly(root, tmp_path):
    child = process(command(root, tmp_path / "c", steps=100_000))
    deadline = time.monotonic() + 60
    while "device" not in log_of(tmp_path / "c") and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    try:
        output, _ = child.communicate(timeout=60)
    finally:
        child.kill()  # where signals are ignored, as in a shell's background
    assert child.returncode == 130
    assert re.search(
        r"Stopped. .*c is saved at step \d+ of 100000. Run this again to go on.", output
    )
    assert "Traceback" not in output
    assert Denoiser.load(tmp_path / "c" / "ema.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "mnits", "--out", "X"], "preset 'mnits' is unknown; did you mean mnist"),
        (["train", "mnist", "--out", "X", "--budget", "ful"], "did you mean full"),
        (["train", "mnist", "--out", "X", "--schedule", "cosin"], "did you mean cosine"),
        (["train", "mnist", "--out", "X", "--prediction", "x0"], "did you mean x_0"),
        (["train", "mnist", "--out", "X", "--weight", "minsnr"], "did you mean min_snr"),
        (["train", "mnist", "--out", "X", "--loss", "hybrid"], "did you mean hybrid_loss"),
        (["evaluate", "X"], "X holds no trained run"),
        (
            ["train", "mnist", "--out", "X", "--steps", "0"],
            "num_steps must be a whole number, at least 1",
        ),
        (
            ["train", "mnist", "--out", "X", "--seed", "-1"],
            "seed must be a whole number, at least 0",
        ),
        (["train", "mnist", "--out", "X", "--device", "gpu"], "--device gpu cannot be used"),
        (["sample", "X"], "X holds no trained run"),
        (["sample", "X", "--out", "a.jpg"], "must end in .npz .* or .png"),
        (["sample", "X", "--sampler", "dim"], "did you mean ddim"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_more_sampling_steps_than_T_and_no_images_are_refused(trained, capsys):
    assert main(["sample", str(trained), "--steps", "1001"]) == 2
    assert "1001 sampling steps, but this schedule has T = 1000" in capsys.readouterr().err
    assert main(["sample", str(trained), "--n", "0"]) == 2
    assert "got n = 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sampler", samplers.__all__)
def test_the_same_command_samples_the_same_file(trained, tmp_path, sampler):
    for name in ("a.png", "b.png"):
        arguments = ["sample", str(trained), "--n", "5", "--steps", "6", "--sampler", sampler]
        assert main([*arguments, "--out", str(tmp_path / name), "--device", "cpu"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").size == (2 * (5 * 29 + 1), 2 * 30)


@pytest.mark.slow
def test_samples_as_an_array(trained, tmp_path):
    out = tmp_path / "x.npz"
    assert main(["sample", str(trained), "--n", "3", "--steps", "4", "--out", str(out)]) == 0
    array = np.load(out)["arr_0"]
    assert array.shape == (3, 28, 28, 1)
    assert array.dtype == np.uint8
    seed_1 = ["sample", str(trained), "--n", "3", "--steps", "4", "--out", str(out), "--seed", "1"]
    assert main(seed_1) == 0
    assert (np.load(out)["arr_0"] != array).any()


def test_an_array_is_written_batch_by_batch(tmp_path):
    batches = [torch.randint(0, 256, (n, 3, 4, 2), dtype=torch.uint8) for n in (5, 5, 2)]
    written = []

    def stream():
        for batch in batches:
            written.append((tmp_path / "x.npz").stat().st_size)
            yield batch

    with (tmp_path / "x.npz").open("wb", buffering=0) as file:
        runs.write_npz(file, stream(), (12, 4, 2, 3))
    assert written[1] - written[0] == written[2] - written[1] == 5 * 3 * 4 * 2
    array = np.load(tmp_path / "x.npz")["arr_0"]
    assert np.array_equal(array, torch.cat(batches).permute(0, 2, 3, 1).numpy())


def test_a_call_that_samples_has_one_bar_over_all_batches(trained, capsys):
    runs.sample(runs.load(trained, CPU), 5, num_steps=4, batch_size=2)
    drawn = capsys.readouterr().err.replace("\n", "\r").split("\r")
    assert {line.split(":")[0] for line in drawn if line} == {"sampling 5 images"}
    assert "12/12" in drawn[-2]


def test_a_stopped_sampling_says_so_in_one_sentence(trained):
    def stopped(*_, generator):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="The images are not saved"):
        runs.sample(runs.load(trained, CPU), 5, sampler=stopped)


def test_sampling_in_batches_is_refused_at_once(trained):
    with pytest.raises(ValueError, match="n must be a whole number, at least 1; got n = 0"):
        runs.sample_batches(runs.load(trained, CPU), 0)


def test_a_run_whose_learning_rate_has_fallen_is_not_gone_on_from(tmp_path):
    short, longer = (
        replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=n, cooldown=0.5))
        for n in (2, 3)
    )
    train(tmp_path / "short", short)
    with pytest.raises(ValueError, match="its learning rate has already fallen"):
        runs.train(longer, TRAIN, HELD_OUT, tmp_path / "longer", CPU, start=tmp_path / "short")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim])
def test_image_i_does_not_depend_on_n_or_the_batch(trained, sampler):
    run = runs.load(trained, CPU)
    arguments = {"seed": 3, "sampler": sampler, "num_steps": 20}
    one = runs.sample(run, 7, batch_size=7, **arguments).int()
    for n, batch_size in ((7, 3), (4, 64), (1, 1)):
        other = runs.sample(run, n, batch_size=batch_size, **arguments)
        assert (one[:n] - other.int()).abs().max() <= 2
    assert (one[0] - one[1]).abs().max() > 50


def test_the_flags_reach_the_experiment(root, tmp_path):
    flags = {"--schedule": "cosine", "--prediction": "v", "--seed": 5}
    flags |= {"--weight": "min_snr", "--loss": "hybrid_loss"}
    assert main(command(root, tmp_path / "d", steps=2, **flags)) == 0
    record = json.loads((tmp_path / "d" / "experiment.json").read_text())
    assert (record["schedule"], record["prediction"]) == ("cosine", "v")
    assert record["train"]["seed"] == 5
    denoiser = Denoiser.load(tmp_path / "d" / "ema.safetensors")
    assert denoiser.prediction is predictions.v
    assert (record["weight"], record["loss"]) == ("min_snr", "hybrid_loss")
    assert denoiser.network.config.outputs == 2
    assert torch.equal(denoiser.schedule.alpha_bar, schedules.cosine().alpha_bar)


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_gets_losses_and_samples_where_it_is_installed(tmp_path):
    """Also of a run that went on: what was drawn after its checkpoint is drawn once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    train(folder)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    log = [record for record in run_folder.read_log(folder) if "loss" in record]
    for name in ("loss", "held_out"):
        told = [(record["step"], record[name]) for record in log if name in record]
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in seen] == [step for step, _ in told]
        assert [v for _, v in seen] == pytest.approx([v for _, v in told], rel=1e-6)
    (picture,) = events.Images("samples")
    assert picture.step == 30
    assert (picture.height, picture.width) == Image.open(
        io.BytesIO(picture.encoded_image_string)
    ).size[::-1]


@pytest.mark.usefixtures("previews")
def test_samples_are_drawn_during_a_training(tmp_path):
    """Often at first, always from the same noise, of the averaged weights."""
    longer = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=100))
    run = train(tmp_path / "run", longer)
    assert [*run.previews()] == [30, 60, 100]
    samples = runs.sample(run, 16, 0, samplers.dpm_solver, min(20, longer.T))
    assert torch.equal(run.previews()[100], samples)
    assert not torch.equal(run.previews()[30], samples)


@pytest.mark.slow
def test_without_tensorboard_there_is_only_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "find_spec", lambda name: None)
    run = train(tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert run.series("held_out")[0] == [30]


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
def test_looking_at_samples_changes_nothing_that_is_trained(finished, tmp_path):
    train(tmp_path / "run")
    assert (tmp_path / "run" / "tensorboard").exists()
    assert not (finished / "tensorboard").exists()
    assert_same_run(finished, tmp_path / "run")
