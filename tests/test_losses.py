from itertools import pairwise

import pytest
import torch
from torch import nn

from diffusion_lib import losses, predictions, rng, schedules
from diffusion_lib.denoiser import Denoiser

SCHEDULES = [getattr(schedules, name) for name in schedules.__all__]


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


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_snr_times_the_error_of_x_0_is_the_error_of_eps(schedule):
    s = schedule()
    t = torch.tensor([1, 2, 10, 100, 500, 900])
    x_0, eps, delta = torch.randn(3, len(t), 1, 8, 8)
    arguments = (s, predictions.x_0, x_0, eps, delta)
    from_x_0 = Denoiser(Wrong(*arguments), s, predictions.x_0)
    from_eps = Denoiser(Wrong(s, predictions.eps, x_0, eps, delta), s, predictions.eps)
    weighted = losses.loss_at(from_x_0, x_0, t, eps, losses.snr)
    torch.testing.assert_close(weighted, losses.loss_at(from_eps, x_0, t, eps), rtol=1e-3, atol=0)
    plain = losses.loss_at(from_x_0, x_0, t, eps)
    torch.testing.assert_close(plain, delta.square().flatten(1).mean(1), rtol=1e-4, atol=0)


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
