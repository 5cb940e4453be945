import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lib import data, evaluation, runs
from diffusion_lib.cli import main
from diffusion_lib.data import Images
from diffusion_lib.evaluation import Conditions
from diffusion_lib.metrics import features
from diffusion_lib.system import files
from tests.helpers import full_disk, write_idx

pytestmark = pytest.mark.usefixtures("small_preset", "few_resamples")
QUICK = ["--n", "70", "--steps", "2", "--n-likelihood", "4", "--num-times", "3", "--device", "cpu"]
FEW = Conditions(n=70, steps=2, n_likelihood=4, num_times=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_idx(folder / "MNIST" / "raw", n_train=90, n_test=80)
    return folder


@pytest.fixture(scope="module")
def trained(root, small_preset, tmp_path_factory):
    """Two runs that differ in the schedule."""
    folders = []
    for schedule in ("linear", "cosine"):
        folders.append(tmp_path_factory.mktemp("runs") / schedule)
        flags = ["--budget", "smoke", "--data", str(root), "--schedule", schedule]
        assert main(["train", "mnist", "--out", str(folders[-1]), *flags]) == 0
    return folders


@pytest.fixture
def run(trained):
    """The first run, not measured yet."""
    (trained[0] / "metrics.json").unlink(missing_ok=True)
    return runs.load(trained[0], torch.device("cpu"))


def test_runs_are_measured_and_printed_side_by_side(trained, root, capsys):
    arguments = ["evaluate", *map(str, trained), "--data", str(root), *QUICK]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "|  | linear | cosine | floor |" in printed
    for metric in ("Frechet distance", "bits per dim", "nearest training image"):
        assert re.search(rf"\| {metric}.*\[.*\].*\|", printed), metric
    for folder in trained:
        record = json.loads((folder / "metrics.json").read_text())
        conditions = record["conditions"]
        assert conditions["n"] == 70
        assert conditions["steps"] == 2
        assert conditions["reference"] == "mnist test, 80 images"
        assert conditions["images seen"] == 4 * 8
        assert conditions["features sha256"] == features.RELEASED["mnist"][1]
        assert record["samples"].keys() == record["floor"].keys()
        bits = record["likelihood"]["bits per dim"]
        assert bits["low"] < bits["value"] < bits["high"]
        assert record["errors"]["t"][0] == 1
        assert set(record["seconds"]) == {"sampling", "metrics of samples", "likelihood and errors"}
    before = (trained[0] / "metrics.json").stat().st_mtime_ns
    assert main(arguments) == 0  # nothing is measured twice
    assert capsys.readouterr().out == printed
    assert (trained[0] / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_records_made_under_different_conditions_are_not_compared(run, root):
    one = evaluation.evaluate(run, FEW, root)
    other = json.loads(json.dumps(one))
    other["conditions"] |= {"n": 71, "reference": "mnist train"}
    with pytest.raises(ValueError, match=r"cannot be compared: n: 70 and 71; reference: 'mnist te"):
        evaluation.table([one, other])


@pytest.mark.slow
def test_other_conditions_or_weights_are_measured_anew(run, root):
    first = evaluation.evaluate(run, FEW, root)
    assert evaluation.evaluate(run, FEW, root) == first
    again = evaluation.evaluate(run, Conditions(71, "ddim", 2, 0, 4, 3), root)
    assert again["conditions"]["sampler"] == "ddim"
    path = run.folder / "metrics.json"
    record = json.loads(path.read_text()) | {"weights sha256": "other"}
    path.write_text(json.dumps(record))
    fresh = evaluation.evaluate(run, Conditions(71, "ddim", 2, 0, 4, 3), root)
    assert fresh["weights sha256"] == first["weights sha256"]


def test_differences_have_intervals_and_one_axis(trained, root):
    a, b = (runs.load(folder, torch.device("cpu")) for folder in trained)
    one, other = (evaluation.evaluate(run, FEW, root) for run in (a, b))
    gaps = evaluation.differences(one, other)
    assert [*gaps] == [*evaluation.differences(one, one)]
    assert all(0 in gap for gap in evaluation.differences(one, one).values())
    far = json.loads(json.dumps(one))
    far["samples"]["recall"] = {"value": 0.5, "low": 0.46, "high": 0.54}
    bits = far["likelihood"]["per image"]
    far["likelihood"]["per image"] = [bit + 0.01 for bit in bits]  # of the same images: paired
    near = json.loads(json.dumps(one))
    near["samples"]["recall"] = {"value": 0.4, "low": 0.37, "high": 0.43}
    gaps = evaluation.differences(far, near)
    assert f"{gaps['recall']:.2f}" == "0.10\xa0[0.05,\xa00.15]"
    assert f"{gaps['bits per dim']:.2f}" == "0.01\xa0[0.01,\xa00.01]"
    rows = {name: (interval, text) for name, interval, text in evaluation.effects({"far": gaps})}
    assert [*rows][:2] == ["Frechet distance, far", "kernel distance, far"]
    interval, text = rows["recall, far"]  # more is better
    assert [*interval] == pytest.approx([-2, -3, -1])
    assert text == f"{gaps['recall']}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 64}, "64 samples, but the features have 64 dimensions"),
        ({"n": 85}, "n is 85, but mnist has 90 images to train and 80 to test on: .* at most 80"),
        ({"n_likelihood": 81}, "n_likelihood is 81, .* 80 to test on: .* at most 80"),
        ({"sampler": "dim"}, "did you mean ddim"),
        ({"steps": 0}, "steps must be a whole number, at least 1; got 0"),
        ({"n": -5}, "n must be a whole number, at least 0; got -5"),
        ({"n_likelihood": 1}, "n_likelihood must be a whole number, at least 2; got 1"),
        ({"num_times": 1}, "num_times must be a whole number, at least 2; got 1"),
        ({"steps": 1001}, "1001 sampling steps, but this schedule has T = 1000"),
    ],
)
def test_impossible_conditions_are_refused(run, root, change, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(run, Conditions(**(vars(FEW) | change)), root)
    assert not (run.folder / "metrics.json").exists()


# ---- sample files --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_of_samples_is_measured_in_place_of_new_ones(run, root, tmp_path, capsys):
    path = tmp_path / "x.npz"
    images = np.random.default_rng(0).integers(0, 256, (75, 28, 28, 1), dtype=np.uint8)
    np.savez(path, images)
    arguments = ["evaluate", str(run.folder), "--samples", str(path), "--data", str(root)]
    assert main([*arguments, *QUICK]) == 0
    assert not (run.folder / "metrics.json").exists()
    (found,) = run.folder.glob("metrics-*.json")
    record = evaluation.load(found)
    assert record["conditions"]["n"] == 75
    assert record["conditions"]["sampler"] == "given"
    assert found.stem == f"metrics-{record['samples sha256'][:8]}"
    read = evaluation.read_samples(path, (1, 28, 28))
    assert torch.equal(read, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert main(["evaluate", *2 * [str(run.folder)], "--samples", str(path)]) == 2
    assert "--samples is of one run, but 2 were named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 28, 28), np.uint8), r"uint8 \[3, 28, 28\] of values 0 to 0; expected"),
        (np.zeros((3, 1, 28, 28), np.uint8), r"uint8 \[3, 1, 28, 28\] of values 0 to 0; expected"),
        (np.zeros((0, 28, 28, 1), np.uint8), r"uint8 \[0, 28, 28, 1\]; expected"),
        (np.ones((3, 28, 28, 1), np.uint8), r"of values 1 to 1; expected .* pixels being 0..255"),
        (np.full((3, 28, 28, 1), 0.5), r"float64 .* of values 0.5 to 0.5; expected"),
        (np.full((3, 28, 28, 1), np.nan), r"of values nan to nan; expected"),
        (np.array([{}, {}], dtype=object), "does not hold an array arr_0 of uint8"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path, array, message):
    path = tmp_path / "x.npz"
    np.savez(path, array)
    with pytest.raises(ValueError, match=message):
        evaluation.read_samples(path, (1, 28, 28))


def test_files_that_are_no_samples_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.npz does not exist"):
        evaluation.read_samples(tmp_path / "x.npz", (1, 28, 28))
    for content in (b"", b"PK\x03\x04", b"not a zip"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match="does not hold an array arr_0"):
            evaluation.read_samples(tmp_path / "x.npz", (1, 28, 28))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("arr_0", b"raw")
    with pytest.raises(ValueError, match=r"holds \|S3 \[\]; expected"):
        evaluation.read_samples(tmp_path / "x.npz", (1, 28, 28))
    np.save(tmp_path / "x.npy", np.zeros((3, 28, 28, 1), np.uint8))
    with pytest.raises(ValueError, match="does not hold an array arr_0"):
        evaluation.read_samples(tmp_path / "x.npy", (1, 28, 28))
    np.savez_compressed(tmp_path / "x.npz", np.arange(28 * 28 * 3, dtype=np.uint8))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    for place in range(40, len(content) - 1, 7):  # damage in any place is an error of ours, or none
        damaged = content.copy()
        damaged[place] ^= 0xFF
        (tmp_path / "x.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="arr_0"):
            evaluation.read_samples(tmp_path / "x.npz", (1, 28, 28))
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 28, 28, 1), np.uint8))
    with pytest.raises(ValueError, match="does not hold an array arr_0"):
        evaluation.read_samples(tmp_path / "x.npz", (1, 28, 28))


@pytest.mark.slow
def test_a_damaged_record_is_measured_again(run, root):
    first = evaluation.evaluate(run, FEW, root)
    (run.folder / "metrics.json").write_text("{")
    again = evaluation.evaluate(run, FEW, root)
    assert again["samples"] == first["samples"]
    assert evaluation.load(run.folder / "metrics.json") == again


@pytest.mark.slow
def test_equal_experiments_stay_apart_in_a_table(run, root):
    one = evaluation.evaluate(run, FEW, root)
    assert len(set(evaluation.distinguishing_labels([one, one, one]))) == 3
    rows = evaluation.table([one, one])
    assert len(rows[0]) == 4  # the metric, two runs, the floor


@pytest.mark.slow
def test_runs_that_cannot_be_compared_are_told_before_anything_is_measured(
    run, root, tmp_path, capsys
):
    longer = ["--budget", "smoke", "--steps", "5", "--data", str(root)]
    assert main(["train", "mnist", "--out", str(tmp_path / "longer"), *longer]) == 0
    folders = [str(run.folder), str(tmp_path / "longer")]
    assert main(["evaluate", *folders, "--data", str(root), *QUICK]) == 2
    assert "images seen: 32 and 40" in capsys.readouterr().err
    assert not (run.folder / "metrics.json").exists()


def test_a_run_that_returns_nan_is_refused(run, root):
    network = run.denoiser.network
    next(network.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        evaluation.evaluate(run, FEW, root)
    assert not (run.folder / "metrics.json").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "x"}', "no"])
def test_files_that_are_no_records_are_refused(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match="is not a record of measurements"):
        evaluation.load(tmp_path / "metrics.json")
    with pytest.raises(FileNotFoundError):
        evaluation.load(tmp_path / "nothing.json")


@pytest.mark.slow
def test_samples_like_the_training_images_are_found_out():
    """A run that only copies: good distances, and nearest training images at distance 0."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8, generator=generator)
    train, test = images[:300], images[300:]
    found = evaluation.measure_samples(train[:90], train, test, features.load("mnist"))
    assert found["samples"]["nearest training image"]["value"] < 0.1
    assert found["samples"]["copies"]["value"] == 1
    assert found["floor"]["nearest training image"]["value"] > 50


# ---- data sets of one's own, and places that cannot be written ------------------------------


def doodles(root, train):
    """A data set of one's own, as large as a digit."""
    generator = torch.Generator().manual_seed(int(train))
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return data.Images(images, torch.zeros(20, dtype=torch.int64))


@pytest.fixture
def own(run, tmp_path):
    """The run, as if it had been trained on `doodles`."""
    for path in run.folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    described = json.loads((tmp_path / "experiment.json").read_text())
    (tmp_path / "experiment.json").write_text(json.dumps(described | {"dataset": "doodles"}))
    return runs.load(tmp_path, torch.device("cpu"))


def test_a_data_set_without_features_is_measured_without_samples(own):
    with pytest.raises(ValueError, match=r"'doodles' is unknown.*dataset=photos.*--images FOLDER"):
        evaluation.evaluate(own, FEW)
    with pytest.warns(UserWarning, match="no feature network is released for .*'doodles'"):
        record = evaluation.evaluate(own, FEW, dataset=doodles)
    assert record["conditions"]["features sha256"] == "none is released"
    assert record["conditions"]["n"] == 0
    assert not record.keys() & {"samples", "floor"}
    assert len(record["likelihood"]["per image"]) == 4
    assert record["errors"]["t"][0] == 1
    assert set(record["seconds"]) == {"likelihood and errors"}
    assert evaluation.load(own.folder / "metrics.json") == record
    assert evaluation.evaluate(own, FEW, dataset=doodles) == record  # not measured again


@pytest.mark.slow
def test_records_without_samples_are_tabulated_and_compared(own):
    with pytest.warns(UserWarning, match="no feature network"):
        record = evaluation.evaluate(own, FEW, dataset=doodles)
    rows = [row[""] for row in evaluation.table([record, record])]
    assert rows[0] == "bits per dim (bound)"
    assert "seconds to evaluate" in rows
    assert [*evaluation.differences(record, record)] == ["bits per dim"]
    assert len(evaluation.distinguishing_labels([record, record])) == 2


@pytest.mark.slow
def test_other_pictures_under_the_same_name_are_measured_anew(own):
    def other(root, train):
        return data.Images(doodles(root, train).images.flip(0), torch.zeros(20, dtype=torch.int64))

    other.__name__ = "doodles"
    with pytest.warns(UserWarning, match="no feature network"):
        one, two = (evaluation.evaluate(own, FEW, dataset=d) for d in (doodles, other))
    assert one["conditions"]["reference"].startswith("doodles test, 20 images, sha256 ")
    assert one["conditions"] != two["conditions"]
    with pytest.raises(ValueError, match="cannot be compared: reference"):
        evaluation.table([one, two])


@pytest.mark.slow
def test_a_named_data_set_given_as_a_function_makes_the_same_record(run, root):
    first = evaluation.evaluate(run, FEW, root)
    assert evaluation.evaluate(run, FEW, root, dataset=data.mnist) == first


@pytest.mark.slow
def test_no_samples_are_measured_where_none_are_asked_for(run, root):
    record = evaluation.evaluate(run, Conditions(n=0, n_likelihood=4, num_times=3), root)
    assert not record.keys() & {"samples", "floor"}
    assert record["conditions"]["sampler"] is None


def test_samples_of_a_data_set_without_features_are_refused(own):
    samples = torch.zeros(70, 1, 28, 28, dtype=torch.uint8)
    with pytest.raises(ValueError, match="no feature network is released for 'doodles'"):
        evaluation.evaluate(own, FEW, samples=samples, dataset=doodles)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda root, train: doodles(root, train) if train else None, "got NoneType"),
        (
            lambda root, train: data.Images(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), None),
            r"shape \[N, 1, 28, 28\]",
        ),
    ],
)
def test_a_function_that_is_no_data_set_is_refused(own, dataset, message):
    with pytest.raises((TypeError, ValueError), match=message):
        evaluation.evaluate(own, FEW, dataset=dataset)


@pytest.mark.slow
def test_a_record_that_cannot_be_written_is_returned(run, root, monkeypatch):
    monkeypatch.setattr(files, "write_text", full_disk)
    with pytest.warns(UserWarning, match=r"is returned, but not kept there .*No space left"):
        record = evaluation.evaluate(run, FEW, root)
    assert record["likelihood"]["bits per dim"]["value"] > 0
    assert not (run.folder / "metrics.json").exists()


def test_what_is_no_file_of_samples_is_answered_with_the_way(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is a folder: give an \.npz file"):
        evaluation.read_samples(tmp_path, (1, 28, 28))
    with pytest.raises(FileNotFoundError, match="is a folder: give a record of measurements"):
        evaluation.load(tmp_path)
    (tmp_path / "x.PNG").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"it is not an \.npz file") as refusal:
        evaluation.read_samples(tmp_path / "x.PNG", (1, 28, 28))
    assert "pickle" not in str(refusal.value)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images)
    upper = Path(tmp_path / "x.npz").rename(tmp_path / "X.NPZ")
    assert len(evaluation.read_samples(upper, (1, 28, 28))) == 3


def test_samples_of_more_numbers_than_any_memory_holds_are_refused(tmp_path):
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**15, 28, 28, 1)}
    with (
        zipfile.ZipFile(tmp_path / "x.npz", "w") as archive,
        archive.open("arr_0.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"x\.npz does not hold an array arr_0"):
        evaluation.read_samples(tmp_path / "x.npz", (1, 28, 28))


@pytest.mark.slow
def test_a_run_of_half_precision_is_measured(run, root):
    run.denoiser.bfloat16()
    conditions = Conditions(n=0, n_likelihood=4, num_times=2)
    assert evaluation.evaluate(run, conditions, root)["likelihood"]["bits per dim"]["value"] > 0


@pytest.mark.slow
def test_samples_and_data_sets_may_be_arrays_and_pairs(run, root):
    """Whatever is taken for images in a training is so here too."""

    def pairs(root, train):
        images, labels = data.mnist(root, train)
        return Images(images.numpy(), labels.tolist())

    conditions = Conditions(n=0, n_likelihood=4, num_times=2)
    found = evaluation.evaluate(run, conditions, root, dataset=pairs)
    assert found["likelihood"]["bits per dim"]["value"] > 0
    assert found["precision"] in ("float32", "bfloat16")
    images = runs.sample(run, 70, num_steps=2)
    given = [
        evaluation.evaluate(run, conditions, root, samples)["samples"]
        for samples in (images, images.numpy(), (images, None))
    ]
    assert given[0] == given[1] == given[2]
