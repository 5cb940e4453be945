"""One thread for each of pytest's processes, and for those that tests start: together they are as
many as there are cores, and such small networks keep no second one busy.  No folder of whoever runs
the tests.  TensorBoard only where it is tested."""

import importlib.util
import os
import signal
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

# Reading notebooks imports jsonschema, and that a grammar of web addresses if it is there: 5 s.
sys.modules["rfc3987_syntax"] = None  # pyright: ignore[reportArgumentType]

# A shell starts what runs in the background with Ctrl-C ignored, and so it would stay in the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# First, so that no long file is left for one process in the end; those that wait for processes of
# their own beside the notebooks, which keep two cores busy.
LONGEST = ["test_notebooks", "test_parallel", "test_faults", "test_compare", "test_folder"]
LONGEST += ["test_command_line", "test_fuzz", "test_samplers", "test_metrics", "test_editing"]
LONGEST += [
    "test_labels",
    "test_properties",
    "test_runs",
    "test_extensions",
    "test_interop",
    "test_evaluation",
]
LONGEST += [
    "test_training",
    "test_flow",
    "test_editing_record",
    "test_config",
    "test_pins",
    "test_denoiser",
]

for name in ("DATA", "RUNS", "BUDGET", "PRECISION", "LAYOUT"):
    os.environ.pop(f"DIFFUSION_{name}", None)


def pytest_collectstart():
    """Import torchvision before diffusers does, where tests run: xdist's own process has none."""
    from diffusion_lib.system import torchvision  # noqa: F401


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module")
def small_preset():
    """The preset "mnist" with a network that takes a tenth of the time."""
    from diffusion_lib import config
    from tests.helpers import tiny

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.PRESETS, "mnist", tiny(config.MNIST))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting():
    """No previews and no TensorBoard, which take longer than a training of a few steps; no disk
    that is waited for, as nothing here has to survive a power cut."""
    from diffusion_lib.runs import driver

    draw = driver._draw_preview
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "find_spec", lambda name: None)
        patch.setattr(driver, "_draw_preview", lambda denoiser, path: None)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield draw


@pytest.fixture(scope="module")
def small_convolutions():
    """float32 without oneDNN, which takes longer to set up such small convolutions than to compute
    them."""
    from torch.backends import mkldnn

    from diffusion_lib.system.device import overridden

    enabled, *_ = mkldnn.set_flags(False)
    with overridden(precision="float32"):
        yield
    mkldnn.set_flags(enabled)


@pytest.fixture(scope="module")
def few_resamples():
    """Intervals of distances from a tenth of the bootstrap's sets: where they are, but not what
    they are, is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_lib.metrics.samples._RESAMPLES", 20)
        yield


@pytest.fixture(autouse=True)
def bars_are_drawn():
    """Also after a test in which they could not be."""
    from diffusion_lib.system import progress

    yield
    progress._observe.failed = False


@pytest.fixture
def previews(monkeypatch, no_waiting):
    """Samples during a training, as users have them."""
    monkeypatch.setattr("diffusion_lib.runs.driver._draw_preview", no_waiting)


@pytest.fixture
def tensorboard(monkeypatch, previews):
    """TensorBoard as users have it."""

    monkeypatch.setattr("diffusion_lib.runs.driver.find_spec", importlib.util.find_spec)
