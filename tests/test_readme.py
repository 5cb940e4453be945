"""The figures of the READMEs are those of the committed records; commands and links hold."""

import importlib.util
import itertools
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy import stats

from diffusion_lib import compare, config, evaluation, runs, samplers
from diffusion_lib.metrics import features
from other_tests import common, findings, report, sentences
from other_tests.editing import curves
from other_tests.mnist import flow, full_budget
from tests.helpers import random_denoiser, random_images, write_idx

ROOT = Path(__file__).parent.parent
FRONT_PAGE = (ROOT / "README.md").read_text()
LIBRARY = (ROOT / "diffusion_lib" / "README.md").read_text()
every_readme = pytest.mark.parametrize(
    "readme", report.READMES, ids=lambda path: str(path.relative_to(ROOT))
)


@every_readme
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


def test_correcting_for_many_rows_is_what_holm_says():
    effects = [compare.paired(values, [0.0] * 3) for values in ([5, 6, 7], [1, 2, 3], [-1, 0, 2])]
    answers = [common.Answer("", "", "", effect) for effect in effects]
    p = [float(stats.ttest_1samp(v, 0).pvalue) for v in ([5, 6, 7], [1, 2, 3], [-1, 0, 2])]
    assert common.holm(answers) == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert common.holm(answers[::-1]) == pytest.approx([p[2], 2 * p[1], 3 * p[0]])
    assert common.holm([answers[1]._replace(level=2.0)]) == [1.0]
    line = stats.linregress([0, 1, 2, 4], [0, 2, 1, 3])  # 2 degrees of freedom, of any n
    effect = compare.Difference(line.slope, 0, 0, line.stderr, line.stderr, n=9)
    answer = common.Answer("", "", "", effect, degrees=2)
    assert common.holm([answer]) == pytest.approx([line.pvalue])


def test_the_library_page_says_how_to_correct_for_a_family():
    (margin,) = re.findall(r"`d\.value` ± `(.+?)`", LIBRARY)
    (p_value,) = re.findall(r"`p = (.+?)`", LIBRARY)
    (limit,) = re.findall(r"if p ≤ (.+?), until one fails", LIBRARY)
    family = ([5, 6, 7], [-1, 0, 2], [3, 4, 5])  # Bonferroni would decide one
    effects = [compare.paired(values, [0.0] * 3) for values in family]
    names = {"t": stats.t, "m": len(family)}
    p = [eval(p_value, names | {"d": d}) for d in effects]
    for values, d, one in zip(family, effects, p, strict=True):
        test = stats.ttest_1samp(values, 0)
        interval = test.confidence_interval(1 - 0.05 / len(family))
        assert d.value + eval(margin, names | {"d": d}) == pytest.approx(interval.high)
        assert one == pytest.approx(test.pvalue)
    limits = [eval(limit.replace("*", ""), names | {"k": k}) for k in (1, 2, 3)]
    decided = [one <= level for one, level in zip(sorted(p), limits, strict=True)]
    assert decided == [True, True, False]
    corrected = common.holm([common.Answer("", "", "", d) for d in effects])
    assert [one <= 0.05 for one in sorted(corrected)] == decided


def test_the_words_of_the_six_sentences_are_what_their_records_say():
    """Figures are written from the records; "ahead", "behind" and "no lead" are not."""
    records = findings.records()
    for study, arm, other, steps, measure, verdict in (
        ("mnist", findings.NAIVE, findings.DDPM, 0, findings.MEASURE, "lower"),
        ("mnist", findings.NAIVE, findings.DDPM, 0, "bits per dim", "higher"),
        ("mnist", findings.FLATTER, findings.DDPM, 0, findings.MEASURE, "lower"),
        ("mnist", findings.SAME_WEIGHT, findings.DDPM, 0, findings.MEASURE, "not distinguishable"),
        *(
            (
                "bottleneck",
                f"{name}: x_0, uniform",
                f"{name}: eps, snr",
                -1,
                findings.MEASURE,
                "lower",
            )
            for name in ("MLP 256", "U-Net 14/64", "MLP 1024")
        ),
        (
            "way around",
            "MLP 256 + skip: eps, snr",
            "MLP 256: eps, snr",
            -1,
            findings.MEASURE,
            "lower",
        ),
        ("mnist", "eps, snr, cosine", findings.DDPM, -1, "confidence > 0.9", "higher"),
        ("mnist", "eps, snr, cosine", findings.DDPM, -1, "precision", "lower"),
        ("mnist", "eps, snr, cosine", findings.DDPM, -1, "bits per dim", "lower"),
        ("mnist", "eps, snr, cosine", findings.DDPM, -1, findings.MEASURE, "not distinguishable"),
        ("few steps", "x_0, unweighted", "eps", -1, findings.MEASURE, "higher"),
        ("few steps", "x_0, weight snr", "eps", -1, findings.MEASURE, "higher"),
        ("flow", *flow.PAIRS[0], -1, findings.MEASURE, "lower"),
        ("flow", *flow.PAIRS[2], -1, findings.MEASURE, "lower"),
        ("flow", *flow.PAIRS[2], -1, "bits per dim", "higher"),
    ):
        record = records[study]
        effect = compare.difference(record, measure, record["steps"][steps], arm, other)
        assert effect.verdict == verdict, (study, arm, other, measure)
    editing = records["editing"]
    (ratio,) = (a.effect for a in curves.answers(editing) if a.question.startswith("At the same"))
    assert ratio.verdict == "not distinguishable"
    for run in itertools.chain(*(curves.runs_of(editing, name) for name in curves.SCHEDULES)):
        assert curves.lowest(run, "noise, sketch") > curves.ceiling(editing)
        assert curves.own_level(run) > curves.ceiling(editing)
    recall = {row["scale"]: row["recall"] for row in records["guidance"]["rows"]}
    assert recall[2.0][2] < recall[1.0][1]


def test_every_effect_of_the_six_sentences_is_a_row_of_the_table(monkeypatch):
    records, effects = findings.records(), []

    def effect(record, arms, steps=findings.LAST, measure=findings.MEASURE):
        (study,) = (name for name in records if records[name] is record)
        effects.append((study, arms, steps, measure))

    monkeypatch.setattr(sentences, "_effect", effect)
    sentences.text(records)
    assert len(effects) == 20
    rows = [(row.study, row.arms, row.steps, row.measure) for row in findings.FINDINGS]
    assert [effect for effect in effects if effect not in rows] == []


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
    lines = FRONT_PAGE.splitlines()
    commands = [line for line in lines if line.startswith("pip install -r requirements.txt && ")]
    assert len(commands) == 2
    assert commands[0].endswith(" --output ddpm.run.ipynb ddpm.ipynb")  # the committed one stays
    assert "*.run.ipynb" in (ROOT / ".gitignore").read_text().splitlines()
    assert "pytest" in commands[1]


def test_the_front_page_is_one():
    assert len(FRONT_PAGE.splitlines()) <= 150
    sizes = {path: path.stat().st_size for path in (ROOT / "assets" / "thumbnails").iterdir()}
    assert not {path: size for path, size in sizes.items() if size > 25_000}
    assert all(path.name in FRONT_PAGE for path in sizes)


def changed(code, *changes):
    """Lines of a README with some parts, each of which is there, replaced."""
    for there, here in changes:
        assert there in code
        code = code.replace(there, here)
    return code


def test_the_lines_of_the_front_page_are_the_experiment_whose_samples_it_shows(
    tmp_path, monkeypatch
):
    """As they stand there, but for fewer steps."""
    code = re.search(r"## The library\n\n```python\n(.*?)```", FRONT_PAGE, re.DOTALL)[1]
    code = changed(
        code,
        ("num_steps=10_000, batch_size=64,", "num_steps=2, batch_size=2,"),
        ("timesteps(1000)", "timesteps(2)"),
        ("(64, 1, 28, 28)", "(4, 1, 28, 28)"),
        ('data.mnist("data").images', "digits"),
    )
    monkeypatch.chdir(tmp_path)
    names: dict = {"digits": random_images(8, 1, 28, 28)}
    exec(code, names)
    experiment = config.MNIST
    assert names["network"] == experiment.network
    assert replace(names["settings"], num_steps=10_000, batch_size=64) == experiment.train
    denoiser = names["denoiser"]
    assert denoiser.prediction is experiment.prediction
    assert torch.equal(denoiser.schedule.signal, experiment.schedule(experiment.T).signal)
    assert (tmp_path / "digits.png").exists()


@pytest.mark.slow
def test_the_lines_on_ones_own_pictures_run(tmp_path, monkeypatch):
    """As they stand there, but for fewer and smaller steps."""
    code = re.search(r"## Your own pictures.*?```python\n(.*?)```", LIBRARY, re.DOTALL)[1]
    code = changed(code, ("5_000, batch_size=64", "2, batch_size=4"), ("width=64", "width=8"))
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


@pytest.mark.slow
def test_the_experiment_of_ones_own_is_a_study_and_run_again_it_is_loaded(tmp_path, monkeypatch):
    """As it stands there, in a notebook's cell, but for fewer and smaller steps."""
    (code,) = python_of("An experiment of your own")
    assert len(code.splitlines()) <= 40
    code = changed(
        code,
        ("(1000, 2000)", "(1,)"),
        (", 2000)", ", 1)"),
        ("n=1000, steps=50", "n=70, steps=2, n_likelihood=2, num_times=2"),
        ("width: int = 512", "width: int = 8"),
    )
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "data" / "MNIST" / "raw", 90, 80)
    names: dict = {"__name__": "__main__"}
    exec(code, names)
    record = names["record"]
    assert len(record["measured"]) == 6
    own = record["arms"]["soft_min_snr"]
    assert re.fullmatch(r"soft_min_snr#\w{8}", own["weight"])
    assert re.fullmatch(r"MyConfig#\w{8}", own["network"]["kind"])
    assert (tmp_path / "samples.png").exists()
    again: dict = {"__name__": "__main__"}  # the cell run again makes another function and class
    monkeypatch.setattr(runs, "train", None)
    exec(code, again)
    assert again["record"] == record


def test_the_sampler_of_the_library_page_is_ddim():
    (code,) = python_of("Adding something")
    names: dict = {"torch": torch, "itertools": itertools, "SampleStep": samplers.SampleStep}
    exec(code, names)
    denoiser, x_T = random_denoiser(clip=1.0), torch.randn(2, 1, 8, 8)
    times = denoiser.schedule.timesteps(5)
    states = [list(sampler(denoiser, x_T, times)) for sampler in (names["euler"], samplers.ddim)]
    for one, other in zip(*states, strict=True):
        assert one.t == other.t
        torch.testing.assert_close(one[1:], other[1:])


def python_of(section):
    """Read the blocks of Python in a section of the library's page."""
    text = LIBRARY.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@every_readme
def test_every_link_leads_somewhere(readme):
    text = readme.read_text()
    for target in re.findall(r"(?<!\[)\]\(([^)]+)\)|src=\"([^\"]+)\"", text):
        file, _, section = "".join(target).partition("#")
        if file.startswith("https:"):
            continue
        path = readme.parent / file if file else readme
        assert path.exists(), file
        assert not section or section in sections(path.read_text()), f"{file}#{section}"


def sections(text):
    """Name the sections of a page as links do."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@every_readme
def test_every_command_is_of_a_module_and_of_files_that_are_there(readme):
    text = readme.read_text()
    modules = set(re.findall(r"python -m ([a-z][\w.]*\w)", text)) - {"benchmarks.NAME"}
    assert all(importlib.util.find_spec(module) for module in modules), modules
    files = re.findall(r"-m \S+ (?:\w+ )?((?:other_tests|tests|benchmarks)/\S+\.\w+)", text)
    assert all((ROOT / file).exists() for file in files), files


def test_every_requirement_earns_its_line():
    text = (ROOT / "requirements.txt").read_text()
    packages = re.findall(r"^([a-z-]+)==", text, re.MULTILINE)
    assert len(packages) == 21
    section = LIBRARY.split("## Requirements")[1].split("\n## ")[0]
    missing = [package for package in packages if not re.search(rf"\b{package}\b", section)]
    assert missing == []
