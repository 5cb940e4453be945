import functools
import importlib.util
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from diffusion_lib import (
    bound,
    checkpoints,
    cli,
    config,
    data,
    losses,
    optimizers,
    predictions,
    schedules,
)
from diffusion_lib.config import Experiment, presets
from diffusion_lib.networks.unet import UNetConfig
from diffusion_lib.training import TrainConfig

ROOT = Path(__file__).parent.parent
SCHEDULES = [getattr(schedules, name) for name in schedules.__all__]
PREDICTIONS = [getattr(predictions, name) for name in predictions.__all__]
WEIGHTS = [getattr(losses, name) for name in losses.__all__]
PRESETS = list(config.PRESETS.values())
TINY = replace(
    config.MNIST, network=replace(config.MNIST.network, width=8, multipliers=(1, 2), attention=())
)


@pytest.mark.parametrize(
    "experiment",
    [
        *PRESETS,
        *(replace(TINY, schedule=schedule) for schedule in SCHEDULES),
        *(replace(TINY, prediction=prediction) for prediction in PREDICTIONS),
        *(replace(TINY, weight=weight) for weight in WEIGHTS),
    ],
)
def test_an_experiment_survives_json(experiment):
    assert Experiment.from_json(experiment.to_json()) == experiment


@pytest.mark.slow
@pytest.mark.parametrize("loss", [bound.hybrid_loss, bound.vlb_loss])
@pytest.mark.parametrize("weight", [None, losses.min_snr])
def test_a_learned_variance_survives_json(loss, weight):
    network = replace(TINY.network, outputs=2)
    experiment = replace(TINY, network=network, loss=loss, weight=weight)
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert experiment.name("images") != TINY.name("images")
    next(experiment.trainer().run(torch.zeros(64, 1, 28, 28, dtype=torch.uint8)))


@pytest.mark.parametrize(
    ("loss", "outputs", "message"),
    [
        (bound.hybrid_loss, 1, r"no output for one: use outputs=2"),
        (losses.diffusion_loss, 2, "never teaches the variance"),
    ],
)
def test_a_loss_that_does_not_fit_the_network_is_refused(loss, outputs, message):
    network = replace(TINY.network, outputs=outputs)
    with pytest.raises(ValueError, match=message):
        replace(TINY, network=network, loss=loss).build()


def test_fields_that_came_later_leave_older_records_alone():
    record = json.loads(TINY.to_json())
    assert "loss" not in record
    assert "outputs" not in record["network"]
    assert "groups" not in record["network"]
    assert record["weight"] is None


@pytest.mark.slow
def test_a_loss_of_ones_own_is_known_by_its_values():
    def mine(denoiser, x_0, weight=None, generator=None):
        return 2 * losses.diffusion_loss(denoiser, x_0, weight, generator)

    first = replace(TINY, loss=mine).name("images")
    assert replace(TINY, loss=mine).name("images") == first

    def mine(denoiser, x_0, weight=None, generator=None):
        return 3 * losses.diffusion_loss(denoiser, x_0, weight, generator)

    assert replace(TINY, loss=mine).name("images") != first


@pytest.mark.slow
def test_the_presets_are_what_they_say():
    assert config.CIFAR10.dataset is data.cifar10
    assert sum(p.numel() for p in config.CIFAR10.build().parameters()) == 35_746_307
    assert config.CIFAR10.train.mirror == 0.5
    assert config.MNIST.train.mirror == 0  # mirrored digits are not digits
    assert config.MNIST.schedule is schedules.linear
    assert config.MNIST.prediction is predictions.eps


def test_equal_seeds_build_equal_weights_and_leave_the_global_state():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    one = TINY.build().state_dict()
    assert torch.equal(torch.randn(3), expected)
    same = replace(TINY, schedule=schedules.cosine, prediction=predictions.v).build().state_dict()
    other = replace(TINY, train=replace(TINY.train, seed=1)).build().state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["network.conv_in.weight"], other["network.conv_in.weight"])


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"prediction": "epss"}, "prediction", "did you mean eps"),
        ({"schedule": "__import__"}, "schedule", "Choose one of: linear, cosine"),
        ({"dataset": "os"}, "dataset", "Choose one of: mnist"),
        ({"schedule": "NoiseSchedule"}, "schedule", "is unknown"),
    ],
)
def test_names_that_are_not_offered_are_refused(change, field, value):
    record = json.loads(TINY.to_json()) | change
    with pytest.raises(ValueError, match=rf"{field} .*{value}"):
        Experiment.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"dataset": 3}', "not json"])
def test_text_that_is_no_experiment_is_refused(text):
    with pytest.raises(ValueError, match=r"not an experiment|is unknown"):
        Experiment.from_json(text)


def test_differences_name_what_is_trained_differently():
    other = replace(
        TINY, prediction=predictions.v, train=replace(TINY.train, seed=4), sample_steps=7
    )
    assert TINY.differences(other.to_json()) == [
        "prediction: 'v' there, 'eps' here",
        "train.seed: 4 there, 0 here",
    ]
    assert TINY.differences(TINY.to_json()) == []


def test_the_name_of_a_run_changes_with_what_is_trained_and_with_nothing_else():
    name = TINY.name("images A")
    assert name.startswith("mnist-linear-eps-10000-")
    assert replace(TINY, sample_steps=7).name("images A") == name
    changed = [
        replace(TINY, T=500),
        replace(TINY, weight=losses.snr),
        replace(TINY, network=replace(TINY.network, dropout=0.1)),
        replace(TINY, train=replace(TINY.train, seed=1)),
    ]
    names = {name, TINY.name("images B"), *(experiment.name("images A") for experiment in changed)}
    assert len(names) == 6


def test_a_function_of_ones_own_is_known_by_its_values():
    def warped(T, power=2.0):
        return schedules.NoiseSchedule.from_betas(
            torch.linspace(1e-4, 0.02, T, dtype=torch.float64) ** power
        )

    first = replace(TINY, schedule=warped).name("images")
    assert replace(TINY, schedule=warped).name("images") == first

    def warped(T):  # the cell was edited and run again
        return schedules.NoiseSchedule.from_betas(
            torch.linspace(1e-4, 0.03, T, dtype=torch.float64)
        )

    assert replace(TINY, schedule=warped).name("images") != first
    with pytest.raises(ValueError, match="warped#"):
        Experiment.from_json(replace(TINY, schedule=warped).to_json())


def test_more_sampling_steps_than_T_are_refused_when_built():
    with pytest.raises(ValueError, match=r"1000 sampling steps.*T = 100"):
        replace(TINY, T=100, sample_steps=1000).build()


def test_a_library_function_with_other_arguments_is_another_experiment():
    milder = replace(TINY, schedule=partial(schedules.cosine, s=0.02))
    assert milder.describe()["schedule"] == "cosine(s=0.02), T = 1000"
    names = {
        replace(TINY, schedule=schedule).name("images")
        for schedule in (schedules.cosine, milder.schedule, partial(schedules.cosine, s=0.03))
    }
    assert len(names) == 3
    assert all(name.startswith("mnist-cosine-eps-") for name in names)


def test_fewer_diffusion_steps_need_no_other_change():
    assert replace(TINY, T=200).describe()["sampling"] == "200 steps"
    assert replace(TINY, T=200).build().schedule.num_timesteps == 200


@pytest.mark.slow
@pytest.mark.parametrize("budget", config.BUDGETS.values())
@pytest.mark.parametrize("preset", PRESETS)
def test_a_budget_takes_no_longer(budget, preset):
    shorter = budget(preset)
    assert shorter.train.num_steps <= preset.train.num_steps
    quick = config.quick(config.MNIST).network
    assert replace(shorter.network, classes=0) in (replace(preset.network, classes=0), quick)
    assert shorter.schedule is preset.schedule


def test_the_environment_chooses_budget_and_data(monkeypatch):
    monkeypatch.delenv("DIFFUSION_BUDGET", raising=False)
    monkeypatch.delenv("DIFFUSION_DATA", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert config.budget() is config.quick
    assert config.data_root() == "data"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert config.budget() is config.full
    monkeypatch.setenv("DIFFUSION_BUDGET", "smoke")
    monkeypatch.setenv("DIFFUSION_DATA", "elsewhere")
    assert config.budget() is config.smoke
    assert config.data_root() == "elsewhere"
    monkeypatch.setenv("DIFFUSION_BUDGET", "qick")
    with pytest.raises(ValueError, match="DIFFUSION_BUDGET 'qick' is unknown; did you mean quick"):
        config.budget()


def test_an_entry_whose_name_has_parentheses_is_found():
    assert config.lookup("width(8), seed 1", {"width(8), seed 1": 3}, "arm") == 3


@pytest.mark.parametrize(
    ("inside", "up"), [("", ""), ("other_tests/editing", "../../"), ("tests", "../")]
)
def test_data_and_runs_are_in_the_root_from_every_folder_of_the_checkout(inside, up, monkeypatch):
    monkeypatch.chdir(ROOT / inside)
    assert config.data_root() == f"{up}data"
    assert config.runs_root() == Path(f"{up}runs")
    monkeypatch.setenv("DIFFUSION_RUNS", "elsewhere")
    assert config.runs_root() == Path("elsewhere")


def test_data_and_runs_are_in_the_working_folder_outside_of_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (config.data_root(), config.runs_root()) == ("data", Path("runs"))
    # A copy of the package that is installed has no checkout, wherever it is.
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(presets, "__file__", str(tmp_path / "lib" / "config" / "presets.py"))
    assert (config.data_root(), config.runs_root()) == ("data", Path("runs"))
    (tmp_path / "pyproject.toml").touch()
    assert (config.data_root(), config.runs_root()) == ("../data", Path("../runs"))


def test_describe_says_what_is_trained():
    words = TINY.describe()
    assert words["schedule"] == "linear, T = 1000"
    assert words["network predicts"] == "eps"
    assert words["data"] == "mnist, 28 x 28, 1 channel"
    assert "learns nothing" in config.smoke(config.MNIST).describe()["training"]
    assert "learns nothing" not in config.quick(config.MNIST).describe()["training"]


@pytest.mark.slow
def test_the_quick_network_is_the_preset_from_its_second_level_on():
    fast = config.quick(config.MNIST).network
    assert fast == UNetConfig(
        (1, 28, 28), 32, (1, 2), num_blocks=1, attention=(), dropout=0.0, patch=2
    )
    learned = replace(config.MNIST, network=replace(config.MNIST.network, outputs=2))
    assert config.quick(learned).network == replace(fast, outputs=2)
    for own in (fast, replace(config.MNIST.network, width=32)):
        assert config.quick(replace(config.MNIST, network=own)).network == own
    labels = replace(config.MNIST, network=replace(config.MNIST.network, classes=10))
    assert config.quick(labels).network == replace(fast, classes=10)
    assert config.quick(config.MNIST_LABELS).network == replace(fast, classes=10)
    assert config.quick(config.MNIST_BEST).network == fast


@pytest.mark.slow
def test_the_quick_budget_of_a_preset_is_a_short_training_of_it():
    for preset, steps, batch_size in (
        (config.MNIST, 1500, 32),
        (config.MNIST_LABELS, 900, 32),
        (config.CIFAR10_LABELS, 1300, 64),
        (config.CIFAR10_SMALL, 1300, 64),
    ):
        short = config.quick(preset)
        assert (short.train.num_steps, short.train.batch_size) == (steps, batch_size)
        assert short.optimizer == optimizers.muon
        kept = ("dataset", "schedule", "prediction", "weight", "loss", "T")
        assert all(getattr(short, name) == getattr(preset, name) for name in kept)


@pytest.mark.slow
def test_the_quick_budget_leaves_what_is_not_the_presets():
    own = replace(config.MNIST.train, learning_rate=5e-4)
    assert config.quick(replace(config.MNIST, train=own)).train == replace(own, num_steps=3000)
    adam = replace(config.MNIST, optimizer=partial(optimizers.adamw, beta_2=0.95))
    assert config.quick(adam).optimizer == adam.optimizer
    assert config.quick(adam).train == replace(config.MNIST.train, num_steps=3000)
    short = replace(config.MNIST.train, num_steps=10, seed=3)
    assert config.quick(replace(config.MNIST, train=short)).train == short
    seed = replace(config.MNIST.train, seed=3)
    assert config.quick(replace(config.MNIST, train=seed)).train.cooldown == 0.8
    assert config.quick(replace(config.MNIST, train=seed)).optimizer == optimizers.muon


def test_patches_and_cooldown_are_recorded_where_they_say_something():
    old = json.loads(config.MNIST.to_json())
    assert "patch" not in old["network"]
    assert "cooldown" not in old["train"]
    new = json.loads(config.MNIST_BEST.to_json())
    assert (new["network"]["patch"], new["train"]["cooldown"]) == (2, 0.6)
    changed = config.FASHION_MNIST.changed(
        {
            "network": {"patch": 2, "multipliers": [1, 2], "attention": [7]},
            "train": {"cooldown": 0.1},
        }
    )
    assert (changed.network.patch, changed.train.cooldown) == (2, 0.1)


@pytest.mark.slow
def test_groups_are_recorded_where_they_say_something():
    assert "groups" not in json.loads(config.MNIST.to_json())["network"]
    record = config.MNIST_DIFFUSERS.to_json()
    assert json.loads(record)["network"]["groups"] == 4
    assert Experiment.from_json(record) == config.MNIST_DIFFUSERS
    assert config.MNIST.changed({"network": {"groups": 4}}) == config.MNIST_DIFFUSERS
    assert config.MNIST_DIFFUSERS.name("images") != config.MNIST.name("images")
    # The quick budget's network of patches could not be exported.
    assert config.quick(config.MNIST_DIFFUSERS).network == config.MNIST_DIFFUSERS.network


# ---- budgets, warm-ups and reloaded modules ---------------------------------------------------


@pytest.mark.slow
def test_a_budget_that_cuts_the_steps_cuts_the_warm_up(recwarn):
    for budget in (config.smoke, config.quick):
        train = budget(config.CIFAR10).train
        assert train.warmup_steps == train.num_steps // 10
    assert config.quick(config.MNIST).train.warmup_steps == config.MNIST.train.warmup_steps
    as_it_was = replace(config.MNIST.train, num_steps=500, warmup_steps=400)
    assert config.quick(replace(config.MNIST, train=as_it_was)).train == as_it_was
    assert not [w for w in recwarn if "warm-up" in str(w.message)]


def test_a_warm_up_longer_than_the_training_is_warned_of():
    with pytest.warns(
        UserWarning,
        match=r"warm-up of 5,000 steps is longer than the training of 1,000"
        r": the learning rate gets to 4e-05 of 0.0002",
    ):
        TrainConfig(num_steps=1000)
    with pytest.warns(UserWarning, match="warm-up of 5,000 steps"):
        config.CIFAR10.changed({"train": {"num_steps": 4999}})


@pytest.mark.slow
def test_the_quick_budget_says_where_it_takes_hours(recwarn):
    config.quick(config.MNIST)
    config.quick(config.FASHION_MNIST)
    config.quick(config.CIFAR10_LABELS)
    assert cli.main(["train", "cifar10", "--show", "--steps", "5000"]) == 0  # the user's own
    assert not recwarn
    with pytest.warns(UserWarning, match=r"minutes for the network of the MNIST presets; .* hours"):
        config.quick(config.CIFAR10)


@pytest.fixture
def reloaded(monkeypatch):
    """The library's functions made anew, as %autoreload does after an edit of a comment."""

    def reload(module):
        again = importlib.util.module_from_spec(module.__spec__)
        module.__spec__.loader.exec_module(again)
        for name, value in vars(again).items():
            if not name.startswith("__"):
                monkeypatch.setattr(module, name, value)

    return reload


@pytest.mark.parametrize("module", [schedules, predictions, losses])
def test_a_function_of_the_library_is_known_after_its_module_was_reloaded(module, reloaded):
    experiments = [
        *config.PRESETS.values(),
        replace(
            config.MNIST, loss=bound.hybrid_loss, network=replace(config.MNIST.network, outputs=2)
        ),
    ]
    before = [(e.name("x"), e.to_json()) for e in experiments]
    reloaded(module)
    assert [(e.name("x"), e.to_json()) for e in experiments] == before
    assert checkpoints.prediction_name(config.MNIST.prediction) == "eps"
    with pytest.raises(ValueError, match="hybrid_loss teaches a variance"):
        replace(experiments[-1], network=config.MNIST.network).build()


def test_a_function_that_was_wrapped_is_ones_own():
    """It has the name and the module of the library's."""

    @functools.wraps(predictions.eps)
    def eps(signal, noise):
        return predictions.x_0(signal, noise)

    @functools.wraps(losses.diffusion_loss)
    def loss(*arguments, **options):
        return 2 * losses.diffusion_loss(*arguments, **options)

    for own in (replace(TINY, prediction=eps), replace(TINY, loss=loss)):
        assert own.name("x") != TINY.name("x")
        assert "#" in own.to_json()
    assert checkpoints.prediction_name(eps) == "eps (your own)"


@pytest.mark.parametrize("name", ["network", "train"])
def test_settings_of_a_reloaded_module_are_refused_with_what_to_do(name):
    kind = type(getattr(config.MNIST, name))
    twin = type(kind.__name__, (), {})()
    with pytest.raises(TypeError, match=r"before its module was reloaded: .* restart the kernel"):
        replace(config.MNIST, **{name: twin})


def test_a_function_without_a_name_makes_a_name_that_every_disk_takes():
    experiment = replace(config.MNIST, dataset=lambda root, train: data.mnist(root, train))
    assert re.fullmatch(r"lambda-linear-eps-10000-[0-9a-f]{8}", experiment.name("x"))
