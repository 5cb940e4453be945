"""Processes that torchrun starts do together what one does alone."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lib.denoiser import Denoiser
from diffusion_lib.runs.folder import read_log
from diffusion_lib.system import files, parallel
from tests import together
from tests.helpers import STATE_FORMAT, write_idx


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_idx(root / "MNIST" / "raw", 80, 80)
    return root


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """Folders of what the groups of processes made.

    From a thread: in the main one torchrun's agent would take over the signals of this process.
    """
    folder = tmp_path_factory.mktemp("together")
    ThreadPoolExecutor(1).submit(together.make, folder, str(root)).result(timeout=300)
    return {int(path.name) if path.name.isdigit() else path.name: path for path in folder.iterdir()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return files.read_tensors(folder / "run" / "training.safetensors", STATE_FORMAT)[0]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_reaches_the_same_weights(made, processes):
    """Weights, moving average and optimizer: also a wrong batch, time or noise would show.

    The two processes compute their shares in two parts each.
    """
    one, several = weights(made[1]), weights(made[processes])
    start = Denoiser.load(made[1] / "run" / "ema.safetensors")
    assert one.keys() == several.keys()
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, atol=2e-5, rtol=1e-3, msg=name)
    moved = max(float(value.abs().max()) for name, value in one.items() if "conv_out" in name)
    assert moved > 1e-3  # these started at 0, so that there is something to agree on
    assert start.network.config.classes == 10


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_the_log_tells_the_loss_of_the_whole_batch(made, processes):
    logs = [read_log(made[n] / "run") for n in (1, processes)]
    one, several = ([r for r in log if "loss" in r] for log in logs)
    assert [r["step"] for r in several] == [r["step"] for r in one] == [10, 12]
    for a, b in zip(one, several, strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-4 * a["loss"]
        assert ("held_out" in a) == ("held_out" in b)
    assert logs[1][0]["device"].startswith(f"{processes} processes, each CPU")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_images_are_divided_among_processes_and_stay_the_same(made, processes):
    """In four batches, the last one smaller, with labels that go on from batch to batch; the last
    process has all of them."""
    one, several = (torch.load(made[n] / "images.pt").int() for n in (1, processes))
    assert one.shape == several.shape == (7, 1, 28, 28)
    assert (one - several).abs().max() <= 1
    a, b = (np.load(made[n] / "images.npz")["arr_0"].astype(int) for n in (1, processes))
    assert abs(a - b).max() <= 1


@pytest.mark.slow
def test_measurements_are_those_of_one_process(made):
    one, two = (json.loads((made[n] / "run" / "metrics.json").read_text()) for n in (1, 2))
    assert one["conditions"] == two["conditions"]
    for found in ("value", "low", "high"):
        a, b = (record["samples"]["Frechet distance"][found] for record in (one, two))
        assert abs(a - b) < 1e-2 * abs(a)


@pytest.mark.slow
def test_a_lost_process_ends_the_run_and_a_restart_goes_on(made):
    lost, again = made["lost"], made["again"]
    assert (lost / "failed").exists()
    assert (lost / "lost").exists()
    kept = files.read_tensors(lost / "run" / "training.safetensors", STATE_FORMAT)[1]
    assert 6 <= int(kept["step"]) <= 7  # the first process saved when it found itself alone
    Denoiser.load(lost / "run" / "ema.safetensors")

    assert (again / "lost").exists()
    expected, found = weights(made[2]), weights(again)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    starts = [r for r in read_log(again / "run") if "device" in r]
    assert len(starts) == 2


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ValueError, match="4 processes on a machine of 2 GPUs"),
        parallel.process_group(),
    ):
        pass


def test_processes_that_differ_all_say_so(monkeypatch):
    def gather(values, value):
        values[:] = [value, "other"]

    monkeypatch.setattr(parallel, "size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_gather_object", gather)
    with pytest.raises(ValueError, match=r"same step \(process 0: 3; process 1: other\)"):
        parallel.assert_same_on_all_ranks("step", "3")


def test_a_batch_that_cannot_be_divided_is_refused(root, tmp_path, monkeypatch):
    from diffusion_lib import config

    monkeypatch.setattr(parallel, "size", lambda: 3)
    with pytest.raises(ValueError, match=r"batch_size = 64 cannot be divided into 3 equal parts"):
        config.MNIST.trainer()
