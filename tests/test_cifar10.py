"""The study of photographs: its arms, and its verdicts on records that were made up."""

import json
import random

import pytest

from diffusion_lib import compare
from diffusion_lib.compare.record import describe
from other_tests import common, registered
from other_tests.cifar10 import answers, prediction

BOTTLENECK = compare.read_study(answers.BOTTLENECK.with_name("bottleneck.json"))


def record(study, distance):
    """A record as `compare` makes it, of seeds that differ a little."""
    draw = random.Random(study.conditions.sampler)
    measured = [
        {"arm": arm, "seed": seed, "steps": steps}
        | {"measures": {registered.DISTANCE: distance(arm, steps) + draw.uniform(0, 1e-2)}}
        for arm in study.arms
        for seed in study.seeds
        for steps in study.steps
    ]
    return {
        "arms": {name: describe(arm) for name, arm in study.arms.items()},
        "seeds": [*study.seeds],
        "steps": [*study.steps],
        "measured": measured,
    }


def studies(distance):
    """Records of all studies, of a function (arm, steps, sampler)."""
    made = {
        f"{name}, {sampler}": record(
            prediction.study(name, sampler),
            lambda arm, steps, sampler=sampler: distance(arm, steps, sampler),
        )
        for name in prediction.STUDIES
        for sampler in prediction.SAMPLERS
    }
    return made | {"bottleneck": record(BOTTLENECK, lambda arm, steps: distance(arm, steps, ""))}


def as_expected(arm, steps, sampler):
    """DDPM is ahead late, more so by DDIM; narrow networks cannot predict noise."""
    network, _, cell = arm.rpartition(": ")
    if network:
        return 90 if network in answers.NARROW and "eps" in cell else 40
    if cell not in (prediction.DDPM, prediction.NAIVE):
        return 10 if "min_snr" in cell else 30
    if steps <= 1000:
        return 30 if cell == prediction.DDPM else 25
    return 15 if cell == prediction.DDPM else {"ddpm": 20, "ddim": 30}[sampler]


@pytest.mark.parametrize("name", prediction.STUDIES)
def test_all_arms_of_a_study_train_the_same_network(name):
    study = prediction.study(name, "ddim")
    assert len({repr(arm.network) for arm in study.arms.values()}) == 1
    assert len({arm.name("") for arm in study.arms.values()}) == len(study.arms)
    assert study.conditions.sampler == "ddim"


def test_all_hypotheses_are_supported_where_they_hold():
    by_part = registered.verdicts(answers.statements(studies(as_expected)))
    assert set(by_part.values()) == {"supported"}
    numbers = [name.split()[0] for name in by_part]
    assert numbers == ["1a", "1b", "2", "3", "4", "5a", "5b", "5c", "6a", "6b"]


def test_where_nothing_differs_only_equality_is_supported():
    by_part = registered.verdicts(answers.statements(studies(lambda *_: 20.0)))
    assert {n.split()[0] for n, v in by_part.items() if v == "supported"} == {"4", "6b"}
    assert by_part["6a H < D"] == "refuted"


def test_three_apart_is_equal_only_where_the_seeds_agree():
    """Student's interval of three seeds reaches 6.8 standard deviations to each side."""
    part = "4 the prediction"
    for spread, verdict in ((0.43, "supported"), (0.45, "undecided")):
        by_study = studies(as_expected)
        for row in by_study["prediction, ddpm"]["measured"]:
            step = row["seed"] - 21 if row["arm"] == "x_0, min_snr" else 0
            row["measures"][registered.DISTANCE] = 10 + spread * step
        assert registered.verdicts(answers.statements(by_study))[part] == verdict


def test_what_an_arm_that_diverged_leaves(capsys, monkeypatch):
    by_study = studies(as_expected)
    left = prediction.study("prediction", "ddpm", ["x_0, snr", "eps, min_snr"])
    by_study["prediction, ddpm"] = record(left, lambda *of: as_expected(*of, "ddpm"))
    diverged = "U-Net 8/64: eps, snr"
    arms = {name: arm for name, arm in BOTTLENECK.arms.items() if name != diverged}
    by_study["bottleneck"] = record(
        BOTTLENECK._replace(arms=arms), lambda *of: as_expected(*of, "")
    )
    by_part = registered.verdicts(answers.statements(by_study))
    assert set(by_part.values()) == {"supported"}
    numbers = [name.split()[0] for name in by_part]
    assert numbers == ["1a", "1b", "2", "3", "5b", "6a", "6b"]
    trained = []
    monkeypatch.setattr(common, "run_studies", lambda by_path, root: trained.append(by_path))
    monkeypatch.setattr("sys.argv", ["", "--without", "x_0, snr", "--data", "somewhere"])
    prediction.main()
    counts = [[len(study.arms) for study in by_path.values()] for by_path in trained]
    assert counts == [[2, 2], [4, 4]]


def test_a_record_grows_by_a_seed_at_a_time(tmp_path, monkeypatch):
    """Both studies have a seed before the next one begins; a stop costs what was being trained."""
    steps = []

    def grow(study, root, start):
        steps.append((study.conditions.sampler, study.seeds, start and start["seeds"]))
        if len(steps) == 4:
            raise KeyboardInterrupt
        return record(study, lambda *_: 1.0) | {"format": compare.record.FORMAT}

    monkeypatch.setattr(compare, "compare", grow)
    monkeypatch.setattr(compare, "load", lambda path: json.loads(path.read_text()))
    by_path = {tmp_path / s: prediction.study("crossing", s) for s in prediction.SAMPLERS}
    with pytest.raises(KeyboardInterrupt):
        common.run_studies(by_path, tmp_path)
    common.run_studies(by_path, tmp_path)
    two, three = (20, 21), (20, 21, 22)
    assert steps == [
        ("ddpm", two, None),
        ("ddim", two, None),
        ("ddpm", three, [*two]),
        ("ddim", three, [*two]),  # stopped
        ("ddim", two, [*two]),  # nothing is missing
        ("ddpm", three, [*three]),
        ("ddim", three, [*two]),
    ]


def test_no_record_states_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "FOLDER", tmp_path)
    monkeypatch.setattr(answers, "BOTTLENECK", tmp_path / "bottleneck.record.json")
    assert answers.statements(answers.records()) == []
