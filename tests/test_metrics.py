"""Likelihoods and distances against closed forms."""

import math
import sys
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lib import bound, metrics, posterior, predictions, rng, schedules
from diffusion_lib.denoiser import Denoised, Denoiser
from diffusion_lib.metrics import features
from diffusion_lib.metrics.features import ClassifierOutput
from diffusion_lib.oracles import gaussian, mixture

MEAN, STD = 0.1, 0.25
SCHEDULES = [getattr(schedules, name) for name in ("linear", "cosine", "sigmoid")]
PREDICTIONS = [getattr(predictions, name) for name in predictions.__all__]


def pixels(n, shape=(1, 4, 4), mean=MEAN, std=STD):
    """uint8 images of independent normal pixels, and their exact bits per dim, each [N]."""
    x = mean + std * rng.normal((n, *shape), rng.generator(5)).double()
    images = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    x = images.double() / 127.5 - 1
    nats = (x - mean).square() / (2 * std**2) + math.log(std * math.sqrt(2 * math.pi))
    return images, nats.flatten(1).mean(1) / math.log(2) + math.log2(127.5)


ENTROPY = math.log2(STD * math.sqrt(2 * math.pi * math.e)) + math.log2(127.5)


def exact_variance(schedule, t, s):
    """Variance of q(x_s | x_t) for normal data: beta_tilde, and what x_t leaves open of x_0."""
    alpha_bar = schedule.alpha_bar[t]
    left = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    return (
        posterior.beta_tilde(schedule, t, s) + posterior.x_0_coefficient(schedule, t, s) ** 2 * left
    )


# ---- likelihood ----------------------------------------------------------------------------


@pytest.mark.slow
# At T = 4000 only linear's: the others' first steps add less noise than a pixel's bin is wide, and
# there data of 256 values are no longer Gaussian.
@pytest.mark.parametrize(
    ("schedule", "T"), [*((schedule, 1000) for schedule in SCHEDULES), (schedules.linear, 4000)]
)
def test_the_bound_reaches_the_entropy_of_gaussian_data(schedule, T):
    images, exact = pixels(1000)
    bound = metrics.bits_per_dim(gaussian(schedule(T), MEAN, STD), images, 60, exact_variance)
    error = bound.total.standard_error
    assert error < 0.03
    assert bound.total.mean == pytest.approx(ENTROPY, abs=3 * error)
    # Against these very images, only the noise of the draws is left.
    difference = bound.total.per_image - exact
    spread = (difference.std() / len(images) ** 0.5).item()
    assert difference.mean().item() == pytest.approx(0, abs=3 * spread + 2e-3)
    assert bound.total.bits_per_image == pytest.approx(16 * bound.total.mean)


def test_the_bound_lies_above_the_entropy_with_either_fixed_variance():
    images, exact = pixels(300)
    denoiser = gaussian(schedules.linear(), MEAN, STD)
    for variance in (posterior.beta, posterior.beta_tilde):
        bound = metrics.bits_per_dim(denoiser, images, 100, variance)
        assert bound.total.mean > exact.mean() + bound.total.standard_error


class Learned(nn.Module):
    """The exact denoiser of Gaussian data, with shares that stand for its exact variance."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.mean = schedule, gaussian(schedule, MEAN, STD)

    def forward(self, x_t, t):
        low, high = posterior.log_range(self.schedule, t, t - 1)
        exact = posterior.log_variance(self.schedule, t, t - 1, exact_variance)
        share = ((exact - low) / (high - low)).float()[:, None, None, None].expand(x_t.shape)
        return self.mean(x_t, t)._replace(variance_fraction=share)


@pytest.mark.slow
@pytest.mark.parametrize("T", [1000, 4000])
def test_a_learned_variance_counts_as_the_variance_that_it_stands_for(T):
    """At every t, t = 1 included, in the bound and in the errors per t."""
    images, _ = pixels(40)
    learned = Learned(schedules.linear(T))
    told = metrics.bits_per_dim(learned, images, 40)
    expected = metrics.bits_per_dim(learned.mean, images, 40, exact_variance)
    other = metrics.bits_per_dim(learned.mean, images, 40)
    assert pytest.approx(expected.L_0, rel=1e-4) == told.L_0
    assert abs(told.L_0 - other.L_0) > 0.01
    assert told.L_t == pytest.approx(expected.L_t, rel=1e-3, abs=1e-6)
    assert told.total.mean < other.total.mean
    errors = metrics.errors_per_t(learned, images)
    for t, term in zip(errors.t[:2], errors.bound[:2], strict=True):
        without = metrics.errors_per_t(learned.mean, images, [t]).bound[0]
        assert term < without


def test_all_times_and_a_sample_of_them_agree():
    images, _ = pixels(60, (1, 2, 2))
    denoiser = gaussian(schedules.cosine(200), MEAN, STD)
    whole, part = (metrics.bits_per_dim(denoiser, images, k) for k in (None, 40))
    difference = whole.total.per_image - part.total.per_image
    assert abs(difference.mean()) < 4 * difference.std() / len(images) ** 0.5
    assert len(whole.L_t) == 199
    assert whole.times == list(range(2, 201))
    assert whole.total.mean == pytest.approx(whole.L_T + whole.L_0 + sum(whole.L_t), rel=1e-9)
    assert len(part.L_t) <= 40


class Knows(nn.Module):
    """A denoiser of data that is one image."""

    def __init__(self, schedule, x_0):
        super().__init__()
        self.schedule, self.x_0 = schedule, x_0

    def forward(self, x_t, t):
        signal, noise = self.schedule(t)
        return Denoised(self.x_0.expand_as(x_t), (x_t - signal * self.x_0) / noise)


@pytest.mark.slow
def test_the_terms_vanish_where_the_denoiser_is_exact():
    image = torch.full((1, 1, 4, 4), 51, dtype=torch.uint8)
    denoiser = Knows(schedules.linear(), image.float() / 127.5 - 1)
    bound = metrics.bits_per_dim(denoiser, image.expand(3, -1, -1, -1))
    assert max(bound.L_t) < 1e-9
    assert bound.total.standard_error < 1e-9
    deviation = float(posterior.log_variance(denoiser.schedule, 1, 0) / 2)
    within = math.erf(1 / 255 / math.exp(deviation) / math.sqrt(2))
    assert pytest.approx(-math.log2(within), rel=1e-4) == bound.L_0
    errors = metrics.errors_per_t(denoiser, image.expand(2, -1, -1, -1))
    assert max(errors.x_0) < 1e-12
    assert max(errors.v) < 1e-4  # rounding of eps near t = 1


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_probability_flow_reaches_the_entropy_of_gaussian_data(schedule):
    images, exact = pixels(300)
    bits = metrics.ode_bits_per_dim(gaussian(schedule(), MEAN, STD), images)
    assert bits.mean == pytest.approx(ENTROPY, abs=3 * bits.standard_error)
    assert bits.mean == pytest.approx(exact.mean().item(), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [schedules.linear, schedules.cosine])
def test_the_probability_flow_reaches_the_density_of_nearly_discrete_data(schedule):
    """Black and white pixels, as in MNIST: all of the divergence lies at the smallest noises."""
    white = torch.rand(60, 1, 8, 8, generator=rng.generator(1)) < 0.2
    images = (255 * white).to(torch.uint8)
    schedule = schedule()
    denoiser = mixture(schedule, (-1.0, 1.0), (1e-3, 1e-3), (0.8, 0.2), predictions.v)
    # The density of x_1 at images that were dequantised uniformly, in closed form.
    signal, noise = schedule.alpha_bar[1].sqrt(), (1 - schedule.alpha_bar[1]).sqrt()
    variance = (signal * 1e-3) ** 2 + noise**2
    squares = (1 - signal) ** 2 + (1 / 255) ** 2 / 3
    nats = squares / (2 * variance) + (2 * math.pi * variance).log() / 2
    nats = nats - (torch.where(white, 0.2, 0.8).log().double()).mean()
    expected = nats.item() / math.log(2) + math.log2(127.5)
    found = [metrics.ode_bits_per_dim(denoiser, images, steps).mean for steps in (100, 200)]
    assert found[0] == pytest.approx(expected, abs=0.01)
    assert found[0] == pytest.approx(found[1], abs=1e-3)


@pytest.mark.parametrize("num_times", [0, -1, 1, 1001])
def test_impossible_numbers_of_times_are_refused(num_times):
    with pytest.raises(ValueError, match=rf"num_times must lie in 2..1000.*got {num_times}"):
        metrics.bits_per_dim(gaussian(schedules.linear(), 0, 1), pixels(2)[0], num_times)


@pytest.mark.parametrize("num_steps", [0, 1, 1000])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match=rf"num_steps must lie in 2..999.*got {num_steps}"):
        metrics.ode_bits_per_dim(gaussian(schedules.linear(), 0, 1), pixels(2)[0], num_steps)


@pytest.mark.slow
@pytest.mark.parametrize(("T", "num_times"), [(1000, 2), (1000, 3), (1000, 999), (7, 5), (4000, 9)])
def test_the_first_stratum_is_the_first_step(T, num_times):
    images, _ = pixels(2)
    bound = metrics.bits_per_dim(gaussian(schedules.cosine(T), MEAN, STD), images, num_times)
    assert len(bound.L_t) == num_times - 1
    centres = [1, *bound.times]
    # Centres of strata that cover 2..T: each begins where the one before ended.
    edge = 2.0
    for centre in centres[1:]:
        edge = 2 * centre + 1 - edge
    assert edge == T + 1
    assert centres == sorted(centres)


def test_a_single_step_has_a_bound():
    bound = metrics.bits_per_dim(gaussian(schedules.cosine(1), MEAN, STD), pixels(3)[0])
    assert (bound.L_t, bound.times) == ([], [])
    assert bound.total.mean == pytest.approx(bound.L_0 + bound.L_T)


def test_draws_follow_the_seed():
    images, _ = pixels(3)
    denoiser = gaussian(schedules.linear(), MEAN, STD)
    a, b, c = (
        metrics.bits_per_dim(denoiser, images, 5, seed=seed).total.mean for seed in (0, 0, 1)
    )
    assert a == b != c


def test_nan_from_the_denoiser_is_refused():
    images, _ = pixels(2)
    denoiser = gaussian(schedules.linear(), math.nan, STD)
    for measure in (metrics.bits_per_dim, metrics.ode_bits_per_dim, metrics.errors_per_t):
        with pytest.raises(ValueError, match="returned NaN or infinity for some images"):
            measure(denoiser, images, [5] if measure is metrics.errors_per_t else 3)


def test_float_images_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        metrics.errors_per_t(gaussian(schedules.linear(), 0, 1), torch.zeros(2, 1, 4, 4))


def test_times_outside_the_schedule_are_refused():
    with pytest.raises(ValueError, match=r"times must lie in 1..1000; got \[0, 5\]"):
        metrics.errors_per_t(gaussian(schedules.linear(), 0, 1), pixels(2)[0], [0, 5])


# ---- errors on one yardstick ---------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_errors_are_the_same_whatever_is_predicted(prediction):
    images, _ = pixels(50)
    times = [1, 10, 300, 900]
    schedule = schedules.cosine()
    errors = metrics.errors_per_t(gaussian(schedule, MEAN, STD, prediction), images, times)
    alpha_bar = schedule.alpha_bar[times]
    expected = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    found = torch.tensor(errors.x_0).double()
    torch.testing.assert_close(found, expected, rtol=0.25, atol=0)  # 800 pixels
    snr = alpha_bar / (1 - alpha_bar)
    torch.testing.assert_close(torch.tensor(errors.eps).double(), snr * found, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        torch.tensor(errors.v).double(), (snr + 1) * found, rtol=1e-3, atol=1e-5
    )
    again = metrics.errors_per_t(gaussian(schedule, MEAN, STD, prediction), images, times)
    assert again == errors


def test_the_bound_of_errors_per_t_is_that_of_bits_per_dim():
    images, _ = pixels(100)
    denoiser = gaussian(schedules.linear(20, 1e-4, 0.015), MEAN, STD)
    errors = metrics.errors_per_t(denoiser, images, range(1, 21))
    whole = metrics.bits_per_dim(denoiser, images)
    assert pytest.approx(errors.bound[0], rel=0.05) == whole.L_0
    assert sum(whole.L_t) == pytest.approx(sum(errors.bound[1:]), rel=0.05)


# ---- quality of samples --------------------------------------------------------------------


def described(features, classes=10):
    p = torch.zeros(len(features), classes, dtype=torch.float64)
    p[torch.arange(len(p)), torch.arange(len(p)) % classes] = 1.0
    return ClassifierOutput(features.double(), p)


def normal(n, d, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, d, generator=rng.generator(seed), dtype=torch.float64) + shift


def test_identical_sets_are_at_distance_0():
    x = normal(300, 8, 0)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.precision_recall(x, x) == (1.0, 1.0)
    # The unbiased estimate of identical sets lies below 0: by what a point is nearer to itself
    # than to others, over n.
    k = (x @ x.T / 8 + 1) ** 3
    excess = k.diagonal().mean() - (k.sum() - k.trace()) / (300 * 299)
    assert metrics.kernel_distance(x, x) == pytest.approx(-2 / 300 * excess.item(), rel=1e-9)


def test_two_known_gaussians_are_at_the_distance_of_the_formula():
    n, d = 200_000, 4
    found = metrics.frechet_distance(normal(n, d, 0), normal(n, d, 1, scale=2.0, shift=0.5))
    assert found == pytest.approx(d * 0.5**2 + d * (2 - 1) ** 2, rel=0.02)


def test_the_frechet_distance_of_correlated_sets_is_scipys():
    from scipy.linalg import sqrtm

    mix = normal(6, 6, 3)
    x, y = normal(500, 6, 0) @ mix, normal(700, 6, 1, shift=0.3)
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = torch.as_tensor(sqrtm((a @ b).numpy()).real)
    expected = (x.mean(0) - y.mean(0)).square().sum() + (a + b - 2 * root).trace()
    assert metrics.frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-6)


def test_the_kernel_distance_is_the_mean_over_pairs():
    x, y = normal(20, 3, 0), normal(15, 3, 1, shift=0.5)

    def k(a, b):
        return (a @ b.T / 3 + 1) ** 3

    xx, yy = k(x, x), k(y, y)
    expected = (xx.sum() - xx.trace()) / (20 * 19) + (yy.sum() - yy.trace()) / (15 * 14)
    expected -= 2 * k(x, y).mean()
    assert metrics.kernel_distance(x, y) == pytest.approx(expected.item(), rel=1e-9)


def test_precision_and_recall_tell_noise_from_missing_modes():
    generator = rng.generator(0)
    centres = 20.0 * torch.eye(4, dtype=torch.float64)
    modes = torch.randint(4, (400,), generator=generator)
    real = centres[modes] + normal(400, 4, 1, 0.5)
    one_mode = centres[torch.zeros(400).long()] + normal(400, 4, 2, 0.5)
    precision, recall = metrics.precision_recall(one_mode, real)
    assert precision > 0.8
    assert recall < 0.4
    noisy = torch.cat([real[:200] + normal(200, 4, 3, 0.1), normal(200, 4, 4, 100.0)])
    precision, recall = metrics.precision_recall(noisy, real)
    assert precision == pytest.approx(0.5, abs=0.1)


def test_quality_gives_the_distances_with_intervals_around_them():
    x, y = normal(400, 5, 0, shift=0.2), normal(500, 5, 1)
    found = metrics.quality(described(x), described(y))
    assert found["Frechet distance"].value == pytest.approx(metrics.frechet_distance(x, y))
    assert found["kernel distance"].value == pytest.approx(metrics.kernel_distance(x, y))
    precision, recall = metrics.precision_recall(x, y)
    assert found["precision"].value == pytest.approx(precision)
    assert found["recall"].value == pytest.approx(recall)
    assert found["confidence > 0.9"].value == 1
    assert sum(found[f"class {k}"].value for k in range(10)) == pytest.approx(1)
    for name, (value, low, high) in found.items():
        assert low <= value <= high, name
    share = found["class 3"]
    assert share.high - share.low == pytest.approx(2 * 1.96 * (0.1 * 0.9 / 400) ** 0.5, rel=0.25)


@pytest.mark.slow
def test_the_interval_of_a_distance_holds_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(40):
        x, y = normal(150, 2, 2 * seed, shift=1.0), normal(150, 2, 2 * seed + 1)
        _, low, high = metrics.quality(described(x), described(y), seed)["Frechet distance"]
        inside += low <= 2.0 <= high
    assert 33 <= inside <= 40  # 38 expected


@pytest.mark.slow
def test_equal_distributions_are_rarely_called_different():
    """Of two sets of one distribution 5 % of the differences are "different", of distances fewer.

    Near their floor the bootstrap's intervals are too wide.
    """
    reference = described(normal(600, 4, 1000))
    names = ("Frechet distance", "kernel distance", "precision", "recall")
    false = dict.fromkeys(names, 0)
    for seed in range(18):
        sets = [metrics.quality(described(normal(300, 4, 2 * seed + k)), reference) for k in (0, 1)]
        for name in names:
            one, other = (found[name] for found in sets)
            gap = one.value - other.value
            low = gap - math.hypot(one.value - one.low, other.high - other.value)
            high = gap + math.hypot(one.high - one.value, other.value - other.low)
            false[name] += not low <= 0 <= high
    assert max(false.values()) <= 3


def test_shares_of_0_and_1_have_intervals():
    found = metrics.quality(described(normal(100, 2, 0)[:, :2], 2), described(normal(100, 2, 1), 2))
    value, low, high = found["confidence > 0.9"]
    assert (value, high) == (1, 1)
    assert low == pytest.approx(1 - 0.037, abs=1e-3)  # Wilson's interval of 100 of 100


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (normal(8, 8, 0), normal(50, 8, 1), "8 samples, but the features have 8 dimensions"),
        (normal(50, 8, 0), normal(5, 8, 1), "5 reference, but the features have 8 dimensions"),
        (normal(50, 8, 0), normal(50, 7, 1), r"\[50, 8\] and \[50, 7\]"),
        (normal(50, 8, 0) * math.nan, normal(50, 8, 1), "samples are not all finite: NaN images"),
    ],
)
def test_impossible_sets_are_refused(x, y, message):
    for distance in (metrics.frechet_distance, metrics.kernel_distance, metrics.precision_recall):
        with pytest.raises(ValueError, match=message):
            distance(x, y)
    with pytest.raises(ValueError, match=message):
        metrics.quality(described(x), described(y))


def test_a_copied_training_image_is_at_distance_0():
    training = (255 * torch.rand(50, 1, 4, 4)).to(torch.uint8)
    images = torch.cat([training[7:8], 255 - training[:1]])
    found = metrics.nearest_distances(images, training)
    assert found[0] < 0.05  # rounding of a difference of squares
    by_hand = (images[1].double() - training.double()).square().flatten(1).mean(1).sqrt().min()
    assert found[1].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_memorization_has_an_interval_and_a_floor():
    distances = torch.arange(1001).double()[torch.randperm(1001, generator=rng.generator(0))]
    found = metrics.memorization(distances, distances)
    value, low, high = found["nearest training image"]
    assert value == 500
    assert low < 500 < high
    # The standard error of a median is 1 / (2 sqrt(n) density), and the density is 1 / 1001.
    assert high - low == pytest.approx(2 * 1.96 * 1001 / (2 * 1001**0.5), rel=0.25)
    assert found["copies"].value == pytest.approx(0.01, abs=1e-3)
    # A twentieth of copies leaves the median nearly where it was.
    copied = distances.clone()
    copied[:50] = 0.0
    found = metrics.memorization(copied, distances)
    assert found["nearest training image"].value == pytest.approx(500, abs=40)
    assert found["copies"].low > 0.03


# ---- beside torch-fidelity -----------------------------------------------------------------


def coarse_pixels(images):
    return F.adaptive_avg_pool2d(images.double() / 255, 3).flatten(1)


def mnist_features(images):
    return features.load("mnist").extract_features(images[:, :1]).features


def blurred_noise(n, channels, gamma, seed):
    x = torch.rand(n, channels, 5, 5, generator=rng.generator(seed)) ** gamma
    return (255 * F.interpolate(x, size=28, mode="bilinear")).to(torch.uint8)


# Gray images reach the extractor in three channels.
@pytest.mark.parametrize(("channels", "extract"), [(3, coarse_pixels), (1, mnist_features)])
def test_the_distances_are_those_of_torch_fidelity(channels, extract):
    """Its definitions are ours: k = 3, the unbiased estimate, a cubic kernel of x y / D + 1.

    Its kernel distance is a mean over subsets of equal size: with 150 images, each is all of them.
    """
    import torch_fidelity

    class Extractor(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name, layers, **settings):
            super().__init__(name, layers)

        @staticmethod
        def get_provided_features_list():
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "features"

        def forward(self, images):
            assert images.shape[1:] == (3, 28, 28)
            return (extract(images),)

    torch_fidelity.register_feature_extractor(extract.__name__, Extractor)
    samples, reference = blurred_noise(150, channels, 1.3, 0), blurred_noise(150, channels, 1, 1)
    found = metrics.fidelity(samples, reference, extract.__name__)
    x, y = extract(samples), extract(reference)
    assert metrics.frechet_distance(x, y) == pytest.approx(found["frechet_inception_distance"])
    expected = pytest.approx(found["kernel_inception_distance_mean"], rel=1e-6)
    assert metrics.kernel_distance(x, y) == expected
    assert found["kernel_inception_distance_std"] < 1e-12
    expected = pytest.approx((found["precision"], found["recall"]))
    assert metrics.precision_recall(x, y) == expected
    assert 0.3 < found["recall"] < found["precision"] < 0.95


@pytest.mark.parametrize("extractor", ["inception-v3-compat", "dinov2-vit-s-14"])
def test_torch_fidelity_without_its_weights_says_where_they_belong(
    extractor, tmp_path, monkeypatch
):
    def no_network(*_, **settings):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises((OSError, RuntimeError), match=rf"put its weights into {tmp_path}"):
        metrics.fidelity(images, images, extractor)


def test_torch_fidelity_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ImportError, match=r"`pip install torch-fidelity`"):
        metrics.fidelity(images, images)


# ---- the loss and the measurement are one ---------------------------------------------------


def test_the_vlb_loss_estimates_the_bound():
    images, _ = pixels(400)
    denoiser = gaussian(schedules.linear(20, 1e-4, 0.015), MEAN, STD)
    bits = metrics.bits_per_dim(denoiser, images).total.mean
    x_0 = images.repeat(20, 1, 1, 1).float() / 127.5 - 1
    estimate = bound.vlb_loss(denoiser, x_0, generator=rng.generator(0)).item()
    assert isinstance(denoiser, Denoiser)
    assert estimate == pytest.approx(bits, rel=0.05)


def seen_by_a_classifier(features, classes, n_classes):
    return ClassifierOutput(features, torch.nn.functional.one_hot(classes, n_classes).double())


def test_label_accuracy_counts_right_labels_and_the_spread_is_that_of_the_data():
    """Normal features around the middle of each class; the samples have half the deviation."""
    g = torch.Generator().manual_seed(0)
    middles = torch.randn(3, 5, generator=g).double() * 10
    labels, real = torch.arange(1200) % 3, torch.arange(3000) % 3
    wide = middles[real] + torch.randn(3000, 5, generator=g).double()
    narrow = middles[labels] + torch.randn(1200, 5, generator=g).double() / 2
    shown = labels.clone()
    shown[:120] = (labels[:120] + 1) % 3  # a tenth shows something else
    found = metrics.label_accuracy_and_diversity(
        seen_by_a_classifier(narrow, shown, 3), labels, seen_by_a_classifier(wide, real, 3)
    )
    assert found["accuracy"].value == pytest.approx(0.9)
    assert found["accuracy"].low == pytest.approx(0.9 - 1.96 * (0.09 / 1200) ** 0.5, abs=0.005)
    assert found["spread"].value == pytest.approx(0.25, abs=0.02)
    assert found["spread"].low < found["spread"].value < found["spread"].high
    assert found["spread"].high - found["spread"].low < 0.05


@pytest.mark.slow
def test_the_spread_of_few_samples_is_not_too_small():
    """Five of each label, many times: on average as wide as what they were drawn from."""
    g = torch.Generator().manual_seed(1)
    real = torch.arange(2000) % 2
    reference = seen_by_a_classifier(torch.randn(2000, 4, generator=g).double(), real, 2)
    labels = torch.arange(10) % 2
    found = [
        metrics.label_accuracy_and_diversity(
            seen_by_a_classifier(torch.randn(10, 4, generator=g).double(), labels, 2),
            labels,
            reference,
        )["spread"]
        for _ in range(150)
    ]
    assert sum(f.value for f in found) / 150 == pytest.approx(1, abs=0.06)
    assert sum((f.low + f.high) / 2 for f in found) / 150 == pytest.approx(1, abs=0.15)


def test_two_samples_of_a_label_have_an_interval():
    g = torch.Generator().manual_seed(2)
    real, labels = torch.arange(100) % 5, torch.arange(10) % 5
    seen = [
        seen_by_a_classifier(torch.randn(n, 4, generator=g).double(), k, 5)
        for n, k in ((10, labels), (100, real))
    ]
    for estimate in metrics.label_accuracy_and_diversity(seen[0], labels, seen[1]).values():
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("labels", [torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2, 2, 2, 1])])
def test_one_sample_of_a_label_has_no_spread(labels):
    seen = seen_by_a_classifier(torch.randn(6, 4).double(), torch.tensor([0, 0, 2, 2, 2, 1]), 3)
    with pytest.raises(ValueError, match=r"6 samples need one label each.*got labels of shape"):
        metrics.label_accuracy_and_diversity(seen, labels, seen)
