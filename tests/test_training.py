import os
import signal
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lib import data, losses, rng, samplers, schedules, training
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks.unet import UNet, UNetConfig
from diffusion_lib.system import files
from diffusion_lib.training import TrainConfig, Trainer
from tests.helpers import STATE_FORMAT, assert_same, full_disk, random_images, weights

SMALL = UNetConfig((1, 8, 8), 8, (1, 2), num_blocks=1, attention=(4,), dropout=0.2)
CONFIG = TrainConfig(
    num_steps=8, batch_size=4, learning_rate=1e-3, warmup_steps=3, mirror=0.5, ema_decay=0.9
)
IMAGES = random_images(10, 1, 8, 8)


def trainer(config=CONFIG, network=SMALL, loss=losses.diffusion_loss):
    torch.manual_seed(0)
    return Trainer(Denoiser(UNet(network), schedules.linear(100)), config, loss)


@pytest.mark.parametrize(
    "stop", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 7))]
)
def test_saved_and_loaded_equals_uninterrupted_bit_for_bit(tmp_path, stop):
    """With dropout, mirroring, warm-up and an epoch that ends in mid batch."""
    whole = trainer()
    expected = [step.loss for step in whole.run(IMAGES)]

    first = trainer()
    losses_seen = [step.loss for step in islice(first.run(IMAGES), stop)]
    first.save(tmp_path / "state.safetensors")
    torch.manual_seed(12345)  # what the process drew before must not matter
    second = trainer()
    second.load(tmp_path / "state.safetensors")
    assert second.step == stop
    losses_seen += [step.loss for step in second.run(IMAGES)]

    assert losses_seen == expected
    assert_same(weights(second), weights(whole))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_saves_goes_on_and_samples(tmp_path):
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(SMALL), schedules.linear(100)).cuda()
    t = Trainer(denoiser, CONFIG)
    list(islice(t.run(IMAGES), 3))
    t.save(tmp_path / "state.safetensors")
    t.load(tmp_path / "state.safetensors")
    list(t.run(IMAGES))
    assert t.step == 8
    assert all(p.dtype == torch.float32 and p.is_cuda for p in t.ema.parameters())
    x_T = rng.normal((2, 1, 8, 8), rng.per_image(0, 2), "cuda")
    end = samplers.final(samplers.ddpm(t.ema, x_T, generator=rng.per_image(0, 2)))
    assert end.is_cuda
    assert end.isfinite().all()


def test_training_leaves_the_global_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.randn(5)
    torch.manual_seed(3)
    t = trainer(replace(CONFIG, num_steps=1))
    torch.manual_seed(3)
    list(t.run(IMAGES))
    assert torch.equal(torch.randn(5), expected)


def test_another_seed_trains_on_other_draws():
    one, other = trainer(), trainer(replace(CONFIG, seed=1))
    assert next(one.run(IMAGES)).loss != next(other.run(IMAGES)).loss


def test_the_average_follows_its_formula():
    t = trainer()
    average = {name: p.clone() for name, p in t.denoiser.named_parameters()}
    for step in t.run(IMAGES):
        decay = min(0.9, (1 + step.step) / (10 + step.step))
        for name, p in t.denoiser.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    for name, p in t.ema.named_parameters():
        torch.testing.assert_close(p, average[name], atol=1e-6, rtol=1e-5)
    assert not t.ema.training


@pytest.mark.slow
def test_the_learning_rate_warms_up():
    t = trainer()
    rates = [t.optimizer.param_groups[0]["lr"] for _ in t.run(IMAGES)]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3] + [1e-3] * 6)


def test_the_gradient_is_clipped():
    t = trainer(
        replace(CONFIG, grad_clip=1e-3), loss=lambda *a, **k: 1e6 * losses.diffusion_loss(*a, **k)
    )
    next(t.run(IMAGES))
    norm = torch.stack([p.grad.norm() for p in t.denoiser.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_step_is_yielded_after_the_update_and_the_average():
    t = trainer()
    before = weights(t)
    assert next(t.run(IMAGES)).step == t.step == 1
    after = weights(t)
    assert not torch.equal(
        before["network.network.conv_out.weight"], after["network.network.conv_out.weight"]
    )
    assert not torch.equal(
        before["ema.network.conv_out.weight"], after["ema.network.conv_out.weight"]
    )


@pytest.mark.slow
def test_a_finished_training_takes_no_further_step():
    t = trainer()
    assert len(list(t.run(IMAGES))) == 8
    assert list(t.run(IMAGES)) == []


class Breaks(nn.Module):
    """A network whose output is not finite for late times once `after` steps were taken."""

    def __init__(self, network, after):
        super().__init__()
        self.network, self.after, self.calls = network, after, 0

    def forward(self, x_t, index):
        self.calls += 1
        broken = (index >= 50) & (self.calls > self.after)
        factor = torch.where(broken, float("nan"), 1.0)
        return factor[:, None, None, None] * self.network(x_t, index)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_weights():
    denoiser = Denoiser(Breaks(UNet(SMALL), after=3), schedules.linear(100))
    t = Trainer(denoiser, CONFIG)
    good = None
    with pytest.raises(FloatingPointError, match="step 4: the loss or its gradient"):  # noqa: PT012
        for _ in t.run(IMAGES):
            good = weights(t)
    assert t.step == 3
    assert_same(weights(t), good)


@pytest.mark.slow
def test_a_device_that_is_looked_at_rarely_applies_nothing_after_a_bad_step(tmp_path, monkeypatch):
    """As on a GPU: noticed at the end, with the weights, the optimizer and the step before it."""
    good = trainer()
    list(islice(good.run(IMAGES), 3))
    good.save(tmp_path / "good.safetensors")
    monkeypatch.setattr(training, "finite_check_interval", lambda device: 100)
    t = Trainer(Denoiser(Breaks(UNet(SMALL), after=3), schedules.linear(100)), CONFIG)
    t.denoiser.network.network.load_state_dict(trainer().denoiser.network.state_dict())
    steps = t.run(IMAGES)
    assert [next(steps).step for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    t.save(tmp_path / "bad.safetensors")
    with pytest.raises(FloatingPointError, match="step 4: the loss or its gradient is not finite"):
        list(steps)
    assert t.step == 3
    for name, weight in good.denoiser.network.named_parameters():
        assert torch.equal(weight, t.denoiser.network.get_parameter(f"network.{name}"))
    saved = {
        x: files.read_tensors(tmp_path / f"{x}.safetensors", STATE_FORMAT) for x in ("good", "bad")
    }
    assert saved["good"][1] == saved["bad"][1]
    moments = {name: x for name, x in saved["good"][0].items() if name.startswith("optimizer.")}
    assert_same(moments, {name: saved["bad"][0][name] for name in moments})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainConfig(4, 1, 1.0, warmup_steps=2), [0.5, 1, 1, 1]),
        (TrainConfig(4, 1, 1.0, warmup_steps=0), [1, 1, 1, 1]),
        (
            TrainConfig(6, warmup_steps=2, learning_rate=1.0, cooldown=0.5),
            [0.5, 1, 1, 3 / 4, 2 / 4, 1 / 4],
        ),
    ],
)
def test_the_learning_rate_rises_stays_and_falls(config, expected):
    assert [training.learning_rate(config, step) for step in range(config.num_steps)] == expected


@pytest.mark.slow
def test_an_interrupt_waits_for_the_end_of_the_update():
    """Ctrl-C in the middle of an update: the state is that of a whole step, not of half of one."""
    sent = []

    def loss(denoiser, x_0, generator):
        if t.step == 2 and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return losses.diffusion_loss(denoiser, x_0, generator=generator)

    t = trainer(loss=loss)
    with pytest.raises(KeyboardInterrupt):
        list(t.run(IMAGES))
    assert t.step == 3
    rest = trainer()
    list(islice(rest.run(IMAGES), 3))
    assert_same(weights(t), weights(rest))
    list(t.run(IMAGES))
    list(rest.run(IMAGES))
    assert_same(weights(t), weights(rest))


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    t = trainer()
    steps = t.run(IMAGES)
    next(steps)
    t.save(path)
    before = path.read_bytes()
    next(steps)

    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        t.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.slow
def test_a_state_of_another_network_is_refused_and_changes_nothing(tmp_path):
    trainer(network=replace(SMALL, width=16)).save(tmp_path / "a.safetensors")
    t = trainer()
    list(islice(t.run(IMAGES), 2))
    before, moments = weights(t), repr(t.optimizer.state_dict())
    with pytest.raises(ValueError, match=r"belongs to another network: ema\.conv_in\.bias is"):
        t.load(tmp_path / "a.safetensors")
    assert_same(weights(t), before)
    assert repr(t.optimizer.state_dict()) == moments
    assert t.step == 2


def test_a_denoiser_file_is_not_a_training_state(tmp_path):
    t = trainer()
    t.ema.save(tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match="not a 'diffusion_lib training state 1' file"):
        t.load(tmp_path / "ema.safetensors")


@pytest.mark.slow
def test_compiling_changes_neither_names_nor_results(monkeypatch, tmp_path):
    """With the compiler's front end only: the back end needs a C++ compiler and a minute."""
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: real(self, backend="eager"))
    compiled, plain = (
        trainer(replace(CONFIG, compile=True, num_steps=2)),
        trainer(replace(CONFIG, num_steps=2)),
    )
    list(compiled.run(IMAGES))
    list(plain.run(IMAGES))
    assert compiled.denoiser.network._compiled_call_impl is not None
    found = weights(compiled)
    for name, value in weights(plain).items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    compiled.save(tmp_path / "a.safetensors")
    plain.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number, at least 1; got 0"),
        ({"batch_size": -2}, "batch_size must be a whole number, at least 1; got -2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite; got 0.0"),
        ({"grad_clip": float("nan")}, "grad_clip must be positive and finite; got nan"),
        ({"seed": -1}, "seed must be a whole number, at least 0; got -1"),
        ({"cooldown": -0.1}, r"cooldown must lie in \[0, 1\]; got -0.1"),
        ({"ema_decay": 1.5}, r"ema_decay must lie in \[0, 1\]; got 1.5"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_images_are_checked_before_anything_is_trained():
    with pytest.raises(TypeError, match="must be uint8"):
        trainer().run(IMAGES.float())
    with pytest.raises(ValueError, match=r"got \[10, 3, 8, 8\]"):
        trainer().run(IMAGES.expand(-1, 3, -1, -1))


@pytest.mark.slow
def test_eight_images_are_learned_by_heart():
    """The whole path: data, loss, training, average, sampler."""
    g = torch.Generator().manual_seed(0)
    images = 255 * torch.randint(0, 2, (8, 1, 8, 8), generator=g).to(torch.uint8)
    network = UNetConfig((1, 8, 8), 16, (1, 2), num_blocks=1, attention=(4,), dropout=0.0)
    config = TrainConfig(240, 32, learning_rate=3e-3, warmup_steps=20, ema_decay=0.99, cooldown=0.5)
    torch.manual_seed(0)
    t = Trainer(Denoiser(UNet(network), schedules.cosine()), config)
    list(t.run(images))
    x_T = rng.normal((32, 1, 8, 8), rng.generator(1))
    x_0 = samplers.final(samplers.ddim(t.ema, x_T, t.ema.schedule.timesteps(50)))
    distance = torch.cdist(x_0.flatten(1), data.to_float(images).flatten(1)) / 8  # RMS per pixel
    nearest, which = distance.min(1)
    assert (nearest < 0.2).float().mean() > 0.6  # unrelated images are 1.4 apart
    assert len(which.unique()) >= 5


def test_the_path_of_a_training_step_is_short():
    """From a batch to the updated weights, whatever the network: functions, and their files."""
    root, calls = str(Path(training.__file__).parent), set()

    def record(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root) and code.co_name[0] != "<":
            calls.add((Path(code.co_filename).relative_to(root).as_posix(), code.co_qualname))

    t = trainer()
    steps = t.run(IMAGES)
    next(steps)
    batch = next(t._batches(slice(0, t.config.batch_size)))
    sys.setprofile(record)
    try:
        t.train_step(batch)
    finally:
        sys.setprofile(None)
    path = {(file, name) for file, name in calls if not file.startswith("networks/")}
    assert len(path) <= 18, sorted(path)
    assert len({file for file, _ in path}) <= 7, sorted(path)
