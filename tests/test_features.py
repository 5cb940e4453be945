import pytest
import torch
from safetensors import safe_open

from diffusion_lib.metrics import features
from diffusion_lib.metrics.features import Classifier

ACCURACY = {"mnist": 0.99, "fashion_mnist": 0.91, "cifar10": 0.8, "cifar10_jpeg": 0.8}


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
