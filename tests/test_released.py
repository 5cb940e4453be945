"""Runs that come with the library: made from a finished one, loaded, sampled; those there are."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion_lib import config, data, evaluation, interop, runs
from diffusion_lib.checkpoints import read_step
from diffusion_lib.cli import main
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks.unet import UNetConfig
from diffusion_lib.training import TrainConfig
from other_tests import release
from tests.helpers import ROOT, assert_same, contents, write_idx

CPU = torch.device("cpu")
NETWORK = UNetConfig((1, 28, 28), 4, (1,), num_blocks=1, attention=(), dropout=0.0, patch=4)
TINY = config.Experiment(data.mnist, NETWORK, T=40, train=TrainConfig(2, 4, warmup_steps=1))
WITH_LABELS = replace(TINY, network=replace(NETWORK, classes=10))
FEW = evaluation.Conditions(n=70, steps=2, n_likelihood=4, num_times=3)
SAMPLE = ["--n", "4", "--steps", "2", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("few_resamples", "small_convolutions")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two finished runs, and what was released of them by the command."""
    place = tmp_path_factory.mktemp("place")
    write_idx(place / "data" / "MNIST" / "raw", n_train=90, n_test=80)
    digits, test = (data.mnist(place / "data", train) for train in (True, False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release, "RELEASED", place / "released")
        patch.setattr(release, "CONDITIONS", FEW)
        patch.setattr(config, "device", lambda: CPU)
        for name, experiment in (("tiny", TINY), ("tiny_labels", WITH_LABELS)):
            runs.train(experiment, digits, test, place / "runs" / name, CPU)
            arguments = [str(place / "runs" / name), name, "--data", str(place / "data")]
            patch.setattr(sys, "argv", ["release", *arguments])
            release.main()
    return place


@pytest.fixture
def releases(place, tmp_path, monkeypatch):
    """The same as those of the library, and a working folder."""
    monkeypatch.setattr("diffusion_lib.runs.run.RELEASED", place / "released")
    monkeypatch.setattr(release, "RELEASED", place / "released")
    monkeypatch.chdir(tmp_path)
    return place / "released"


def test_a_release_is_the_run_without_its_training_state(place, releases):
    for name in ("tiny", "tiny_labels"):
        run, made = contents(place / "runs" / name), contents(releases / name)
        assert made.keys() == {"experiment.json", "log.jsonl", "ema.safetensors", "release.json"}
        assert all(made[file] == run[file] for file in ("experiment.json", "log.jsonl"))
    assert runs.releases() == {name: releases / name for name in ("tiny", "tiny_labels")}


def test_its_weights_are_rounded_to_half_precision(place, releases):
    saved, made = (
        Denoiser.load(folder / "tiny" / "ema.safetensors") for folder in (place / "runs", releases)
    )
    saved.network.half()
    assert_same(made.network.state_dict(), saved.network.float().state_dict())
    assert_same(made.schedule.state_dict(), saved.schedule.state_dict())
    assert read_step(releases / "tiny" / "ema.safetensors") == 2
    path = releases / "tiny" / "ema.safetensors"
    assert path.stat().st_size < (place / "runs" / "tiny" / "ema.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["tiny", "tiny_labels"])
def test_its_record_says_how_it_was_trained_and_measured(name, place, releases):
    record = json.loads((releases / name / "release.json").read_text())
    assert record["training"]["steps"] == "2"
    assert record["training"]["device"].startswith("CPU")
    assert record["training"]["precision"] == "float32"
    assert record["training"]["torch"] == torch.__version__
    assert {"n": 70, "seed": 0, "sampler": "ddpm", "steps": 2}.items() <= (
        conditions := record["measured"]["conditions"]
    ).items()
    assert conditions.get("guidance") == (1.0 if "labels" in name else None)
    (path,) = (place / "runs" / name).glob("metrics*.json")
    measured = evaluation.load(path)
    assert record["measured"]["samples"] == measured["samples"]
    assert record["measured"]["floor"] == measured["floor"]


def test_a_release_stands_on_the_command_line_for_a_run(place, releases, tmp_path):
    before = contents(releases / "tiny")
    assert main(["sample", "released/tiny", *SAMPLE, "--out", "a.npz"]) == 0
    assert main(["sample", str(place / "runs" / "tiny"), *SAMPLE, "--out", "b.npz"]) == 0
    a, b = (np.load(name)["arr_0"] for name in ("a.npz", "b.npz"))
    assert np.array_equal(a, b)
    images = runs.sample(runs.released("tiny", CPU), 4, num_steps=2)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), a)
    assert main(["sample", "released/tiny", *SAMPLE]) == 0
    assert (tmp_path / "samples.png").exists()  # not among the files of the library
    assert contents(releases / "tiny") == before


def test_a_release_with_labels_is_guided(releases):
    labels = ["--labels", "3", "7", "--guidance", "2"]
    assert main(["sample", "released/tiny_labels", *SAMPLE, *labels, "--out", "a.npz"]) == 0
    guided = runs.released("tiny_labels", CPU).guided([3, 7], 2.0)
    images = runs.sample(guided, 4, num_steps=2).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load("a.npz")["arr_0"], images)


def test_a_release_is_measured_and_exported(place, releases, monkeypatch, capsys):
    monkeypatch.setattr("diffusion_lib.evaluation.record.files.write_json", lambda *_: None)
    few = ["--n", "0", "--n-likelihood", "4", "--num-times", "3", "--device", "cpu"]
    assert main(["evaluate", "released/tiny", "--data", str(place / "data"), *few]) == 0
    assert "|  | tiny | floor |" in capsys.readouterr().out
    monkeypatch.setitem(interop.FORMATS, "ours", Denoiser.save)
    assert main(["export", "released/tiny", "--format", "ours", "--out", "new"]) == 0
    denoiser = runs.released("tiny", CPU).denoiser
    assert_same(Denoiser.load("new").state_dict(), denoiser.state_dict())


def test_a_folder_on_disk_comes_first(place, releases, tmp_path, capsys):
    (tmp_path / "released" / "tiny").mkdir(parents=True)
    assert main(["sample", "released/tiny", *SAMPLE]) == 2
    assert "holds no trained run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tyni", "", "tiny/..", "../runs/tiny"])
def test_an_unknown_name_is_answered_with_those_there_are(name, releases):
    with pytest.raises(ValueError, match=r"is unknown.* Choose one of: tiny, tiny_labels\."):
        runs.released(name)


def test_an_unknown_name_on_the_command_line(releases, capsys):
    for command in (["sample"], ["evaluate"], ["export", "--format", "diffusers", "--out", "new"]):
        assert main([*command, "released/tiny_lable"]) == 2
        assert (
            "release 'tiny_lable' is unknown; did you mean tiny_labels" in capsys.readouterr().err
        )


def test_what_cannot_be_released_is_refused_before_it_is_measured(place, releases, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: pytest.fail("measured"))
    root, run = str(place / "data"), runs.load(place / "runs" / "tiny", CPU)
    with pytest.raises(FileExistsError, match="tiny exists: remove it first"):
        release.release(run, "tiny", root)
    with pytest.raises(ValueError, match=r"is at step 0 of 2: finish its training first"):
        release.release(replace(run, log=[]), "new", root)
    assert (release.limit("mnist"), release.limit("cifar10_jpeg")) == (5, 16)
    monkeypatch.setattr(release, "limit", lambda dataset: 0.01)
    with pytest.raises(ValueError, match=r"ema\.safetensors has .* at most 0\.01 MB: train a"):
        release.release(run, "new", root)
    assert not [*releases.glob("*new*")]
    assert {*runs.releases()} == {"tiny", "tiny_labels"}


def test_every_release_of_the_library_is_small_and_draws():
    for name, folder in runs.releases().items():
        assert folder.is_relative_to(ROOT)
        limit = release.limit(json.loads((folder / "experiment.json").read_text())["dataset"])
        assert all(path.stat().st_size <= limit * 1e6 for path in folder.iterdir())
        run = runs.released(name, CPU)
        labels = run.denoiser.config.classes
        images = runs.sample(run.guided([0], 2.0) if labels else run, 1, num_steps=4)
        assert images.shape == (1, *run.image_shape)
        record = json.loads((folder / "release.json").read_text())
        assert {"n", "seed", "sampler", "steps"} <= record["measured"]["conditions"].keys()
        assert ("guidance" in record["measured"]["conditions"]) == bool(labels)
        for part in ("training", "measured"):
            assert {"device", "precision"} <= record[part].keys()
