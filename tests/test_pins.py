"""What must not change: names, file formats, random numbers and results of before.

`pinned` was made with commit 28b6d9a, in float32 and with one thread: a training of 30 steps
("finished", and "stopped" after 12), what was measured of it, samples of it and a study.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from diffusion_lib import (
    compare,
    config,
    evaluation,
    losses,
    predictions,
    runs,
    samplers,
    schedules,
)
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.evaluation import Conditions
from diffusion_lib.networks.unet import UNetConfig
from diffusion_lib.system.device import overridden
from tests.helpers import random_images, write_idx

PINNED = Path(__file__).parent / "pinned"
CPU = torch.device("cpu")
PIXELS = random_images(100, 1, 28, 28)
TRAIN, HELD_OUT = Images(PIXELS[:30], torch.arange(30) % 10), PIXELS[30:]
NETWORK = UNetConfig(
    (1, 28, 28), 4, (1, 1), num_blocks=1, attention=(), dropout=0.1, patch=7, classes=10
)
# Every stream of random numbers: order, mirroring, times and noise, dropout, labels left out.
EXPERIMENT = replace(
    config.MNIST,
    network=NETWORK,
    T=40,
    schedule=schedules.cosine,
    prediction=predictions.v,
    weight=losses.min_snr,
    train=replace(config.MNIST.train, num_steps=30, batch_size=4, warmup_steps=5, mirror=0.5),
)
STUDY = {
    "preset": "mnist",
    "all": {
        "network": {"width": 4, "multipliers": [1, 1], "attention": [], "patch": 7},
        "T": 40,
        "train": {"batch_size": 4, "warmup_steps": 1},
    },
    "arms": {"eps": {}, "x_0": {"prediction": "x_0"}},
    "seeds": [0, 1],
    "steps": [2, 3],
    "conditions": {"n": 70, "steps": 2, "n_likelihood": 4, "num_times": 3},
}


@pytest.fixture(autouse=True)
def float32():
    """float32 whatever the processor, and one thread."""
    with overridden(precision="float32", threads=1):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_idx(root / "MNIST" / "raw", n_train=90, n_test=80)
    return root


def weights(denoiser):
    return denoiser.network.state_dict()


def assert_pinned(found):
    """Weights that are those of the finished training, up to the rounding of processors."""
    expected = weights(Denoiser.load(PINNED / "finished" / "ema.safetensors"))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def assert_near(found, expected, tolerance=1e-3):
    """Equal keys and texts; numbers up to the rounding of processors."""
    if isinstance(expected, dict):
        assert found.keys() >= expected.keys()
        for name, value in expected.items():
            assert_near(found[name], value, tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("mnist", "mnist-linear-eps-10000-352f8d8d"),
        ("mnist_diffusers", "mnist-linear-eps-10000-19d13b40"),
        ("fashion_mnist", "fashion_mnist-linear-eps-10000-60c1b3c1"),
        ("cifar10", "cifar10-linear-eps-800000-1e298f00"),
    ],
)
def test_presets_keep_their_names(preset, name):
    assert config.PRESETS[preset].name("x") == name


def test_an_experiment_is_recorded_as_it_was():
    recorded = json.loads((PINNED / "stopped" / "experiment.json").read_text())
    del recorded["images"]
    assert json.loads(EXPERIMENT.to_json()) == recorded
    assert config.Experiment.from_json(json.dumps(recorded)) == EXPERIMENT


def test_a_training_ends_with_the_same_weights(tmp_path):
    run = runs.train(EXPERIMENT, TRAIN, HELD_OUT, tmp_path / "run", CPU)
    assert_pinned(weights(run.denoiser))
    for file in ("experiment.json", "ema.safetensors", "training.safetensors", "log.jsonl"):
        assert (tmp_path / "run" / file).is_file()
    expected = json.loads((PINNED / "finished" / "log.jsonl").read_text().splitlines()[-1])
    assert_near(run.log[-1] | {"seconds": 0}, expected | {"seconds": 0})


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path):
    shutil.copytree(PINNED / "stopped", tmp_path / "run")
    run = runs.train(EXPERIMENT, TRAIN, HELD_OUT, tmp_path / "run", CPU)
    assert_pinned(weights(run.denoiser))
    assert [record.get("step") for record in run.log] == [None, 10, None, 20, 30]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["ema.safetensors", "training.safetensors"])
def test_files_of_weights_keep_their_keys(tmp_path, file):
    runs.train(EXPERIMENT, TRAIN, HELD_OUT, tmp_path / "run", CPU)
    path, former = tmp_path / "run" / file, PINNED / "stopped" / file
    with safe_open(path, "pt") as new, safe_open(former, "pt") as old:
        assert {*new.keys()} == {*old.keys()}
        expected, found = old.metadata(), new.metadata()
    assert found.keys() >= expected.keys()
    for name in expected.keys() - {"step", "crc32"}:
        assert found[name] == expected[name]


def test_samples_stay_the_same():
    run = runs.load(PINNED / "finished", CPU)
    with np.load(PINNED / "samples.npz") as pinned:
        for name in ("ddpm", "ddim", "dpm_solver", "heun"):
            found = runs.sample(run, 4, 1, getattr(samplers, name), 8)
            assert abs(found.numpy().astype(int) - pinned[name]).max() <= 1, name
        guided = runs.sample(run.guided(range(10), 2.0), 4, 1, samplers.ddim, 8)
        assert abs(guided.numpy().astype(int) - pinned["guided"]).max() <= 1


@pytest.mark.slow
def test_measurements_stay_the_same(tmp_path, root):
    shutil.copytree(PINNED / "finished", tmp_path / "finished")
    pinned = evaluation.load(tmp_path / "finished" / "metrics.json")
    conditions = Conditions(n=70, steps=4, n_likelihood=4, num_times=4)
    run = runs.load(tmp_path / "finished", CPU)
    assert evaluation.evaluate(run, conditions, root) == pinned  # is not measured again

    (tmp_path / "finished" / "metrics.json").unlink()
    found = evaluation.evaluate(run, conditions, root)
    for record in (found, pinned):
        del record["seconds"], record["device"]
    assert_near(found, pinned)


@pytest.mark.slow
def test_a_study_keeps_its_record_and_the_names_of_its_files(tmp_path, root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("study.json").write_text(json.dumps(STUDY))
    study = compare.read_study("study.json")
    found = compare.compare(study, root, CPU)
    pinned = compare.load(PINNED / "study.record.json")
    assert_near({**found, "devices": 0, "measured": 0}, {**pinned, "devices": 0, "measured": 0})
    for one, other in zip(found["measured"], pinned["measured"], strict=True):
        assert_near(one | {"samples": 0}, other | {"samples": 0})
    for arm, steps in (("eps", 2), ("x_0", 3)):
        shown, before = (
            compare.stored_samples(record, arm, steps).int() for record in (found, pinned)
        )
        assert (shown - before).abs().max() <= 1
    assert sorted(path.name for path in Path("runs").iterdir() if path.is_dir()) == [
        "mnist-linear-eps-2-403af118",
        "mnist-linear-eps-2-9ab0b680",
        "mnist-linear-eps-3-2d02155e",
        "mnist-linear-eps-3-f1e0b6ee",
        "mnist-linear-x_0-2-87873828",
        "mnist-linear-x_0-2-d08c7e50",
        "mnist-linear-x_0-3-1094c1f2",
        "mnist-linear-x_0-3-c8940448",
    ]
    # Their name is a digest of the conditions: under another one all would be measured again.
    assert {path.name for path in Path("runs").glob("*/compared-*")} == {"compared-d47aad2c.json"}


def committed_studies():
    paths = (Path(__file__).parent.parent / "other_tests").glob("*/*.record.json")
    records = {path.name: json.loads(path.read_text()) for path in sorted(paths)}
    return {name: record for name, record in records.items() if "arms" in record}


@pytest.mark.parametrize("name", committed_studies())
def test_committed_studies_would_be_named_as_they_are(name):
    """The digest of `Conditions` names files, so its fields and their order stay; an experiment's
    record names runs."""
    record = committed_studies()[name]
    fields = ["n", "sampler", "steps", "seed", "n_likelihood", "num_times"]
    for conditions in record["conditions"].values():
        assert [field for field in conditions if field in fields] == fields
        assert [*vars(Conditions(**{field: conditions[field] for field in fields}))] == fields
    for arm in record["arms"].values():
        if "#" in arm["schedule"]:  # a function of the experiment's own has no name to be read by
            continue
        whole = arm | {"train": arm["train"] | {"seed": 0, "num_steps": 10_000}}
        again = json.loads(config.Experiment.from_json(json.dumps(whole)).to_json())
        assert again == whole
