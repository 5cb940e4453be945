import errno
import json
import os
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffusion_lib import schedules
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks.unet import UNet, UNetConfig
from diffusion_lib.system import files
from diffusion_lib.training import TrainConfig, Trainer
from tests.helpers import full_disk


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
    with pytest.raises(KeyboardInterrupt), files.atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_record_has_one_measurement_on_a_line(tmp_path):
    record = {
        "device": "CPU",
        "distance": {"value": 1.5, "low": 1, "high": 2},
        "curves": {"label": [[0.5, 0.25, 1.0]] * 20, "slant": [-1.0] * 40},
        "rows": [{"sampler": "ddim", "steps": 5, "note": "x" * 80}] * 2,
        "none": [],
    }
    files.write_json(tmp_path / "record.json", record)
    text = (tmp_path / "record.json").read_text()
    assert json.loads(text) == record
    lines = text.splitlines()
    assert lines[:4] == [
        "{",
        ' "device": "CPU",',
        ' "distance": {"value": 1.5, "low": 1, "high": 2},',
        ' "curves": {',
    ]
    assert sum('"label"' in line and line.count("[") == 21 for line in lines) == 1
    assert sum('"sampler"' in line for line in lines) == 2
    assert lines[-2:] == [' "none": []', "}"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Surrogates are no text in UTF-8.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=6),
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_a_record_is_read_as_it_was_written(record):
    assert json.loads(files._json(record, 0)) == record


def test_a_record_with_a_number_that_json_cannot_hold_is_not_written(tmp_path):
    files.write_json(tmp_path / "record.json", {"value": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "record.json", {"value": float("nan")})
    assert json.loads((tmp_path / "record.json").read_text()) == {"value": 1.0}


def test_a_new_folder_is_whole_or_absent(tmp_path):
    path = tmp_path / "sub" / "a"
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(path) as temporary:  # noqa: PT012
        (temporary / "one").write_text("1")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    path.mkdir()  # empty: nothing can be lost
    with files.atomic_folder(path) as temporary:
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
        files.atomic_folder(tmp_path / name),
    ):
        pytest.fail("was let in")
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_another_format_is_named(tmp_path):
    files.write_tensors(tmp_path / "a", {"x": torch.zeros(1)}, {"format": "training"})
    with pytest.raises(ValueError, match="not a 'denoiser' file: its format is 'training'"):
        files.read_tensors(tmp_path / "a", "denoiser")


# ---- rights and kinds of disks -----------------------------------------------------------------


def read_only_disk(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_the_message_is_not_masked_by_the_cleaning_up_after_it(tmp_path, monkeypatch, call):
    """On a disk that has become read-only, nothing can be removed either."""
    files.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(files.os, call, read_only_disk)
    monkeypatch.setattr(files.Path, "unlink", read_only_disk)
    with pytest.raises(
        OSError, match=r"could not write .*a: .*Read-only.*untouched\..* choose a folder that may"
    ):
        files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files.Path, "mkdir", read_only_disk)
    for write in (files.atomic_write, files.atomic_folder):
        with (
            pytest.raises(OSError, match=r"could not write .*sub/a: .*choose a folder that may"),
            write(tmp_path / "sub" / "a"),
        ):
            pytest.fail("was let in")


def test_files_and_folders_get_the_mode_that_the_umask_gives(tmp_path):
    """Whoever writes them, as safetensors makes files that only their owner may read."""
    before = os.umask(0o022)
    try:
        for mask, mode in ((0o022, 0o644), (0o007, 0o660), (0o077, 0o600)):
            os.umask(mask)
            files.write_tensors(tmp_path / "a", {"x": torch.zeros(1)}, {"format": "f"})
            assert (tmp_path / "a").stat().st_mode & 0o777 == mode
            with files.atomic_folder(tmp_path / str(mask)) as folder:
                save_file({"x": torch.zeros(1)}, folder / "b")
            assert (tmp_path / str(mask) / "b").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_disk_without_locks_is_worked_on_with_a_warning(tmp_path, monkeypatch, number):
    def no_lock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", no_lock)
    (tmp_path / "a").touch()
    with (
        pytest.warns(UserWarning, match=r"a has no locks .* no other process works"),
        files.lock(tmp_path / "a") as mine,
    ):
        assert mine


def test_a_file_that_may_only_be_read_is_locked(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    with files.lock(tmp_path / "a") as first:
        assert first
        monkeypatch.setattr(os, "access", lambda *_: False)
        with files.lock(tmp_path / "a") as second:
            assert not second


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist, or is no file"):
        files.read_tensors(tmp_path, "f")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_that_was_read_stays_mapped(tmp_path):
    """Windows replaces no file that is mapped: a run that went on could not be saved there."""
    denoiser = Denoiser(UNet(UNetConfig((1, 8, 8), 4, (1,), attention=())), schedules.linear(50))
    trainer = Trainer(denoiser, TrainConfig(4, 2, warmup_steps=0))
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    next(trainer.run(images))
    trainer.save(tmp_path / "state")
    trainer.load(tmp_path / "state")
    denoiser.save(tmp_path / "denoiser")
    kept = Denoiser.load(tmp_path / "denoiser")
    tensors, _ = files.read_tensors(tmp_path / "denoiser", "diffusion_lib denoiser 1")
    assert str(tmp_path) not in files.Path("/proc/self/maps").read_text()
    assert len(tensors) == len(kept.network.state_dict()) + 1
