"""What the editing experiment measures, on pictures whose answer is known, and its record."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffusion_lib import config, data, rng
from diffusion_lib.metrics import features
from other_tests import common
from other_tests.editing import curves, measure
from tests.helpers import write_idx


def bar(width: float, degrees: float, length: float = 16, fine: int = 8) -> torch.Tensor:
    """A slanted bar in the middle, `width` pixels wide across itself, uint8 [1, 1, 28, 28]."""
    at = (torch.arange(28 * fine).double() + 0.5) / fine - 14
    x, y = at[None, :], -at[:, None]
    lean = math.radians(degrees)
    inside = (x - y * math.tan(lean)).abs() * math.cos(lean) < width / 2
    ink = F.avg_pool2d((inside & (y.abs() < length / 2)).double()[None, None], fine)
    return (255 * ink).round().to(torch.uint8)


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("degrees", [-25, 0, 10, 30])
def test_properties_of_a_bar(width, degrees):
    found = {name: value.item() for name, value in measure.properties(bar(width, degrees)).items()}
    length = 16 / math.cos(math.radians(degrees))  # along itself
    assert found["area"] == pytest.approx(width * length, rel=0.02)
    assert found["slant"] == pytest.approx(degrees, abs=0.5)
    # Its two ends are outline too.
    assert found["stroke width"] == pytest.approx(width * length / (width + length), rel=0.06)


def test_an_empty_picture_has_properties_that_are_numbers():
    for value in measure.properties(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).values():
        assert value.tolist() == [0, 0]


def test_what_labels_have_in_common_is_no_property_kept():
    n = 1000
    labels = torch.arange(n) % 2
    a, b = torch.randn(2, n, generator=rng.generator(0)).double()
    everything = torch.arange(n)[None]
    between = 10.0 * labels
    apart = measure.correlations(a + between, b + between, labels, everything).item()
    assert abs(apart) < 3 / math.sqrt(n)
    half = measure.correlations(a + between, a + b - between, labels, everything).item()
    assert half == pytest.approx(math.sqrt(0.5), abs=0.05)
    same = measure.correlations(a, 3 * a + 1, labels, everything)
    torch.testing.assert_close(same, torch.ones(1).double())


def test_where_a_curve_falls_below_a_level():
    times = len(measure.TIMES)
    straight = torch.linspace(1, 0, times).double()
    never, at_once = torch.ones(times).double(), torch.zeros(times).double()
    back = straight.clone()
    back[15:] = 1  # what comes after the first fall does not count
    found = measure.falls_below(torch.stack([straight, never, at_once, back]), 0.5, measure.TIMES)
    assert found.tolist() == pytest.approx([500, 1000, 0, 500])
    assert measure.falls_below(straight, 0.83, measure.TIMES).item() == pytest.approx(170)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The experiment on stand-ins for digits, in an empty folder: the root of its data."""
    monkeypatch.chdir(tmp_path)
    write_idx(tmp_path / "MNIST" / "raw", n_train=80, n_test=140)
    full = measure.experiment

    def tiny(*which):
        smoke = config.smoke(full(*which))
        return replace(smoke, network=replace(smoke.network, width=8, attention=(), patch=7))

    monkeypatch.setattr(measure, "experiment", tiny)
    settings = {"SEEDS": (0, 1), "N": 70, "STEPS": 2, "TIMES": (0, 500, 1000), "_BATCH": 35}
    for name, value in (settings | {"_RESAMPLES": 20, "_FRECHETS": 3}).items():
        monkeypatch.setattr(measure, name, value)
    return str(tmp_path)


@pytest.mark.slow
def test_the_measurement_runs_and_goes_on(small, monkeypatch):
    record = measure.measure(small)
    told = [(run["schedule"], run["seed"], list(run["ways"])) for run in record["runs"]]
    ways, repeated = list(measure.EDITS), list(measure.REPEATED)
    first = [("linear", 0, ways), ("cosine", 0, ways)]
    assert told == [*first, ("linear", 1, repeated), ("cosine", 1, repeated)]
    assert len(record["floors"]) == 2
    for run in record["runs"]:
        for way, found in run["ways"].items():
            for name, values in found["measures"].items():
                assert len(values) == 3, (way, name)
                assert all(math.isfinite(number) for value in values for number in value)
        start = run["ways"]["noise"]["measures"]
        assert start["pixel distance"][0] == [0, 0, 0]
        assert start["Frechet distance"][0][0] == record["floors"][0]

    monkeypatch.setattr(measure.editing, "edit", None)  # nothing is made again
    assert measure.measure(small) == record
    path = next(Path("runs").glob("*/editing/noise-thick.safetensors"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"noise-thick\.safetensors"):
        measure.measure(small)


def test_each_time_adds_the_same_noise():
    denoiser = config.MNIST_LABELS.build().eval()
    x_0 = torch.zeros(2, 1, 28, 28)
    t, eps = measure.TIMES[1], rng.per_image(0, 2)
    found = measure.noise(denoiser, x_0, torch.zeros(2), eps)
    next(found)
    one = next(found)
    times = denoiser.schedule.timesteps(measure.STEPS)
    steps = measure.editing.edit(denoiser, x_0, t, times, generator=rng.per_image(0, 2))
    torch.testing.assert_close(one, measure.final(steps))


def test_the_inputs_are_the_first_of_disjoint_sets(small):
    inputs, sets = measure.split(data.mnist(small, False))
    assert torch.equal(inputs.images, sets[0])
    assert sorted(torch.cat(sets)[:, 0, 0, 0].tolist()) == list(range(140))
    assert torch.equal(inputs.images[:, 0, 0, 0] % 10, inputs.labels.to(torch.uint8))


def test_half_of_the_training_is_without_labels():
    linear, cosine = (measure.experiment(schedule, 0) for schedule in measure.SCHEDULES)
    assert linear.train.label_dropout == 0.5
    assert replace(cosine, schedule=linear.schedule) == linear
    assert measure.experiment(linear.schedule, 2).train == replace(linear.train, seed=2)


# ---- what is read from the record ------------------------------------------------------------

TIMES = [0, 250, 500, 750, 1000]


def made_up(schedule, seed, label_until, frechet):
    """A run whose label is lost at a time and whose edits have these Frechet distances."""
    alpha = {"linear": 2.0, "cosine": 1.0}[schedule]  # log2 of its SNR falls by that every 250
    kept = [1.0, 0.9 if schedule == "linear" else 0.99, 0.9, 0.4, 0.1]
    told = {"Frechet distance": frechet, **dict.fromkeys(("label", *measure.PROPERTIES), kept)}
    measures = {name: [[v, v - 0.1, v + 0.1] for v in values] for name, values in told.items()}
    ways = {
        way: {"measures": measures, "label until": [label_until] * 3} for way in measure.REPEATED
    }
    return {
        "schedule": schedule,
        "seed": seed,
        "device": "CPU",
        "log2 snr": [None, *(4 - alpha * k for k in range(4))],
        "ways": ways,
    }


@pytest.fixture
def record(monkeypatch):
    """Both lose the label at a log2 SNR of about 3; the linear ones look real just before it."""
    runs = [
        made_up("linear", 0, 374, [3.0, 0.4, 0.8, 2.0, 1.0]),
        made_up("linear", 1, 376, [3.0, 0.41, 0.8, 2.0, 1.0]),
        made_up("cosine", 0, 501, [3.0, 1.0, 0.8, 0.4, 1.0]),
        made_up("cosine", 1, 503, [3.0, 1.0, 0.81, 0.4, 1.0]),
    ]
    record = {"n": 500, "times": TIMES, "floors": [0.3, 0.6], "runs": runs}
    monkeypatch.setattr(curves, "STEPS", 250)
    return record


def test_levels_are_crossed_between_times(record):
    run = curves.runs_of(record, "linear")[0]
    assert curves.first_below(run, "noise", 1.7) == 125
    assert curves.first_below(run, "noise", 3) == 0
    assert curves.first_below(run, "noise", 0.1) is None
    assert curves.first_above(run, "noise", 2.9) == 0
    assert curves.first_above(run, "noise", 9) == 1000
    assert curves.own_level(run) == 1.0
    assert curves.lowest(run, "noise") == 0.4
    cosine = curves.runs_of(record, "cosine")[0]
    assert curves.lowest(cosine, "noise") == 0.8  # 0.4 comes after the label is lost
    assert curves.log2_snr(run, 250) == 4
    assert curves.log2_snr(run, 375) == 3
    assert curves.format_onset([5.0, None]) == "never in 1 of 2"
    assert curves.format_onset([None, None]) == "never"
    assert curves.format_onset([0.0, 0.0]) == "from 0"
    assert curves.format_onset([8.0, 8.0]) == "from 8\xa0[8,\xa08]"
    assert curves.format_onset([1.0, 40.0]) == "from 20\xa0[0,\xa0268]"
    assert curves.format_time([990.0, 1000.0]) == "995\xa0[931,\xa01000]"
    assert curves.falls(run, "label", 0.95) == pytest.approx(125)


def test_answers_follow_from_the_intervals(record):
    linear, cosine, steps, ratio, properties, no_window, window = curves.answers(record)
    assert (linear.answer, cosine.answer) == ("no", "yes")
    assert steps.answer == "no: the linear one loses it earlier"
    assert "375 and 502" in steps.measured
    assert ratio.answer == "undecided: no difference found"
    assert properties.answer == "no: the linear one bears more noise"  # both fade at t = 700
    assert no_window.answer == "yes"
    assert window.answer == "no"
    assert "own samples from" in window.measured


# ---- the committed record --------------------------------------------------------------------

COMMITTED = common.load(curves.RECORD)


def test_it_is_of_the_experiment_as_it_is_now():
    assert COMMITTED["times"] == list(measure.TIMES)
    assert COMMITTED["n"] == measure.N >= 500
    assert COMMITTED["steps"] == measure.STEPS
    assert COMMITTED["level"] == measure.LABEL
    assert COMMITTED["features sha256"] == features.RELEASED["mnist"][1]
    assert (COMMITTED["scale, noised"], COMMITTED["scale, inverted"]) == (
        measure.SCALE_NOISED,
        measure.SCALE_INVERTED,
    )
    told = {(run["schedule"], run["seed"]): run for run in COMMITTED["runs"]}
    assert list(told) == [(s.__name__, k) for k in measure.SEEDS for s in measure.SCHEDULES]
    for schedule, seed in ((s, k) for k in measure.SEEDS for s in measure.SCHEDULES):
        run = told[schedule.__name__, seed]
        trained = {name: value for name, value in run["experiment"].items() if name != "images"}
        assert measure.experiment(schedule, seed).differences(json.dumps(trained)) == []
        assert set(run["ways"]) == set(measure.EDITS if seed == 0 else measure.REPEATED)


@pytest.mark.parametrize("run", COMMITTED["runs"], ids=lambda r: f"{r['schedule']} {r['seed']}")
def test_t_0_keeps_everything_and_t_T_nothing(run):
    """At T the distances from the input are those of unrelated pairs, in the interval."""
    told, unrelated = (run["ways"]["noise"][name] for name in ("measures", "strangers"))
    assert told["pixel distance"][0] == told["feature distance"][0] == [0, 0, 0]
    assert all(told[name][0] == [1, 1, 1] for name in measure.PROPERTIES)
    for name, (_, low, high) in unrelated.items():
        _, my_low, my_high = told[name][-1]
        assert my_low <= high
        assert low <= my_high
    for name in measure.PROPERTIES:
        assert abs(told[name][-1][0]) < 3 / math.sqrt(measure.N)
    assert told["label"][-1][0] < 0.2  # of ten
