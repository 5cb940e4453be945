"""Precision, memory layout and threads: decided in one place, and by the user."""

from dataclasses import dataclass

import pytest
import torch

from diffusion_lib import runs
from diffusion_lib.cli import main
from diffusion_lib.networks import MLPConfig, operations
from diffusion_lib.system import device
from tests.helpers import random_denoiser

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({}, "float32"),
        ({"avx512_f": True}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),  # AMD
        ({"avx512_bf16": True, "avx512_fp16": True}, "float32"),  # Intel without AMX
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "cpu_name": "AMD EPYC"}, "float32"),
        ({"avx512_bf16": True, "cpu_name": "Intel"}, "bfloat16"),  # names decide nothing
    ],
)
def test_features_of_the_processor_decide_the_precision(features, expected):
    assert device._cpu_precision(features) == expected


@pytest.mark.parametrize("precision", device.PRECISIONS)
def test_the_user_decides_otherwise(monkeypatch, precision):
    monkeypatch.setenv("DIFFUSION_PRECISION", precision)
    monkeypatch.setenv("DIFFUSION_LAYOUT", "channels_last")
    assert device.precision(CPU) == precision
    assert device.conditions(CPU) == {
        "precision": precision,
        "layout": "channels_last",
        "threads": torch.get_num_threads(),
    }
    network = device.optimize_memory_layout(torch.nn.Conv2d(3, 4, 3))
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    with device.autocast(network):
        output = network(torch.zeros(1, 3, 4, 4))
    assert output.dtype == getattr(torch, precision)


def test_the_layout_follows_the_precision(monkeypatch):
    monkeypatch.setenv("DIFFUSION_PRECISION", "float32")
    assert device.layout(CPU) == "channels_last"
    monkeypatch.setenv("DIFFUSION_PRECISION", "bfloat16")
    assert device.layout(CPU) == "contiguous"
    assert device.layout(torch.device("cuda")) == "channels_last"


def test_compiling_needs_a_compiler_and_the_headers_of_python(monkeypatch, tmp_path):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(device, "find_spec", lambda name: name)
    monkeypatch.setattr(device, "which", lambda name: name)
    monkeypatch.setattr(device.sysconfig, "get_config_var", lambda name: str(tmp_path))
    assert not device.should_compile(gpu, 5000)
    (tmp_path / "Python.h").touch()
    assert device.should_compile(gpu, 5000)
    assert not device.should_compile(gpu, 4999)
    assert not device.should_compile(CPU, 5000)
    monkeypatch.setattr(device, "which", lambda name: None)
    assert not device.should_compile(gpu, 5000)


@pytest.mark.parametrize(
    ("variable", "decided"),
    [("DIFFUSION_PRECISION", device.precision), ("DIFFUSION_LAYOUT", device.layout)],
)
def test_unknown_choices_are_named(monkeypatch, variable, decided):
    monkeypatch.setenv(variable, "fp8")
    with pytest.raises(ValueError, match=f"{variable} must be .* or .*; got 'fp8'"):
        decided(CPU)


def test_what_was_overridden_is_restored(monkeypatch):
    monkeypatch.setenv("DIFFUSION_LAYOUT", "contiguous")
    before, threads = device.conditions(CPU), torch.get_num_threads()
    with device.overridden("float32", "channels_last", threads + 1):
        assert device.conditions(CPU) == {
            "precision": "float32",
            "layout": "channels_last",
            "threads": threads + 1,
        }
    assert device.conditions(CPU) == before
    with (
        pytest.raises(ValueError, match="threads must be at least 1; got 0"),
        device.overridden(threads=0),
    ):
        pass


def test_the_command_line_has_options_for_them(tmp_path, monkeypatch, capsys):
    seen = []

    def stop(*_):
        seen.append(device.conditions(CPU))
        raise ValueError("far enough")

    monkeypatch.setattr("diffusion_lib.cli._run_folder", stop)
    arguments = ["sample", str(tmp_path)]
    options = ["--precision", "bfloat16", "--layout", "channels_last", "--threads", "1"]
    assert main([*arguments, *options]) == 2
    assert seen == [{"precision": "bfloat16", "layout": "channels_last", "threads": 1}]
    assert main([*arguments, "--threads", "0"]) == 2
    assert "threads must be at least 1; got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("speed", "compiler", "times"),
    [(2e11, "/usr/bin/g++", 0), (1.0, "/usr/bin/g++", 1), (1.0, None, 0)],
)
def test_long_sampling_on_a_cpu_is_compiled_where_a_compiler_is(
    monkeypatch, speed, compiler, times
):
    """As though the processor took a second for each operation: ten thousand images take hours."""
    calls = []
    monkeypatch.setattr(device, "CPU_SPEED", speed)
    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(device, "which", lambda name: compiler if name == "g++" else None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: calls.append(network))
    denoiser = random_denoiser()
    first = next(runs.sample_batches(denoiser, 2000, num_steps=10, batch_size=2))
    assert first.shape == (2, 1, 8, 8)
    assert calls == [denoiser.network] * times


def test_operations_of_a_network_are_counted_by_its_shapes():
    one = operations(MLPConfig((1, 4, 4), width=32, depth=1))
    assert operations(MLPConfig((1, 4, 4), width=64, depth=1)) > one > 2 * 2 * 16 * 32
    assert operations(ReadsAValue()) == 0


@dataclass(frozen=True)
class ReadsAValue:
    image_shape: tuple[int, int, int] = (1, 2, 2)
    outputs: int = 1
    classes: int = 0

    def build(self):
        network = torch.nn.Linear(2, 2)
        network.forward = lambda x_t, t: x_t * float(t[0])
        return network
