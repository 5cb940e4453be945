"""The dials of complexity: what their levels are, and the verdict from made-up records."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import data
from diffusion_lib.config import label
from diffusion_lib.data import Images
from diffusion_lib.evaluation import Conditions
from diffusion_lib.networks import UNetConfig
from other_tests import registered
from other_tests.cifar10 import complexity, dials, slopes
from other_tests.cifar10.dials import DIALS, NARROW, SKIPS
from tests.helpers import random_images, write_idx

CLASSES = ("airplane", "bird", "cat")
TIMES = [1, *range(50, 1001, 50)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three classes of 7 photographs to train and 4 to test on, and as many digits."""
    write_idx(tmp_path / "MNIST" / "raw", 21, 12)
    for part, n in (("train", 7), ("test", 4)):
        for k, name in enumerate(CLASSES):
            folder = tmp_path / "cifar10-jpeg" / part / name
            folder.mkdir(parents=True)
            for i, pixels in enumerate(random_images(4 * n, 32, 32, 3)[k * n : (k + 1) * n]):
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    monkeypatch.setattr(dials, "SIZES", {True: 7, False: 4})
    return tmp_path


def give(monkeypatch, name, images):
    """Put images into the place of a data set."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    monkeypatch.setattr(data, name, lambda root, train: Images(images, labels))
    monkeypatch.setattr(dials, "SIZES", {True: 1})


def test_low_pass_keeps_the_slow_wave_of_two(monkeypatch):
    x = torch.arange(32) * 2 * math.pi / 32
    slow, fast = 60 * torch.sin(3 * x), 40 * torch.sin(10 * x)
    for direction in ((32, 1), (1, 32)):
        both = (128 + slow + fast).round().to(torch.uint8).view(direction).expand(2, 3, 32, 32)
        give(monkeypatch, "cifar10_jpeg", both)
        filtered = dials.low_pass("", cutoff=4).images
        expected = (128 + slow).view(direction).expand(2, 3, 32, 32)
        assert filtered.dtype == torch.uint8
        assert (filtered - expected).abs().max() < 1.5
        assert (dials.low_pass("", cutoff=2).images.float() - 128).abs().max() <= 1


def test_low_pass_of_23_changes_nothing(root):
    for train in (True, False):
        whole = data.cifar10_jpeg(root, train)
        kept = dials.low_pass(root, train, cutoff=23)
        assert kept.images.equal(whole.images)
        assert kept.labels.equal(whole.labels)


@pytest.mark.parametrize(("count", "expected"), [(1, [7]), (2, [4, 3]), (3, [3, 2, 2])])
def test_any_number_of_classes_has_as_many_pictures(root, count, expected):
    images, labels = dials.few_classes(root, True, count=count)
    assert labels.bincount().tolist() == expected
    whole = data.cifar10_jpeg(root, True)
    rows = [int((whole.images == image).flatten(1).all(1).nonzero()) for image in images]
    assert rows == sorted(rows)  # in the order of the whole, which mixes the classes
    assert labels.equal(whole.labels[rows])


@pytest.mark.parametrize(
    ("count", "values"), [(2, [0, 255]), (3, [0, 128, 255]), (4, [0, 85, 170, 255])]
)
def test_gray_levels_are_the_nearest_of_evenly_spaced_values(monkeypatch, count, values):
    ramp = torch.arange(28 * 28).view(1, 1, 28, 28).remainder(256).to(torch.uint8)
    give(monkeypatch, "mnist", ramp)
    images = dials.gray_levels("", count=count).images
    assert images.shape == (1, 1, 32, 32)
    assert images.unique().tolist() == values
    assert (images[..., 2:-2, 2:-2].int() - ramp.int()).abs().max() <= 128 / (count - 1)
    whole = dials.gray_levels("", count=256).images
    assert whole[..., 2:-2, 2:-2].equal(ramp)
    assert int(whole.sum()) == int(ramp.sum())  # zeros around it


def test_the_ends_of_a_mix_are_the_originals(root):
    photographs = data.cifar10_jpeg_grey(root, False).images
    digits = torch.nn.functional.pad(data.mnist(root, False).images, (2, 2, 2, 2))
    assert dials.mixed(root, False, share=1).images.equal(photographs)
    assert dials.mixed(root, False, share=0).images.equal(digits)
    half = dials.mixed(root, False, share=0.5).images
    assert (half - (photographs / 2 + digits / 2)).abs().max() <= 0.5


@pytest.mark.parametrize(
    ("dial", "setting", "message"),
    [
        ("low_pass", {"cutoff": 4}, r"low_pass needs 50 pictures to train on, but there are 21: "),
        ("few_classes", {"count": 2}, r"count=2\) needs 25 pictures of airplane .* there are 7: "),
        ("gray_levels", {"count": 4}, r"gray_levels needs 50 .* there are 21: put the whole data"),
        ("mixed", {"share": 0.5}, r"50 pictures of each kind .* there are 21: .* leave this dial"),
        ("few_classes", {"count": 4}, r"count must lie in 1\.\.3, the classes; got 4"),
        ("gray_levels", {"count": 1}, r"count must lie in 2\.\.256, the values of a pixel; got 1"),
        ("mixed", {"share": 1.5}, r"share must lie in \[0, 1\]; got 1\.5"),
    ],
)
def test_too_few_pictures_and_impossible_levels_are_refused(
    root, monkeypatch, dial, setting, message
):
    monkeypatch.setattr(dials, "SIZES", {True: 50, False: 50})
    with pytest.raises(ValueError, match=message):
        getattr(dials, dial)(root, True, **setting)


@pytest.mark.parametrize("name", DIALS)
def test_arms_are_different_runs_and_pairs_differ_in_their_prediction_alone(name):
    arms = dials.arms(name)
    assert len(arms) == 6 * 2 * (1 + (name in ("low_pass", "mixed")))
    assert len({arm.name("same images") for arm in arms.values()}) == len(arms)
    for (one, eps), (other, x_0) in zip(*[iter(arms.items())] * 2, strict=True):
        assert (one[:-5], one[-3:], other[-3:]) == (other[:-5], "eps", "x_0")
        (difference,) = eps.differences(x_0.to_json())
        assert difference == "prediction: 'x_0' there, 'eps' here"
        assert (label(eps.weight), label(eps.schedule)) == ("min_snr", "cosine")
        assert eps.dataset == DIALS[name].datasets()[one.split(", ")[0]]
        width, values = eps.network.width, eps.network.image_shape[0] * eps.network.patch**2
        assert (NARROW in one) == (width < values)
    for network in {arm.network for arm in arms.values()}:
        network.build()


def made_up_levels(name):
    """Levels whose bits double from one to the next, and whose dimension is the same power."""
    labels = DIALS[name].datasets()
    return {
        x: {"bits": 2.0 ** (k + 3), "TwoNN": 4.0**k, "MLE": 2.0**k} for k, x in enumerate(labels)
    }


def record(name, slope, outside=0.0):
    """A record in whose window the gap rises by `slope` a level, and by 1e-3 more a seed."""
    schedule, measured, names = dials.SCHEDULE(1000), [], dials.arms(name)
    log2_snr = schedule.snr(torch.tensor(TIMES)).log2().tolist()
    for arm in names:
        level = [*DIALS[name].datasets()].index(arm.split(", ")[0])
        for seed in range(3):
            rise = (slope + seed / 1000) * level * arm.endswith("x_0")
            far = outside * level * arm.endswith("x_0")
            errors = [2.0 ** (rise if abs(x) <= 5 else far) for x in log2_snr]
            measured.append({"arm": arm, "seed": seed, "steps": 1000})
            measured[-1]["errors"] = {"t": [*map(float, TIMES)], "v": errors}
    return {"arms": dict.fromkeys(names), "seeds": [0, 1, 2], "steps": [1000], "measured": measured}


def test_slopes_of_a_made_up_gap():
    records, levels = {"mixed": record("mixed", 0.5)}, made_up_levels("mixed")
    line = ("mixed", NARROW)
    assert slopes.slopes(records, levels, line) == pytest.approx([0.5, 0.501, 0.502])
    assert slopes.slopes(records, levels, line, "TwoNN") == pytest.approx([0.25, 0.2505, 0.251])
    pair = "mixed 0.4, with skips"
    assert slopes.gaps(records["mixed"], pair) == pytest.approx([1, 1.002, 1.004])
    within = slopes.gaps(records["mixed"], pair, slopes.EVERYWHERE)
    count = sum(150 <= t <= 850 for t in TIMES)  # log2 SNR is 4.0 and -4.1 there
    assert within[0] == pytest.approx(math.log2((2 * count + 20 - count) / 20))


def test_the_statements_are_those_whose_dials_were_run():
    records = {"low_pass": record("low_pass", -0.3, 1.0), "gray_levels": record("gray_levels", 0.2)}
    levels = made_up_levels("low_pass") | made_up_levels("gray_levels")
    statements = slopes.statements(records, levels)
    gaps, differences = statements[::2], statements[1::2]
    assert [s.values[0] for s in gaps] == pytest.approx([-0.3, 0.2])  # 7e needs the mix
    rises = [np.polyfit(range(6), 2 ** (rise * np.arange(6)), 1)[0] for rise in (-0.3, 0.2)]
    assert [s.values[0] for s in differences] == pytest.approx(rises)
    assert {(s.low, s.high, s.alpha) for s in statements} == {(0.0, math.inf, 0.05 / 7)}
    verdicts = registered.verdicts(statements)
    assert [(name[:2], verdict) for name, verdict in verdicts.items()] == [
        ("7a", "refuted"),
        ("7c", "supported"),
    ]
    rows = slopes.others(records, levels)
    assert [row["dial"] for row in rows] == ["low pass", "gray levels", "low pass"]
    assert not rows[0]["a level, all times"].startswith("-")
    assert rows[0]["gap at the last level"].startswith("-1.495")
    assert rows[1]["gap at the last level"].startswith("1.005")
    figure = slopes.plot(records, levels)
    assert [axis.get_title("left") for axis in figure.axes] == ["low pass", "gray levels"]
    records["mixed"] = record("mixed", 0.5)
    verdicts = registered.verdicts(slopes.statements(records, levels | made_up_levels("mixed")))
    assert [verdicts[name] for name in verdicts if name[:2] in ("7d", "7e")] == [
        "supported",
        "refuted",
    ]


def test_a_gap_that_rises_by_what_both_errors_share_is_no_falling_behind():
    """x_0 has half of the error of eps at every level, and both grow by what none can predict."""
    made, levels = record("gray_levels", 0.0), made_up_levels("gray_levels")
    for row in made["measured"]:
        level = [*levels].index(row["arm"].split(", ")[0])
        own = 1.0 if row["arm"].endswith("eps") else 0.5 + row["seed"] / 1000
        row["errors"]["v"] = [own + level] * len(TIMES)
    gap, difference = slopes.statements({"gray_levels": made}, levels)
    assert gap.judge() == "supported"
    assert difference.values == pytest.approx([0, 0, 0])
    assert registered.verdict([gap, difference]) == "undecided"


def test_the_committed_levels_are_those_of_the_dials():
    measured = json.loads((dials.FOLDER / "dials.levels.json").read_text())["levels"]
    assert [*measured] == [level for dial in DIALS.values() for level in dial.datasets()]
    assert all({"bits", "TwoNN", "MLE"} == values.keys() for values in measured.values())


class Estimator:
    """Stands for one of scikit-dimension."""

    def fit(self, points):
        assert points.shape == (9, 1024)
        self.dimension_ = np.float64(7.123)
        return self


@pytest.mark.slow
def test_the_command_measures_trains_and_goes_on(root, monkeypatch):
    for where, name, value in (
        (dials, "FOLDER", root),
        (dials, "STEPS", 2),
        (slopes, "STEPS", 2),
        (dials, "SEEDS", (0, 1)),
        (slopes, "SEEDS", (0, 1)),
        (dials, "POINTS", 9),
        (complexity, "IMAGES", 4),
        (dials, "CONDITIONS", Conditions(n=0, n_likelihood=2, num_times=2)),
    ):
        monkeypatch.setattr(where, name, value)
    few = DIALS["gray_levels"]._replace(levels=(2, 256))
    monkeypatch.setitem(DIALS, "gray_levels", few)
    tiny = UNetConfig((1, 32, 32), 8, (1,), num_blocks=1, attention=(), dropout=0.0, patch=16)
    monkeypatch.setattr(dials.Dial, "networks", lambda self: {SKIPS: tiny})
    monkeypatch.setenv("DIFFUSION_RUNS", str(root / "runs"))
    command = ["dials", "--data", str(root), "--dials", "gray_levels"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setitem(sys.modules, "skdim", None)
    with pytest.raises(ImportError, match="pip install scikit-dimension"):
        dials.main()
    estimators = SimpleNamespace(TwoNN=Estimator, MLE=Estimator)
    monkeypatch.setitem(sys.modules, "skdim", SimpleNamespace(id=estimators))
    monkeypatch.setattr(dials.metadata, "version", lambda name: "0")
    dials.main()
    levels = json.loads((root / "dials.levels.json").read_text())["levels"]
    assert [*levels] == ["gray_levels 2", "gray_levels 256"]
    assert levels["gray_levels 2"]["MLE"] == 7.12
    records = slopes.load()
    assert len(slopes.slopes(records, made_up_levels("gray_levels"), ("gray_levels", SKIPS))) == 2
    monkeypatch.setenv("DIFFUSION_RUNS", str(root / "elsewhere"))
    dials.main()
    assert not list((root / "elsewhere").glob("*levels*"))
    assert slopes.load() == records
