"""The study of photographs: its arms, and its verdicts on records that were made up."""

import random

import pytest

from diffusion_lib import compare
from diffusion_lib.compare.record import describe
from other_tests import registered
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


def test_no_record_states_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "FOLDER", tmp_path)
    monkeypatch.setattr(answers, "BOTTLENECK", tmp_path / "bottleneck.record.json")
    assert answers.statements(answers.records()) == []
