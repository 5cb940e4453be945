from itertools import pairwise

import pytest
import torch
from torch import nn

from diffusion_lib import bound, config, losses, predictions, rng, schedules
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks.unet import UNet, UNetConfig

SCHEDULES = [getattr(schedules, name) for name in ("linear", "cosine", "sigmoid")]
PREDICTIONS = [getattr(predictions, name) for name in predictions.__all__]
WEIGHTS = [getattr(losses, name) for name in losses.__all__]


class Wrong(nn.Module):
    """A denoiser's network whose x_0_hat is x_0 + delta, in any prediction type."""

    def __init__(self, schedule, prediction, x_0, eps, delta):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction
        self.x_0, self.eps, self.delta = x_0, eps, delta

    def forward(self, x_t, index):
        signal, noise = self.schedule(index + 1)
        c_x, c_eps = self.prediction(signal, noise)
        return c_x * (self.x_0 + self.delta) + c_eps * (self.eps - signal / noise * self.delta)


def wrong(schedule, prediction, x_0, eps, delta):
    return Denoiser(Wrong(schedule, prediction, x_0, eps, delta), schedule, prediction)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_weight_means_the_same_whatever_is_predicted(schedule, weight):
    s = schedule()
    t = torch.tensor([1, 2, 10, 100, 500, 900])
    x_0, eps, delta = torch.randn(3, len(t), 1, 8, 8)
    expected = weight(s.snr(t)) * delta.square().flatten(1).mean(1)
    for prediction in PREDICTIONS:
        found = losses.loss_at(wrong(s, prediction, x_0, eps, delta), x_0, t, eps, weight)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("prediction", "weight"),
    [
        (predictions.eps, losses.snr),
        (predictions.x_0, losses.uniform),
        (predictions.v, losses.snr_plus_1),
    ],
)
def test_without_a_weight_the_networks_own_error_counts(schedule, prediction, weight):
    s = schedule()
    t = torch.tensor([1, 2, 10, 100, 500, 900])
    x_0, eps, delta = torch.randn(3, len(t), 1, 8, 8)
    denoiser = wrong(s, prediction, x_0, eps, delta)
    plain = losses.loss_at(denoiser, x_0, t, eps)
    x_t = s.add_noise(x_0, t, eps)
    own = (denoiser.output(x_t, t) - denoiser.target(x_0, eps, t)).square().flatten(1).mean(1)
    torch.testing.assert_close(plain, own)
    torch.testing.assert_close(
        plain, losses.loss_at(denoiser, x_0, t, eps, weight), rtol=1e-4, atol=0
    )


def test_snr_times_the_error_of_x_0_is_the_error_of_eps():
    s, t = schedules.cosine(), torch.tensor([1, 10, 500, 900])
    x_0, eps, delta = torch.randn(3, len(t), 1, 8, 8)
    of_x_0 = losses.loss_at(wrong(s, predictions.x_0, x_0, eps, delta), x_0, t, eps, losses.snr)
    of_eps = losses.loss_at(wrong(s, predictions.eps, x_0, eps, delta), x_0, t, eps)
    torch.testing.assert_close(of_x_0, of_eps, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (losses.uniform, [1, 1, 1]),
        (losses.snr, [0.25, 1, 8]),
        (losses.truncated_snr, [1, 1, 8]),
        (losses.snr_plus_1, [1.25, 2, 9]),
        (losses.min_snr, [0.25, 1, 5]),
    ],
)
def test_the_weights_are_those_of_the_papers(weight, expected):
    torch.testing.assert_close(weight(torch.tensor([0.25, 1, 8])), torch.tensor(expected).float())


def test_implied_weights_on_eps_and_v():
    """Hang 2023, section 3.4: min(SNR, 5) / SNR for eps, min(SNR, 5) / (SNR + 1) for v."""
    s, t = schedules.linear(), torch.arange(1, 1001)
    snr = s.snr(t)
    for prediction, expected in (
        (predictions.eps, snr.clamp(max=5) / snr),
        (predictions.v, snr.clamp(max=5) / (snr + 1)),
    ):
        found = losses.implied_weight(losses.min_snr, prediction, s, t)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


# ---- learned variance ----------------------------------------------------------------------


def learns_variance(seed=0):
    torch.manual_seed(seed)
    network = UNet(UNetConfig((1, 8, 8), 8, (1, 2), num_blocks=1, attention=(), outputs=2))
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return Denoiser(network.eval(), schedules.cosine(50))


def test_the_hybrid_loss_teaches_the_mean_by_its_error_alone():
    """The gradient of the prediction's half of the last layer is that of L_simple."""
    x_0 = torch.rand(8, 1, 8, 8) * 2 - 1
    gradients = {}
    for loss in config.LOSSES.values():
        denoiser = learns_variance()
        loss(denoiser, x_0, generator=rng.generator(0)).backward()
        gradients[loss] = denoiser.network.conv_out.weight.grad.clone()
    mean, variance = slice(0, 1), slice(1, 2)
    simple, hybrid, vlb = gradients.values()
    torch.testing.assert_close(hybrid[mean], simple[mean])
    assert simple[variance].abs().max() == 0
    torch.testing.assert_close(hybrid[variance], bound.VLB_WEIGHT * vlb[variance])
    assert vlb[variance].abs().max() > 0
    assert vlb[mean].abs().max() > 0


def test_the_hybrid_loss_is_the_sum_of_its_parts():
    denoiser, x_0 = learns_variance(), torch.rand(8, 1, 8, 8) * 2 - 1
    simple, hybrid, vlb = (f(denoiser, x_0, None, rng.generator(4)) for f in config.LOSSES.values())
    torch.testing.assert_close(hybrid, simple + 0.001 * vlb)


def test_the_bound_prefers_the_right_variance():
    """For a network whose mean is off by delta, the best log-variance is that of the error."""
    s, t = schedules.linear(), torch.tensor([500])
    x_0, share = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, requires_grad=True)
    perfect = bound.bound_term(s, x_0, x_0, t, share)
    assert perfect.item() == pytest.approx(0, abs=1e-9)
    assert torch.autograd.grad(perfect.sum(), share)[0].abs().max() < 1e-6
    (slope,) = torch.autograd.grad(bound.bound_term(s, x_0, x_0 + 1, t, share).sum(), share)
    assert slope.max() < 0  # more variance would help


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_term_of_a_learned_variance_is_a_kl_divergence(schedule):
    s, t = schedule(1000), torch.tensor([2, 10, 400, 1000])
    generator = rng.generator(0)
    x_0, x_0_hat, x_t = (rng.normal((4, 1, 3, 3), generator).double() for _ in range(3))
    share = torch.rand(4, 1, 3, 3, generator=generator, dtype=torch.float64)

    def column(table):
        return table[:, None, None, None]

    alpha_bar, before, beta = (
        column(x) for x in (s.alpha_bar[t], s.alpha_bar[t - 1], s.betas[t - 1])
    )
    beta_tilde = (1 - before) / (1 - alpha_bar) * beta

    def mean(x):  # DDPM eq. 7
        a, b = before.sqrt() * beta, (1 - beta).sqrt() * (1 - before)
        return (a * x + b * x_t) / (1 - alpha_bar)

    q = torch.distributions.Normal(mean(x_0), beta_tilde.sqrt())
    log_variance = share * beta.log() + (1 - share) * beta_tilde.log()
    p = torch.distributions.Normal(mean(x_0_hat), (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(q, p).flatten(1).mean(1) / torch.tensor(2.0).log()
    found = bound.bound_term(s, x_0, x_0_hat, t, share)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_a_variance_cannot_be_taught_to_a_network_without_one():
    with pytest.raises(ValueError, match="outputs=2, or use diffusion_loss"):
        bound.hybrid_loss(zero_network(), torch.zeros(2, 1, 4, 4))


def test_the_decoder_gives_every_pixel_value_its_share():
    """The 256 bins of a pixel hold all probability [DDPM eq. 13]."""
    s = schedules.linear()
    values = torch.arange(256).float().reshape(256, 1, 1, 1) / 127.5 - 1
    for mean in (-1.0, 0.013, 0.998):
        bits = bound.bound_term(s, values, torch.full_like(values, mean), torch.ones(256).long())
        assert torch.exp2(-bits.double()).sum().item() == pytest.approx(1, abs=1e-5)


def test_the_prior_term_is_a_kl_divergence():
    s = schedules.NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 200, dtype=torch.float64))
    x_0 = torch.tensor([1.0, -1.0, 0.5, 0.0]).reshape(1, 1, 2, 2)
    signal, noise = s.alpha_bar[-1].sqrt(), (1 - s.alpha_bar[-1]).sqrt()
    q = torch.distributions.Normal(signal * x_0.double(), noise)
    p = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
    expected = torch.distributions.kl_divergence(q, p).mean() / torch.tensor(2.0).log()
    torch.testing.assert_close(bound.prior_term(s, x_0)[0], expected, rtol=1e-6, atol=0)


def zero_network(prediction=predictions.eps):
    class Zero(nn.Module):
        def forward(self, x_t, index):
            return torch.zeros_like(x_t)

    return Denoiser(Zero(), schedules.linear(), prediction)


def test_diffusion_loss_is_the_mean_of_loss_at_over_its_draws():
    x_0 = torch.rand(16, 1, 4, 4) * 2 - 1
    denoiser = zero_network(predictions.v)
    g = rng.generator(3)
    t = torch.randint(1, 1001, (16,), generator=g)
    eps = torch.randn(x_0.shape, generator=g)
    expected = losses.loss_at(denoiser, x_0, t, eps, losses.snr).mean()
    actual = losses.diffusion_loss(denoiser, x_0, losses.snr, rng.generator(3))
    torch.testing.assert_close(actual, expected)


def test_diffusion_loss_draws_every_time_from_1_to_T():
    seen = []

    class Spy(nn.Module):
        def forward(self, x_t, index):
            seen.append(index + 1)
            return x_t

    denoiser = Denoiser(Spy(), schedules.cosine(20))
    losses.diffusion_loss(denoiser, torch.zeros(4000, 1, 1, 1))
    counts = torch.cat(seen).bincount(minlength=22)
    assert counts[0] == counts[21] == 0
    assert counts[1:21].min() > 120  # 200 expected, standard deviation 14


def test_held_out_loss_never_changes_and_covers_all_times():
    x_0 = torch.rand(50, 1, 4, 4) * 2 - 1
    denoiser, times = zero_network(), []
    denoiser.network.register_forward_hook(lambda _, inputs, __: times.extend(inputs[1] + 1))
    first, second = losses.held_out_loss(denoiser, x_0), losses.held_out_loss(denoiser, x_0)
    assert first == second
    assert times[0] == 1
    assert times[49] == 1000
    assert {round(float(b - a)) for a, b in pairwise(times[:50])} == {20, 21}
    eps = rng.normal(x_0.shape, rng.generator(0))
    torch.testing.assert_close(first, eps.square().mean())


def test_loss_per_t_is_one_number_for_each_time():
    x_0 = torch.rand(5, 1, 4, 4) * 2 - 1
    denoiser = zero_network(predictions.v)
    times = torch.tensor([1, 400, 1000])
    eps = rng.normal(x_0.shape, rng.generator(0))
    expected = [losses.loss_at(denoiser, x_0, torch.full((5,), t), eps).mean() for t in times]
    torch.testing.assert_close(losses.loss_per_t(denoiser, x_0, times), torch.stack(expected))


def test_a_loss_says_which_outputs_it_trains():
    assert losses.diffusion_loss.outputs == (1,)
    assert bound.hybrid_loss.outputs == (2,)
    assert bound.vlb_loss.outputs == (1, 2)  # DDPM's ablation has it with a fixed variance
