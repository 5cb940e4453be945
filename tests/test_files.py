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


def test_another_format_is_named(tmp_path):
    files.write_tensors(tmp_path / "a", {"x": torch.zeros(1)}, {"format": "training"})
    with pytest.raises(ValueError, match="not a 'denoiser' file: its format is 'training'"):
        files.read_tensors(tmp_path / "a", "denoiser")
