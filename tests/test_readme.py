"""The README's figures are those of the committed records, and its commands are kept."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = " ".join((ROOT / "README.md").read_text().split())


def test_the_recognised_samples_are_those_of_the_record():
    record = json.loads((ROOT / "other_tests/mnist/recognise.json").read_text())
    run = record["run"]
    for figure in (
        f"{record['recognised']:,} of {record['n']:,} samples",
        f"{record['real_recognised']:,} of the {record['real_n']:,} real test digits",
        f"{100 * record['classifier_test_accuracy']:.1f} % test accuracy",
        f"{run['steps']} steps",
        f"{run['minutes of training']:.0f} minutes",
        f"{run['training images']} digits",
        run["device"],
        f"seed {record['seed']}",
    ):
        assert re.search(rf"\b{re.escape(figure)}", README), figure
    assert sum(record["classes"]) == record["n"]
    assert record["classifier_test_accuracy"] > 0.985


def test_two_commands_set_everything_up():
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = [line for line in lines if line.startswith("pip install -r requirements.txt && ")]
    assert len(commands) == 2
    assert "ddpm.ipynb" in commands[0]
    assert "pytest" in commands[1]


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_requirement_earns_its_line():
    text = (ROOT / "requirements.txt").read_text()
    packages = re.findall(r"^([a-z]+)==", text, re.MULTILINE)
    assert len(packages) == 16
    section = README.split("## Requirements")[1].split("##")[0]
    missing = [package for package in packages if not re.search(rf"\b{package}\b", section)]
    assert missing == []
