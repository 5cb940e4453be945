import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffusion_lib import checkpoints, predictions, samplers, schedules
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import guided
from diffusion_lib.networks.unet import UNet, UNetConfig
from diffusion_lib.system import files
from diffusion_lib.training import TrainConfig, Trainer

PREDICTIONS = [getattr(predictions, name) for name in predictions.__all__]
SMALL = UNetConfig((1, 8, 8), 8, (1, 2), num_blocks=1, attention=(4,), dropout=0.1)


def small(prediction=predictions.eps, schedule=schedules.linear, clip=1.0):
    torch.manual_seed(0)
    network = UNet(SMALL)
    torch.nn.init.normal_(network.conv_out.weight)
    return Denoiser(network, schedule(100), prediction, clip).eval()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_two_halves_always_make_up_x_t(prediction):
    denoiser = small(prediction)
    x_t, t = 3 * torch.randn(5, 1, 8, 8), torch.tensor([1, 2, 30, 70, 100])
    x_0, eps, share = denoiser(x_t, t)
    assert share is None
    assert x_0.abs().max() == 1  # clipping was needed here
    signal, noise = denoiser.schedule(t)
    torch.testing.assert_close(signal * x_0 + noise * eps, x_t, atol=1e-5, rtol=1e-5)


def test_without_a_clip_the_output_is_only_converted():
    denoiser = small(predictions.eps, clip=None)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 90])
    torch.testing.assert_close(denoiser(x_t, t).eps, denoiser.output(x_t, t))


def test_the_network_is_fed_times_from_0():
    seen = []
    denoiser = small()
    denoiser.network.register_forward_hook(lambda _, inputs, __: seen.extend(inputs[1].tolist()))
    denoiser(torch.zeros(2, 1, 8, 8), torch.tensor([1, 100]))
    assert seen == [0, 99]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_is_what_an_ideal_network_returns(prediction):
    denoiser = small(prediction)
    x_0, eps, t = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([1, 50, 100])
    x_t = denoiser.schedule.add_noise(x_0, t, eps)
    target = denoiser.target(x_0, eps, t)
    found = predictions.solve(prediction, target, x_t, *denoiser.schedule(t))
    torch.testing.assert_close(found, (x_0, eps), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_saved_denoiser_needs_no_flags_to_be_loaded(tmp_path, prediction, clip):
    def odd(T):  # a schedule that no name stands for
        return schedules.NoiseSchedule.from_betas(torch.linspace(0.01, 0.3, T, dtype=torch.float64))

    denoiser = small(prediction, odd, clip)
    denoiser.save(tmp_path / "a.safetensors")
    loaded = Denoiser.load(tmp_path / "a.safetensors")
    assert loaded.prediction is prediction
    assert loaded.clip == clip
    assert not loaded.training
    assert torch.equal(loaded.schedule.alpha_bar, denoiser.schedule.alpha_bar)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 99])
    assert torch.equal(loaded(x_t, t).x_0, denoiser(x_t, t).x_0)


def test_a_file_from_before_a_field_came_is_loaded(tmp_path):
    path = tmp_path / "a.safetensors"
    small().save(path)
    tensors, metadata = files.read_tensors(path, "diffusion_lib denoiser 1")
    description = json.loads(metadata["denoiser"])
    for later in ("outputs", "patch", "groups"):
        del description["network"][later]
    files.write_tensors(path, tensors, metadata | {"denoiser": json.dumps(description)})
    assert Denoiser.load(path).network.config == SMALL


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors does not exist"):
        Denoiser.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    small().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated or not a safetensors"):
        Denoiser.load(path)


class Bomb:
    def __reduce__(self):
        return open, ("executed", "w")


def test_a_pickle_is_refused_and_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in {
        "a.pt": torch.save,
        "b.pkl": lambda x, p: p.write_bytes(pickle.dumps(x)),
    }.items():
        write(Bomb(), tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is truncated or not a safetensors file"):
            Denoiser.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_other_safetensors_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="format is None"):
        Denoiser.load(path)
    save_file({"x": torch.zeros(2)}, path, {"format": "diffusion_lib denoiser 1"})
    with pytest.raises(ValueError, match="does not describe a denoiser"):
        Denoiser.load(path)


def saved(tmp_path):
    """A saved denoiser's file, tensors and metadata, without the checksum: to write others."""
    path = tmp_path / "a.safetensors"
    small().save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        del metadata["crc32"]
        return path, {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def test_a_file_of_other_weights_is_refused(tmp_path):
    path, tensors, metadata = saved(tmp_path)
    tensors["network.conv_in.bias"] = torch.zeros(3)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"conv_in.bias is \[3\] there, \[8\] here"):
        Denoiser.load(path)


@pytest.mark.parametrize("name", ["mine", "v"])
def test_a_prediction_of_ones_own_is_named_when_loaded(tmp_path, name):
    """Also one that borrows a name: it is not taken for the library's."""

    def own(signal, noise):
        return -noise, 2 * signal

    own.__name__ = name
    small(own).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"predict '{name} \(your own\)'.* eps, x_0, v"):
        Denoiser.load(tmp_path / "a.safetensors")


def test_eps_cannot_be_predicted_where_no_signal_is_left():
    schedule = schedules.NoiseSchedule.from_betas(torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match=r"alpha_bar_T is 0.*predict v or x_0"):
        Denoiser(UNet(SMALL), schedule, predictions.eps)
    Denoiser(UNet(SMALL), schedule, predictions.v)


def test_a_second_image_in_the_output_is_the_share_of_a_learned_variance(tmp_path):
    torch.manual_seed(0)
    network = UNet(replace(SMALL, outputs=2))
    assert network.conv_out.out_channels == 2
    torch.nn.init.normal_(network.conv_out.weight)
    denoiser = Denoiser(network, schedules.linear(100)).eval()
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 50, 100])
    found = denoiser(x_t, t)
    output = network(x_t, t - 1)
    torch.testing.assert_close(denoiser.output(x_t, t), output[:, :1])
    torch.testing.assert_close(found.variance_fraction, (output[:, 1:] + 1) / 2)
    assert found.x_0.shape == found.eps.shape == x_t.shape
    denoiser.save(tmp_path / "a.safetensors")
    loaded = Denoiser.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded(x_t, t).variance_fraction, found.variance_fraction)


def test_an_output_of_other_channels_is_refused():
    denoiser = Denoiser(UNet(replace(SMALL, image_shape=(3, 8, 8))), schedules.linear(100))
    denoiser.network.conv_out = torch.nn.Conv2d(denoiser.network.conv_out.in_channels, 4, 1)
    with pytest.raises(ValueError, match=r"images of 3 channels.*the network's has 4"):
        denoiser(torch.zeros(2, 3, 8, 8), torch.tensor([1, 2]))


def test_a_file_from_before_learned_variances_is_read(tmp_path):
    path, tensors, metadata = saved(tmp_path)
    description = json.loads(metadata["denoiser"])
    del description["network"]["outputs"]
    save_file(tensors, path, metadata | {"denoiser": json.dumps(description)})
    assert Denoiser.load(path).network.config == SMALL


def test_only_a_network_with_a_config_can_be_saved(tmp_path):
    denoiser = Denoiser(torch.nn.Identity(), schedules.linear())
    with pytest.raises(TypeError, match="this Identity has none"):
        denoiser.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_eps_prediction_is_refused_where_float32_holds_no_signal_at_T():
    betas = torch.full((90,), 0.9, dtype=torch.float64)
    betas[-1] = 1 - 1e-12  # alpha_bar_T = 1e-101
    schedule = schedules.NoiseSchedule.from_betas(betas)
    assert schedule.alpha_bar[-1] > 0
    with pytest.raises(ValueError, match="x_T holds no signal"):
        Denoiser(torch.nn.Identity(), schedule)
    Denoiser(torch.nn.Identity(), schedule, predictions.v)


# ---- other precisions -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sampler", [getattr(samplers, name) for name in samplers.__all__])
def test_a_denoiser_of_any_precision_samples(dtype, sampler, tmp_path):
    """From noise of the same one or of float32; half precision computes its sums in float32."""
    exact = small(predictions.v)
    rounded = small(predictions.v).to(dtype)
    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    times = exact.schedule.timesteps(5)
    expected = samplers.final(
        sampler(exact, x_T, times, generator=torch.Generator().manual_seed(1))
    )
    for start in (x_T, x_T.to(dtype)):
        g = torch.Generator().manual_seed(1)
        x_0 = samplers.final(sampler(rounded, start, times, generator=g))
        assert x_0.dtype == torch.promote_types(start.dtype, torch.float32)
        assert (x_0 - expected).abs().max() < (1e-5 if dtype == torch.float64 else 0.2)
    rounded.save(tmp_path / "a")
    assert Denoiser.load(tmp_path / "a").network.conv_in.weight.dtype == torch.float32


def test_labels_and_guidance_take_any_precision():
    network = UNet(replace(SMALL, classes=3)).bfloat16()
    denoiser = Denoiser(network, schedules.linear(100)).eval()
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 50])
    assert guided(denoiser, [0, 2], 2.0)(x_t, t).x_0.isfinite().all()


def test_a_schedule_follows_to_a_device_and_keeps_its_tables():
    schedule = schedules.cosine()
    exact = schedule.signal.clone(), schedule.noise.clone()
    for change in (schedule.half, schedule.double, schedule.bfloat16, schedule.float):
        change()
        assert all(map(torch.equal, (schedule.signal, schedule.noise), exact))
        assert schedule.signal.dtype == torch.float32
    denoiser = small(schedule=schedules.cosine).to(torch.bfloat16)
    assert torch.equal(denoiser.schedule.signal, schedules.cosine(100).signal)
    assert schedule.to("meta").signal.device.type == "meta"


def test_weights_of_half_precision_are_not_trained():
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=rf"must be float32; got {dtype}. Use denoiser.float"):
            Trainer(small().to(dtype), TrainConfig(4, 2, warmup_steps=0))
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    trainer = Trainer(small().double(), TrainConfig(2, 2, warmup_steps=0))
    assert [step.step for step in trainer.run(images)] == [1, 2]


# ---- weights alone ----------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_are_read_into_a_denoiser_and_know_their_step(tmp_path):
    saved, other = small(), small()
    torch.nn.init.zeros_(other.network.conv_out.weight)
    saved.save(tmp_path / "a", 30)
    saved.save(tmp_path / "b")
    checkpoints.load_weights(other.network, tmp_path / "a")
    assert torch.equal(other.network.conv_out.weight, saved.network.conv_out.weight)
    assert checkpoints.read_step(tmp_path / "a") == 30
    assert checkpoints.read_step(tmp_path / "b") is None
    wide = Denoiser(UNet(replace(SMALL, width=12)), schedules.linear(100))
    before = wide.network.conv_in.weight.clone()
    with pytest.raises(ValueError, match="belongs to another network"):
        checkpoints.load_weights(wide.network, tmp_path / "a")
    assert torch.equal(wide.network.conv_in.weight, before)
