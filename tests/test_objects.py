"""What is said of the released network of photographs."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from benchmarks import common
from diffusion_lib import runs, samplers
from diffusion_lib.data import Images
from diffusion_lib.metrics import features
from other_tests.cifar10 import objects
from tests.helpers import random_images

SIZE = {"width": 8, "multipliers": (1,), "num_blocks": 1, "attention": (), "patch": 8}


def test_the_nearest_training_image_is_named():
    training = random_images(50, 3, 8, 8)
    assert objects.nearest(training[[7, 3]], training).tolist() == [7, 3]


@pytest.mark.slow
def test_every_setting_is_measured_and_what_is_guided_is_drawn(tmp_path, monkeypatch):
    experiment = common.CIFAR10_JPEG_LABELS
    experiment = replace(
        experiment,
        network=replace(experiment.network, **SIZE),
        train=replace(experiment.train, num_steps=2, batch_size=4, warmup_steps=1),
    )
    train, test = (Images(random_images(80, 3, 32, 32), torch.arange(80) % 10) for _ in range(2))
    run = runs.train(experiment, train, test.images, folder=tmp_path / "run")
    settings = {"no labels": objects.Setting(0.0, samplers.ddpm, 2)}
    settings[objects.GUIDED] = objects.Setting(2.0, samplers.dpm_solver, 2)
    monkeypatch.setattr(objects, "SETTINGS", settings)
    monkeypatch.setattr(objects, "N", 40)
    monkeypatch.setattr(objects, "GRID", tmp_path / "grid.png")
    monkeypatch.setattr(objects, "NEAREST", tmp_path / "nearest.png")
    judge = features.Classifier((3, 32, 32), features=4, widths=(4, 4))
    monkeypatch.setattr(features, "load", lambda dataset: judge)
    record = objects.measure(run, train, test)
    rows = objects.rows(record)
    assert [row["samples"] for row in rows] == [*settings, "real images: the floor"]
    assert [bool(row["as asked"]) for row in rows] == [False, True, False]
    assert [bool(row["copies"]) for row in rows] == [True, True, False]
    assert all(row["Frechet distance (first features)"] for row in rows)
    assert Image.open(tmp_path / "grid.png").width == Image.open(tmp_path / "nearest.png").width
