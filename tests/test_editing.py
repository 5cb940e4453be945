"""Editing against closed forms: what is kept, what is forgotten, and how fast errors fall."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_lib import data, rng, samplers, schedules
from diffusion_lib.denoiser import Denoised
from diffusion_lib.editing import edit, inpaint, interpolate, invert, reconstruct, slerp
from diffusion_lib.guidance import guided
from diffusion_lib.oracles import gaussian, gaussian_flow, mixture
from diffusion_lib.samplers import final
from diffusion_lib.schedules import NoiseSchedule
from tests.helpers import FOUR_LABELS, random_denoiser

SAMPLERS = [getattr(samplers, name) for name in samplers.__all__]
SCHEDULES = [schedules.linear, schedules.cosine]
MEAN, STD = 0.1, 0.2
both = pytest.mark.parametrize("schedule", SCHEDULES)
with_flow = pytest.mark.parametrize("schedule", [*SCHEDULES, schedules.flow])


def normal(n: int, seed: int = 0, shape: tuple[int, int, int] = (1, 1, 1)) -> torch.Tensor:
    return rng.normal((n, *shape), rng.generator(seed))


def images(n: int, seed: int = 0, shape: tuple[int, int, int] = (1, 1, 1)) -> torch.Tensor:
    return (MEAN + STD * normal(n, seed, shape)).clamp(-1, 1)


def flow(schedule, x_0: torch.Tensor, t: int) -> torch.Tensor:
    return gaussian_flow(schedule, MEAN, STD, x_0, t)


def orders(errors: list[float]) -> list[float]:
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


# ---- inversion -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("t", [2000, 4000])
def test_inversion_and_back_is_off_by_an_error_of_first_order(schedule, t):
    s, x_0 = schedule(4000), images(50).double()
    denoiser = gaussian(s, MEAN, STD)
    round_trips, inversions = [], []
    for num_steps in (80, 160, 320):
        times = s.timesteps(num_steps)
        x_t = final(invert(denoiser, x_0, t, times))
        inversions.append((x_t - flow(s, x_0, t)).abs().mean().item())
        back = final(reconstruct(denoiser, x_t, t, times))
        round_trips.append((back - x_0).abs().mean().item())
    assert orders(round_trips) == pytest.approx([1, 1], abs=0.1)
    assert orders(inversions) == pytest.approx([1, 1], abs=0.2)


@pytest.mark.slow
@with_flow
def test_a_second_evaluation_a_step_makes_the_way_back_meet_the_way_there(schedule):
    s, x_0, t = schedule(1000), images(50).double(), 900
    denoiser, times = gaussian(s, MEAN, STD), s.timesteps(50)

    def error(repeats):
        x_t = final(invert(denoiser, x_0, t, times, repeats))
        return (final(reconstruct(denoiser, x_t, t, times)) - x_0).abs().mean().item()

    assert error(2) < error(1) / 5
    assert error(30) < 1e-5  # DDIM's very steps, undone


@pytest.mark.slow
@both
def test_with_it_the_error_of_both_ways_is_of_second_order(schedule):
    s, x_0, t = schedule(4000), images(50).double(), 2000
    denoiser, errors = gaussian(s, MEAN, STD), []
    for num_steps in (80, 160, 320):
        times = s.timesteps(num_steps)
        x_t = final(invert(denoiser, x_0, t, times, repeats=2))
        errors.append((final(reconstruct(denoiser, x_t, t, times)) - x_0).abs().mean().item())
    assert orders(errors) == pytest.approx([2, 2], abs=0.2)


@pytest.mark.slow
@both
@pytest.mark.parametrize(
    ("sampler", "order"), [(samplers.ddim, 1), (samplers.dpm_solver, 2), (samplers.heun, 2)]
)
def test_reconstruction_has_the_order_of_its_sampler(schedule, sampler, order):
    """Down to T / 8, as the last step to 0 is DDIM's in all of them, whatever came before."""
    T = 4000
    s, x_0 = schedule(T), images(50).double()
    denoiser, x_T = gaussian(s, MEAN, STD), flow(s, x_0, T)
    errors = []
    for n in (40, 80, 160):
        times = [*(T - T * 7 // 8 * i // n for i in range(n + 1)), 0]
        steps = reconstruct(denoiser, x_T, T, times, sampler)
        x_t = next(step.x_t for step in steps if step.t == T // 8)
        errors.append((x_t - flow(s, x_0, T // 8)).abs().mean().item())
    assert orders(errors) == pytest.approx([order, order], abs=0.3)


def test_inversion_visits_the_grid_upwards_and_stops_at_t():
    denoiser = gaussian(schedules.linear(), MEAN, STD)
    steps = list(invert(denoiser, images(2), 450, [1000, 600, 400, 200, 0]))
    assert [step.t for step in steps] == [0, 200, 400, 450]
    x_t = reconstruct(denoiser, steps[-1].x_t, 450, [1000, 600, 400, 200, 0])
    assert [step.t for step in x_t] == [450, 400, 200, 0]


# ---- edits: what t keeps -------------------------------------------------------------------


@both
@pytest.mark.parametrize("timesteps", [None, [1000, 500, 0]])
def test_t_0_gives_back_the_very_bits(schedule, timesteps):
    s, x_0 = schedule(), data.to_float(torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8))
    denoiser = gaussian(s, MEAN, STD)
    for steps in (
        edit(denoiser, x_0, 0, timesteps, generator=rng.generator(0)),
        invert(denoiser, x_0, 0, timesteps),
        reconstruct(denoiser, x_0, 0, timesteps),
        interpolate(denoiser, (x_0, x_0.flip(0)), 0, [0.0] * 4, timesteps),
    ):
        states = list(steps)
        assert [state.t for state in states] == [0]
        assert torch.equal(states[0].x_t.view(torch.int32), x_0.view(torch.int32))


@pytest.mark.slow
@with_flow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_t_T_forgets(schedule, sampler):
    """Edits are as far from their inputs as independent draws: 2 STD^2, in the interval."""
    s, n = schedule(), 4000
    x_0, times = images(n), s.timesteps(200)
    edited = final(
        edit(gaussian(s, MEAN, STD), x_0, 1000, times, sampler, generator=rng.generator(1))
    )
    squares = (edited - x_0).square()
    independent = (edited - images(n, seed=2)).square()
    margin = 1.96 * math.sqrt((squares.var() + independent.var()) / n)
    assert abs(squares.mean() - independent.mean()).item() < margin
    correlation = torch.corrcoef(torch.stack([edited.flatten(), x_0.flatten()]))[0, 1].item()
    assert abs(correlation) < 1.96 / math.sqrt(n) + float(s.signal[-1])


@pytest.mark.slow
@both
def test_between_them_the_correlation_is_the_closed_form(schedule):
    """An edit of exact data draws from p(x_0 | x_t): its covariance with the input is known."""
    s, n, t = schedule(), 8000, 300
    x_0 = images(n)
    edited = final(edit(gaussian(s, MEAN, STD), x_0, t, generator=rng.generator(1)))
    a = float(s.alpha_bar[t])
    expected = a * STD**2 / (a * STD**2 + 1 - a)
    found = torch.corrcoef(torch.stack([edited.flatten(), x_0.flatten()]))[0, 1].item()
    assert found == pytest.approx(expected, abs=3 / math.sqrt(n) + 0.01)
    assert edited.std().item() == pytest.approx(STD, rel=0.05)


def test_an_edit_starts_from_the_noised_image_and_draws_as_it_is_told():
    s, x_0 = schedules.cosine(), images(3, shape=(1, 4, 4))
    denoiser, times = gaussian(s, MEAN, STD), schedules.cosine().timesteps(20)
    start, *rest = edit(denoiser, x_0, 320, times, generator=rng.generator(5))
    eps = rng.normal(x_0.shape, rng.generator(5))
    expected = s.add_noise(x_0, torch.tensor([320] * 3), eps)
    assert start.t == 320
    assert torch.equal(start.x_t, expected)
    assert [step.t for step in rest] == [300, 250, 200, 150, 100, 50, 0]
    again = final(edit(denoiser, x_0, 320, times, generator=rng.generator(5)))
    assert torch.equal(again, rest[-1].x_t)
    alone = final(edit(denoiser, x_0[1:2], 320, times, generator=rng.per_image(7, 1, 1)))
    beside = final(edit(denoiser, x_0, 320, times, generator=rng.per_image(7, 3)))
    torch.testing.assert_close(beside[1:2], alone)


# ---- interpolation -------------------------------------------------------------------------


@pytest.mark.slow
@with_flow
@pytest.mark.parametrize("given", [True, False], ids=["the same eps", "inverted"])
def test_the_ends_are_the_reconstructions_of_the_inputs(schedule, given):
    s, t = schedule(), 600
    denoiser, times = gaussian(s, MEAN, STD), schedule().timesteps(50)
    a, b = images(1, 0, (1, 4, 4)), images(1, 1, (1, 4, 4))
    eps = normal(1, 2, (1, 4, 4)) if given else None
    between = final(interpolate(denoiser, (a, b), t, [0, 0.5, 1], times, eps))
    for x_0, end in ((a, between[:1]), (b, between[2:])):
        x_t = (
            final(invert(denoiser, x_0, t, times))
            if eps is None
            else s.add_noise(x_0, torch.tensor([t]), eps)
        )
        torch.testing.assert_close(end, final(reconstruct(denoiser, x_t, t, times)))


def test_a_great_circle_keeps_norms_and_goes_at_one_speed():
    a, b = normal(1, 0, (1, 8, 8)).double(), normal(1, 1, (1, 8, 8)).double()
    b *= a.norm() / b.norm()
    x = slerp(a, b, torch.linspace(0, 1, 5)).flatten(1)
    torch.testing.assert_close(x.norm(dim=1), a.norm().expand(5))
    torch.testing.assert_close(x[0], a.flatten())
    torch.testing.assert_close(x[-1], b.flatten())
    angles = torch.cosine_similarity(x[1:], x[:-1]).acos()
    torch.testing.assert_close(angles, angles[:1].expand(4))
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3])), a)
    with pytest.raises(ValueError, match="opposite, x and -x"):
        slerp(a, -a, torch.tensor([0.3]))


def test_each_pair_of_ends_has_its_own_share():
    s = schedules.cosine()
    denoiser, times = gaussian(s, MEAN, STD), s.timesteps(20)
    a, b, shares = images(3, 0, (1, 4, 4)), images(3, 1, (1, 4, 4)), [0.2, 0.5, 0.9]
    together = final(interpolate(denoiser, (a, b), 500, shares, times))
    for i, share in enumerate(shares):
        pair = (a[i : i + 1], b[i : i + 1])
        alone = final(interpolate(denoiser, pair, 500, [share], times))
        torch.testing.assert_close(together[i : i + 1], alone)


# ---- inpainting ----------------------------------------------------------------------------

COVARIANCE = torch.tensor([[0.04, 0.03, 0.0], [0.03, 0.05, 0.02], [0.0, 0.02, 0.03]]).double()
MEANS = torch.tensor([0.1, -0.2, 0.3]).double()


class CorrelatedGaussian:
    """The exact denoiser of images whose D = C H W pixels are jointly normal; it does not clip.

    E[x_0 | x_t] = mean + signal K (signal^2 K + noise^2 I)^-1 (x_t - signal mean)

    Args:
        schedule: the forward process.
        mean: mean of the pixels, float64 [D].
        covariance: K, float64 [D, D].
    """

    def __init__(self, schedule: NoiseSchedule, mean: Tensor, covariance: Tensor) -> None:
        self.schedule, self.mean, self.covariance = schedule, mean, covariance

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Denoised:
        """Denoise images [B, C, H, W] that are all of one time, t [B]."""
        signal, noise = self.schedule.scales(int(t[0]))
        x = x_t.flatten(1).double()
        total = signal**2 * self.covariance + noise**2 * torch.eye(len(self.mean)).double()
        gain = signal * torch.linalg.solve(total, self.covariance)  # both symmetric: transposed
        x_0 = self.mean + (x - signal * self.mean) @ gain
        eps = (x - signal * x_0) / noise
        return Denoised(x_0.view_as(x_t).to(x_t.dtype), eps.view_as(x_t).to(x_t.dtype))

    def conditional(self, known: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and covariance of the other pixels given `values` where `known` is True.

        Args:
            known: mask of the given pixels, bool [D].
            values: values of these pixels, float64, as many as `known` has True.
        """
        K, unknown = self.covariance, ~known
        gain = torch.linalg.solve(K[known][:, known], K[known][:, unknown]).T
        mean = self.mean[unknown] + gain @ (values - self.mean[known])
        return mean, K[unknown][:, unknown] - gain @ K[known][:, unknown]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [schedules.cosine, schedules.flow])
def test_inpainting_reaches_the_conditional_mean_and_covariance(schedule):
    s, n = schedule(), 2000
    denoiser = CorrelatedGaussian(s, MEANS, COVARIANCE)
    known, value = torch.tensor([True, False, False]), 0.4
    x_0 = torch.full((n, 1, 1, 3), value)
    times = sorted({round(1000 * (i / 60) ** 2) for i in range(61)}, reverse=True)
    filled = final(inpaint(denoiser, x_0, known.view(1, 1, 1, 3), times, 80, rng.generator(1)))
    unknown = filled.flatten(1)[:, 1:].double()
    mean, covariance = denoiser.conditional(known, torch.tensor([value]).double())
    assert (mean - MEANS[1:]).abs().max() > 0.2  # what is known tells something
    error = covariance.diagonal().sqrt() / math.sqrt(n)
    assert ((unknown.mean(0) - mean).abs() < 4 * error).all()
    deviations = covariance.diagonal().sqrt()
    off = (unknown.T.cov() - covariance) / deviations / deviations[:, None]
    assert off.abs().max() < 4 * math.sqrt(2 / n)
    assert torch.equal(filled[..., 0], x_0[..., 0])


@pytest.mark.slow
@both
def test_in_few_even_steps_it_listens_somewhat_too_little(schedule):
    """The defaults, as people run them: off by less than half a standard deviation, not by 0."""
    s = schedule()
    denoiser = CorrelatedGaussian(s, MEANS, COVARIANCE)
    x_0, known = torch.full((2000, 1, 1, 3), 0.4), torch.tensor([True, False, False])
    mask, value = known.view(1, 1, 1, 3), torch.tensor([0.4]).double()
    mean, covariance = denoiser.conditional(known, value)
    deviations = covariance.diagonal().sqrt()

    def off(times, repeats):
        filled = final(inpaint(denoiser, x_0, mask, times, repeats, rng.generator(1)))
        return ((filled.flatten(1)[:, 1:] - mean).mean(0) / deviations).abs().max()

    squares = sorted({round(1000 * (i / 60) ** 2) for i in range(61)}, reverse=True)
    assert off(squares, 10) < off(s.timesteps(40), 10) < 0.5
    assert off(s.timesteps(40), 10) < 0.75 * off(s.timesteps(40), 1)


@pytest.mark.slow
def test_without_jumps_it_listens_less_to_what_is_known():
    denoiser = CorrelatedGaussian(schedules.cosine(), MEANS, COVARIANCE)
    x_0, known = torch.full((2000, 1, 1, 3), 0.4), torch.tensor([1, 0, 0])
    mean = denoiser.conditional(known == 1, torch.tensor([0.4]).double())[0][0]
    once, often = (
        final(
            inpaint(
                denoiser,
                x_0,
                known.view(1, 1, 1, 3),
                denoiser.schedule.timesteps(25),
                k,
                rng.generator(1),
            )
        )[..., 1].mean()
        for k in (1, 10)
    )
    assert (often - mean).abs() < 0.6 * (once - mean).abs()


def test_known_pixels_are_exact_and_the_states_tell_the_jumps():
    denoiser = mixture(schedules.linear(), (-0.7, 0.6), (0.05, 0.1), (0.3, 0.7))
    x_0 = images(2, shape=(3, 4, 4))
    mask = (normal(1, 3, (1, 4, 4)) > 0).float()
    steps = list(inpaint(denoiser, x_0, mask, [1000, 500, 200, 0], 3, rng.generator(0)))
    assert [step.t for step in steps] == [1000, *[500] * 3, *[200] * 3, 0]
    known = mask.expand_as(x_0) == 1
    assert torch.equal(steps[-1].x_t[known], x_0[known])
    assert not torch.isclose(steps[-1].x_t[~known], x_0[~known]).any()
    every = final(inpaint(denoiser, x_0, torch.ones(1, 1, 4, 4), [1000, 0], 1, rng.generator(0)))
    assert torch.equal(every, x_0)


# ---- any denoiser --------------------------------------------------------------------------


@pytest.mark.slow
def test_they_take_guided_denoisers():
    plain = random_denoiser(clip=1.0)
    wish, times = guided(plain, FOUR_LABELS, 2.0), plain.schedule.timesteps(5)
    x_0 = images(4, shape=(1, 8, 8))
    x_t = final(invert(plain, x_0, 60, times))
    mask = torch.ones(1, 1, 8, 8).triu().bool()

    def ends(denoiser):
        return [
            final(edit(denoiser, x_0, 60, times, generator=rng.generator(0))),
            final(invert(denoiser, x_0, 60, times)),
            final(reconstruct(denoiser, x_t, 60, times)),
            final(interpolate(denoiser, (x_0, x_0.flip(0)), 60, [0.3] * 4, times)),
            final(inpaint(denoiser, x_0, mask, times, 2, rng.generator(0))),
        ]

    for told, untold in zip(ends(wish), ends(plain), strict=True):
        assert told.shape == x_0.shape
        assert told.isfinite().all()
        assert not told.requires_grad
        assert not torch.allclose(told, untold)


def test_a_guided_way_between_two_images_has_a_label_for_each_share():
    plain, x_0 = random_denoiser(clip=1.0), images(2, shape=(1, 8, 8))
    wish, times = guided(plain, FOUR_LABELS, 2.0), plain.schedule.timesteps(5)
    a, b, shares = x_0[:1], x_0[1:], [0.0, 0.3, 0.6, 1.0]
    ends = (a.expand(4, -1, -1, -1), b.expand(4, -1, -1, -1))
    assert final(interpolate(wish, ends, 60, shares, times)).shape == (4, 1, 8, 8)
    eps = normal(1, 3, (1, 8, 8))
    assert final(interpolate(wish, (a, b), 60, shares, times, eps)).shape == (4, 1, 8, 8)
    with pytest.raises(ValueError, match="has 4 labels but was given 1 images"):
        final(interpolate(wish, (a, b), 60, shares, times))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_t_0_is_the_very_image_in_any_precision(dtype):
    x_0 = torch.tensor([-0.0, 0.5, -1.0, 1.0], dtype=dtype).view(1, 1, 2, 2)
    assert final(edit(gaussian(schedules.linear(), MEAN, STD), x_0, 0)) is x_0


def test_what_a_mask_leaves_out_may_be_anything():
    denoiser = gaussian(schedules.linear(), MEAN, STD)
    x_0, mask = torch.full((1, 1, 2, 2), 0.3), torch.tensor([[1, 1], [1, 0]])[None, None]
    broken = x_0.clone()
    broken[..., 1, 1] = float("nan")
    found = [
        final(inpaint(denoiser, x, mask, [1000, 500, 0], 2, rng.generator(0)))
        for x in (x_0, broken)
    ]
    assert torch.equal(*found)
    broken[..., 0, 0] = 7.0
    with pytest.raises(ValueError, match=r"lie in \[-1, 1\] and hold no NaN; these go from 0 to 7"):
        inpaint(denoiser, broken, mask, [1000, 500, 0])


@pytest.mark.parametrize("which", ["edit", "invert", "reconstruct", "interpolate", "inpaint"])
def test_they_are_lazy(which):
    calls = []
    denoiser = gaussian(schedules.linear(), MEAN, STD)
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    x_0, times = images(1), [1000, 500, 0]
    steps = {
        "edit": lambda: edit(denoiser, x_0, 800, times),
        "invert": lambda: invert(denoiser, x_0, 800, times),
        "reconstruct": lambda: reconstruct(denoiser, x_0, 800, times),
        "interpolate": lambda: interpolate(denoiser, (x_0, -x_0), 800, [0.5], times, x_0),
        "inpaint": lambda: inpaint(denoiser, x_0, x_0 == 0, times),
    }[which]()
    assert calls == []
    next(steps)
    assert calls == []
    next(steps)
    assert len(calls) in (1, 2)


# ---- bad input -----------------------------------------------------------------------------

GRID = [100, 50, 0]
X_0 = torch.zeros(2, 1, 4, 4)
NOISY = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def calls(denoiser, x_0=X_0, t=50, timesteps=GRID):
    return {
        "edit": lambda: edit(denoiser, x_0, t, timesteps),
        "invert": lambda: invert(denoiser, x_0, t, timesteps),
        "reconstruct": lambda: reconstruct(denoiser, x_0, t, timesteps),
        "interpolate": lambda: interpolate(denoiser, (x_0, x_0), t, [0.1, 0.2], timesteps),
        "inpaint": lambda: inpaint(denoiser, x_0, torch.ones(1, 1, 4, 4), timesteps),
    }


WITH_T = ["edit", "invert", "reconstruct", "interpolate"]
ALL = [*WITH_T, "inpaint"]
SMALL_SCHEDULE = schedules.linear(100)
EXACT = gaussian(SMALL_SCHEDULE, MEAN, STD)


@pytest.mark.parametrize("which", WITH_T)
@pytest.mark.parametrize("t", [-1, 101, 0.5, 50.0, float("nan"), "50", None, torch.ones(2)])
def test_a_t_that_is_no_time_is_refused(which, t):
    with pytest.raises(ValueError, match=r"t must be a whole number in 0\.\.T = 100.*; got"):
        calls(EXACT, t=t)[which]()


@pytest.mark.parametrize("which", ALL)
@pytest.mark.parametrize("times", [[100, 50], [50, 50, 0], [101, 0], [0], []])
def test_times_that_are_not_a_way_down_are_refused_at_once(which, times):
    with pytest.raises(ValueError, match="fall strictly from at most T = 100 to 0"):
        calls(EXACT, timesteps=times)[which]()


@pytest.mark.parametrize("which", ALL)
@pytest.mark.parametrize(
    ("x_0", "error", "message"),
    [
        (X_0.byte(), TypeError, r"floats in \[-1, 1\]; got torch.uint8. data.to_float"),
        (X_0[0], ValueError, r"shape \[B, C, H, W\], B >= 1; got \[1, 4, 4\]. x\[None\]"),
        (X_0[:0], ValueError, r"B >= 1; got \[0, 1, 4, 4\]"),
    ],
)
def test_no_images_are_refused(which, x_0, error, message):
    with pytest.raises(error, match=message):
        calls(EXACT, x_0)[which]()


@pytest.mark.parametrize("which", ["edit", "invert", "interpolate", "inpaint"])
@pytest.mark.parametrize("value", [255.0, -1.1, float("nan"), float("inf")])
def test_images_outside_the_interval_are_refused(which, value):
    x_0 = X_0.clone()
    x_0[1, 0, 2, 2] = value
    with pytest.raises(ValueError, match=r"lie in \[-1, 1\] and hold no NaN; .* data.to_float"):
        calls(EXACT, x_0)[which]()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 4), r"\[2 or 1, 1 or 1, 4, 4\] of the images; got \[4, 4\]. mask\[None, None\]"),
        ((1, 1, 4, 5), r"got \[1, 1, 4, 5\]"),
        ((3, 1, 4, 4), r"got \[3, 1, 4, 4\]"),
        ((1, 2, 4, 4), r"got \[1, 2, 4, 4\]"),
    ],
)
def test_a_mask_of_another_shape_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        inpaint(EXACT, X_0, torch.ones(shape), GRID)


@pytest.mark.parametrize("value", [0.5, 2, -1, float("nan")])
def test_a_mask_that_is_not_0_or_1_is_refused(value):
    mask = torch.ones(1, 1, 4, 4)
    mask[0, 0, 1, 1] = value
    with pytest.raises(ValueError, match=r"1 where a pixel is known and 0 .* mask > 0.5"):
        inpaint(EXACT, X_0, mask, GRID)


@pytest.mark.parametrize("repeats", [0, -1, 1.5, None])
def test_repeats_that_are_no_number_are_refused(repeats):
    for call in (
        lambda: inpaint(EXACT, X_0, torch.ones(1, 1, 4, 4), GRID, repeats),
        lambda: invert(EXACT, X_0, 50, GRID, repeats),
    ):
        with pytest.raises(ValueError, match=f"repeats must be .* at least 1; got {repeats}"):
            call()


@pytest.mark.parametrize(
    ("ends", "shares", "eps", "message"),
    [
        ((X_0, X_0[..., :3]), [0.5], None, r"one shape; got \[2, 1, 4, 4\] and \[2, 1, 4, 3\]"),
        ((X_0[:1], X_0), [0.5, 1.0], None, r"one shape; got \[1, 1, 4, 4\] and \[2, 1, 4, 4\]"),
        ((X_0, X_0), [0.5], None, "2 pairs of ends for 1 weights: give 1, or one each"),
        (
            (X_0, X_0),
            [0.5, 1.1],
            None,
            r"weights must be a list of numbers in 0..1; got \[0.5, 1.1",
        ),
        ((X_0, X_0), [], None, r"numbers in 0..1; got \[\]"),
        ((X_0, X_0), [0.5, 1.0], NOISY[..., :3], r"shape \[1 or 2, C, H, W\] .* \[2, 1, 4, 3\]"),
        ((X_0, X_0), [0.5, 1.0], NOISY / 0, r"eps must be noise"),
    ],
)
def test_ends_that_do_not_fit_are_refused(ends, shares, eps, message):
    with pytest.raises(ValueError, match=message):
        interpolate(EXACT, ends, 50, shares, GRID, eps)
