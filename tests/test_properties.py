"""Whatever is passed in: it works, or the library itself says what is wrong."""

import json
import math
import warnings
from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lib import config, data, losses, predictions, samplers, schedules
from diffusion_lib.config import Experiment
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.evaluation import Conditions
from diffusion_lib.networks import UNetConfig, on_meta_device
from diffusion_lib.networks.unet import UNet
from diffusion_lib.oracles import gaussian
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.training import TrainConfig, Trainer
from tests.helpers import is_own

# The same inputs in every run, however slow the machine is.
always = settings(derandomize=True, deadline=None, database=None, max_examples=45)

NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**63, 10**30, -(10**30)]),
    st.floats(-2, 2),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 1e-308]),
)
ANYTHING = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.lists(st.integers(-1, 3), max_size=3),
    st.just({}),
)


def attempt(call, *named, kinds=(TypeError, ValueError)):
    """What a call returns, or None where the library refuses it by naming one of these values."""
    refused = None
    try:
        return call()
    except kinds as error:
        refused = error
    assert is_own(refused), repr(refused)
    assert len(str(refused)) < 1000
    if named:
        shown = {text[:20] for value in named for text in (str(value), repr(value))}
        shown |= {f"{value:g}" for value in named if isinstance(value, float)}
        shown |= {str(tuple(value)) for value in named if isinstance(value, list)}
        assert any(text in str(refused) for text in shown), str(refused)
    return None


def test_an_error_of_torch_is_not_the_librarys():
    with pytest.raises(TypeError) as caught:
        schedules.linear(100, beta_1="a")
    assert not is_own(caught.value)


def fields(usual, **others):
    """Keyword arguments: usual values, of which up to two are replaced by anything."""
    names = sorted(others)
    return (
        st.lists(st.sampled_from(names), max_size=2, unique=True)
        .flatmap(lambda chosen: st.fixed_dictionaries({name: others[name] for name in chosen}))
        .map(lambda changed: (usual | changed, changed))
    )


TINY = {
    "image_shape": (1, 8, 8),
    "width": 8,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention": (4,),
    "dropout": 0.1,
    "outputs": 1,
    "patch": 1,
}
SIZES = st.lists(st.one_of(st.integers(-1, 16), ANYTHING), max_size=4)
NETWORKS = fields(
    TINY,
    image_shape=st.one_of(
        st.tuples(*[st.integers(1, 4).map(lambda n: 4 * n)] * 3), SIZES, ANYTHING
    ),
    width=st.one_of(st.integers(1, 4).map(lambda n: 4 * n), ANYTHING),
    multipliers=st.one_of(st.lists(st.integers(1, 2), max_size=3), SIZES, ANYTHING),
    num_blocks=st.one_of(st.integers(1, 2), ANYTHING),
    attention=st.one_of(st.lists(st.sampled_from([1, 2, 4, 8]), max_size=2), SIZES, ANYTHING),
    dropout=st.one_of(st.floats(0, 1), ANYTHING),
    outputs=st.one_of(st.integers(1, 2), ANYTHING),
    patch=st.one_of(st.integers(1, 2), ANYTHING),
)


def small(shape: UNetConfig) -> bool:
    return max(shape.image_shape + shape.multipliers + (shape.width, shape.num_blocks)) <= 16


@pytest.mark.slow
@always
@given(NETWORKS)
def test_networks_of_every_size_work_or_are_refused(given_fields):
    told, changed = given_fields
    shape = attempt(lambda: UNetConfig(**told), *changed.values())
    if shape is None or not attempt(lambda: on_meta_device(shape)):
        return
    if small(shape):
        images = torch.zeros(2, *shape.image_shape)
        output = UNet(shape)(images, torch.tensor([0, 5]))
        assert output.shape == (2, shape.outputs * shape.image_shape[0], *shape.image_shape[1:])


@pytest.mark.slow
@always
@given(NETWORKS, st.data())
def test_experiments_work_survive_json_or_are_refused(given_fields, draw):
    told, _ = given_fields
    usual = {
        "dataset": "mnist",
        "network": told,
        "schedule": "cosine",
        "T": 10,
        "prediction": "v",
        "weight": None,
        "train": {"num_steps": 2, "batch_size": 2},
        "sample_steps": 2,
    }
    field = draw.draw(st.sampled_from([*usual, "loss"]))
    value = draw.draw(ANYTHING)
    text = json.dumps(usual | {field: value})
    experiment = attempt(lambda: Experiment.from_json(text))
    if experiment is None or not small(experiment.network):
        return
    denoiser = attempt(experiment.build)
    if denoiser is not None:
        assert Experiment.from_json(experiment.to_json()) == experiment
        x_T = torch.zeros(1, *experiment.network.image_shape)
        steps = denoiser.schedule.timesteps(min(2, experiment.T))
        assert samplers.final(samplers.ddim(denoiser, x_T, steps)).isfinite().all()


@always
@given(
    st.sampled_from(
        [
            "dataset",
            "network",
            "schedule",
            "T",
            "prediction",
            "weight",
            "loss",
            "train",
            "sample_steps",
        ]
    ),
    ANYTHING,
)
def test_an_experiment_names_a_field_of_the_wrong_kind(name, value):
    made = attempt(lambda: replace(config.MNIST, **{name: value}), value)
    if made is not None:
        assert name in ("T", "sample_steps", "weight")
        assert value is None or type(value) is int


TRAIN = {"num_steps": 2, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1}
SHARE = st.one_of(st.floats(0, 1), ANYTHING)
IMAGES = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.slow
@always
@given(
    fields(
        TRAIN,
        num_steps=ANYTHING,
        batch_size=st.one_of(st.integers(1, 4), ANYTHING),
        learning_rate=st.one_of(st.floats(0, 1), ANYTHING),
        warmup_steps=ANYTHING,
        weight_decay=SHARE,
        grad_clip=SHARE,
        ema_decay=SHARE,
        mirror=SHARE,
        cooldown=SHARE,
        seed=ANYTHING,
        compile=ANYTHING.filter(lambda value: value is not True),  # takes a minute
    )
)
def test_trainings_work_or_are_refused(given_fields):
    told, changed = given_fields
    settings = attempt(lambda: TrainConfig(**told), *changed.values())
    if settings is None or settings.batch_size > 16:
        return
    denoiser = Denoiser(UNet(UNetConfig((1, 8, 8), 8, (1,), 1, ())), schedules.cosine(10))
    trainer = Trainer(denoiser, settings)
    attempt(lambda: list(islice(trainer.run(IMAGES), 2)), kinds=(FloatingPointError,))
    assert all(p.isfinite().all() for p in trainer.denoiser.parameters())


@always
@given(st.sampled_from(schedules.__all__), st.one_of(st.integers(1, 300), ANYTHING), ANYTHING)
def test_schedules_of_every_length_work_or_are_refused(name, T, num_steps):
    schedule = attempt(lambda: getattr(schedules, name)(T), T)
    if schedule is None:
        return
    assert schedule.num_timesteps == T
    assert (schedule.alpha_bar.diff() < 0).all()
    times = attempt(lambda: schedule.timesteps(num_steps), num_steps)
    if times is not None:
        assert len(times) == num_steps + 1
        assert (times[0], times[-1]) == (T, 0)


@always
@given(st.lists(st.one_of(st.floats(0, 1), NUMBERS), max_size=5))
def test_betas_work_or_are_refused(betas):
    numbers = torch.tensor([float(beta) for beta in betas], dtype=torch.float64)
    schedule = attempt(lambda: NoiseSchedule.from_betas(numbers))
    if schedule is not None:
        assert all(0 < beta <= 1 for beta in betas)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # x_T need not be noise
            assert schedule.describe()["T"] == len(betas)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", samplers.__all__)
@settings(always, max_examples=40)
@given(
    st.one_of(
        st.sets(st.integers(0, 10)).map(lambda times: sorted({0, *times}, reverse=True)),
        st.lists(ANYTHING, max_size=4),
        st.lists(st.floats(0, 10), max_size=3).map(lambda times: [*times, 0]),
        st.sampled_from([[True, 0], [5, False], [5.0, 0]]),
    )
)
def test_every_list_of_times_works_or_is_refused(sampler, times):
    denoiser = gaussian(schedules.cosine(10), 0.2, 0.5)
    sample = getattr(samplers, sampler)
    steps = attempt(lambda: sample(denoiser, torch.zeros(2, 1, 2, 2), times))
    if steps is not None:
        assert samplers.final(steps).isfinite().all()


@always
@given(NUMBERS)
def test_eta_works_or_is_refused(eta):
    denoiser = gaussian(schedules.cosine(10), 0.2, 0.5)
    steps = attempt(lambda: samplers.ddim(denoiser, torch.zeros(1, 1, 2, 2), [5, 2, 0], eta), eta)
    if steps is not None:
        assert 0 <= eta <= 1
        assert samplers.final(steps).isfinite().all()


@always
@given(
    st.lists(st.integers(0, 4), max_size=5),
    st.sampled_from([torch.uint8, torch.float32, torch.int64]),
    fields(
        {"batch_size": 3},
        batch_size=st.one_of(st.integers(1, 9), ANYTHING),
        seed=ANYTHING,
        start=ANYTHING,
        mirror=SHARE,
    ),
)
def test_batches_work_or_are_refused(shape, dtype, given_fields):
    told, _ = given_fields
    if isinstance(told["batch_size"], int) and told["batch_size"] > 1000:
        return  # as many as fit the memory are nobody's mistake
    images = torch.zeros(shape, dtype=dtype)
    found = attempt(lambda: data.batches(images, **told))
    if found is not None:
        for x_0 in islice(found, 2):
            assert x_0.shape == (told["batch_size"], *shape[1:])
            assert x_0.abs().max() <= 1 if x_0.numel() else True


@always
@given(
    fields(
        {},
        n=ANYTHING,
        sampler=ANYTHING,
        steps=ANYTHING,
        seed=ANYTHING,
        n_likelihood=ANYTHING,
        num_times=ANYTHING,
    )
)
def test_conditions_of_measuring_work_or_are_refused(given_fields):
    told, changed = given_fields
    found = attempt(lambda: Conditions(**told), *changed.values())
    if found is not None:
        assert all(value is None or type(value) is int for value in told.values())


@pytest.mark.slow
@pytest.mark.parametrize("prediction", predictions.__all__)
@settings(always, max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_images_of_every_shape_work_or_are_refused(prediction, shape):
    network = UNet(UNetConfig((1, 8, 8), 8, (1,), 1, ()))
    denoiser = Denoiser(network, schedules.cosine(10), getattr(predictions, prediction))
    loss = attempt(lambda: losses.diffusion_loss(denoiser, torch.zeros(*shape)))
    assert (loss is None) == (shape[1:] != [1, 8, 8])
