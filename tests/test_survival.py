"""Predictions without a network, against integrals, logistic functions and torch's densities."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from diffusion_lib import data, rng, schedules, survival
from diffusion_lib.schedules import NoiseSchedule

SCHEDULES = [schedules.linear(), schedules.cosine(), schedules.flow()]
TIMES = [1, 100, 400, 700, 999]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear", "cosine", "flow"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return rng.normal(shape, rng.generator(seed)).double()


def covariance(seed: int, size: int = 3) -> Tensor:
    root = normal(size, size, seed=seed)
    return root @ root.T / size


def mean_sigmoid(separation: float) -> float:
    """The mean of p(own class) of two normal classes whose means are so many deviations apart.

    The log of the ratio of their densities is normal, with half the variance as its mean.
    """
    z = torch.linspace(-10, 10, 20001).double()
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    log_ratio = separation**2 / 2 + separation * z
    return torch.trapezoid(density * log_ratio.sigmoid(), z).item()


def separation(schedule: NoiseSchedule, t: int, distance: float, std: float) -> float:
    signal, noise = schedule.scales(t)
    return signal * distance / math.hypot(signal * std, noise)


# ---- posteriors ----------------------------------------------------------------------------


@each
def test_two_isotropic_classes_have_the_logistic_function_and_its_integral(schedule):
    size, n, std, mean = 6, 20_000, 0.5, normal(6, seed=1) * 0.6
    x_0, eps = mean + std * normal(n, size, seed=2), normal(n, size, seed=3)
    classes = [(k, 0.5, sign * mean, std**2 * torch.eye(size)) for k, sign in enumerate((1, -1))]
    p = survival.class_posterior(classes, x_0, eps, schedule, TIMES)[..., 0]
    for t, own in zip(TIMES, p, strict=True):
        signal, noise = schedule.scales(t)
        log_ratio = 2 * signal * (signal * x_0 + noise * eps) @ mean
        log_ratio /= (signal * std) ** 2 + noise**2
        torch.testing.assert_close(own, log_ratio.sigmoid())
        apart = separation(schedule, t, 2 * mean.norm().item(), std)
        error = 4 * own.std().item() / math.sqrt(n) + 1e-9
        assert own.mean().item() == pytest.approx(mean_sigmoid(apart), abs=error)
        correct = (1 + math.erf(apart / 2 / math.sqrt(2))) / 2
        assert (own > 0.5).double().mean().item() == pytest.approx(correct, abs=2 / math.sqrt(n))


@each
def test_mixtures_have_the_posterior_of_torch(schedule):
    parts = [
        (label, weight, normal(3, seed=k), covariance(k + 10))
        for k, (label, weight) in enumerate([(0, 0.5), (2, 0.2), (0, 0.1), (1, 0.2)])
    ]
    x_0, eps = normal(50, 3, seed=5), normal(50, 3, seed=6)
    p = survival.class_posterior(parts, x_0, eps, schedule, TIMES)
    for t, actual in zip(TIMES, p, strict=True):
        signal, noise = schedule.scales(t)
        joint = torch.zeros(50, 3).double()
        for label, weight, mean, spread in parts:
            total = signal**2 * spread + noise**2 * torch.eye(3)
            density = MultivariateNormal(signal * mean, total).log_prob(signal * x_0 + noise * eps)
            joint[:, label] += weight * density.exp()
        torch.testing.assert_close(actual, joint / joint.sum(1, keepdim=True))


def test_one_gaussian_is_two_halves_of_itself():
    whole = [(k, 0.5, normal(3, seed=k), covariance(k)) for k in range(2)]
    halves = [(label, weight / 2, *rest) for label, weight, *rest in whole for _ in range(2)]
    given = normal(20, 3, seed=5), normal(20, 3, seed=6), SCHEDULES[0], TIMES
    torch.testing.assert_close(
        survival.class_posterior(whole, *given), survival.class_posterior(halves, *given)
    )


@each
def test_the_posterior_of_two_images_is_the_logistic_function(schedule):
    images, x_0, eps = normal(2, 4, seed=1), normal(30, 4, seed=2), normal(30, 4, seed=3)
    p = survival.empirical_posterior((images, torch.tensor([1, 0])), x_0, eps, schedule, TIMES)
    for t, actual in zip(TIMES, p, strict=True):
        signal, noise = schedule.scales(t)
        x_t = signal * x_0 + noise * eps
        first, second = ((x_t - signal * image).square().sum(1) for image in images)
        torch.testing.assert_close(actual[:, 1], ((second - first) / (2 * noise**2)).sigmoid())


@each
def test_training_images_are_gaussians_without_a_spread(schedule):
    images, labels = normal(6, 4, seed=1), torch.tensor([0, 1, 0, 2, 0, 1])
    points = [
        (label, 1 / 6, image, torch.zeros(4, 4))
        for label, image in zip(labels.tolist(), images, strict=True)
    ]
    given = normal(10, 4, seed=2), normal(10, 4, seed=3), schedule, TIMES
    torch.testing.assert_close(
        survival.empirical_posterior((images, labels), *given),
        survival.class_posterior(points, *given),
    )


def test_without_noise_the_class_is_certain_and_pure_noise_leaves_the_weights():
    schedule = schedules.zero_terminal(schedules.linear())
    means, weights = 3 * torch.eye(3).double(), [0.5, 0.3, 0.2]
    parts = [(k, w, means[k], 0.01 * torch.eye(3)) for k, w in enumerate(weights)]
    first, last = survival.class_posterior(parts, means, normal(3, 3), schedule, [1, 1000])
    torch.testing.assert_close(first, torch.eye(3).double())
    torch.testing.assert_close(last, torch.tensor([weights] * 3).double())
    points = means[[0, 0, 1]], torch.tensor([0, 0, 1])
    _, last = survival.empirical_posterior(points, means, normal(3, 3), schedule, [1, 1000])
    torch.testing.assert_close(last, torch.tensor([[2 / 3, 1 / 3]] * 3).double())


# ---- fits ----------------------------------------------------------------------------------


def test_one_gaussian_of_a_class_has_its_mean_covariance_and_share():
    x_0, labels = normal(40, 3), torch.tensor([0, 2, 2, 2]).repeat(10)
    parts = survival.fit(x_0, labels, count=1, prior=0)
    assert [(label, weight) for label, weight, *_ in parts] == [(0, 0.25), (2, 0.75)]
    for label, _, mean, spread in parts:
        torch.testing.assert_close(mean, x_0[labels == label].mean(0))
        torch.testing.assert_close(spread, x_0[labels == label].T.cov(correction=0))


def test_a_covariance_of_few_images_is_drawn_to_that_within_classes():
    x_0 = torch.cat([normal(20, 2), 3 * normal(2000, 2, seed=1) + 100])
    labels = (torch.arange(2020) >= 20).long()
    (_, _, _, few), (_, _, _, many) = survival.fit(x_0, labels, count=1, prior=1e9)
    torch.testing.assert_close(few, many)
    assert many.diagonal().mean().item() == pytest.approx(9 * 2000 / 2020, rel=0.1)


def test_clusters_far_apart_get_a_gaussian_each():
    x_0, cluster = normal(40, 4), torch.arange(40) % 4
    x_0 += 50 * torch.eye(4)[cluster]
    parts = survival.fit(x_0, torch.zeros(40).long(), count=40, prior=0)
    pieces = torch.stack([mean for _, _, mean, _ in parts])
    assert (torch.cdist(pieces, 50 * torch.eye(4).double()).min(1).values < 5).all()
    weights = torch.tensor([weight for _, weight, *_ in parts]).double()
    torch.testing.assert_close(weights.sum(), torch.ones(()).double())
    torch.testing.assert_close(weights @ pieces, x_0.mean(0))


def test_axes_are_orthonormal_and_hold_the_largest_variances():
    x_0 = normal(500, 8) * torch.tensor([1, 5, 1, 1, 9, 1, 1, 1.0]) + 7
    axes = survival.principal_axes(x_0, 2)
    torch.testing.assert_close(axes.T @ axes, torch.eye(2).double())
    assert axes[[4, 1], [0, 1]].abs().min() > 0.99


def test_speciation_is_where_the_largest_variance_equals_that_of_the_noise():
    variances = torch.tensor([8.0, 2.0, 0.5]).double()
    points = (len(variances) * variances).sqrt().diag()
    x_0, labels = torch.cat([points, -points]), torch.tensor([0, 0, 0, 0, 1, 0])
    total, between = survival.speciation(x_0, labels)
    assert total == pytest.approx(-math.log2(8))
    # The image of class 1 lies at -sqrt(6), the mean of the others at sqrt(6) / 5.
    assert between == pytest.approx(-math.log2(5 / 36 * 6 * (6 / 5) ** 2))
    assert survival.speciation(2 * x_0, labels)[0] == pytest.approx(total - 2)


# ---- labelled images -----------------------------------------------------------------------

DISTANCE, STD = 0.5, 0.25  # of the classes' means, in [-1, 1], and of each pixel


def two_classes(n: int = 4000, size: int = 4) -> data.Images:
    labels = torch.arange(n) % 2
    side = (labels - 0.5) * DISTANCE / size  # of each of size^2 pixels: DISTANCE in all
    x_0 = side[:, None, None, None] + STD * normal(n, 1, size, size)
    return data.Images(data.to_uint8(x_0.clamp(-1, 1)), labels)


@pytest.fixture(scope="module")
def images() -> data.Images:
    return two_classes()


@each
def test_a_curve_of_images_is_the_integral_of_their_classes(images, schedule):
    times = [100, 300, 500]
    own = survival.label_curve(*images, schedule, times)
    assert own.shape == (3, 2000)
    for t, values in zip(times, own, strict=True):
        expected = mean_sigmoid(separation(schedule, t, DISTANCE, STD))
        assert values.mean().item() == pytest.approx(expected, abs=0.025)


@each
def test_how_far_inverts_the_integral(images, schedule):
    keep = mean_sigmoid(separation(schedule, 300, DISTANCE, STD))
    t, low, high = survival.how_far(*images, schedule, keep)
    assert low < t < high
    assert t == int(t)
    own = survival.label_curve(*images, schedule, [int(t), int(t) + 2]).mean(1)
    assert own[0] >= keep - 1e-3
    assert own[1] <= keep + 1e-3
    assert low - 30 < 300 < high + 30


def test_every_class_is_held_out_evenly():
    """Pure noise leaves the weights, which are the shares among the images fitted to."""
    schedule = schedules.zero_terminal(schedules.linear())
    own = survival.label_curve(*two_classes(60), schedule, [1000])
    torch.testing.assert_close(own, torch.full((1, 30), 0.5).double())


def test_who_keeps_more_goes_less_far_and_a_seed_repeats_it(images):
    far = [survival.how_far(*images, SCHEDULES[1], keep) for keep in (0.52, 0.55, 0.6, 0.65)]
    assert [t.value for t in far] == sorted((t.value for t in far), reverse=True)
    assert len({t.value for t in far}) == 4
    assert survival.how_far(*images, SCHEDULES[1], 0.52) == far[0]
    assert survival.how_far(*images, SCHEDULES[1], 0.52, seed=1) != far[0]


def test_labels_are_any_numbers_and_a_short_schedule_ends_at_T(images):
    names = images.labels * 700 + 3
    schedule = NoiseSchedule(torch.tensor([1, 0.999]), torch.tensor([0, 0.01]))
    assert survival.how_far(images.images, names, schedule, 0.6).value == 1
    one, other = (survival.how_far(images.images, x, SCHEDULES[0], 0.6) for x in (names, images[1]))
    assert one == other


def test_images_on_which_gaussians_were_fitted_are_not_judged():
    """Labels at random: Gaussians know those that they were fitted to, and no others."""
    images, _ = two_classes(200)
    labels = rng.permutation(200, 5) % 2
    own = survival.label_curve(images, labels, SCHEDULES[0], [1]).mean().item()
    assert own == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("keep", [0.5, 1.0, -1, 2, math.nan])
def test_a_share_that_noise_keeps_or_nobody_does_is_refused(images, keep):
    with pytest.raises(ValueError, match=rf"between 0.500, .* and 0\.\d+, .*; got {keep}"):
        survival.how_far(*images, SCHEDULES[0], keep)


def test_a_share_that_gaussians_do_not_recognize_is_refused(images):
    with pytest.raises(ValueError, match=r"got 0.99\. A network may .* 0\.\d+ is 95 %"):
        survival.how_far(*images, SCHEDULES[0], 0.99)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(60).long(), "at least two classes .*; got 1, of which 0 has 60"),
        ((torch.arange(60) < 19).long(), "at least 20 images .* 2, of which 1 has 19: leave"),
        (torch.arange(59) % 2, "59 labels for 60 images; one each is needed"),
        (torch.rand(60), "labels must be whole numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    images = two_classes(60).images
    with pytest.raises(ValueError, match=message):
        survival.how_far(images, labels, SCHEDULES[0], 0.6)


def test_float_images_are_refused(images):
    with pytest.raises(TypeError, match=r"images must be uint8 in 0..255; got torch.float32"):
        survival.how_far(data.to_float(images.images), images.labels, SCHEDULES[0], 0.6)
