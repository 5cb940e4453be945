import signal

import pytest
import torch
from safetensors import safe_open

from diffusion_lib import data, optimizers
from diffusion_lib.metrics import features
from diffusion_lib.metrics.features import Classifier
from other_tests import features as script

ACCURACY = {"mnist": 0.99, "fashion_mnist": 0.91}
ACCURACY |= {"cifar10": 0.9, "cifar10_jpeg": 0.9, "cifar10_jpeg_1": 0.8}


@pytest.mark.parametrize("dataset", features.RELEASED)
def test_what_is_released_has_the_hash_it_should_have(dataset):
    classifier = features.load(dataset)
    found = classifier.extract_features(torch.zeros(3, *classifier.image_shape, dtype=torch.uint8))
    assert found.features.shape == (3, 64)
    assert found.features.dtype == torch.float64
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(3).double())
    path = features.ASSETS / features.RELEASED[dataset][0]
    assert path.stat().st_size < 5_000_000
    with safe_open(path, "pt") as file:
        assert float(file.metadata()["test_accuracy"]) > ACCURACY[dataset]


def test_other_weights_than_the_released_ones_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    digest = Classifier((1, 28, 28)).save(path, {})
    assert features.read(path, digest).image_shape == (1, 28, 28)
    with pytest.raises(ValueError, match=r"a\.safetensors has the sha256 .*, expected 0123"):
        features.read(path, "0123")


def test_a_saved_classifier_describes_as_before(tmp_path):
    classifier = Classifier((3, 8, 8), classes=4, features=5)
    again = features.read(
        tmp_path / "a.safetensors", classifier.save(tmp_path / "a.safetensors", {})
    )
    images = torch.randint(0, 256, (1030, 3, 8, 8), dtype=torch.uint8)
    one, other = classifier.extract_features(images), again.extract_features(images)
    assert torch.equal(one.features, other.features)
    assert one.features.shape == (1030, 5)
    assert one.probabilities.shape == (1030, 4)


def test_a_deeper_classifier_is_read_as_it_was_saved(tmp_path):
    classifier = Classifier((3, 16, 16), features=6, widths=(4, 5, 7))
    digest = classifier.save(tmp_path / "a.safetensors", {})
    again = features.read(tmp_path / "a.safetensors", digest)
    assert again.state_dict().keys() == classifier.state_dict().keys()
    assert again.describe.in_features == 7 * 2 * 2
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    one, other = classifier.extract_features(images), again.extract_features(images)
    assert torch.equal(one.features, other.features)


def test_several_convolutions_a_level_are_read_from_the_names_of_their_weights(tmp_path):
    classifier = Classifier((3, 16, 16), features=6, widths=(4, 5), depth=3, stem=7)
    names = {name for name, _ in classifier.named_children() if name.startswith("conv")}
    assert names == {"conv0", "conv1", "conv1_2", "conv1_3", "conv2", "conv2_2", "conv2_3"}
    again = features.read(tmp_path / "a", classifier.save(tmp_path / "a", {}))
    assert (again.levels, again.depth, again.describe.in_features) == (2, 3, 5)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    one, other = classifier.extract_features(images), again.extract_features(images)
    assert torch.equal(one.features, other.features)


def test_a_classifier_that_averages_mirrors_tells_no_image_from_its_mirror(tmp_path):
    classifier = Classifier((3, 16, 16), features=6, widths=(4, 5), depth=2)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    one, other = (classifier.extract_features(x).features for x in (images, images.flip(-1)))
    classifier.averages_mirrors = True
    again = features.read(tmp_path / "a", classifier.save(tmp_path / "a", {}))
    for x in (images, images.flip(-1)):
        torch.testing.assert_close(again.extract_features(x).features, (one + other) / 2)


def test_weights_of_half_precision_are_read_as_float32(tmp_path):
    classifier = Classifier((3, 16, 16), widths=(4, 5), depth=2).half().float()
    whole, half = tmp_path / "a", tmp_path / "b"
    classifier.save(whole, {})
    again = features.read(half, classifier.half().save(half, {}))
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}
    for name, tensor in classifier.float().state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize("depth", [1, 2])
def test_batch_norm_is_folded_into_the_convolutions(depth):
    classifier = Classifier((3, 16, 16), widths=(4, 5), depth=depth, stem=6 * (depth - 1))
    names = classifier.state_dict().keys()
    script.add_batch_norm(classifier.train())
    x = torch.randn(50, 3, 16, 16) + 0.5
    for _ in range(3):
        classifier(x)  # moves the running averages
    for name, parameter in classifier.named_parameters():
        if name.endswith(("1.weight", "1.bias")):
            torch.nn.init.normal_(parameter)  # BatchNorm's, or of other signs
    before = classifier.eval()(x)
    script.fold_batch_norm(classifier)
    assert classifier.state_dict().keys() == names
    torch.testing.assert_close(classifier(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimizer", [optimizers.adamw, optimizers.muon])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(optimizer, tmp_path, monkeypatch):
    """Also where weights are not contiguous, and with all that is drawn: dropout, shifts, holes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=generator)
    train = data.Images(images, torch.arange(20) % 3)
    recipe = script.Recipe(data.cifar10, (8, 9), 3, 0.5, 1, torch.float32, 2, 8, optimizer)
    recipe = recipe._replace(stem=4, hole=3, smoothing=0.1, temperature=0.5)
    monkeypatch.setattr(script, "LEAST_STEPS", 1)

    def fitted():
        torch.manual_seed(0)
        network = recipe.classifier((3, 8, 8), 3)
        script.fit(network, train, recipe, tmp_path / "state")
        return network.state_dict()

    augment, calls = script.augment, []
    whole = fitted()
    (tmp_path / "state").unlink()

    def interrupt(x, recipe):
        calls.append(len(x))
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)  # the step is finished all the same
        return augment(x, recipe)

    monkeypatch.setattr(script, "augment", interrupt)
    with pytest.raises(KeyboardInterrupt, match="saved"):
        fitted()
    resumed = fitted()
    assert len(calls) == 7  # 3 epochs of 20 images in batches of 8
    again = fitted()  # one that was trained to its end is not trained again
    assert len(calls) == 7
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name])
        assert torch.equal(tensor, again[name])
    recipe = recipe._replace(hole=5)
    with pytest.raises(ValueError, match=r"state.*training of a feature network"):
        fitted()


def test_a_hole_is_gray_and_lies_anywhere():
    recipe = script.RECIPES["cifar10_jpeg"]._replace(mirror=0.0, shift=0, hole=9)
    x = torch.rand(500, 3, 32, 32) + 0.1
    hidden = script.augment(x, recipe)
    is_hole = (hidden == 0).all(1)
    assert torch.equal(hidden, x.masked_fill(is_hole[:, None], 0))
    sizes = is_hole.sum((1, 2))
    assert sizes.max() == 81  # less where it lies across the edge
    assert sizes.min() >= 25
    assert is_hole.any(0).all()


def test_the_temperature_divides_the_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LEAST_STEPS", 1)
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    train = data.Images(images, torch.arange(20) % 3)

    def logits(temperature):
        recipe = script.Recipe(data.cifar10, (8,), 1, 0.0, 0, torch.float32)
        torch.manual_seed(0)
        network = recipe.classifier((3, 8, 8), 3)
        recipe = recipe._replace(temperature=temperature)
        script.fit(network, train, recipe, tmp_path / f"{temperature}")
        return network.eval()(data.to_float(images))[1]

    torch.testing.assert_close(logits(0.5), 2 * logits(1.0))


def test_the_released_network_of_photographs_is_its_recipes():
    recipe, released = script.RECIPES["cifar10_jpeg"], features.load("cifar10_jpeg")
    made = recipe.classifier((3, 32, 32), 10).state_dict()
    assert {name: w.shape for name, w in made.items()} == {
        name: w.shape for name, w in released.state_dict().items()
    }
    assert released.averages_mirrors == recipe.averages_mirrors


def test_the_recipe_says_what_is_dropped_and_smoothed(tmp_path, monkeypatch):
    recipe = script.Recipe(data.cifar10, (8,), 1, 0.0, 0, torch.float32, dropout=0.7, smoothing=0.1)
    assert recipe.classifier((3, 8, 8), 3).dropout.p == 0.7
    monkeypatch.setattr(script, "LEAST_STEPS", 1)
    smoothed = []

    def cross_entropy(logits, labels, label_smoothing):
        smoothed.append(label_smoothing)
        return logits.square().sum()

    monkeypatch.setattr(script.F, "cross_entropy", cross_entropy)
    train = data.Images(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.arange(9) % 3)
    script.fit(recipe.classifier((3, 8, 8), 3), train, recipe, tmp_path / "state")
    assert smoothed == [0.1]


def test_normalised_features_have_variance_1():
    images = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8)
    classifier = Classifier((1, 8, 8))
    before = classifier.extract_features(images)
    classifier.normalize(images)
    after = classifier.extract_features(images)
    assert after.features.var(0).mean().item() == pytest.approx(1, rel=1e-5)
    ratio = after.features / before.features
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    assert torch.equal(after.probabilities, before.probabilities)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="28"):
        Classifier((1, 28, 28)).extract_features(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match="uint8"):
        Classifier((1, 28, 28)).extract_features(torch.zeros(2, 1, 28, 28))


def test_a_data_set_without_features_is_named():
    with pytest.raises(ValueError, match=r"no feature network is released for 'cifar10_jpeg_grey'"):
        features.load("cifar10_jpeg_grey")
