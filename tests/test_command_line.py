"""The command line as people use it: odd paths, odd values, disks that cannot be written."""

import ast
import errno
import io
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion_lib
from diffusion_lib import compare, config, data, evaluation, runs, samplers
from diffusion_lib.cli import main
from diffusion_lib.networks.unet import UNetConfig
from diffusion_lib.runs import sampling
from diffusion_lib.system import errors, files
from diffusion_lib.training import TrainConfig
from tests.helpers import write_idx

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("few_resamples")
CPU = torch.device("cpu")
NETWORK = UNetConfig((1, 28, 28), 4, (1,), num_blocks=1, attention=(), dropout=0.0, patch=4)
TRAIN = TrainConfig(num_steps=2, batch_size=4, warmup_steps=1)
TINY = config.Experiment(data.mnist, NETWORK, T=40, train=TRAIN)
FEW = ["--n", "70", "--steps", "2", "--n-likelihood", "4", "--num-times", "3", "--device", "cpu"]
NO_SAMPLES = ["--n", "0", *FEW[4:]]
STUDY = {
    "preset": "mnist",
    "all": {
        "network": {"width": 4, "multipliers": [1], "attention": [], "patch": 4},
        "T": 40,
        "train": {"batch_size": 4, "warmup_steps": 1},
    },
    "arms": {"eps": {}, "x_0": {"prediction": "x_0"}},
    "seeds": [0, 1],
    "steps": [1],
    "conditions": {"n": 0, "n_likelihood": 4, "num_times": 3},
}


def photos(root, train):
    """A data set of one's own: 16 pictures of 8 x 8 in color."""
    generator = torch.Generator().manual_seed(int(train))
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return data.Images(images, torch.zeros(16, dtype=torch.int64))


@pytest.fixture(autouse=True, scope="module")
def no_tensorboard():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_lib.runs.driver.find_spec", lambda name: None)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of digits, of digits with labels, of own pictures, of four channels; a data folder."""
    place = tmp_path_factory.mktemp("made")
    write_idx(place / "data" / "MNIST" / "raw", n_train=90, n_test=80)
    digits, test = (data.mnist(place / "data", train) for train in (True, False))
    labels = replace(TINY, network=replace(NETWORK, classes=10))
    own = replace(TINY, dataset=photos, network=replace(NETWORK, image_shape=(3, 8, 8)))
    four = replace(own, network=replace(own.network, image_shape=(4, 8, 8)))
    pictures = photos("", True).images
    rgba = torch.cat([pictures, pictures[:, :1]], dim=1)
    runs.train(TINY, digits, test, place / "runs" / "a", CPU)
    runs.train(labels, digits, test, place / "runs" / "labels", CPU)
    runs.train(own, pictures, pictures, place / "runs" / "own", CPU)
    runs.train(four, rgba, rgba, place / "runs" / "four", CPU)
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A working folder with a copy of the runs."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    (tmp_path / "data").symlink_to(made / "data")
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "cats" / f"{i}.png")
    (tmp_path / "notes.txt").write_text("years of work")
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder="."):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def read_only(monkeypatch, *places):
    """Refuses new files, also unnamed ones, in these folders and below, as such a disk does."""
    refused = [str(Path(place).absolute()) for place in places]

    def refuses(function, where):
        def call(*arguments, **options):
            path = str(Path(options.get("dir") or arguments[where]).absolute())
            if any((path + "/").startswith(folder + "/") for folder in refused):
                raise OSError(errno.EROFS, "Read-only file system", path)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(os, "replace", refuses(os.replace, 1))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuses(tempfile.TemporaryFile, 0))


# ---- paths of every kind -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", ["runs/a", "runs/a/", "runs/a/log.jsonl", "runs/a/experiment.json", "./runs/a/../a"]
)
def test_a_file_of_a_run_stands_for_the_run(place, given, capsys):
    assert main(["sample", given, "--n", "1", "--steps", "2", "--device", "cpu"]) == 0
    assert (place / "runs" / "a" / "samples.png").is_file()


@pytest.mark.slow
def test_inside_a_run_a_point_is_its_folder(place, monkeypatch, capsys):
    monkeypatch.chdir("runs/a")
    assert main(["evaluate", ".", "--data", str(place / "data"), *NO_SAMPLES]) == 0
    assert "|  | a | floor |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("runs", "There are runs/a, runs/four, runs/labels, runs/own"),
        ("runs/b", "There are runs/a, "),
        ("notes.txt", "Train one: python -m diffusion_lib train"),
        ("photos", "Train one: python -m diffusion_lib train"),
    ],
)
def test_what_is_no_run_is_answered_with_what_is_there(place, given, hint, capsys):
    before = tree()
    for command in (
        ["sample", given],
        ["evaluate", "runs/a", given],
        ["export", given, "--format", "diffusers", "--out", "new"],
    ):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "holds no trained run" in told
        assert hint in told
    assert tree() == before


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("MNIST", "did you mean mnist?"),
        ("photos", '--set "dataset=folder(path=photos, size=32)"'),
        ("runs/a", "To go on with a run, repeat the command that began it, with its --out"),
        ("study.json", "a study is run by `compare`"),
    ],
)
def test_what_is_no_preset_is_answered_with_the_way(place, given, hint, capsys):
    assert main(["train", given, "--out", "new"]) == 2
    assert hint in capsys.readouterr().err
    assert not Path("new").exists()


def test_a_tilde_is_the_home_folder(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    sample = ["sample", "~/runs/a", "--n", "1", "--steps", "2", "--device", "cpu"]
    assert main([*sample, "--out", "~/x.png"]) == 0
    assert (place / "x.png").is_file()
    assert not (place / "~").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "written"),
    [
        ("x.PNG", "x.PNG"),
        ("x.Npz", "x.Npz"),
        ("photos", "photos/samples.png"),
        ("new/deep/x.npz", "new/deep/x.npz"),
    ],
)
def test_samples_are_written_where_a_user_means(place, out, written, capsys):
    sample = ["sample", "runs/a", "--n", "2", "--steps", "2", "--device", "cpu", "--out", out]
    assert main(sample) == 0
    assert capsys.readouterr().out == f"{written}\n"
    if written.lower().endswith("png"):
        Image.open(written).verify()
    else:
        assert np.load(written)["arr_0"].shape == (2, 28, 28, 1)
        assert evaluation.read_samples(written, (1, 28, 28)).shape == (2, 1, 28, 28)


@pytest.mark.parametrize("out", ["notes.txt", "notes.txt/run", "photos"])
def test_a_run_is_trained_into_nothing_else(place, out, capsys):
    train = ["train", "mnist", "--budget", "smoke", "--out", out, "--device", "cpu"]
    assert main(train) == 2
    assert re.search(rf"error: .*{out}", capsys.readouterr().err)
    assert (place / "notes.txt").read_text() == "years of work"


@pytest.mark.parametrize("out", ["study.json", "notes.txt", "runs/a/experiment.json"])
def test_a_record_replaces_nothing_but_a_record(place, out, capsys):
    before = tree()
    assert main(["compare", "study.json", "--out", out]) == 2
    assert f"{out} is not the record of a study" in capsys.readouterr().err
    assert tree() == before


# ---- more steps for a finished run -------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps(place, capsys):
    train = ["train", "mnist", "--budget", "smoke", "--device", "cpu"]
    assert main([*train, "--out", "short", "--steps", "3"]) == 0
    more = [*train, "--steps", "5", "--start", "short/ema.safetensors", "--out", "more"]
    assert main(more) == 0
    assert main([*train, "--steps", "5", "--out", "long"]) == 0
    one, other = (runs.load(name, CPU) for name in ("more", "long"))
    assert one.describe()["steps"] == "5"
    for name, value in one.denoiser.state_dict().items():
        assert torch.equal(value, other.denoiser.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--start", "runs/a"], "runs/a .*only its number of steps may differ"),
        (["--start", "short", "--steps", "2"], "short .*3 steps, not fewer"),
        (["--start", "quick", "--budget", "quick", "--steps", "9"], "already fallen"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line(place, arguments, words, capsys):
    train = ["train", "mnist", "--device", "cpu", "--budget", "smoke"]
    if "quick" in arguments:
        assert main([*train, "--out", "quick", "--budget", "quick", "--steps", "1"]) == 0
    assert main([*train, "--out", "short", "--steps", "3"]) == 0
    capsys.readouterr()
    assert main([*train, "--out", "more", *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not Path("more").exists()


# ---- refused before the work -------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    """Fails where anything is sampled, measured, trained or decoded."""
    for module, name in (
        (sampling, "initial_noise"),
        (runs, "train"),
        (data, "load_splits"),
        (evaluation, "evaluate"),
        (compare, "compare"),
    ):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


def test_a_place_that_cannot_be_written_is_refused_first(place, no_work, monkeypatch, capsys):
    read_only(monkeypatch, "photos", "runs")
    for arguments, refused in (
        (["sample", "runs/a"], "runs/a/samples.png"),
        (["sample", "runs/a", "--out", "photos"], "photos/samples.png"),
        (["sample", "runs/a", "--out", "photos/new/x.npz"], "photos/new/x.npz"),
        (["compare", "study.json", "--out", "photos/x.json"], "photos/x.json"),
    ):
        assert main(arguments) == 2
        told = f"{refused} cannot be written (Read-only file system): give another place with --out"
        assert told in capsys.readouterr().err
    assert not Path("photos/deep").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "runs/four"], "no .png shows images of 4 channels; give a name in .npz"),
        (["sample", "runs/labels", "--labels", "1", "10"], r"0\.\.9"),
        (["sample", "runs/a", "--labels", "1"], "this network knows no labels"),
        (["sample", "runs/a", "--n", "0"], "got n = 0"),
        (["sample", "runs/a", "--steps", "41"], "41 sampling steps"),
        (["sample", "runs/a", "--seed", "-1"], "seed must be a whole number"),
        (["sample", "runs/a", "--device", "meta"], "--device meta cannot be used"),
        (["sample", "runs/a", "--device", ""], "--device  cannot be used"),
        (["evaluate", "runs/a", "--samples", "photos"], "photos is a folder: give an .npz"),
        (["evaluate", "runs/a", "--samples", "notes.txt"], "it is not an .npz file"),
    ],
)
def test_impossible_requests_are_refused_first(place, monkeypatch, arguments, words, capsys):
    monkeypatch.setattr(samplers, "final", lambda *_: pytest.fail("sampled"))
    before = tree()
    assert main(arguments) == 2
    assert re.search(words, capsys.readouterr().err)
    assert tree() == before


def test_images_of_four_channels_are_sampled_into_an_array(place):
    sample = ["sample", "runs/four", "--n", "2", "--steps", "2", "--device", "cpu"]
    assert main([*sample, "--out", "x.npz"]) == 0
    assert np.load("x.npz")["arr_0"].shape == (2, 8, 8, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "options", "words"),
    [
        ("runs/nothing", [], "holds no trained run"),
        ("runs/a", ["--n", "85"], "n is .*, but mnist has .* at most 80"),
        ("runs/a", ["--n", "64"], "more images than dimensions"),
        ("runs/a", ["--n-likelihood", "81"], "n_likelihood is 81, .* at most 80"),
        ("runs/own", [], "dataset=photos"),
    ],
)
def test_all_runs_are_checked_before_the_first_is_measured(
    place, monkeypatch, second, options, words, capsys
):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("measured"))
    assert main(["evaluate", "runs/a", second, *FEW, *options]) == 2
    assert re.search(words, capsys.readouterr().err)


# ---- what was measured is not lost -------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_a_read_only_disk_is_measured_and_printed(place, monkeypatch, capsys):
    read_only(monkeypatch, "runs")
    with pytest.warns(UserWarning, match=r"measured of runs/a is returned, but not kept"):
        assert main(["evaluate", "runs/a", *FEW]) == 0
    assert "| bits per dim (bound) |" in capsys.readouterr().out
    assert not list(Path("runs/a").glob("metrics*"))
    run = runs.load("runs/a", CPU)
    conditions = evaluation.Conditions(n=0, n_likelihood=4, num_times=3)
    with pytest.warns(UserWarning, match="not kept"):
        assert evaluation.evaluate(run, conditions, "data")["likelihood"]["bits per dim"]


@pytest.mark.slow
def test_a_finished_run_on_a_read_only_disk_is_sampled_and_exported(place, monkeypatch):
    digits = data.mnist("data")
    runs.train(
        replace(TINY, network=replace(NETWORK, groups=2, patch=1)), digits, digits, "runs/b", CPU
    )
    read_only(monkeypatch, "runs")
    before = tree("runs")
    sample = ["sample", "runs/b", "--n", "1", "--steps", "2", "--device", "cpu"]
    assert main([*sample, "--out", "b.png"]) == 0
    assert main(["export", "runs/b", "--format", "diffusers", "--out", "exported"]) == 0
    assert tree("runs") == before


@pytest.mark.slow
def test_what_was_measured_before_an_error_is_printed(place, monkeypatch, capsys):
    shutil.copytree("runs/a", "runs/b")
    real = evaluation.evaluate

    def evaluate(run, *others):
        if run.folder.name == "b":
            raise KeyboardInterrupt
        return real(run, *others)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert main(["evaluate", "runs/a", "runs/b", *NO_SAMPLES]) == 130
    assert "| bits per dim (bound) |" in capsys.readouterr().out


@pytest.fixture(scope="module")
def study_record(made):
    """Of the study, that its tables need not be trained for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        Path("study.json").write_text(json.dumps(STUDY))
        return compare.compare(compare.read_study("study.json"), "data", CPU)


@pytest.mark.slow
def test_a_study_is_printed_though_its_record_cannot_be_written(
    place, study_record, monkeypatch, capsys
):
    def full(path, text):
        raise OSError(errno.ENOSPC, f"could not write {path}: No space left")

    monkeypatch.setattr(compare, "compare", lambda *_: study_record)
    monkeypatch.setattr(files, "write_text", full)
    assert main(["compare", "study.json", "--device", "cpu"]) == 2
    told = capsys.readouterr()
    assert "v error on mnist after 1 steps" in told.out
    assert "could not write study.record.json" in told.err
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr(compare, "compare", lambda *_: study_record)
    assert main(["compare", "study.json", "--out", "photos", "--device", "cpu"]) == 0
    assert compare.load("photos/study.record.json") == study_record


# ---- own pictures ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_of_own_pictures_is_measured_on_a_folder_of_them(place, capsys):
    with pytest.warns(UserWarning, match="no feature network is released for .*'pictures'"):
        assert main(["evaluate", "runs/own", "--images", "photos", *FEW]) == 0
    printed = capsys.readouterr().out
    assert "| bits per dim (bound) |" in printed
    assert "Frechet" not in printed
    record = evaluation.load("runs/own/metrics.json")
    assert record["conditions"]["features sha256"] == "none is released"
    assert record["conditions"]["reference"].startswith("pictures test, 6 images, sha256 ")
    assert record["experiment"]["dataset"] == "photos"


def test_without_its_pictures_it_says_how_to_give_them(place, capsys):
    assert main(["evaluate", "runs/own", *FEW]) == 2
    told = capsys.readouterr().err
    assert "data set 'photos' is unknown" in told
    assert "--images FOLDER" in told


# ---- errors are lines, not tracebacks ----------------------------------------------------------


class InductorError(RuntimeError):
    __module__ = "torch._inductor.exc"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memo"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError("Unable to allocate 3 GiB for an array"),
    ],
)
def test_too_little_memory_names_the_options_for_it(place, monkeypatch, error, capsys):
    def train(*_):
        error.add_note("new is saved at step 0 of 2.")
        raise error

    monkeypatch.setattr(runs, "train", train)
    assert main(["train", "mnist", "--out", "new", "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory (")
    assert "--accumulate" in told
    assert "--batch-size" in told
    assert told.endswith("new is saved at step 0 of 2.\n")


@pytest.mark.slow
def test_too_little_memory_for_real(place, monkeypatch, capsys):
    """More bytes than any machine has: the text is numpy's."""
    monkeypatch.setattr(runs, "load", lambda *_: np.ones(10**17))
    assert main(["sample", "runs/a", "--device", "cpu"]) == 2
    assert re.search(r"error: out of memory \(.*\). --n below 64", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            InductorError("InvalidCxxCompiler: No working C++ compiler found"),
            "TORCHDYNAMO_DISABLE=1",
        ),
        (RuntimeError("CUDA error: device-side assert triggered\nCompile with"), "CUDA error: dev"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "cuDNN error"),
        (RuntimeError("[/pytorch/third_party/gloo/pair.cc:534] Connection closed"), "gloo"),
        (torch.distributed.DistStoreError("wait timeout after 10 ms"), "wait timeout"),
        (torch.AcceleratorError("an illegal memory access"), "an illegal memory access"),
        (OSError("could not write x"), "could not write x"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_no_program_can_avoid_is_one_line(error, words):
    told = errors.explain(error, "")
    assert words in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Expected all tensors to be on the same device, but got cuda:0 and cpu"),
        KeyError("a"),
        AssertionError(),
        RecursionError("maximum recursion depth exceeded"),
    ],
)
def test_a_bug_stays_a_traceback(place, monkeypatch, error):
    assert errors.explain(error, "") is None

    def train(*_):
        raise error

    monkeypatch.setattr(runs, "train", train)
    with pytest.raises(type(error)):
        main(["train", "mnist", "--out", "new", "--device", "cpu"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["evaluate", "runs/a", *NO_SAMPLES], "runs/a/metrics.json"),
        (["compare", "study.json", "--device", "cpu"], "study.record.json"),
    ],
)
def test_a_pipe_that_is_closed_is_no_error(place, study_record, monkeypatch, arguments, written):
    """`... | head` reads a few lines and closes; what was measured is kept all the same."""
    monkeypatch.setattr(compare, "compare", lambda *_: study_record)
    reader, writer = os.pipe()
    os.close(reader)
    errors = io.StringIO()
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", errors)
        assert main(arguments) == 141
    assert not re.search("Traceback|error:", errors.getvalue())
    assert Path(written).is_file()


def test_a_program_without_a_stdout_does_its_work(place, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["sample", "runs/a", "--n", "1", "--steps", "2", "--out", "x.npz"]) == 0
    assert Path("x.npz").exists()


@pytest.mark.slow
def test_a_terminal_without_the_characters_is_no_error(place, monkeypatch):
    shutil.copytree("runs/a", "runs/größer ε")
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["evaluate", "runs/größer ε", *NO_SAMPLES]) == 0
    assert rb"gr\xf6\xdfer \u03b5" in output.buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[]", "{" * 5, "[" * 20_000])
def test_a_damaged_experiment_is_named(place, content, capsys):
    Path("runs/a/experiment.json").write_text(content)
    assert main(["evaluate", "runs/a", *FEW]) == 2
    assert "runs/a/experiment.json is not the experiment of a run" in capsys.readouterr().err


def test_an_experiment_that_was_not_copied_is_named(place, capsys):
    Path("runs/a/experiment.json").unlink()
    assert main(["evaluate", "runs/a", *FEW]) == 2
    assert "runs/a/experiment.json does not exist" in capsys.readouterr().err


# ---- what is documented ------------------------------------------------------------------------


def test_every_file_that_a_docstring_names_is_there():
    named = set()
    for path in Path(diffusion_lib.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                named |= set(
                    re.findall(r"(?:other_tests|benchmarks|tests|assets)/[\w./-]*\w", text)
                )
    assert "other_tests/mnist/small_backbone.json" in named
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sample", "sampler steps (default: T)"),
        ("sample", "class labels, cycled over the images (default: unconditional)"),
        ("train", "gradient accumulation steps"),
        ("train", "random seed"),
        ("evaluate", "samples per run, 0 for none (default: 1000)"),
    ],
)
def test_help_uses_the_terms_of_the_field(command, words, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert words in " ".join(capsys.readouterr().out.split())
