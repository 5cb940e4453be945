"""The README's figures are those of the committed records, and its commands are kept."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lib import compare, evaluation
from diffusion_lib.metrics import features
from other_tests import common, findings, report
from other_tests.mnist import flow, full_budget

ROOT = Path(__file__).parent.parent
README = " ".join((ROOT / "README.md").read_text().split())


@pytest.mark.parametrize("readme", report.READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_tables_are_those_that_the_records_give(readme):
    text = readme.read_text()
    assert report.fill(text) == text


def test_every_table_stands_in_one_readme_and_every_place_has_its_table():
    text = "".join(readme.read_text() for readme in report.READMES)
    comments = re.findall(r"<!-- (.+) -->", text)
    assert sorted(comments) == sorted([*report.TABLES, *(f"end of {n}" for n in report.TABLES)])


@pytest.mark.parametrize("study", findings.STUDIES)
def test_a_record_is_of_the_study_beside_it(study):
    record = findings.record(study)
    arms, seeds, steps, conditions = compare.read_study(findings.STUDIES[study])
    assert record["arms"] == {name: compare.describe(arm) for name, arm in arms.items()}
    assert (record["seeds"], record["steps"]) == (list(seeds), list(steps))
    for measured_under in record["conditions"].values():
        assert asdict(conditions).items() <= measured_under.items()
    assert all(device.startswith(("CPU (", "NVIDIA")) for device in record["devices"])


def test_the_record_of_flow_is_of_the_arms_that_are_written_there():
    record = common.load(flow.RECORD)
    assert record["arms"] == {name: compare.describe(arm) for name, arm in flow.arms().items()}
    assert (tuple(record["seeds"]), tuple(record["steps"])) == (flow.SEEDS, flow.STEPS)


def test_the_records_are_of_the_released_features_and_of_one_budget():
    records = full_budget.records()
    evaluation.check_same_conditions(records)
    conditions = records[0]["conditions"]
    assert conditions["features sha256"] == features.RELEASED["mnist"][1]
    assert conditions["training images"] == 60_000
    assert evaluation.Conditions().n == conditions["n"]


def test_a_run_takes_the_place_of_the_record_of_its_experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(full_budget, "RECORDS", tmp_path / "records")
    shutil.copytree(ROOT / "other_tests" / "mnist" / "records", full_budget.RECORDS)
    (old,) = full_budget.RECORDS.glob("mnist-cosine-eps-10000-*.json")
    told = json.loads(old.read_text()) | {"run": "cosine"}
    n = len(list(full_budget.RECORDS.iterdir()))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(told))
    full_budget.commit(tmp_path / "run")
    assert full_budget.find(full_budget.records(), {"schedule": "cosine"})["run"] == "cosine"
    assert len(list(full_budget.RECORDS.iterdir())) == n
    told["conditions"]["n"] = 70
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="n: 70 and 1000"):
        full_budget.commit(tmp_path / "run")
    assert (full_budget.RECORDS / "cosine.json").exists()


def test_two_commands_set_everything_up():
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line for line in lines if line.startswith("pip install -r requirements.txt && ")]
    assert len(commands) == 2
    assert "ddpm.ipynb" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.slow
def test_the_lines_on_ones_own_pictures_run(tmp_path, monkeypatch):
    """As they stand there, but for fewer and smaller steps."""
    code = re.search(
        r"## Your own pictures.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    ).group(1)
    for there, here in (("5_000, batch_size=64", "2, batch_size=4"), ("width=64", "width=8")):
        assert there in code
        code = code.replace(there, here)
    code = code.replace("(run, 64)", "(run, 4, num_steps=2)").replace("=50)", "=2, num_times=2)")
    monkeypatch.chdir(tmp_path)
    for i in range(104):
        place = tmp_path / "photos" / ("cats" if i % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (2 * i, 0, 0)).save(place / f"{i}.png")
    names: dict = {}
    with pytest.warns(UserWarning, match="no feature network is released"):
        exec(code, names)
    assert names["record"]["likelihood"]["bits per dim"]["value"] > 0
    assert (tmp_path / "photos.png").exists()
    assert list((tmp_path / "runs").glob("photos-linear-eps-2-*"))


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_requirement_earns_its_line():
    text = (ROOT / "requirements.txt").read_text()
    packages = re.findall(r"^([a-z-]+)==", text, re.MULTILINE)
    assert len(packages) == 20
    section = README.split("## Requirements")[1].split("##")[0]
    missing = [package for package in packages if not re.search(rf"\b{package}\b", section)]
    assert missing == []
