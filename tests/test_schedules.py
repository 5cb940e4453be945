import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler

from diffusion_lib import schedules
from diffusion_lib.schedules import NoiseSchedule

ALL = [getattr(schedules, name) for name in ("linear", "cosine", "sigmoid")]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(schedules.linear, "linear"), (schedules.cosine, "squaredcos_cap_v2")]
)
def test_alpha_bar_agrees_with_diffusers(ours, theirs):
    expected = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs).alphas_cumprod
    torch.testing.assert_close(ours().alpha_bar[1:].float(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("schedule", ALL)
def test_entry_0_is_the_clean_image_and_the_signal_falls(schedule):
    s = schedule()
    assert s.signal[0] == 1
    assert s.noise[0] == 0
    assert len(s.signal) == len(s.noise) == s.num_timesteps + 1
    assert (s.alpha_bar.diff() < 0).all()
    torch.testing.assert_close(s.signal**2 + s.noise**2, torch.ones(s.num_timesteps + 1))


@pytest.mark.parametrize("schedule", ALL)
def test_tables_are_exact_to_float32(schedule):
    """1 - alpha_bar in float32 would be off by 1e-4 at t = 1."""
    s = schedule()
    exact = torch.tensor(math.sqrt(float(s.betas[0])))
    torch.testing.assert_close(s.noise[1], exact, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("T", [50, 200, 1000, 4000])
def test_x_T_is_noise_for_every_T(schedule, T):
    assert schedule(T).alpha_bar[-1] < 1e-4


@pytest.mark.parametrize("schedule", ALL)
def test_add_noise_has_the_moments_of_q(schedule):
    s, t, n = schedule(), 300, 200_000
    x_0 = torch.full((n, 1, 1, 1), 0.7)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    x_t = s.add_noise(x_0, torch.full((n,), t), eps)
    alpha_bar = float(s.alpha_bar[t])
    sigma = math.sqrt(1 - alpha_bar)
    assert x_t.mean().item() == pytest.approx(math.sqrt(alpha_bar) * 0.7, abs=4 * sigma / n**0.5)
    assert x_t.std().item() == pytest.approx(sigma, rel=4 / (2 * n) ** 0.5)


def test_snr_is_the_ratio_of_the_tables():
    s = schedules.linear()
    t = torch.tensor([1, 500, 1000])
    torch.testing.assert_close(s.snr(t).double(), s.alpha_bar[t] / (1 - s.alpha_bar[t]))


@pytest.mark.parametrize("T", [1, 2, 7, 100, 1000])
def test_timesteps_are_exactly_as_many_as_asked_for(T):
    schedule = NoiseSchedule.from_betas(torch.full((T,), 0.1))
    for num_steps in range(1, T + 1):
        times = schedule.timesteps(num_steps)
        assert len(times) == num_steps + 1
        assert times[0] == T
        assert times[-1] == 0
        gaps = [t - s for t, s in pairwise(times)]
        assert min(gaps) >= 1
        assert max(gaps) - min(gaps) <= 1  # evenly spaced


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match=rf"{num_steps} sampling steps.*choose 1 to 1000"):
        schedules.linear().timesteps(num_steps)


@pytest.mark.parametrize(
    ("schedule", "alpha_bar", "amplification", "snr_1", "share", "L_T"),
    [  # computed apart from the library; L_T is -log2(1 - alpha_bar_T) / 2
        (schedules.linear, 4.04e-5, 157, 9999, 0.33, 2.9e-5),
        (schedules.cosine, 2.43e-9, 20_290, 24_220, 0.06, 1.8e-9),
    ],
)
def test_describe(schedule, alpha_bar, amplification, snr_1, share, L_T):
    found = schedule().describe()
    assert found["T"] == 1000
    assert found["alpha_bar_T"] == pytest.approx(alpha_bar, rel=0.01)
    assert found["amplification_T"] == pytest.approx(amplification, rel=0.01)
    assert found["snr_1"] == pytest.approx(snr_1, rel=0.01)
    assert found["share_snr_below_0.01"] == pytest.approx(share, abs=0.01)
    assert found["L_T_bits_per_dim"] == pytest.approx(L_T, rel=0.03)


def test_the_last_beta_may_be_1():
    s = NoiseSchedule.from_betas(torch.tensor([0.5, 1.0]))
    assert s.signal[2] == 0
    assert s.describe()["amplification_T"] == math.inf
    assert "eps-prediction is refused" in s.describe()["warnings"]


def test_describe_warns_where_x_T_is_not_noise():
    unscaled = NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 200, dtype=torch.float64))
    with pytest.warns(UserWarning, match=r"x_T is not noise: 0.13 of the image's power is left"):
        found = unscaled.describe()
    assert found["alpha_bar_T"] == pytest.approx(0.132, abs=0.001)
    assert found["L_T_bits_per_dim"] == pytest.approx(0.102, abs=0.001)
    assert "zero_terminal(schedule) ends any schedule there" in found["warnings"]


def test_describe_warns_where_eps_prediction_meets_a_vanishing_alpha_bar():
    assert schedules.linear().describe()["warnings"] == "none"
    assert "error grows 20,29" in schedules.cosine().describe()["warnings"]


def test_the_sigmoid_schedule_is_symmetric_in_signal_and_noise():
    s = schedules.sigmoid(1000)
    assert float(s.alpha_bar[500]) == pytest.approx(0.5, abs=1e-9)
    torch.testing.assert_close(
        s.alpha_bar[1:500] + s.alpha_bar[501:1000].flip(0), torch.ones(499).double()
    )
    raw = 1 / (1 + math.exp(-3 + 6 * 0.25)), 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    expected = (raw[0] - raw[2]) / (raw[1] - raw[2])
    assert float(s.alpha_bar[250]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ALL)
def test_zero_terminal_ends_without_signal_and_begins_as_before(schedule):
    before = schedule()
    after = schedules.zero_terminal(before)
    assert after.alpha_bar[-1] == 0
    assert after.num_timesteps == 1000
    torch.testing.assert_close(after.alpha_bar[1], before.alpha_bar[1])
    assert (after.alpha_bar.diff() < 0).all()
    # The signal is shifted and scaled: its differences keep their proportions.
    ratio = after.alpha_bar.sqrt()[1:].diff() / before.alpha_bar.sqrt()[1:].diff()
    torch.testing.assert_close(ratio, ratio[:1].expand(999))


def test_zero_terminal_needs_two_steps():
    with pytest.raises(ValueError, match="T >= 2"):
        schedules.zero_terminal(NoiseSchedule.from_betas(torch.tensor([0.5])))


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, 0.0], "beta_2 is 0"),
        ([1.5], "beta_1 is 1.5"),
        ([0.1, 0.2, float("nan")], "beta_3 is nan"),
        ([-0.1], "beta_1 is -0.1"),
        ([0.1, 1.0, 0.1], "no signal is left at t = 2, before the end at T = 3"),
        ([], "T >= 1"),
        ([[0.1]], r"shape \[1, 1\]"),
    ],
)
def test_betas_outside_the_interval_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_betas(torch.tensor(betas))


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("T", [0, -5])
def test_T_below_1_is_refused(schedule, T):
    with pytest.raises(ValueError, match=f"T must be at least 1; got {T}"):
        schedule(T)


def test_linear_says_why_it_cannot_be_short():
    with pytest.raises(ValueError, match=r"linear\(T=10\).*T > 20, or schedules.cosine"):
        schedules.linear(10)


def test_betas_that_leave_no_signal_before_the_end_are_refused():
    with pytest.raises(
        ValueError, match=r"no signal is left at t = \d+, before the end at T = 1000"
    ):
        schedules.NoiseSchedule.from_betas(torch.full((1000,), 0.9))
