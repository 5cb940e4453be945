"""What is measured of a network of photographs."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from benchmarks import common, time_to_objects
from diffusion_lib import runs, samplers
from diffusion_lib.data import Images
from other_tests.cifar10 import objects
from tests.helpers import random_images, use_small_judges

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
    images, labels = random_images(80, 3, 32, 32), torch.arange(80) % 10
    train, test = Images(images, labels), Images(255 - images, labels)
    run = runs.train(experiment, train, test.images, folder=tmp_path / "run")
    settings = {"no labels": objects.Setting(0.0, samplers.ddpm, 2)}
    settings[objects.GUIDED] = objects.Setting(2.0, samplers.dpm_solver, 2)
    monkeypatch.setattr(objects, "SETTINGS", {"no labels": settings["no labels"]})
    monkeypatch.setattr(objects, "N", 40)
    monkeypatch.setattr(time_to_objects, "N", 40)
    monkeypatch.setattr(objects, "GRID", tmp_path / "grid.png")
    monkeypatch.setattr(objects, "NEAREST", tmp_path / "nearest.png")
    use_small_judges(monkeypatch)
    path = tmp_path / "objects.json"
    objects.measure(path, run, train, test)
    first = json.loads(path.read_text())
    assert not (tmp_path / "grid.png").exists()
    monkeypatch.setattr(objects, "SETTINGS", settings)
    objects.measure(path, run, train, test)  # what is missing alone
    record = json.loads(path.read_text())
    assert record["settings"]["no labels"] == first["settings"]["no labels"]
    assert (record["floor"], record["reference"]) == (first["floor"], 40)
    rows = objects.rows(record)
    assert [row["samples"] for row in rows] == [*settings, "real images: the floor"]
    assert [bool(row["as asked"]) for row in rows] == [False, True, False]
    assert [bool(row["copies"]) for row in rows] == [True, True, False]
    assert all(row["Frechet distance (first features)"] for row in rows)
    table, text = objects.summary(record)
    assert table == rows
    assert "40 samples of each" in text
    assert "2 steps of 4 images" in text
    assert Image.open(tmp_path / "grid.png").width == Image.open(tmp_path / "nearest.png").width
    with pytest.raises(ValueError, match="was trained on other images than the 80 of"):
        objects.measure(path, run, test, train)
