"""What adding something costs: each row of the extension table, defined here and put to use.

A function or class of one's own trains, resumes, samples and is named; one that is registered, or
has settings, is also read from JSON and from the command line.
"""

import json
import shlex
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffusion_lib import cli, config, data, densities, losses, networks, rng, runs, samplers
from diffusion_lib.config import Experiment
from diffusion_lib.data import Images
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks import AutoencoderConfig, MLPConfig, NetworkConfig, TransformerConfig
from diffusion_lib.networks.base import attention
from diffusion_lib.samplers import SampleStep
from diffusion_lib.schedules import NoiseSchedule
from diffusion_lib.system import files
from other_tests import report
from tests.helpers import STATE_FORMAT, assert_same, random_images, tiny

pytestmark = pytest.mark.usefixtures("small_convolutions")
SHAPE = (1, 28, 28)
IMAGES, HELD_OUT = random_images(40, *SHAPE), random_images(8, *SHAPE)
BASE = replace(tiny(config.smoke(config.MNIST)), T=50)
NETWORKS: list[NetworkConfig] = [
    TransformerConfig(SHAPE, patch=7, width=16, depth=2, heads=2),
    MLPConfig(SHAPE, width=16, depth=2),
    AutoencoderConfig(SHAPE, width=8, multipliers=(1, 1), bottleneck=2),
]


def use(experiment: Experiment, folder: Path) -> runs.Run:
    """Train in two parts and in one, which must be the same; sample."""
    parts = replace(experiment, train=replace(experiment.train, num_steps=2))
    runs.train(parts, IMAGES, HELD_OUT, folder / "parts")
    last = runs.train(experiment, IMAGES, HELD_OUT, folder / "last", None, folder / "parts")
    runs.train(experiment, IMAGES, HELD_OUT, folder / "whole")
    states = [
        files.read_tensors(folder / name / "training.safetensors", STATE_FORMAT)[0]
        for name in ("last", "whole")
    ]
    assert_same(*states)
    assert runs.sample(last, 2, num_steps=3).shape == (2, *SHAPE)
    assert runs.train(experiment, IMAGES, HELD_OUT, folder / "whole").log  # finished: loaded
    return last


def test_a_schedule_is_a_function_from_T_to_two_tables(tmp_path):
    def bent(T):
        t = torch.arange(T + 1) / T
        return NoiseSchedule(1 - t**2, t)

    experiment = replace(
        BASE, schedule=bent, prediction=config.lookup("v", _module("predictions"), "")
    )
    use(experiment, tmp_path)
    assert experiment.name("") != replace(experiment, schedule=_module("schedules").flow).name("")


def test_a_prediction_is_a_function_of_the_scales(tmp_path):
    def half(signal, noise):
        return 0.5 * torch.ones_like(signal), 0.5 * torch.ones_like(noise)

    use(replace(BASE, prediction=half), tmp_path)


def test_a_weight_is_a_function_of_the_signal_to_noise_ratio(tmp_path):
    def square_root(snr):
        return snr.sqrt()

    use(replace(BASE, weight=square_root), tmp_path)


def test_a_density_of_t_is_a_function_of_n_T_and_a_generator(tmp_path):
    def late(n, T, generator):
        return rng.integers(T // 2, T + 1, n, generator)

    experiment = replace(BASE, density=late)
    use(experiment, tmp_path)
    assert experiment.name("") != BASE.name("")
    with pytest.raises(ValueError, match=r"must draw whole numbers in 1\.\.50"):
        replace(BASE, density=lambda n, T, generator: torch.zeros(n, dtype=torch.int64)).build()


def test_a_loss_is_a_function_of_a_denoiser_and_images(tmp_path):
    def cubes(denoiser, x_0, weight=None, generator=None):
        t = rng.integers(1, denoiser.schedule.num_timesteps + 1, len(x_0), generator)
        eps = rng.normal(x_0.shape, generator)
        output = denoiser.output(denoiser.schedule.add_noise(x_0, t, eps), t)
        return (output - denoiser.target(x_0, eps, t)).abs().pow(3).mean()

    use(replace(BASE, loss=cubes), tmp_path)


def test_an_optimizer_is_a_function_of_parameters_and_settings(tmp_path):
    def momentum(parameters, config):
        return torch.optim.SGD(parameters, config.learning_rate, momentum=0.9)

    experiment = replace(BASE, optimizer=momentum)
    use(experiment, tmp_path)
    assert experiment.name("") != BASE.name("")


def test_a_sampler_is_a_generator_of_states_and_a_variance_a_function_of_times(tmp_path):
    def euler(denoiser, x_T, timesteps, generator=None):
        for t, s in pairwise(timesteps):
            x_0, eps, _ = denoiser(x_T, torch.full((len(x_T),), t))
            signal, noise = denoiser.schedule.scales(s)
            x_T = signal * x_0 + noise * eps
            yield SampleStep(s, x_T, x_0)

    run = use(BASE, tmp_path)
    one = runs.sample(run, 2, sampler=euler, num_steps=4)
    assert torch.equal(one, runs.sample(run, 2, sampler=samplers.ddim, num_steps=4))

    def double(schedule, t, s):
        return 2 * samplers.beta_tilde(schedule, t, s)

    assert runs.sample(run, 2, sampler=partial(samplers.ddpm, variance=double)).shape[0] == 2


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_a_network_of_ours_is_a_config_transformer_mlp_or_autoencoder(network, tmp_path):
    experiment = replace(BASE, network=network)
    assert Experiment.from_json(experiment.to_json()) == experiment
    run = use(experiment, tmp_path)
    loaded = runs.load(run.folder)
    assert loaded.denoiser.config == network
    assert torch.equal(*(runs.sample(r, 2, num_steps=3) for r in (run, loaded)))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_each_network_knows_labels_and_a_learned_variance(network, tmp_path):
    network = replace(network, classes=3, outputs=2)
    loss = config.LOSSES["hybrid_loss"]
    experiment = replace(BASE, network=network, loss=loss)
    images = Images(IMAGES, torch.arange(40) % 3)
    run = runs.train(experiment, images, HELD_OUT, tmp_path / "a")
    assert runs.sample(run.guided([0, 1, 2], 2.0), 3, num_steps=3).shape == (3, *SHAPE)
    module = networks.build(network)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, t = torch.randn(4, *SHAPE), torch.tensor([0, 9, 9, 40])
    alone = torch.cat([module(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(module(x, t), alone, atol=1e-4, rtol=1e-4)
    one, other = (module(x, t, torch.full((4,), label)) for label in (0, 1))
    assert (one - other).abs().max() > 1e-3
    assert (module(x, t) - module(x, t + 5)).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"built for images of shape \(1, 28, 28\)"):
        module(torch.randn(1, 1, 14, 14), t[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [49, 256])
def test_attention_of_a_transformer_is_its_formula(n, dtype):
    q, k, v = torch.randn(3, 2, 3, n, 16, generator=torch.Generator().manual_seed(0))
    expected = (q @ k.mT / 4).softmax(-1) @ v
    found = attention(*(x.to(dtype) for x in (q, k, v)))
    torch.testing.assert_close(
        found.float(), expected, atol=1e-5 if dtype == torch.float32 else 0.03, rtol=0
    )


@dataclass(frozen=True)
class Blur:
    """A network of one's own, as in a cell."""

    image_shape: tuple[int, int, int] = SHAPE
    size: int = 5
    outputs: int = 1
    classes: int = 0

    def build(self) -> nn.Module:
        class Network(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.filter = nn.Conv2d(1, 1, config.size, padding="same")
                self.time = nn.Embedding(100, 1)

            def forward(self, x_t, t, label=None):
                return self.filter(x_t) + self.time(t)[:, :, None, None]

        return Network(self)


def test_a_network_of_ones_own_is_a_class_that_is_named_by_what_it_computes(tmp_path):
    experiment = replace(BASE, network=Blur())
    run = use(experiment, tmp_path)
    assert "Blur#" in (run.folder / "experiment.json").read_text()
    names = {replace(BASE, network=Blur(size=size)).name("") for size in (3, 5)}
    assert len(names | {experiment.name("")}) == 2
    with pytest.raises(ValueError, match=r"'Blur#\w{8}'.*class of your own.*runs.train"):
        runs.load(run.folder)
    with pytest.raises(ValueError, match="class of your own"):
        Experiment.from_json(experiment.to_json())


@dataclass(frozen=True)
class Odd:
    """A network with weights that never move, a buffer that does, and a setting of its start."""

    image_shape: tuple[int, int, int] = SHAPE
    outputs: int = 1
    classes: int = 0
    std: float = 0.1

    def build(self) -> nn.Module:
        class Network(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
                self.unused = nn.Parameter(torch.ones(1))
                self.layers = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))
                nn.init.normal_(self.layers[0].weight, std=config.std)

            def forward(self, x_t, t, label=None):
                return self.frozen * self.layers(x_t)

        return Network(self)


def test_weights_that_never_move_are_resumed_and_buffers_are_averaged(tmp_path):
    run = use(replace(BASE, network=Odd()), tmp_path)
    assert run.denoiser.network.layers[1].num_batches_tracked == 4
    names = {replace(BASE, network=Odd(std=std)).name("") for std in (0.1, 3.0)}
    assert len(names) == 2


def test_groups_of_weights_keep_their_learning_rates():
    def two(parameters, config):
        first, *others = parameters
        rate = config.learning_rate
        return torch.optim.SGD([{"params": [first], "lr": 10 * rate}, {"params": others}], rate)

    trainer = replace(BASE, optimizer=two).trainer()
    next(trainer.run(IMAGES))
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates[0] == pytest.approx(10 * rates[1])


def test_a_function_with_settings_of_ones_own_trains_and_other_fields_can_be_changed(tmp_path):
    def mix(signal, noise, share):
        return share * torch.ones_like(signal), torch.ones_like(noise)

    experiment = replace(BASE, prediction=partial(mix, share=-0.5))
    use(experiment, tmp_path)
    assert experiment.assigned(["train.seed=3"]).prediction is experiment.prediction
    with pytest.raises(TypeError, match="weight must be a function or None"):
        replace(BASE, weight=torch.nn.ReLU())
    with pytest.raises(ValueError, match="the loss <lambda> takes no density"):
        replace(BASE, loss=lambda d, x, w, g: 0, density=densities.logit_normal).build()


def test_a_data_set_is_a_function(tmp_path):
    def stripes(root, train=True):
        return Images(IMAGES if train else HELD_OUT, torch.zeros(40 if train else 8).long())

    experiment = replace(BASE, dataset=stripes)
    train, test = data.load_splits(experiment.dataset, tmp_path)
    assert runs.train(experiment, train, test.images, tmp_path / "a").series("loss")[0]


# ---- the grammar of settings -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "text"),
    [
        ("samplers", "ddim(eta=0.5)"),
        ("samplers", "ddpm(variance=beta)"),
        ("schedules", "sigmoid(tau=0.7)"),
        ("schedules", "sigmoid(start=-2.0, end=2.0)"),
        ("losses", "min_snr(gamma=1)"),
        ("densities", "logit_normal(location=-0.8, scale=1.2)"),
        ("optimizers", "adamw(beta_2=0.95)"),
        ("data.sets", "folder(path=my/photos, size=64)"),
        ("data.sets", "folder(path='a, b(c)', size=64, channels=1)"),
        ("samplers", "heun"),
    ],
)
def test_grammar_and_records_are_inverse(registry, text):
    function = config.lookup(text, _module(registry), "name")
    assert config.label(function) == text
    assert config.lookup(config.label(function), _module(registry), "name") == function


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dddim", "sampler 'dddim' is unknown; did you mean ddim or ddpm"),
        ("ddim(et=1)", "sampler ddim: setting 'et' is unknown; did you mean eta"),
        ("ddim(eta=x)", "sampler ddim: eta must be a number, such as 0.0; got 'x'"),
        ("ddim(eta=True)", "eta must be a number"),
        ("ddim(eta=0.5", r"must end in \)"),
        ("ddim(0.5)", "'0.5' must be key=value"),
        ("ddpm(variance=bet)", "variance 'bet' is unknown; did you mean beta"),
        ("ddim(generator=1)", "setting 'generator' is unknown"),
        ("ddim(eta=__import__('os').getcwd())", "eta cannot be read"),
        ("ddim(eta=0.5, eta=0.1)", "eta is given twice"),
        ("heun(eta=1)", "setting 'eta' is unknown. Choose one of: none"),
    ],
)
def test_grammar_names_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        config.lookup(text, samplers, "sampler")


def test_settings_of_functions_are_recorded_and_read_by_the_grammar():
    experiment = BASE.assigned(
        [
            "schedule=sigmoid(tau=0.7)",
            "weight=min_snr(gamma=1)",
            "density=logit_normal(location=-0.8)",
            "optimizer=adamw(beta_2=0.95)",
            "network=transformer(patch=7, width=16, depth=1, heads=2)",
            "train.batch_size=16",
            "network.depth=2",
        ]
    )
    assert experiment.network == TransformerConfig(SHAPE, 7, 16, 2, 2)
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert '"sigmoid(tau=0.7)"' in experiment.to_json()
    with pytest.raises(ValueError, match="'weight' must be FIELD=VALUE"):
        BASE.assigned(["weight"])
    with pytest.raises(ValueError, match="field 'wieght' is unknown; did you mean weight"):
        BASE.assigned(["wieght=snr"])
    with pytest.raises(ValueError, match="field of network 'with' is unknown; did you mean width"):
        BASE.assigned(["network.with=8"])


def test_fields_are_replaced_at_once_and_words_stand_for_none_and_flags():
    small = ["network.image_shape=[3,48,48]", "network.attention=[6]"]
    assert config.UNET64.assigned(small).network.image_shape == (3, 48, 48)
    assert BASE.assigned(["train.compile=false"]) == BASE
    assert BASE.assigned(["weight=none"]).weight is None
    with pytest.raises(ValueError, match="compile must be True or False; got 'no'"):
        BASE.assigned(["train.compile=no"])
    with pytest.raises(ValueError, match="takes no settings in parentheses"):
        config.lookup("mnist(T=100)", config.PRESETS, "preset")


def test_the_trainings_of_the_readmes_can_be_shown(capsys, monkeypatch, tmp_path):
    texts = [readme.read_text().replace("\\\n", "") for readme in report.READMES]
    lines = [line for text in texts for line in text.splitlines()]
    trainings = [shlex.split(line)[3:] for line in lines if "-m diffusion_lib train " in line]
    trainings = [words for words in trainings if words[1] in config.PRESETS]
    assert len(trainings) > 8
    for words in trainings:
        end = words.index(">") if ">" in words else len(words)
        assert cli.main([*words[:end], "--show"]) == 0, words


def test_an_experiment_is_a_file_of_the_grammar(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(
        'preset = "mnist"\nschedule = "flow"\nprediction = "velocity"\n'
        'density = "logit_normal(location=-0.8)"\n'
        'network = "mlp(width=32)"\n[train]\nbatch_size = 32\n'
    )
    assert (
        cli.main(["train", str(file), "--set", "train.seed=3", "train.warmup_steps=0", "--show"])
        == 0
    )
    shown = capsys.readouterr().out
    experiment = Experiment.from_json(shown)
    assert (experiment.network, experiment.train.seed) == (MLPConfig(SHAPE, width=32), 3)
    (tmp_path / "shown.json").write_text(shown)
    assert cli.main(["train", str(tmp_path / "shown.json"), "--show"]) == 0
    assert capsys.readouterr().out == shown
    file.write_text('preset = "mnit"')
    assert cli.main(["train", str(file), "--show"]) == 2
    assert "did you mean mnist" in capsys.readouterr().err
    file.write_text('schedule = "cosine"')
    assert cli.main(["train", str(file), "--show"]) == 2
    assert 'add preset = "mnist"' in capsys.readouterr().err
    assert cli.main(["train", str(tmp_path / "absent.toml"), "--show"]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "typo.json").write_text(shown.replace('"density"', '"densty"'))
    assert cli.main(["train", str(tmp_path / "typo.json"), "--show"]) == 2
    assert "field 'densty' is unknown; did you mean density" in capsys.readouterr().err


# ---- pictures of one's own ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_of_pictures_trains_samples_and_is_measured_from_the_command_line(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("ships", "horses")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((40, 50, 3), 60 * k + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    small = (
        "network=unet(width=8, multipliers=[1, 2], attention=[], patch=2, num_blocks=1, classes=2)"
    )
    settings = [small, "train.batch_size=8", "sample_steps=4", "T=20"]
    train = ["train", "unet32", "--budget", "smoke", "--out", "a", "--set", *settings]
    assert cli.main(train) == 0
    assert "training images: 36" in capsys.readouterr().out
    assert '"dataset": "folder(path=photos, size=32)"' in Path("a/experiment.json").read_text()
    sample = ["sample", "a", "--n", "4", "--labels", "0", "1", "--sampler", "ddim(eta=0.5)"]
    assert cli.main([*sample, "--steps", "3"]) == 0
    assert cli.main(["evaluate", "a", "--n-likelihood", "3", "--num-times", "4"]) == 0
    assert "bits per dim" in capsys.readouterr().out
    plain = ["network.classes=0", "network.patch=1", "network.groups=4"]
    train = ["train", "unet32", "--budget", "smoke", "--out", "plain", "--set", *settings, *plain]
    assert cli.main(train) == 0
    assert cli.main(["export", "plain", "--format", "diffusers", "--out", "exported"]) == 0
    study = {
        "preset": "unet32",
        "all": {
            "network": {"width": 8, "multipliers": [1], "attention": [], "num_blocks": 1},
            "T": 20,
            "sample_steps": 4,
        },
        "arms": {"v": {}, "x_0": {"prediction": "x_0"}},
        "seeds": [0, 1],
        "steps": [1],
        "conditions": {"n": 0, "n_likelihood": 2, "num_times": 2},
    }
    Path("study.json").write_text(json.dumps(study))
    assert cli.main(["compare", "study.json"]) == 0
    assert "bits per dim on folder(path=photos, size=32)" in capsys.readouterr().out
    assert (
        cli.main(["train", "unet64", "--out", "b", "--set", "dataset=folder(path=photos, size=48)"])
        == 2
    )
    assert 'add --set "network.image_shape=[3, 48, 48]"' in capsys.readouterr().err
    assert (
        cli.main(["train", "unet32", "--out", "b", "--set", "network.image_shape=[3,30,30]"]) == 2
    )
    assert "such as to 32 x 32" in capsys.readouterr().err


# ---- the density of t --------------------------------------------------------------------------


def _module(name: str):
    import importlib

    return importlib.import_module(f"diffusion_lib.{name}")


def test_logit_normal_is_the_distribution_it_says():
    T, location, scale = 20, -0.8, 1.2
    t = densities.logit_normal(200_000, T, rng.generator(0), location, scale)
    edges = torch.logit(torch.arange(T + 1, dtype=torch.float64) / T)
    expected = torch.special.ndtr((edges - location) / scale).diff()
    torch.testing.assert_close(
        t.bincount(minlength=T + 1)[1:] / len(t), expected.float(), atol=0.004, rtol=0
    )


def test_a_density_draws_the_same_times_however_a_batch_is_divided():
    for density in (densities.uniform, densities.logit_normal):
        whole = density(8, 100, rng.generator(3))
        parts = [density(4, 100, rng.Rows(rng.generator(3), first, 8)) for first in (0, 4)]
        assert torch.equal(torch.cat(parts), whole)


class Same(nn.Module):
    def forward(self, x_t, index):
        return x_t


def test_a_density_is_a_weight_in_expectation():
    """E over t ~ p of the loss is E over uniform t of T p(t) times the loss."""
    T = 10
    schedules, predictions = _module("schedules"), _module("predictions")
    denoiser = Denoiser(Same(), schedules.flow(T), predictions.x_0)  # its error grows with t
    x_0 = torch.rand(1, 1, 4, 4).expand(20_000, -1, -1, -1) * 2 - 1
    edges = torch.logit(torch.arange(T + 1, dtype=torch.float64) / T)
    p = torch.special.ndtr(edges).diff().float()
    snr = denoiser.schedule.snr(torch.arange(1, T + 1))

    def weight(values):
        return T * p[(values[:, None] - snr).abs().argmin(1)]

    with torch.no_grad():
        by_density = losses.diffusion_loss(
            denoiser, x_0, None, rng.generator(0), densities.logit_normal
        )
        by_weight = losses.diffusion_loss(denoiser, x_0, weight, rng.generator(1))
    assert by_density.item() == pytest.approx(by_weight.item(), rel=0.03)
