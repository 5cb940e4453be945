"""diffusers, both ways: same weights, and the same trajectories as its own pipelines."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_lib import config, interop, predictions, rng, runs, samplers, schedules
from diffusion_lib.cli import main
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks.unet import UNet, UNetConfig
from diffusion_lib.system import files
from tests.helpers import full_disk

diffusers.logging.disable_progress_bar()
T = 24
SEED = 3
NETWORK = UNetConfig((1, 8, 8), 8, (1, 2), num_blocks=1, attention=(4,), dropout=0.0, groups=2)


def randomise(network: nn.Module) -> nn.Module:
    """Weights of unit gain: a fresh network answers 0, whatever it is."""
    generator = rng.generator(1)
    for parameter in network.parameters():
        std = 0.5 / max(1, parameter[0].numel()) ** 0.5
        nn.init.normal_(parameter, std=std, generator=generator)
    return network.eval()


def make(
    network: UNetConfig = NETWORK,
    schedule: schedules.NoiseSchedule | None = None,
    prediction: predictions.Prediction = predictions.eps,
    clip: float | None = 1.0,
) -> Denoiser:
    schedule = schedule or schedules.linear(T)
    return Denoiser(randomise(UNet(network)), schedule, prediction, clip).eval()


ZERO_TERMINAL = schedules.zero_terminal(schedules.linear(T))
THREE_LEVELS = UNetConfig(
    (3, 4, 8), 16, (1, 1, 2), num_blocks=1, attention=(4, 1), dropout=0.1, outputs=2, groups=4
)
OURS = {
    "linear, eps": lambda: make(),
    "cosine, x_0, two blocks": lambda: make(
        replace(NETWORK, num_blocks=2, attention=()), schedules.cosine(T), predictions.x_0
    ),
    "sigmoid, v, one level": lambda: make(
        replace(NETWORK, multipliers=(1,), attention=(8,), groups=8),
        schedules.sigmoid(T),
        predictions.v,
        clip=0.5,
    ),
    "zero terminal, v, not clipped": lambda: make(NETWORK, ZERO_TERMINAL, predictions.v, None),
    "zero terminal, x_0, rectangle": lambda: make(
        replace(NETWORK, image_shape=(3, 8, 4)), ZERO_TERMINAL, predictions.x_0, None
    ),
    "cosine, eps, not clipped": lambda: make(NETWORK, schedules.cosine(T), clip=None),
    "learned variance, three levels": lambda: make(THREE_LEVELS, schedules.cosine(T)),
    "learned variance, v": lambda: make(
        replace(NETWORK, outputs=2), schedules.linear(T), predictions.v
    ),
    "the paper's groups": lambda: make(
        UNetConfig((1, 4, 4), 128, (1,), num_blocks=1, attention=(), dropout=0.0)
    ),
}


@pytest.fixture(scope="module", params=OURS)
def exported(request, tmp_path_factory) -> tuple[Denoiser, Path]:
    denoiser = OURS[request.param]()
    folder = tmp_path_factory.mktemp("exported") / "pipeline"
    interop.to_diffusers(denoiser, folder)
    return denoiser, folder


def their_trajectory(pipeline: DDPMPipeline | DDIMPipeline, num_steps: int, **options) -> Tensor:
    """Every state of the pipeline's own loop, [num_steps, 2, C, H, W]."""
    states, step = [], pipeline.scheduler.step

    def recorded(*arguments, **keywords):
        states.append((output := step(*arguments, **keywords)).prev_sample)
        return output

    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.step = recorded
    generator = torch.Generator().manual_seed(SEED)
    pipeline(2, generator, num_inference_steps=num_steps, output_type="pt", **options)
    return torch.stack(states)


def our_trajectory(denoiser: Denoiser, sampler, timesteps: list[int], **options) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    x_T = rng.normal((2, *denoiser.network.config.image_shape), generator)
    steps = sampler(denoiser, x_T, timesteps, generator=generator, **options)
    return torch.stack([step.x_t for step in steps])


def assert_agree(actual: Tensor, expected: Tensor) -> None:
    """To 1e-4 at every step, of images; of what an unclipped network lets grow, to as many digits.

    Networks that predict eps and are not clipped leave [-1, 1] by a factor of thousands.
    """
    assert actual[-1].std() > 0.03  # the comparison is not of two zeros
    size = expected.abs().amax(dim=(1, 2, 3, 4)).clamp(min=1)
    assert ((actual - expected).abs().amax(dim=(1, 2, 3, 4)) / size).max() < 1e-4


@pytest.mark.slow
def test_from_ours_to_theirs_to_ours_nothing_changes(exported):
    denoiser, folder = exported
    back = interop.from_diffusers(folder)
    weights, others = denoiser.network.state_dict(), back.network.state_dict()
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    assert back.network.config == denoiser.network.config
    assert torch.equal(back.schedule.betas, denoiser.schedule.betas)
    assert (back.prediction, back.clip) == (denoiser.prediction, denoiser.clip)
    assert not back.training


@pytest.mark.slow
def test_the_exported_pipeline_takes_the_steps_of_ddpm(exported):
    denoiser, folder = exported
    theirs = their_trajectory(DDPMPipeline.from_pretrained(folder), T)
    assert_agree(our_trajectory(denoiser, samplers.ddpm, denoiser.schedule.timesteps(T)), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("exported", list(OURS)[:4] + list(OURS)[6:7], indirect=True)
def test_the_exported_pipeline_takes_few_steps_of_ddpm(exported):
    denoiser, folder = exported
    pipeline = DDPMPipeline.from_pretrained(folder)
    theirs = their_trajectory(pipeline, T // 3)
    timesteps = [*(pipeline.scheduler.timesteps + 1).tolist(), 0]
    if denoiser.network.config.outputs == 1:
        assert timesteps == denoiser.schedule.timesteps(T // 3)
    else:
        assert (timesteps[0], timesteps[-2]) == (T, 1)
    assert_agree(our_trajectory(denoiser, samplers.ddpm, timesteps), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("exported", list(OURS)[:4], indirect=True)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_exported_pipeline_takes_the_steps_of_ddim(exported, eta):
    denoiser, folder = exported
    pipeline = DDIMPipeline.from_pretrained(folder)
    timesteps = denoiser.schedule.timesteps(T // 3)
    theirs = their_trajectory(pipeline, T // 3, eta=eta, use_clipped_model_output=True)
    assert_agree(our_trajectory(denoiser, samplers.ddim, timesteps, eta=eta), theirs)


class Curve(nn.Module):
    """Fast, for many steps: some function of the pixels around and the time."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x_t.roll(1, -1) + (t[:, None, None, None] / 300).sin())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "tolerance"), [(schedules.linear, 1e-4), (schedules.cosine, 5e-4)]
)
def test_a_thousand_steps_differ_by_the_rounding_of_their_tables(tmp_path, schedule, tolerance):
    """diffusers computes a step's beta as 1 - alpha_bar_t / alpha_bar_s, in float32.

    Where beta is below 1e-4, in the last steps of the cosine schedule, that is three digits.
    """
    interop.to_diffusers(make(schedule=schedule(1000)), tmp_path)
    denoiser = Denoiser(Curve(), schedule(1000))
    x_T = rng.normal((4, 1, 4, 4), rng.generator(2))
    generator = torch.Generator().manual_seed(SEED)
    ours = samplers.final(samplers.ddpm(denoiser, x_T, generator=generator))
    assert ours.std() > 0.1

    def difference(scheduler: DDPMScheduler) -> float:
        scheduler.set_timesteps(1000)
        generator, x = torch.Generator().manual_seed(SEED), x_T
        for t in scheduler.timesteps:
            x = scheduler.step(Curve()(x, t.expand(4)), t, x, generator=generator).prev_sample
        return float((ours - x).abs().max())

    scheduler = DDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert difference(scheduler) < tolerance
    scheduler.alphas_cumprod = denoiser.schedule.alpha_bar[1:]
    assert difference(scheduler) < 2e-5


THEIRS = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 8,
}
LINEAR = {"num_train_timesteps": T, "beta_start": 0.003, "beta_end": 0.6}


def their_network(**change) -> UNet2DModel:
    return randomise(UNet2DModel(**THEIRS | change))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "settings"),
    [
        ({}, LINEAR),
        ({}, LINEAR | {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}),
        ({}, LINEAR | {"beta_schedule": "sigmoid", "prediction_type": "sample"}),
        ({}, {"num_train_timesteps": T, "beta_schedule": "squaredcos_cap_v2"}),
        ({}, {"num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.5, 0.9]}),
        ({}, LINEAR | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
        ({}, LINEAR | {"clip_sample_range": 0.7}),
        ({}, LINEAR | {"clip_sample": False, "prediction_type": "sample"}),
        ({"norm_num_groups": 16, "layers_per_block": 2}, LINEAR),
        ({"out_channels": 2}, LINEAR | {"variance_type": "learned_range"}),
    ],
)
def test_a_pipeline_of_theirs_takes_the_same_steps_here(tmp_path, network, settings):
    pipeline = DDPMPipeline(their_network(**network), DDPMScheduler(**settings))
    pipeline.save_pretrained(tmp_path)
    denoiser = interop.from_diffusers(tmp_path)
    steps = settings["num_train_timesteps"]
    timesteps = denoiser.schedule.timesteps(steps)
    ours = our_trajectory(denoiser, samplers.ddpm, timesteps)
    assert_agree(ours, their_trajectory(pipeline, steps))


@pytest.mark.slow
def test_the_larger_variance_is_the_samplers(tmp_path):
    """As google/ddpm-cifar10-32 has it."""
    settings = LINEAR | {"variance_type": "fixed_large"}
    pipeline = DDPMPipeline(their_network(), DDPMScheduler(**settings))
    pipeline.save_pretrained(tmp_path)
    denoiser = interop.from_diffusers(tmp_path)
    timesteps = denoiser.schedule.timesteps(T)
    ours = our_trajectory(denoiser, samplers.ddpm, timesteps, variance=samplers.beta)
    assert_agree(ours, their_trajectory(pipeline, T))


@pytest.fixture
def bare(tmp_path) -> Path:
    """A model as google/ddpm-cifar10-32 is laid out: all in one folder."""
    folder = tmp_path / "bare"
    their_network().save_pretrained(folder)
    DDPMScheduler(**LINEAR).save_pretrained(folder)
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def weights_of(denoiser: Denoiser) -> dict[str, Tensor]:
    return denoiser.network.state_dict()


def assert_is_theirs(denoiser: Denoiser) -> None:
    expected = interop.unet_from_diffusers(their_network()).state_dict()
    torch.testing.assert_close(weights_of(denoiser), expected, atol=0, rtol=0)


@pytest.mark.slow
def test_files_side_by_side_are_found(bare):
    assert_is_theirs(interop.from_diffusers(bare))


def test_a_scheduler_of_ddim_says_the_same(bare):
    DDIMScheduler(**LINEAR, clip_sample_range=0.9).save_pretrained(bare)
    denoiser = interop.from_diffusers(bare)
    assert denoiser.clip == 0.9
    torch.testing.assert_close(denoiser.schedule.betas, DDPMScheduler(**LINEAR).betas.double())


@pytest.mark.slow
def test_names_that_attention_had_in_older_models_are_known(bare):
    path = bare / "diffusion_pytorch_model.safetensors"
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = load_file(path)
    for new_name, old_name in old.items():
        weights = {name.replace(new_name, old_name): w for name, w in weights.items()}
    assert any("proj_attn" in name for name in weights)
    save_file(weights, path, {"format": "pt"})
    assert_is_theirs(interop.from_diffusers(bare))


@pytest.mark.slow
def test_half_precision_is_read_as_float32(bare):
    their_network().half().save_pretrained(bare)
    assert {weight.dtype for weight in weights_of(interop.from_diffusers(bare)).values()} == {
        torch.float32
    }


@pytest.mark.slow
def test_a_name_is_downloaded_without_pickles(bare, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.extend([name, allow_patterns])
        return str(bare)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_is_theirs(interop.from_diffusers("google/ddpm-cifar10-32"))
    assert asked == ["google/ddpm-cifar10-32", ["*.json", "*diffusion_pytorch_model.safetensors"]]


@pytest.mark.parametrize("name", ["nobody/nothing", "no/such/folder", "/no/such/folder"])
def test_what_is_neither_a_folder_nor_reached_is_named(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=f"{name} is not a folder here.*huggingface.co"):
        interop.from_diffusers(name)


def change_json(path: Path, change: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("scheduler_config", {"thresholding": True}, "thresholding is on"),
        ("scheduler_config", {"_class_name": "PNDMScheduler"}, "_class_name is 'PNDMScheduler'"),
        ("scheduler_config", {"_class_name": None}, "is None, and .* DDPMScheduler or"),
        ("scheduler_config", {"prediction_type": "flow"}, "prediction_type is 'flow', not one of"),
        ("scheduler_config", {"beta_schedule": "cubic"}, "cubic is not implemented"),
        ("scheduler_config", {"beta_end": "much"}, "TypeError"),
        ("scheduler_config", {"beta_end": 1.5}, r"beta_\d+ is 1.0"),
        ("scheduler_config", {"rescale_betas_zero_snr": True}, "predict v or x_0"),
        ("scheduler_config", {"trained_betas": [0.1, 0.2]}, "num_train_timesteps is 24, of 2"),
        ("scheduler_config", {"variance_type": "learned"}, "'learned', of a network of 1 output"),
        ("scheduler_config", {"variance_type": "learned_range"}, "'learned_range', of a network"),
        (
            "scheduler_config",
            {"_class_name": "DDIMScheduler", "set_alpha_to_one": False},
            "set_alpha_to_one is False",
        ),
        ("config", {"_class_name": "UNet2DConditionModel"}, "is 'UNet2DConditionModel'"),
        ("config", {"norm_eps": 1e-5}, "norm_eps is 1e-05, not 1e-06"),
        ("config", {"num_class_embeds": 10}, "num_class_embeds is 10, not None"),
        ("config", {"block_out_channels": "wide"}, "config.json: "),
        ("config", {"sample_size": 7}, "divisible by 2; got 7 x 7"),
        (
            "config",
            {"layers_per_block": 2},
            r"model.safetensors belongs to another network: .* \[16\] here",
        ),
        (
            "config",
            {"block_out_channels": [16, 48]},
            "model.safetensors belongs to another network",
        ),
        ("model_index", {"_class_name": "LDMPipeline"}, "_class_name is 'LDMPipeline'"),
    ],
)
def test_what_a_denoiser_cannot_be_is_refused_by_name(bare, file, change, words):
    change_json(bare / f"{file}.json", change)
    with pytest.raises(ValueError, match=words) as refusal:
        interop.from_diffusers(bare)
    assert str(bare) in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json", "model_index.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_damaged_settings_are_named(bare, name, content):
    (bare / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        interop.from_diffusers(bare)


@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
def test_missing_settings_are_named(bare, name):
    (bare / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"bare has neither \w+/{name} nor {name}"):
        interop.from_diffusers(bare)


def test_truncated_weights_are_named(bare):
    path = bare / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        interop.from_diffusers(bare)


@pytest.mark.parametrize("name", ["conv_in.bias", "conv_inn.bias"])
def test_weights_of_another_network_are_named(bare, name):
    """What is missing or too much."""
    path = bare / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights |= {name: torch.zeros(16)}
    del weights["conv_in.bias" if name == "conv_in.bias" else "conv_out.bias"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"model\.safetensors belongs to another network: {name}|conv_out"
    ):
        interop.from_diffusers(bare)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a file was executed",))


@pytest.mark.parametrize("also_an_index", [False, True])
def test_a_pickle_is_never_opened(bare, also_an_index):
    path = bare / "diffusion_pytorch_model.safetensors"
    pickle = bare / "diffusion_pytorch_model.bin"
    torch.save(Bomb(), pickle)
    if also_an_index:  # diffusers reads what it names in place of the file beside it
        index = {"metadata": {}, "weight_map": {"conv_in.weight": pickle.name}}
        (bare / f"{path.name}.index.json").write_text(json.dumps(index))
        assert_is_theirs(interop.from_diffusers(bare))
    else:
        path.unlink()
        with pytest.raises(ValueError, match=r"a pickle, which can execute code.*save_pretrained"):
            interop.from_diffusers(bare)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"variant": "fp16"},
        {"max_shard_size": "5KB"},
        {"max_shard_size": "5KB", "variant": "fp16"},
        {"safe_serialization": False, "variant": "fp16"},
    ],
)
def test_weights_in_other_files_are_named_and_the_way_out_works(bare, tmp_path, options):
    (bare / "diffusion_pytorch_model.safetensors").unlink()
    their_network().save_pretrained(bare, **options)
    name = sorted(path.name for path in bare.glob("diffusion_pytorch_model*"))[0]
    with pytest.raises(ValueError, match=rf"has {name}.*a pickle.*variant='fp16'"):
        interop.from_diffusers(bare)
    variant = {"variant": "fp16"} if "variant" in options else {}
    UNet2DModel.from_pretrained(bare, **variant).save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "scheduler_config.json").write_bytes(
        (bare / "scheduler_config.json").read_bytes()
    )
    assert_is_theirs(interop.from_diffusers(tmp_path / "new"))


def test_missing_weights_are_named(bare):
    (bare / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="bare has no weights, but what is read is"):
        interop.from_diffusers(bare)


def test_a_file_of_a_pipeline_is_answered_with_its_folder(bare):
    with pytest.raises(FileNotFoundError, match=r"model_index.json is not a folder here"):
        interop.from_diffusers(bare / "model_index.json")


@pytest.mark.parametrize(
    "name", ["./nothing", "../nothing", "/no/nothing", "~/nothing", "no/such/thing", "a\\b", "."]
)
def test_what_looks_like_a_path_never_goes_to_the_network(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("went to the network")
    )
    with pytest.raises(FileNotFoundError, match=r"google/ddpm-cifar10-32|a folder that diffusers"):
        interop.from_diffusers(name)


def test_a_network_that_is_not_there_is_named(monkeypatch):
    def snapshot_download(*_, **__):
        raise ConnectionError("Max retries exceeded\nwith url")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match=r"not be downloaded: .*exceeded with url"):
        interop.from_diffusers("google/ddpm-cifar10-32")


def test_a_diffusers_that_breaks_while_it_is_imported_is_named(bare, monkeypatch):
    class Broken(type(sys)):
        def __getattr__(self, name):
            raise RuntimeError(f"Failed to import diffusers.{name}")

    monkeypatch.setitem(sys.modules, "diffusers", Broken("diffusers"))
    with pytest.raises(ImportError, match=r"could not be imported .*Failed to import.*pip install"):
        interop.from_diffusers(bare)


def mine(signal, noise):
    return -noise, signal


@pytest.mark.parametrize(
    ("change", "prediction", "words"),
    [
        ({"groups": None}, predictions.eps, r"groups is None.*\[2, 4, 8\].*preset mnist_diffusers"),
        (
            {"patch": 2, "multipliers": (1,), "attention": ()},
            predictions.eps,
            r"patch is 2.*preset mnist_diffusers",
        ),
        ({"classes": 10}, predictions.eps, r"classes is 10, but its pipeline passes no labels"),
        ({}, mine, r"no prediction 'mine \(your own\)'.*eps, x_0 or v"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused_by_name(tmp_path, change, prediction, words):
    denoiser = make(replace(NETWORK, **change), prediction=prediction)
    with pytest.raises(ValueError, match=words):
        interop.to_diffusers(denoiser, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_a_unet_is_exported(tmp_path):
    denoiser = Denoiser(nn.Identity(), schedules.linear(T))
    with pytest.raises(TypeError, match="only a UNet can be exported; this network is a Identity"):
        interop.to_diffusers(denoiser, tmp_path / "out")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        interop.to_diffusers(make(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_diffusers_the_way_to_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="pip install diffusers"):
        interop.to_diffusers(make(), tmp_path / "out")
    with pytest.raises(ImportError, match="pip install diffusers"):
        interop.from_diffusers(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The preset that can be exported, after a few steps of training."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    experiment = replace(config.smoke(config.MNIST_DIFFUSERS), T=T)
    images = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8)
    runs.train(experiment, images, images, folder, torch.device("cpu"))
    return folder


@pytest.mark.slow
def test_the_command_exports_the_averaged_weights(run, tmp_path, capsys):
    out = tmp_path / "sub" / "exported"
    assert main(["export", str(run), "--format", "diffusers", "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"{out}\n")
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    }
    assert [path.name for path in out.parent.iterdir()] == ["exported"]
    expected = Denoiser.load(run / "ema.safetensors")
    read = interop.from_diffusers(out)
    torch.testing.assert_close(weights_of(read), weights_of(expected), atol=0, rtol=0)
    theirs = their_trajectory(DDPMPipeline.from_pretrained(out), T)
    ours = our_trajectory(expected, samplers.ddpm, expected.schedule.timesteps(T))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_command_overwrites_nothing(run, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("all of it")
    arguments = ["export", str(run), "--format", "diffusers", "--out"]
    assert main([*arguments, str(out)]) == 2
    assert "out exists and is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.tex"]
    (out / "thesis.tex").unlink()
    assert main([*arguments, str(out)]) == 0
    assert (out / "model_index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "X", "--format", "difusers", "--out", "Y"], "did you mean diffusers"),
        (["export", "X", "--format", "diffusers", "--out", "Y"], "X holds no trained run"),
    ],
)
def test_bad_input_of_the_command_is_named(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_needs_a_format(capsys):
    with pytest.raises(SystemExit):
        main(["export", "X", "--out", "Y"])
    assert "--format" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_says_that_diffusers_is_missing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    out = str(tmp_path / "out")
    assert main(["export", str(run), "--format", "diffusers", "--out", out]) == 2
    assert "pip install diffusers" in capsys.readouterr().err
