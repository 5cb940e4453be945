"""The settings that the library's README gives for papers are what those papers train."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lib import config, densities, losses, predictions, rng, samplers, schedules
from diffusion_lib.denoiser import Denoiser
from tests.helpers import tiny

README = Path(__file__).parent.parent / "diffusion_lib" / "README.md"
SECTION = README.read_text().split("## Papers as settings")[1].split("\n## ")[0]
T = 1000
TIMES = torch.arange(1, T + 1)


def test_the_velocity_loss_of_jit_is_a_weight_of_its_own():
    """JiT compares (x_0_hat - x_t) / tau with (x_0 - x_t) / tau, tau = t / T, at least 0.05."""
    (formula,) = re.findall(r"a function that returns `(.+?)`", SECTION)

    def weight(snr):
        return eval(formula, {"snr": snr})

    flow = schedules.flow(T)
    tau = TIMES / T
    values = weight(flow.snr(TIMES))
    torch.testing.assert_close(values, tau**-2, rtol=1e-4, atol=0)
    torch.testing.assert_close(values.clamp(max=400), tau.clamp(min=0.05) ** -2, rtol=1e-4, atol=0)
    plain = losses.implied_weight(weight, predictions.velocity, flow, TIMES)
    torch.testing.assert_close(plain, torch.ones(T), rtol=1e-4, atol=0)
    other = losses.implied_weight(losses.snr_plus_1, predictions.velocity, flow, TIMES)
    assert other.min() == pytest.approx(0.5, abs=1e-3)


def test_times_of_jit_are_counted_from_the_other_end():
    t = densities.logit_normal(100_000, T, rng.generator(0), location=0.8, scale=0.8)
    theirs = torch.sigmoid(-0.8 + 0.8 * rng.normal((100_000,), rng.generator(1)))
    shares = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(
        (1 - t / T).quantile(shares), theirs.quantile(shares), atol=0.01, rtol=0
    )


@pytest.fixture(scope="module")
def edm():
    """The README's functions."""
    names: dict = {"torch": torch, "rng": rng, "NoiseSchedule": schedules.NoiseSchedule}
    exec(re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1], names)
    return names


class Affine(nn.Module):
    def forward(self, x, index):
        return 0.3 * x - 0.1


def test_preconditioning_and_weight_of_edm(edm):
    """D = c_skip x + c_out F(c_in x), lambda = 1 / c_out^2 [Karras 2022, table 1]."""
    data = 0.5
    sigma = edm["sigmas"](T).float()[:, None, None, None]
    length = (sigma**2 + data**2).sqrt()
    c_skip, c_out, c_in = data**2 / length**2, sigma * data / length, 1 / length
    x_0, eps = torch.randn(2, T, 1, 4, 4, generator=rng.generator(0))
    x = x_0 + sigma * eps
    denoiser = Denoiser(Affine(), edm["schedule"](T), edm["prediction"], clip=None)
    x_t = denoiser.schedule.add_noise(x_0, TIMES, eps)
    torch.testing.assert_close(x_t, data * c_in * x, rtol=1e-4, atol=1e-5)
    D = c_skip * x + c_out * Affine()(data * c_in * x, None)
    torch.testing.assert_close(denoiser(x_t, TIMES).x_0, D, rtol=1e-3, atol=1e-4)
    expected = ((D - x_0) / c_out).square().flatten(1).mean(1)
    loss = losses.loss_at(denoiser, x_0, TIMES, eps)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(
        1 / losses.x_0_scale(edm["prediction"], *map(torch.flatten, denoiser.schedule(TIMES))),
        denoiser.schedule.snr(TIMES) + 1 / data**2,
        rtol=1e-3,
        atol=0,
    )


def test_edm_predicts_minus_v_where_the_data_have_variance_1(edm):
    signal, noise = edm["schedule"](T, sigma_data=1.0)(TIMES)
    ours, v = edm["prediction"](signal, noise, sigma_data=1.0), predictions.v(signal, noise)
    torch.testing.assert_close(ours, (-v[0], -v[1]), rtol=1e-4, atol=1e-6)


def test_the_functions_of_edm_are_an_experiment(edm):
    fields = {name: edm[name] for name in ("schedule", "prediction", "density")}
    experiment = replace(tiny(config.MNIST), **fields)
    assert experiment.build().prediction is edm["prediction"]
    assert experiment.name("").startswith("mnist-schedule-prediction-density-")


def test_noise_levels_of_edm(edm):
    t = edm["density"](100_000, T, rng.generator(0))
    assert (t.dtype, int(t.min()) >= 1, int(t.max()) <= T) == (torch.int64, True, True)
    log_sigma = edm["sigmas"](T)[t - 1].log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.02)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.02)
    # 18 steps, as in their code, of a schedule in which they are exact.
    T_ = 1 + 17 * 20
    times = [*range(T_, 0, -20), 0]
    i = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(edm["sigmas"](T_)[[t - 1 for t in times[:-1]]], expected)
    denoiser = Denoiser(Affine(), edm["schedule"](T_), edm["prediction"])
    assert samplers.final(samplers.heun(denoiser, torch.zeros(1, 1, 4, 4), times)).isfinite().all()
