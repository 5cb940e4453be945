import errno

import pytest
import torch

from diffusion_lib import files


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "sub" / "a.safetensors"
    for value in (1.0, 2.0):
        files.write_tensors(path, {"x": torch.full((3,), value)}, {"format": "f"})
        tensors, metadata = files.read_tensors(path, "f")
        assert tensors["x"].tolist() == [value] * 3
        assert metadata == {"format": "f"}
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"x": torch.zeros(3)}, {"format": "f"})
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left.*previous a\.safetensors is untouched"):
        files.write_tensors(path, {"x": torch.ones(3)}, {"format": "f"})
    assert files.read_tensors(path, "f")[0]["x"].tolist() == [0] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_interrupt_while_writing_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_new_folder_is_whole_or_absent(tmp_path):
    path = tmp_path / "sub" / "a"
    with pytest.raises(KeyboardInterrupt), files.new_folder(path) as temporary:  # noqa: PT012
        (temporary / "one").write_text("1")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    path.mkdir()  # empty: nothing can be lost
    with files.new_folder(path) as temporary:
        (temporary / "one").write_text("1")
        assert list(path.iterdir()) == []
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "sub",
        "sub/a",
        "sub/a/one",
    ]


@pytest.mark.parametrize("name", ["full", "full/file"])
def test_a_folder_with_something_in_it_is_not_replaced(tmp_path, name):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with (
        pytest.raises(FileExistsError, match=f"{name} exists and is not an empty folder"),
        files.new_folder(tmp_path / name),
    ):
        pytest.fail("was let in")
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_another_format_is_named(tmp_path):
    files.write_tensors(tmp_path / "a", {"x": torch.zeros(1)}, {"format": "training"})
    with pytest.raises(ValueError, match="not a 'denoiser' file: its format is 'training'"):
        files.read_tensors(tmp_path / "a", "denoiser")
