import pytest
import torch

from diffusion_lib import predictions, schedules

ALL = [getattr(predictions, name) for name in predictions.__all__]
SCHEDULES = [getattr(schedules, name) for name in ("linear", "cosine", "sigmoid")]


@pytest.mark.parametrize("prediction", ALL)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_solve_undoes_the_target_at_every_t(prediction, schedule):
    alpha_bar = schedule().alpha_bar[1:, None, None, None]
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x_0, eps = torch.randn(2, len(alpha_bar), 1, 4, 4, dtype=torch.float64)
    c_x, c_eps = prediction(signal, noise)
    x_t = signal * x_0 + noise * eps
    found = predictions.solve(prediction, c_x * x_0 + c_eps * eps, x_t, signal, noise)
    torch.testing.assert_close(found, (x_0, eps), atol=1e-9, rtol=1e-9)


def test_targets_are_those_of_the_papers():
    signal, noise = torch.tensor(0.6), torch.tensor(0.8)
    assert predictions.eps(signal, noise) == (0, 1)
    assert predictions.x_0(signal, noise) == (1, 0)
    assert predictions.v(signal, noise) == (-noise, signal)  # v = signal * eps - noise * x_0
