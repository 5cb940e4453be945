"""Networks that know labels, and guidance: in training, samplers, runs and the command line."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from diffusion_lib import (
    config,
    data,
    evaluation,
    losses,
    predictions,
    runs,
    samplers,
    schedules,
    training,
)
from diffusion_lib.cli import main
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import guided, with_labels
from diffusion_lib.networks.unet import UNet
from diffusion_lib.training import TrainConfig, Trainer
from tests.helpers import (
    CONDITIONAL,
    FOUR_LABELS,
    assert_same,
    random_denoiser,
    random_images,
    weights,
    write_idx,
)

pytestmark = pytest.mark.usefixtures("small_convolutions")
CPU = torch.device("cpu")
PREDICTIONS = [getattr(predictions, name) for name in predictions.__all__]
CONFIG = TrainConfig(num_steps=8, batch_size=4, learning_rate=1e-3, warmup_steps=3, mirror=0.5)
IMAGES = random_images(10, 1, 8, 8)
LABELS = torch.arange(10) % 3
X_T, T = (
    torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
    torch.tensor([1, 30, 70, 100]),
)


def trainer(train=CONFIG, network=CONDITIONAL):
    torch.manual_seed(0)
    return Trainer(Denoiser(UNet(network), schedules.linear(100)), train)


def test_no_label_is_the_label_after_the_last():
    denoiser = random_denoiser()
    untold = with_labels(denoiser, torch.full((4,), 3))
    assert torch.equal(denoiser(X_T, T).x_0, untold(X_T, T).x_0)


def test_each_image_gets_its_own_label():
    denoiser = random_denoiser()
    told = with_labels(denoiser, FOUR_LABELS)(X_T, T).x_0
    for i, label in enumerate(FOUR_LABELS):
        alone = with_labels(denoiser, label[None])(X_T[i : i + 1], T[i : i + 1]).x_0
        torch.testing.assert_close(told[i : i + 1], alone, rtol=1e-5, atol=1e-5)
        other = with_labels(denoiser, (label[None] + 1) % 3)(X_T[i : i + 1], T[i : i + 1]).x_0
        assert not torch.allclose(alone, other)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_guidance_multiplies_the_difference_in_whatever_is_predicted(prediction, scale):
    """[Ho & Salimans 2022, eq. 6] is stated for eps; it holds for x_0 at the same x_t."""
    denoiser = random_denoiser(prediction)
    told, untold = with_labels(denoiser, FOUR_LABELS)(X_T, T), denoiser(X_T, T)
    found = guided(denoiser, FOUR_LABELS, scale)(X_T, T)
    for part in ("x_0", "eps"):
        a, b = getattr(untold, part), getattr(told, part)
        torch.testing.assert_close(getattr(found, part), a + scale * (b - a), atol=1e-3, rtol=1e-4)


def test_what_is_guided_is_clipped_after_that_and_not_before():
    denoiser = random_denoiser(predictions.x_0)
    expected = guided(denoiser, FOUR_LABELS, 4.0)(X_T, T).x_0.clamp(-0.1, 0.1)
    denoiser.clip = 0.1
    torch.testing.assert_close(guided(denoiser, FOUR_LABELS, 4.0)(X_T, T).x_0, expected)


def test_a_learned_variance_is_that_of_the_asked_for():
    denoiser = random_denoiser(network=replace(CONDITIONAL, outputs=2))
    told = with_labels(denoiser, FOUR_LABELS)(X_T, T).variance_fraction
    torch.testing.assert_close(guided(denoiser, FOUR_LABELS, 3.0)(X_T, T).variance_fraction, told)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [getattr(samplers, name) for name in samplers.__all__])
def test_samplers_take_it_as_any_denoiser(sampler):
    denoiser = random_denoiser(clip=1.0)
    times = denoiser.schedule.timesteps(5)
    g = torch.Generator().manual_seed(0)
    told = samplers.final(sampler(guided(denoiser, FOUR_LABELS, 2.0), X_T, times, generator=g))
    g = torch.Generator().manual_seed(0)
    untold = samplers.final(sampler(denoiser, X_T, times, generator=g))
    assert told.isfinite().all()
    assert not torch.allclose(told, untold)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), r"whole numbers in 0\.\.2, one for each image; got .*\[0, 3\]"),
        (torch.tensor([-1, 0]), r"0\.\.2, .*\[-1, 0\]"),
        (torch.tensor([0.0, 1.0]), r"0\.\.2, .*torch.float32 \[0\.0, 1\.0\]"),
        (torch.tensor([True]), r"0\.\.2, .*torch.bool"),
        (torch.zeros(2, 2, dtype=torch.long), r"one for each image; got .*\[\[0, 0\]"),
        (torch.zeros(0, dtype=torch.long), r"one for each image"),
    ],
)
def test_labels_that_are_not_known_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        guided(random_denoiser(), labels, 2.0)


def test_labels_for_a_network_without_and_an_infinite_scale_are_refused():
    plain = random_denoiser(network=replace(CONDITIONAL, classes=0))
    with pytest.raises(ValueError, match=r"knows no labels: build it with classes="):
        guided(plain, FOUR_LABELS, 2.0)
    with pytest.raises(ValueError, match=r"knows no labels"):
        with_labels(plain, FOUR_LABELS)(X_T, T)
    with pytest.raises(ValueError, match=r"scale must be finite.*got nan"):
        guided(random_denoiser(), FOUR_LABELS, float("nan"))


def test_the_labels_of_a_batch_are_those_of_its_images():
    """Images that are their own label, so that a mix-up would show."""
    images = LABELS.to(torch.uint8)[:, None, None, None].expand(10, 1, 8, 8).contiguous()
    t = trainer(replace(CONFIG, label_dropout=0.0))
    t._data = images, LABELS
    for ((x_0, labels, _),) in islice(t._batches(slice(0, 4)), 12):  # over epochs
        assert torch.equal(data.to_uint8(x_0)[:, 0, 0, 0].long(), labels)


def test_labels_stay_with_their_images_that_do_not_fit_the_device(monkeypatch):
    """Those stay where they are; the order must not depend on the place."""
    drawn = []
    monkeypatch.setattr(training, "image_memory_budget", lambda device: 0)
    batch_indices = data.batch_indices

    def spy(*arguments):
        for chosen in batch_indices(*arguments):
            drawn.append(chosen.clone())
            yield chosen

    for place in ("data", "data.batching"):
        monkeypatch.setattr(f"diffusion_lib.{place}.batch_indices", spy)
    with monkeypatch.context() as patch:
        cpu = torch.randperm
        patch.setattr(
            torch, "randperm", lambda n, generator: cpu(n, generator=generator)
        )  # a device of its own would be an error
        next(iter(trainer().run(Images(IMAGES, LABELS))))
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.slow
def test_the_asked_for_share_of_the_labels_is_left_out():
    t = trainer(replace(CONFIG, label_dropout=0.3))
    t._data = IMAGES, LABELS
    told = torch.cat([labels for ((_, labels, _),) in islice(t._batches(slice(0, 4)), 500)])
    share = float((told == 3).float().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    again = torch.cat([labels for ((_, labels, _),) in islice(t._batches(slice(0, 4)), 500)])
    assert torch.equal(told, again)


@pytest.mark.slow
def test_training_with_labels_goes_on_exactly(tmp_path):
    images = Images(IMAGES, LABELS)
    whole = trainer()
    expected = [step.loss for step in whole.run(images)]
    first = trainer()
    seen = [step.loss for step in islice(first.run(images), 3)]
    first.save(tmp_path / "state.safetensors")
    second = trainer()
    second.load(tmp_path / "state.safetensors")
    assert seen + [step.loss for step in second.run(images)] == expected
    assert_same(weights(second), weights(whole))


@pytest.mark.slow
def test_without_any_label_it_trains_as_if_there_were_none():
    other = Images(IMAGES, (LABELS + 1) % 3)
    one, two, told = (trainer(replace(CONFIG, label_dropout=p)) for p in (1.0, 1.0, 0.0))
    first = [step.loss for step in one.run(Images(IMAGES, LABELS))]
    assert first == [step.loss for step in two.run(other)]
    assert first != [step.loss for step in told.run(other)]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_that_batch(parts):
    """In float32: in bfloat16 parts are rounded by thousands of times as much."""
    whole, divided = (
        trainer(replace(CONFIG, accumulate=n), replace(CONDITIONAL, dropout=0.0))
        for n in (1, parts)
    )
    images = Images(IMAGES, LABELS)
    a = [step.loss for step in whole.run(images)]
    b = [step.loss for step in divided.run(images)]
    assert b == pytest.approx(a, rel=1e-5)
    found = weights(divided)
    for name, value in weights(whole).items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"batch_size = 4 cannot be divided into 3 equal parts"):
        trainer(replace(CONFIG, accumulate=3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_whole_numbers_of_any_kind(dtype):
    few = guided(random_denoiser(), FOUR_LABELS.to(dtype), 2.0)(X_T, T).x_0
    assert torch.equal(few, guided(random_denoiser(), FOUR_LABELS, 2.0)(X_T, T).x_0)
    next(iter(trainer().run(Images(IMAGES, LABELS.to(dtype)))))


def test_guidance_of_guidance_is_refused():
    with pytest.raises(ValueError, match="has labels already"):
        guided(guided(random_denoiser(), FOUR_LABELS, 2.0), FOUR_LABELS, 2.0)


@pytest.mark.slow
def test_a_network_learns_what_its_labels_mean():
    """Black, gray and white pictures: each label brings its own, also in few guided steps."""
    shades = torch.tensor([0, 128, 255], dtype=torch.uint8)
    images = shades[LABELS][:, None, None, None].expand(10, 1, 8, 8).contiguous()
    steps = TrainConfig(120, 16, 5e-3, warmup_steps=10, cooldown=0.5, ema_decay=0.95)
    denoiser = Denoiser(
        UNet(replace(CONDITIONAL, dropout=0.0)), schedules.cosine(100), predictions.v
    )
    t = Trainer(denoiser, steps)
    for _ in t.run(Images(images, LABELS)):
        pass
    asked = torch.arange(3).repeat(4)
    x_T = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    for scale in (1.0, 2.0):
        told = guided(t.ema, asked, scale)
        x_0 = samplers.final(samplers.ddim(told, x_T, t.ema.schedule.timesteps(20)))
        found = x_0.mean((1, 2, 3))
        assert (found - torch.tensor([-1.0, 0.0, 1.0]).repeat(4)).abs().max() < 0.4


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES, r"trained on labels: give data\.Images\(images, labels\)"),
        (Images(IMAGES, LABELS + 1), r"0\.\.2, one for each image"),
        (Images(IMAGES, LABELS[:9]), "9 labels for 10 images"),
    ],
)
def test_images_without_fitting_labels_are_refused(images, message):
    t = trainer()
    with pytest.raises(ValueError, match=message):
        t.run(images)
    assert t.step == 0


@pytest.mark.slow
def test_a_network_without_labels_ignores_those_of_the_data():
    plain = replace(CONDITIONAL, classes=0)
    one, two = trainer(network=plain), trainer(network=plain)
    told = [step.loss for step in one.run(Images(IMAGES, LABELS))]
    assert told == [step.loss for step in two.run(IMAGES)]


def test_a_saved_denoiser_knows_its_labels(tmp_path):
    denoiser = random_denoiser()
    denoiser.save(tmp_path / "a.safetensors")
    loaded = Denoiser.load(tmp_path / "a.safetensors")
    assert torch.equal(
        guided(loaded, FOUR_LABELS, 2.0)(X_T, T).x_0, guided(denoiser, FOUR_LABELS, 2.0)(X_T, T).x_0
    )


def test_held_out_loss_takes_labels_too():
    denoiser = random_denoiser()
    told = losses.held_out_loss(with_labels(denoiser, LABELS), data.to_float(IMAGES))
    assert told != losses.held_out_loss(denoiser, data.to_float(IMAGES))


EXPERIMENT = replace(
    config.MNIST_LABELS,
    network=replace(config.MNIST_LABELS.network, width=8, multipliers=(1, 1), attention=()),
    train=replace(config.MNIST_LABELS.train, num_steps=12, batch_size=4),
    sample_steps=3,
)
DIGITS = Images(random_images(30, 1, 28, 28), torch.arange(30) % 10)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "labels"
    runs.train(EXPERIMENT, DIGITS, DIGITS.images, folder, CPU)
    return runs.load(folder, CPU)


@pytest.mark.slow
def test_a_run_is_asked_for_labels_in_turn(run):
    """Image i has label i % 3, whatever batch it is in."""
    asked = {"sampler": samplers.ddpm, "num_steps": 3}
    three = runs.sample(run.guided([7, 1, 4], 300.0), 7, batch_size=7, **asked).int()
    two = runs.sample(run.guided([7, 1, 4], 300.0), 7, batch_size=2, **asked).int()
    assert (three - two).abs().max() <= 1
    other = runs.sample(run.guided([7], 300.0), 7, batch_size=7, **asked).int()
    alike = [torch.equal(three[i], other[i]) for i in range(7)]
    assert alike == [i % 3 == 0 for i in range(7)]


@pytest.mark.slow
def test_a_run_of_other_labels_is_another_run(run):
    other = Images(DIGITS.images, DIGITS.labels.flip(0))
    with pytest.raises(ValueError, match=r"training images: .* of labels"):
        runs.train(EXPERIMENT, other, DIGITS.images, run.folder, CPU)


@pytest.mark.slow
def test_what_was_asked_for_is_a_condition_of_a_record(run, tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    asked = evaluation.Conditions(n=0, steps=2, n_likelihood=2, num_times=2)
    plain = evaluation.plan(run, asked, tmp_path).conditions
    told = evaluation.plan(run.guided([3], 2.0), asked, tmp_path).conditions
    assert told == plain | {"labels": [3], "guidance": 2.0}


def test_a_wrong_number_of_labels_leaves_nothing_behind(tmp_path):
    few = Images(DIGITS.images, DIGITS.labels[:29])
    with pytest.raises(ValueError, match="29 labels for 30 images"):
        runs.train(EXPERIMENT, few, DIGITS, tmp_path / "new", CPU)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_goes_on_in_other_parts(tmp_path):
    short = replace(EXPERIMENT, train=replace(EXPERIMENT.train, num_steps=2))
    parts = replace(short, train=replace(short.train, accumulate=2))
    runs.train(short, DIGITS, DIGITS, tmp_path / "run", CPU)
    assert len(runs.train(parts, DIGITS, DIGITS, tmp_path / "run", CPU).log) == 2
    assert short.name("x") == parts.name("x")


def test_a_run_without_labels_says_how_to_get_some(run, tmp_path):
    with pytest.raises(ValueError, match=r"give data\.Images"):
        runs.train(EXPERIMENT, DIGITS.images, DIGITS.images, tmp_path / "new", CPU)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"0\.\.9, .*\[10\]"):
        run.guided([10])


def test_labels_and_guidance_on_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "a.npz"
    asked = ["sample", str(run.folder), "--n", "4", "--steps", "3", "--device", "cpu"]
    asked += ["--out", str(out)]
    assert main([*asked, "--labels", "3", "8", "--guidance", "2.5"]) == 0
    expected = runs.sample(run.guided([3, 8], 2.5), 4, num_steps=3)
    assert np.array_equal(np.load(out)["arr_0"], expected.permute(0, 2, 3, 1).numpy())
    assert main([*asked, "--guidance", "2"]) == 2
    assert "--guidance 2.0 needs --labels" in capsys.readouterr().err
    assert main([*asked, "--labels", "12"]) == 2
    assert "0..9" in capsys.readouterr().err


@pytest.mark.slow
def test_the_preset_trains_from_the_command_line(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", 30, 20)
    folder = tmp_path / "run"
    arguments = ["train", "mnist_labels", "--out", str(folder), "--data", str(tmp_path)]
    assert main([*arguments, "--budget", "smoke", "--device", "cpu"]) == 0
    assert "labels" in (folder / "experiment.json").read_text()
    assert runs.load(folder, CPU).guided([9]).labels.tolist() == [9]
