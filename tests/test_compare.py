import json
import math
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion_lib import compare, config, data, predictions, runs, schedules
from diffusion_lib.cli import main
from diffusion_lib.compare import paired
from diffusion_lib.evaluation import Conditions
from diffusion_lib.networks.unet import UNetConfig
from diffusion_lib.runs import driver
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from tests import processes
from tests.helpers import write_idx

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
TINY = replace(
    config.MNIST,
    network=UNetConfig((1, 28, 28), 4, (1,), num_blocks=1, attention=(), dropout=0.0, patch=7),
    T=40,
    train=replace(config.MNIST.train, batch_size=4, warmup_steps=1),
)
ERRORS_ONLY = Conditions(n=0, n_likelihood=8, num_times=4)
STUDY = {
    "preset": "mnist",
    "all": {
        "network": {"width": 4, "multipliers": [1], "attention": [], "patch": 7},
        "T": 40,
        "train": {"batch_size": 4, "warmup_steps": 1},
    },
    "arms": {"eps": {}, "x_0": {"prediction": "x_0"}},
    "seeds": [0, 1],
    "steps": [2, 3],
    "conditions": {"n": 70, "steps": 2, "n_likelihood": 4, "num_times": 3},
}


def never_noise(T: int) -> NoiseSchedule:
    """Broken: x_T is still the picture."""
    return NoiseSchedule.from_betas(torch.full((T,), 1e-4))


def linear_again(T: int) -> NoiseSchedule:
    """`linear` under another name: an arm with it is trained and measured on its own."""
    return schedules.linear(T)


def untimed(record):
    """A record without what its trainings took, which differs between two of them."""
    assert all(row["seconds"] >= 0 for row in record["measured"])  # 0.0 of the shortest
    rows = [{**row, "seconds": 0} for row in record["measured"]]
    return record | {"measured": rows}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_idx(folder / "MNIST" / "raw", n_train=90, n_test=80)
    return folder


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    """The record of STUDY, run from beginning to end with one thread."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(tmp_path_factory.mktemp("undisturbed"))
    try:
        torch.set_num_threads(1)
        Path("study.json").write_text(json.dumps(STUDY))
        return compare.compare(compare.read_study("study.json"), root, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
        os.chdir(before)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def record(root, tmp_path_factory):
    """Three arms, two of them the same but in name, three seeds, two numbers of steps."""
    arms = {
        "eps": TINY,
        "again": replace(TINY, schedule=linear_again),
        "broken": replace(TINY, schedule=never_noise),
    }
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("study"))
    try:
        return compare.compare(
            compare.Study(arms, (0, 1, 2), (2, 1), ERRORS_ONLY), root, torch.device("cpu")
        )
    finally:
        os.chdir(before)


@pytest.mark.slow
def test_identical_arms_are_not_distinguishable(record):
    for measure in record["measured"][0]["measures"]:
        found = compare.difference(record, measure, 2, "eps", "again")
        assert (found.value, found.low, found.high) == (0, 0, 0)
        assert found.verdict == "not distinguishable"


@pytest.mark.slow
def test_a_broken_schedule_is_found_out(record):
    for measure in ("bits per dim", "x_0 error", "eps error", "v error"):
        found = compare.difference(record, measure, 2, "broken", "eps")
        assert found.n == 3
        assert found.low < found.value < found.high
        assert found.low > 0 or found.high < 0
        assert found.verdict == ("lower" if found.value < 0 else "higher")
        back = compare.difference(record, measure, 2, "eps", "broken")
        assert back.value == -found.value
        assert back.verdict == ("higher" if found.value < 0 else "lower")


@pytest.mark.slow
def test_a_record_holds_each_arm_seed_and_number_of_steps_once(record):
    told = [(row["arm"], row["seed"], row["steps"]) for row in record["measured"]]
    wanted = [
        (arm, seed, steps)
        for arm in ("eps", "again", "broken")
        for seed in (0, 1, 2)
        for steps in (1, 2)
    ]
    assert told == wanted
    assert [row["images seen"] for row in record["measured"]] == [4, 8] * 9
    for shorter, longer in zip(*[iter(record["measured"])] * 2, strict=True):
        assert shorter["seconds"] <= longer["seconds"]  # which went on from the shorter
        assert shorter["processor"] == longer["processor"] != ""
    assert record["devices"] == [
        f"{hardware.name(CPU)}, {hardware.precision(CPU)}, {hardware.layout(CPU)}"
    ]
    assert record["floor"] == {}


@pytest.mark.slow
def test_a_study_without_samples_shows_none(record):
    with pytest.raises(ValueError, match="sampled nothing"):
        compare.stored_samples(record, "eps", 2)


@pytest.mark.slow
def test_several_arms_on_a_side_stand_for_their_mean(record):
    sides = (["eps", "broken"], "again")
    found = compare.difference(record, "v error", 2, *sides)
    half = compare.difference(record, "v error", 2, "broken", "again")
    assert found.value == pytest.approx(half.value / 2)
    assert found.standard_error == pytest.approx(half.standard_error / 2)


@pytest.mark.slow
def test_tables_name_the_baseline_and_give_verdicts(record):
    rows = compare.differences(record, "v error", 2)
    assert [row["arm"] for row in rows] == ["eps (baseline)", "again", "broken"]
    assert rows[1]["verdict"] == "not distinguishable"
    same = compare.difference(record, "v error", 2, "again", "eps")
    assert rows[1]["difference"] == same
    assert same.standard_error == 0
    assert same.unpaired_standard_error > 0
    (row,) = compare.pairwise_differences(record, "v error", 2, [("broken", "again")])
    assert row["difference"] == rows[2]["difference"]


@pytest.mark.slow
def test_what_pairing_was_worth_is_told_for_each_measure(record):
    rows = {row["measure"]: row for row in compare.variance_reduction(record, 2)}
    assert rows.keys() == record["measured"][0]["measures"].keys()
    told = [
        compare.difference(record, "v error", 2, *pair)
        for pair in (("eps", "again"), ("eps", "broken"), ("again", "broken"))
    ]
    ratio = math.sqrt(
        sum(d.standard_error**2 for d in told) / sum(d.unpaired_standard_error**2 for d in told)
    )
    assert rows["v error"]["pairs of arms"] == "3"
    assert rows["v error"]["ratio"] == f"{ratio:.2f}"


def test_on_several_gpus_the_command_starts_a_process_on_each(monkeypatch):
    Path("study.json").write_text(json.dumps(STUDY))
    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command: started.append(command) or done)
    assert main(["compare", "study.json", "--data", "somewhere"]) == 0
    (command,) = started
    assert command[1:] == [
        *["-m", "torch.distributed.run", "--nproc-per-node", "3", "-m", "diffusion_lib"],
        *["compare", "study.json", "--out", "study.record.json", "--data", "somewhere"],
    ]


def test_the_interval_is_students():
    # d = 1, 2, 6: mean 3, sd sqrt(7); t_2(0.975) = 4.302653.
    found = paired([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert found.value == pytest.approx(3)
    assert found.standard_error == pytest.approx(math.sqrt(7 / 3))
    assert found.high - found.value == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)
    assert found.verdict == "not distinguishable"
    assert found.unpaired_standard_error == pytest.approx(math.sqrt((13 + 1) / 3))


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_cover_the_truth_as_often_as_they_say(n):
    """Arms that share most of their noise, as paired trainings do."""
    g = torch.Generator().manual_seed(0)
    tries, truth = 4000, 0.3
    shared = torch.randn(tries, n, generator=g, dtype=torch.float64)
    own = 0.3 * torch.randn(2, tries, n, generator=g, dtype=torch.float64)
    one, other = shared + own[0] + truth, shared + own[1]
    found = [paired(a.tolist(), b.tolist()) for a, b in zip(one, other, strict=True)]
    covered = sum(f.low <= truth <= f.high for f in found) / tries
    # Three standard errors of the share.
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / tries)
    # Pairing removes the shared part: sqrt(0.18) against sqrt(2.18).
    ratio = sum(f.standard_error for f in found) / sum(f.unpaired_standard_error for f in found)
    assert ratio == pytest.approx(math.sqrt(0.18 / 2.18), rel=0.1)


@pytest.mark.slow
def test_equal_arms_rarely_differ_in_simulation():
    g = torch.Generator().manual_seed(1)
    draws = torch.randn(2, 4000, 3, generator=g, dtype=torch.float64)
    verdicts = [paired(a.tolist(), b.tolist()).verdict for a, b in zip(*draws, strict=True)]
    share = 1 - verdicts.count("not distinguishable") / 4000
    assert abs(share - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.slow
def test_arms_of_a_seed_start_alike_and_differ_between_seeds(root):
    one, other = (replace(TINY, prediction=p) for p in (predictions.eps, predictions.x_0))
    first, second = (arm.build().network.state_dict() for arm in (one, other))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    seeded = replace(one, train=replace(one.train, seed=1)).build().network.state_dict()
    assert any(not torch.equal(first[name], seeded[name]) for name in first)


def trained_steps(log: Path) -> list[int]:
    return [json.loads(line).get("step") for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_an_added_arm_and_seed_train_only_themselves(root):
    def run(arms, seeds, steps):
        return compare.compare(
            compare.Study(arms, seeds, steps, ERRORS_ONLY), root, torch.device("cpu")
        )

    arms = {"eps": TINY, "x_0": replace(TINY, prediction=predictions.x_0)}
    first = run(arms, (0, 1), (2,))
    times = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*/*")}
    more = run(arms | {"cosine": replace(TINY, schedule=schedules.cosine)}, (0, 1, 2), (2, 4))
    for path, changed in times.items():
        assert path.stat().st_mtime_ns == changed, path
    kept = [row for row in more["measured"] if row["steps"] == 2 and row["seed"] < 2]
    assert [row for row in kept if row["arm"] != "cosine"] == first["measured"]
    assert len(list(Path("runs").glob("mnist-*"))) == 18


@pytest.mark.slow
def test_going_on_from_a_shorter_run_is_the_same_as_one_long_run(root):
    arms = {"eps": TINY, "x_0": replace(TINY, prediction=predictions.x_0)}
    found = [
        compare.compare(compare.Study(arms, (0, 1), steps, ERRORS_ONLY), root, torch.device("cpu"))
        for steps in ((1, 4), (4,))
    ]
    # The second study found the runs of the first; train them anew, from step 0.
    long = [row for row in found[0]["measured"] if row["steps"] == 4]
    assert found[1]["measured"] == long
    shutil.rmtree("runs")
    anew = compare.compare(
        compare.Study(arms, (0, 1), (4,), ERRORS_ONLY), root, torch.device("cpu")
    )
    assert untimed(anew) == untimed(found[1])


@pytest.mark.slow
def test_a_study_goes_on_from_its_record_where_its_runs_are_gone(root, undisturbed, one_thread):
    compare.save(undisturbed, "kept.record.json")
    arms = STUDY["arms"] | {"cosine": {"schedule": "cosine"}}
    Path("study.json").write_text(json.dumps(STUDY | {"arms": arms, "seeds": [0, 1, 2]}))
    assert main([*arguments(root), "--start", "kept.record.json"]) == 0
    trained = {path.name for path in Path("runs").glob("mnist-*")}
    assert len(trained) == 2 * (2 + 3)  # the new seed of two arms, and the new arm
    anew = compare.compare(compare.read_study("study.json"), root, CPU)
    assert untimed(compare.load("study.record.json")) == untimed(anew)


@pytest.mark.slow
def test_without_its_pictures_the_first_seed_of_a_record_is_measured_again(
    root, undisturbed, one_thread
):
    Path("study.json").write_text(json.dumps(STUDY))
    start = {key: value for key, value in undisturbed.items() if key != "samples"}
    again = compare.compare(compare.read_study("study.json"), root, CPU, start)
    assert untimed(again) == untimed(undisturbed)
    assert len(list(Path("runs").glob("mnist-*"))) == 4


@pytest.mark.slow
def test_what_a_record_has_besides_the_study_is_left_alone(root, undisturbed, one_thread):
    """Other arms, seeds and devices, and rows that hold no errors."""
    arms, seeds = STUDY["arms"] | {"v": {"prediction": "v"}}, [1, 2]
    Path("study.json").write_text(json.dumps(STUDY | {"arms": arms, "seeds": seeds}))
    study = compare.read_study("study.json")
    start = undisturbed | {"devices": ["another machine"]}
    start["measured"] = [
        row if row["steps"] == 2 else {key: row[key] for key in ("arm", "seed", "steps")}
        for row in undisturbed["measured"]
    ]
    record = compare.compare(study, root, CPU, start)
    anew = compare.compare(study, root, CPU)
    assert untimed(record) == untimed(anew)  # the first seed is another one: anew
    del arms["eps"]
    Path("study.json").write_text(json.dumps(STUDY | {"arms": arms}))
    record = compare.compare(compare.read_study("study.json"), root, CPU, start)
    assert "another machine" in record["devices"]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "name"), [("conditions", "n"), ("all", "T")])
def test_a_record_of_other_settings_starts_nothing(root, undisturbed, part, name):
    Path("study.json").write_text(json.dumps(STUDY | {part: STUDY[part] | {name: 71}}))
    words = f"arm 'eps': the record to start from has another {name}; "
    with pytest.raises(ValueError, match=words):
        compare.compare(compare.read_study("study.json"), root, CPU, undisturbed)
    assert not list(Path("runs").glob("mnist-*"))


def arguments(root):
    return ["compare", "study.json", "--data", str(root), "--device", "cpu"]


@pytest.mark.slow
def test_a_study_that_was_killed_ends_with_the_same_record(root, undisturbed):
    Path("study.json").write_text(json.dumps(STUDY))
    process = processes.command(arguments(root), Path("output"))
    while len(list(Path("runs").glob("*/ema.safetensors"))) < 2 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not Path("study.record.json").exists(), "it had finished before it could be killed"
    process = processes.command(arguments(root), Path("output"))
    process.join()
    assert process.exitcode == 0, Path("output").read_text()
    assert untimed(compare.load("study.record.json")) == untimed(undisturbed)


class Killed(BaseException):
    """Nothing in the library catches it, as nothing can catch SIGKILL."""


@pytest.mark.slow
def test_killed_at_every_write_in_turn_it_ends_with_the_same_record(
    root, undisturbed, one_thread, monkeypatch
):
    """The k-th attempt dies at its k-th write of a file; each goes on from what is there."""
    Path("study.json").write_text(json.dumps(STUDY))
    study, cpu = compare.read_study("study.json"), torch.device("cpu")
    monkeypatch.setattr(driver, "SECONDS_BETWEEN_SAVES", 0.0)
    writes, replace_file = [0, 0], os.replace  # so far, and at most

    def replace_or_die(*arguments):
        writes[0] += 1
        if writes[0] >= writes[1]:
            raise Killed
        replace_file(*arguments)

    monkeypatch.setattr(os, "replace", replace_or_die)
    record = None
    while record is None:
        writes[:] = 0, writes[1] + 1
        try:
            record = compare.compare(study, root, cpu)
        except Killed:
            assert writes[1] < 50
    assert writes[1] > 5  # it was killed that often
    assert untimed(record) == untimed(undisturbed)


@pytest.mark.slow
def test_two_processes_share_a_study(root, undisturbed):
    Path("study.json").write_text(json.dumps(STUDY))
    started = [
        processes.command(arguments(root), Path(f"output-{rank}"), RANK=rank, WORLD_SIZE="2")
        for rank in "01"  # as torchrun starts them: nothing else of it is asked for
    ]
    for rank, process in enumerate(started):
        process.join()
        assert process.exitcode == 0, Path(f"output-{rank}").read_text()
    assert untimed(compare.load("study.record.json")) == untimed(undisturbed)


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_a_record_with_pictures(root, capsys):
    Path("study.json").write_text(json.dumps(STUDY))
    assert main(["compare", "study.json", "--data", str(root), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for words in (
        "Frechet distance on mnist after 3 steps, 2 seeds",
        "bits per dim",
        "v error",
        "verdict",
        "What sharing seeds was worth",
    ):
        assert words in printed
    record = compare.load("study.record.json")
    assert record["floor"]["mnist"].keys() < record["measured"][0]["measures"].keys()
    images = compare.stored_samples(record, "x_0", 3)
    assert images.shape == (8, 1, 28, 28)
    assert images.dtype == torch.uint8
    Path("study.samples.png").unlink()
    without = compare.load("study.record.json")
    assert without["measured"] == record["measured"]
    with pytest.raises(ValueError, match=r"NAME\.samples\.png, is not beside it"):
        compare.stored_samples(without, "x_0", 3)
    seen, means, margins = compare.series(record, "eps error", "eps")
    assert seen == [8, 12]
    assert len(means) == len(margins) == 2
    times, errors = compare.errors(record, "v", "x_0", 3)
    assert times[0] == 1
    assert times[-1] == 40
    assert len(errors) == len(times)


def test_arms_that_cannot_be_compared_are_refused(root):
    arms = {"eps": TINY, "x_0": replace(TINY, prediction=predictions.x_0)}
    for bad, words in (
        (({"eps": TINY}, (0, 1), (1,)), "at least 2 arms"),
        ((arms, (0,), (1,)), "seeds must be a list of whole numbers, at least 2"),
        ((arms, (1, 1), (1,)), "all different"),
        ((arms, (0, 1), ()), "steps must be a list of whole numbers, at least 1"),
        ((arms | {"bad": replace(TINY, T=0)}, (0, 1), (1,)), "arm 'bad'"),
    ):
        with pytest.raises(ValueError, match=words):
            compare.compare(compare.Study(*bad, ERRORS_ONLY), root, torch.device("cpu"))
    assert not list(Path().glob("runs/*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": "012"}, "seeds must be a list of whole numbers, at least 2 and"),
        ({"steps": [1.5]}, "steps must be a list of whole numbers, at least 1 and"),
        ({"seeds": [True, False]}, "seeds must be a list of whole numbers"),
        ({"arms": {"a": {"train": {"batch_size": 4.5}}, "b": {}}}, "batch_size must be a whole"),
        ({"preset": "mnits"}, "did you mean mnist"),
        ({"arms": {"a": {"schedul": "cosine"}, "b": {}}}, "did you mean schedule"),
        ({"arms": {"a": {"schedule": "cosin"}, "b": {}}}, "did you mean cosine"),
        ({"arms": {"a": {"train": {"lr": 1}}, "b": {}}}, "field of train 'lr' is unknown"),
        ({"arms": {"a": {"network": 3}, "b": {}}}, "network must hold fields"),
        ({"steps": 3}, "not a study"),
        ({"conditions": {"m": 1}}, "not a study"),
        ({"sneeds": 3}, "no sneeds"),
    ],
)
def test_a_study_file_that_says_something_else_is_refused(change, words, capsys):
    Path("study.json").write_text(json.dumps(STUDY | change))
    assert main(["compare", "study.json"]) == 2
    assert words in capsys.readouterr().err


def test_an_arm_named_twice_is_refused():
    Path("study.json").write_text(
        '{"preset": "mnist", "arms": {"a": {}, "a": {}}, "seeds": [0, 1], "steps": [1]}'
    )
    with pytest.raises(ValueError, match="'a' stands there twice"):
        compare.read_study("study.json")


@pytest.mark.parametrize(
    ("arm", "conditions", "words"),
    [
        ({}, {"n_likelihood": 81}, "n_likelihood is 81, .* 80 to test on"),
        ({}, {"n": 64}, "64 samples"),
        ({}, {"n": 91, "steps": 2}, "n is 91, but mnist has 90 images to train"),
        ({}, {"n": 70, "steps": 41}, "41 sampling steps"),
        ({"network": UNetConfig((3, 28, 28), 4, (1,), 1, ())}, {}, r"shape \[N, 3, 28, 28\]"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_training(root, arm, conditions, words):
    arms = {"good": TINY, "bad": replace(TINY, **arm)}
    asked = replace(ERRORS_ONLY, **conditions)
    with pytest.raises(ValueError, match=words):
        compare.compare(compare.Study(arms, (0, 1), (1,), asked), root, torch.device("cpu"))
    assert not list(Path().glob("runs/*"))


@pytest.mark.slow
def test_arms_of_different_data_sets_are_not_compared(record):
    other = json.loads(json.dumps(record))
    other["arms"]["broken"]["dataset"] = "fashion_mnist"
    with pytest.raises(ValueError, match="different data sets cannot be compared"):
        compare.difference(other, "v error", 2, "broken", "eps")
    assert [row["arm"] for row in compare.differences(other, "v error", 2)] == [
        "eps (baseline)",
        "again",
    ]
    with pytest.raises(ValueError, match="no other arm is trained on fashion_mnist"):
        compare.differences(other, "v error", 2, "broken")


@pytest.mark.slow
def test_what_is_no_study_is_answered_with_what_it_is(record):
    Path("study.json").write_text(json.dumps(STUDY))
    Path("study.record.json").write_text(json.dumps(record))
    Path("experiment.json").write_text(TINY.to_json())
    for given, words in (
        ("study.record.json", "no devices, floor, .*; its record, which compare.load reads"),
        ("experiment.json", "no T, .*; .* and the experiment of a run are other files"),
        (".", "is a folder: give a study, a file of JSON"),
        ("study", r"study does not exist: give a study, a file of JSON"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            compare.read_study(given)
    with pytest.raises(FileNotFoundError, match="is a folder: give the record of a study"):
        compare.load(".")


@pytest.mark.slow
def test_measures_that_cannot_be_written_are_in_the_record(root, monkeypatch):
    arms = {"eps": TINY, "x_0": replace(TINY, prediction=predictions.x_0)}
    write = files.write_text

    def full(path, text):
        if path.name.startswith("compared-"):
            raise OSError(28, f"could not write {path}: No space left")
        write(path, text)

    monkeypatch.setattr(files, "write_text", full)
    with pytest.warns(UserWarning, match=r"not kept there .*No space left") as warned:
        found = compare.compare(
            compare.Study(arms, (0, 1), (1,), ERRORS_ONLY), root, torch.device("cpu")
        )
    assert len([w for w in warned if "not kept" in str(w.message)]) == 4
    assert len(found["measured"]) == 4
    assert not list(Path("runs").glob("*/compared-*"))


def test_a_place_where_nothing_can_be_written_is_refused_before_any_training(root, monkeypatch):
    arms = {"eps": TINY, "x_0": replace(TINY, prediction=predictions.x_0)}

    def refuse(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(
        OSError, match=r"could not write .*runs/\..*lock.*choose a folder that may be written"
    ):
        compare.compare(compare.Study(arms, (0, 1), (1,), ERRORS_ONLY), root, torch.device("cpu"))


def test_samples_of_a_data_set_without_features_are_refused_with_the_way(root):
    def doodles(root, train):
        return data.mnist(root, train)

    arms = {"eps": replace(TINY, dataset=doodles), "x_0": replace(TINY, dataset=doodles, T=50)}
    asked = replace(ERRORS_ONLY, n=70)
    with pytest.raises(ValueError, match=r"no feature network .*'doodles'.*\"n\": 0"):
        compare.compare(compare.Study(arms, (0, 1), (1,), asked), root, torch.device("cpu"))


def test_missing_and_foreign_files_are_refused():
    with pytest.raises(FileNotFoundError, match="does not exist"):
        compare.read_study("nothing.json")
    Path("other.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="something else"):
        compare.load("other.json")
    Path("cut.json").write_text('{"format": ')
    for read in (compare.load, compare.read_study):
        with pytest.raises(ValueError, match=r"cut\.json is not"):
            read("cut.json")


@pytest.mark.slow
def test_unknown_arms_measures_and_steps_are_named(record):
    for arguments, words in (
        (("bits per dimm", 2, "eps", "again"), "did you mean bits per dim"),
        (("bits per dim", 3, "eps", "again"), "number of steps '3'"),
        (("bits per dim", 2, "epss", "again"), "did you mean eps"),
    ):
        with pytest.raises(ValueError, match=words):
            compare.difference(record, *arguments)
    with pytest.raises(ValueError, match="at least two data points"):
        paired([1.0], [1.0])


@pytest.mark.slow
def test_arms_whose_learning_rate_falls_begin_at_step_0_for_every_number_of_steps(
    root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    falling = replace(TINY, train=replace(TINY.train, cooldown=0.5))
    arms = {"eps": falling, "v": replace(falling, prediction=predictions.v)}
    record = compare.compare(compare.Study(arms, [0, 1], [2, 3], ERRORS_ONLY), root, CPU)
    assert [row["steps"] for row in record["measured"]] == [2, 3] * 4
