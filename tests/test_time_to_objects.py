"""Quality against minutes: a record that goes on where it stopped, its table and its figure."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from benchmarks import common, diffusers_loop, objects_trials
from benchmarks import time_to_objects as objects
from benchmarks.diffusers_loop import DiffusersExample
from benchmarks.speedrun import Recipe
from diffusion_lib import metrics
from diffusion_lib.data import Images
from diffusion_lib.metrics import features
from tests.helpers import random_images, use_small_judges

MEASURED = {"Frechet distance": [5, 4, 6], "precision": [0.9, 0.8, 1.0], "recall": [0.6, 0.5, 0.7]}
MEASURED |= {name + objects.FIRST: MEASURED[name] for name in ("Frechet distance", "recall")}
MEASURED |= {"confidence > 0.9": [0.7, 0.6, 0.8]}
IMAGES = Images(random_images(80, 3, 32, 32), torch.arange(80) % 10)
ASKED = MEASURED | {"as asked": [0.8, 0.7, 0.9]}


def row(way, minutes, samples):
    sizes = {"steps": 100, "images": 6400, "parameters": 6_500_000, "computed in": "bfloat16"}
    conditions = {"way": way, "minutes": minutes, "seed": 0, "seconds": 60 * minutes}
    return conditions | sizes | {"samples": samples}


RECORD = {"device": "CPU", "processor": "known", "torch": "2", "n": 1000, "reference": 10_000}
RECORD |= {"sampler": "ddpm, 50 steps", "features sha256": ["a" * 64, "b" * 64], "floor": MEASURED}
RECORD["rows"] = [row(w, m, s) for m in (12, 40) for w, s in (("a", ASKED), ("b", MEASURED))]


def test_the_table_has_a_row_for_each_training_and_the_floor():
    assert objects.summary({}) == ()
    *_, rows, text = objects.summary({"time_to_objects": RECORD})
    assert [(r[""], r["minutes"]) for r in rows[:2]] == [
        ("a, seed 0", "12.0"),
        ("b, seed 0", "12.0"),
    ]
    assert rows[0]["as asked"].startswith("80.0%")
    assert rows[1]["as asked"] == rows[4]["as asked"] == ""
    assert len(rows) == 5
    assert "1,000 samples" in text


def test_the_figure_has_a_line_for_each_way_and_the_floor():
    (axis,) = objects.draw(RECORD).axes
    assert [line.get_label() for line in axis.lines] == ["a", "b", "real images"]
    assert [[*line.get_xdata()] for line in axis.lines] == [[12, 40]] * 3


def test_the_first_recipe_is_the_pilots():
    experiment = common.CIFAR10_ADAMW
    assert experiment.network.classes == 10
    assert (experiment.prediction.__name__, experiment.weight.__name__) == ("v", "min_snr")
    assert (experiment.train.cooldown, experiment.train.mirror) == (0.4, 0.5)


@pytest.mark.slow
def test_the_example_warms_up_and_ends_in_a_cosine(monkeypatch):
    rates = []

    def updates(network, scheduler, optimizer, batches, seconds):
        for elapsed in (0, 5, 10, 50, 100):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            yield elapsed
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(diffusers_loop, "updates", updates)
    images = Images(random_images(16, 3, 32, 32), torch.zeros(16))
    trained = DiffusersExample(100, widths=(32, 32, 32)).train(images, 0)
    assert trained.steps == 5
    assert rates[0] == 0
    assert rates[1] == pytest.approx(1e-4 / 500)
    assert rates[2:] == pytest.approx([0.497e-4, 0.9755e-4, 0.5e-4, 0], rel=1e-3)


def small(classes):
    """The recipe with a small network and batches of 2."""
    size = {"width": 8, "multipliers": (1,), "num_blocks": 1, "attention": (), "patch": 8}
    return replace(
        common.CIFAR10_JPEG,
        network=replace(common.CIFAR10_JPEG.network, classes=classes, **size),
        train=replace(common.CIFAR10_JPEG.train, batch_size=2),
    )


def test_each_judge_measures_in_its_own_features_and_the_floor_is_held_out(monkeypatch):
    use_small_judges(monkeypatch)
    monkeypatch.setattr(objects, "N", 20)
    judge = objects.Judge(IMAGES.images)
    every = torch.cat([judge.held_out, IMAGES.images]).flatten(1)
    assert judge.count == 60
    assert len(every.unique(dim=0)) == len(IMAGES.images.flatten(1).unique(dim=0))
    samples = random_images(20, 3, 32, 32)
    measured = judge.measure(samples)
    for suffix, name in objects.JUDGES.items():
        network = features.load(name)
        quality = metrics.quality(network.extract_features(samples), judge.references[suffix])
        expected = common.rounded(quality["Frechet distance"])
        assert measured["Frechet distance" + suffix] == expected
    assert len({measured["Frechet distance" + suffix][0] for suffix in objects.JUDGES}) == 2


@pytest.mark.slow
def test_all_ways_are_trained_measured_and_not_again(tmp_path, monkeypatch):
    tiny = [
        Recipe(small(classes), num_steps=2, guidance=guidance)
        for classes, guidance in ((10, 2.0), (0, None))
    ]
    tiny.append(DiffusersExample(num_steps=2, widths=(32, 32, 32), batch_size=2))
    monkeypatch.setattr(objects, "WAYS", dict(zip(objects.WAYS, tiny, strict=True)))
    monkeypatch.setattr(objects, "N", 20)
    monkeypatch.setattr(common, "machine", lambda device: {"device": "CPU", "GFLOP/s, float32": 1})
    use_small_judges(monkeypatch)
    monkeypatch.setenv("DIFFUSION_RUNS", str(tmp_path / "runs"))
    out = tmp_path / "time_to_objects.json"

    def measure(*minutes):
        objects.measure(out, minutes, [0], IMAGES, IMAGES)
        return json.loads(out.read_text())

    record = measure(0.002)
    assert [row["way"] for row in record["rows"]] == [*objects.WAYS]
    for row in record["rows"]:
        assert row["images"] == 2 * row["steps"] > 0
        for value, low, high in row["samples"].values():
            assert low <= value <= high
    assert {*objects.COLUMNS} == {*record["rows"][0]["samples"]}
    asked = ["as asked" in row["samples"] for row in record["rows"]]
    assert asked == [True, False, False]
    assert [row["computed in"] for row in record["rows"]][2] == "float32"
    pictures = [Image.open(path) for path in sorted((tmp_path / out.stem).iterdir())]
    assert [picture.size for picture in pictures] == [(331, 67)] * 3
    assert out.with_suffix(".png").exists()
    assert measure(0.002) == record
    out.write_text(json.dumps(record | {"rows": []}))  # as if stopped while it sampled
    for way in (Recipe, DiffusersExample):
        monkeypatch.setattr(way, "train", lambda *of: pytest.fail("trained again"))
    again = measure(0.002)
    for row in (*record["rows"], *again["rows"]):
        del row["seconds of sampling"]
    assert again == record
    monkeypatch.setattr(objects, "N", 21)
    with pytest.raises(SystemExit, match="of another n and reference: move it away"):
        measure(0.002)


@pytest.mark.slow
def test_trials_are_added_to_their_record(tmp_path, monkeypatch):
    monkeypatch.setattr(objects_trials, "OUT", tmp_path / "objects_trials.json")
    monkeypatch.setenv("DIFFUSION_RUNS", str(tmp_path))
    monkeypatch.setattr(common, "CIFAR10_ADAMW", small(10))
    monkeypatch.setattr(objects, "N", 20)
    monkeypatch.setattr(objects, "STEPS", 2)
    use_small_judges(monkeypatch)
    monkeypatch.setattr(objects_trials.data, "load_splits", lambda *of: (IMAGES, IMAGES))
    names = ["Muon", "AdamW"]
    monkeypatch.setattr("sys.argv", ["", *names, "--images", "6"])
    objects_trials.main()
    objects_trials.main()  # nothing is missing
    monkeypatch.setattr("sys.argv", ["", *names, "--images", "0"])
    with pytest.raises(SystemExit, match="--images 0: give a batch"):
        objects_trials.main()
    rows = objects_trials.trials()
    assert [row["trial"] for row in rows] == names
    assert [(row["images"], row["steps"]) for row in rows] == [(6, 3)] * 2
    assert (rows[0]["changed"]["optimizer"], rows[1]["changed"]) == ("muon", {})
    assert "as asked" in rows[1]["samples"]
    table = objects_trials.table(rows)
    assert {row["trial"] for row in table} == {*names}
    assert table[0].keys() == {"trial", "parameters", *objects_trials.CELLS}
    assert {path.stem for path in (tmp_path / "objects_trials").iterdir()} == {*names}


def test_no_row_of_several_writers_is_lost(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    monkeypatch.setenv("DIFFUSION_RUNS", str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda k: common.add_row(path, "trials", {"trial": k}), range(16))]
    rows = json.loads(path.read_text())["trials"]
    assert sorted(row["trial"] for row in rows) == [*range(16)]


@pytest.mark.parametrize("name", objects_trials.TRIALS)
def test_a_trial_is_the_first_recipe_with_what_differs(name):
    changed = common.CIFAR10_ADAMW.changed(objects_trials.TRIALS[name])
    assert (changed == common.CIFAR10_ADAMW) == (name == "AdamW")
