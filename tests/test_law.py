"""The study of what survives noise: its measures on fields that are known, and its verdicts."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from statistics import stdev
from time import sleep

import pytest
import torch
import torch.nn.functional as F

from benchmarks.common import add_row
from diffusion_lib import config, data, oracles, rng, samplers, schedules
from diffusion_lib.late_start import LateStart
from diffusion_lib.metrics.features import Classifier, ClassifierOutput
from diffusion_lib.runs import Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from other_tests import common, registered
from other_tests.editing import fields, late, law, law_answers, law_plots, law_tables, points
from other_tests.editing.law_answers import CLOTHES, DIGITS, LABEL, PAIR, PHOTOGRAPHS
from other_tests.registered import Statement
from tests.helpers import CONDITIONAL, random_denoiser, random_images, tiny


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return rng.normal(shape, rng.generator(seed))


# ---- fields of changes --------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_the_susceptibility_counts_the_pixels_that_change_as_one(side):
    u = normal(8000, 1, 8 // side, 8 // side).square()
    u = 3 + F.interpolate(u, scale_factor=side)[:, 0]
    assert fields.susceptibility(u) == pytest.approx(side**2, rel=0.1)


def test_the_susceptibility_is_the_mean_of_the_correlations_of_pairs():
    u = normal(500, 3, 4) @ normal(4, 4, seed=1)
    covariance = u.flatten(1).T.double().cov(correction=0)
    expected = covariance.sum() / covariance.trace()
    assert fields.susceptibility(u) == pytest.approx(expected.item())


@pytest.mark.parametrize("width", [1.0, 1.5, 2.5])
def test_the_length_of_a_normal_correlation(width):
    """White noise that is smoothed: C(r) = exp(-r^2 / (2 width^2))."""
    frequency = torch.fft.fftfreq(64)
    square = frequency[:, None] ** 2 + frequency**2
    smooth = (-(math.pi**2) * width**2 * square).exp()
    u = torch.fft.ifft2(torch.fft.fft2(normal(500, 64, 64)) * smooth).real
    length = fields.correlation_length(5 + u[:, :28, :28])
    assert length == pytest.approx(width * math.sqrt(2), abs=0.1)


def test_independent_pixels_have_no_length():
    nearest = (4 * 1 + 4 * math.sqrt(2)) / 8  # those at which the distance rounds to 1
    length = fields.correlation_length(normal(200, 40, 40))
    assert length == pytest.approx((1 - 1 / math.e) * nearest, abs=0.02)


def test_correlations_leave_out_what_labels_have_in_common():
    labels = torch.arange(3000) % 3
    a, b = normal(3000, 2), normal(3000, 2, seed=1)
    between = 10 * labels[:, None]
    assert fields.correlation(a + between, b + between, labels) == pytest.approx(0, abs=0.04)
    half = fields.correlation(a + between, a + b - between, labels)
    assert half == pytest.approx(math.sqrt(0.5), abs=0.03)
    assert fields.correlation(a, 3 * a + 1, 0 * labels) == pytest.approx(1)


# ---- clones and their judge ---------------------------------------------------------------------


class Brightness(Classifier):
    """A judge of ten classes, by the tenth of the gray values that the first pixel lies in."""

    def extract_features(self, images):
        output = super().extract_features(images)
        tenth = (images[:, 0, 0, 0].long() * 10).div(256, rounding_mode="floor")
        return ClassifierOutput(output.features, F.one_hot(tenth, 10).double() + 0.01)


def grays(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)


def test_clones_agree_as_their_judge_says():
    judge = Brightness((1, 8, 8))
    one, other = (
        law.look(images, judge, torch.tensor([1, 8])).labels
        for images in (grays(30, 30, 220, 220, 30), grays(30, 220, 220, 45, 30))
    )
    assert one.tolist() == [1, 1, 8, 8, 1]
    assert fields.agreement([one, other]) == pytest.approx(3 / 5)
    assert fields.agreement([one, one, other]) == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)


def test_what_is_the_same_is_kept():
    images = random_images(20, 1, 8, 8)
    seen = law.look(images, Classifier((1, 8, 8), classes=2), torch.arange(2))
    measures = law.compare(seen, [seen, seen], seen.labels)
    assert measures.keys() == {
        *("label kept", "clone agreement", "area", "slant", "stroke width"),
        *("convolution 1", "convolution 2"),
    }
    assert [*measures.values()] == pytest.approx([1] * 7)
    assert law.compare(seen, [seen, seen], 1 - seen.labels)["label kept"] == 0
    colors = law.look(random_images(9, 3, 8, 8), Classifier((3, 8, 8)), torch.arange(10))
    low, detail = colors.signals["low frequencies"], colors.signals["detail"]
    assert low.shape == (9, 3, 2, 2)
    assert F.avg_pool2d(detail, 4).abs().max() < 1e-6
    torch.testing.assert_close(low.mean((2, 3)), colors.signals["mean color"])


def test_maps_are_of_the_images_where_the_judge_sees_mirrors_too():
    images, judge = random_images(501, 1, 8, 8), Classifier((1, 8, 8), depth=2, stem=3)  # 2 batches
    plain = law.look(images, judge, torch.arange(10)).maps
    judge.averages_mirrors = True
    for one, other in zip(plain, law.look(images, judge, torch.arange(10)).maps, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.flow])
def test_clones_are_drawn_from_the_posterior(monkeypatch, make):
    """Of normal pixels: with the variance (signal^2 / noise^2 + 1 / std^2)^-1, independently."""
    monkeypatch.setattr(hardware, "autocast", lambda denoiser: nullcontext())
    std, schedule = 0.3, make(1000)
    images = data.to_uint8(std * normal(60, 1, 8, 8))
    t = law.time_of(schedule, 2.0)
    one, other = data.to_float(law.draw_clones(oracles.gaussian(schedule, 0.0, std), images, t))
    expected = 1 / (float(schedule.snr(torch.tensor(t))) + 1 / std**2)
    variance = (one - other).square().mean().item() / 2
    assert variance == pytest.approx(expected, rel=0.1)
    assert (one - data.to_float(images)).square().mean().item() / 2 == pytest.approx(
        variance, rel=0.15
    )


def test_noise_levels_are_the_nearest_and_steps_are_even():
    schedule = schedules.linear()
    for level in law.LOG2_SNR:
        t = law.time_of(schedule, level)
        near = [abs(float(schedule.snr(torch.tensor(s)).log2()) - level) for s in (t - 1, t, t + 1)]
        assert min(near) == near[1]
    assert law.grid(1000, 40) == schedule.timesteps(40)
    assert law.grid(430, 4) == [430, 323, 215, 108, 0]
    assert law.grid(3, 40) == [3, 2, 1, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_is_measured_at_every_level(monkeypatch, tmp_path, small_convolutions, channels):
    """And what was drawn before an interrupt is not drawn again."""
    monkeypatch.setattr(law, "LOG2_SNR", (3, -2))
    monkeypatch.setattr(law, "STEPS", 2)
    shape = channels, 8, 8
    denoiser = random_denoiser(clip=1.0, network=replace(CONDITIONAL, image_shape=shape))
    images = data.Images(random_images(12, *shape), torch.arange(12) % 3)
    run, judge = Run(tmp_path, denoiser, []), Classifier(shape, classes=3)
    row = law.measure_network(run, images, judge)
    assert len([*tmp_path.glob("clones/*.safetensors")]) == 2
    monkeypatch.setattr(law, "draw_clones", None)
    assert law.measure_network(run, images, judge) == row
    assert row["deviations"][LABEL].keys() == {"midpoint", "95 %"}
    assert (row["n"], row["clones"]) == (12, 2)
    with pytest.raises(TypeError):  # drawn anew: of other images
        law.clones(run, images.images[1:], row["t"][0])
    assert len(row["t"]) == len(row["log2 snr"]) == 2
    assert row["chance"] == pytest.approx(1 / 3, abs=1e-3)
    for values in row["measures"].values():
        assert len(values) == 2
        assert all(map(math.isfinite, values))
    assert ("mean color" in row["measures"]) == (channels == 3)


def test_the_agreement_of_clones_and_how_far_are_predicted(monkeypatch):
    """Two classes of one brightness each: what is known is certain, and then nothing."""
    monkeypatch.setattr(law, "LOG2_SNR", (6, -20))
    labels = torch.arange(400) % 2
    x = 0.5 * (2 * labels - 1)[:, None, None, None] + 0.1 * normal(400, 1, 4, 4)
    images = data.Images(data.to_uint8(x), labels)
    row = law.predict(images, data.Images(images.images[:40], labels[:40]), schedules.linear())
    assert row["chance"] == 0.5
    for name, (sure, blind) in row["clone agreement"].items():
        assert sure == pytest.approx(1, abs=0.01)
        assert blind == pytest.approx(0.5, abs=0.1)
        assert row["deviations"][name].keys() == {"midpoint", "95 %"}
    assert row["how far"]["keep"] == 0.95
    assert 0 < row["how far"]["t"][1] <= row["how far"]["t"][0] <= row["how far"]["t"][2] < 1000
    hard = data.Images(data.to_uint8(x / 20 + normal(400, 1, 4, 4) / 8), labels)
    assert 0.5 < law.how_far(hard, schedules.linear())["keep"] < 0.8


# ---- networks and records -----------------------------------------------------------------------


def test_networks_differ_and_the_pair_is_of_ones_and_eights(monkeypatch):
    names = [law.experiment(job).name("") for job in law.jobs()]
    assert len({*names}) == len(names) == 42
    images = data.Images(random_images(20, 1, 28, 28), torch.arange(20) % 10)
    monkeypatch.setattr(data, "mnist", lambda root, train: images)
    pair = law.ones_and_eights("", True)
    assert pair.labels.tolist() == [1, 8, 1, 8]
    assert pair.images.equal(images.images[[1, 8, 11, 18]])


@pytest.mark.slow
def test_both_scripts_go_on_where_they_were_stopped(monkeypatch, tmp_path, small_convolutions):
    """Two classes that any model tells apart, one network of each kind that has learned nothing."""

    def stripes(root, train=True):
        labels = torch.arange(80) % 2
        x = torch.linspace(-1, 1, 28).expand(80, 1, 28, 28) * (2 * labels - 1)[:, None, None, None]
        return data.Images(data.to_uint8(x + 0.1 * normal(80, 1, 28, 28, seed=train)), labels)

    source, job = law.Source(stripes, "mnist", 30), law.Job(DIGITS, "cosine", 30)
    smoke = config.smoke(tiny(config.MNIST_BEST))
    for module, name, value in [
        *((law, "SOURCES", {DIGITS: source}), (law, "SCHEDULES", {"cosine": schedules.cosine})),
        *((law, "jobs", lambda: [job]), (law, "OUT", tmp_path / "law.json"), (law, "STEPS", 2)),
        *((law, "experiment", lambda job: replace(smoke, dataset=stripes)), (late, "N", 70)),
        *((law, "SEEDS", (30,)), (late, "DATASETS", (DIGITS,)), (late, "STARTS", (None, -4.0))),
        *((late, "STEPS", (3,)), (late, "OUT", tmp_path / "late.json")),
    ]:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("DIFFUSION_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("sys.argv", ["law"])
    law.load.cache_clear()
    for script in (law, late):
        script.main()
        written = script.OUT.read_bytes()
        script.main()
        assert script.OUT.read_bytes() == written
    law.load.cache_clear()
    record = common.load(law.OUT)
    (row,), (known,) = record["rows"], record["predictions"]
    assert row["t"] == known["t"]
    assert row["measures"].keys() >= {LABEL, "susceptibility", "convolution 2"}
    for curve in known["measures"].values():
        assert curve[0] == pytest.approx(1, abs=0.02)
        assert 0.4 < curve[-1] < curve[0]
    rows = common.load(late.OUT)["rows"]
    assert [row["sampler"] for row in rows] == samplers.__all__
    assert all(len(row[late.MEASURE]) == 2 for row in rows)
    assert {row["steps"] for row in rows} == {3}
    assert {"precision", "layout", "threads", "n"} <= rows[0].keys() & row.keys()


def test_a_failing_task_lets_the_others_go_on(capsys):
    finished = []
    tasks = [lambda: finished.append(1), lambda: 1 / 0, lambda: finished.append(2)]
    with pytest.raises(SystemExit, match="1 of 3 sums failed"):
        law.run_all(tasks, "sums")
    assert finished == [1, 2]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_data_set_that_is_missing_is_refused_at_once(monkeypatch, tmp_path):
    def missing(root, train=True):
        raise FileNotFoundError("not here")

    monkeypatch.setattr(law, "SOURCES", {DIGITS: law.Source(missing, "mnist")})
    monkeypatch.setattr(law, "run_all", None)
    monkeypatch.setattr("sys.argv", ["law"])
    law.load.cache_clear()
    for script in (law, late):
        monkeypatch.setattr(late, "DATASETS", (DIGITS,))
        with pytest.raises(FileNotFoundError, match="not here"):
            script.main()


def test_rows_of_several_processes_are_all_in_the_record(monkeypatch, tmp_path):
    """A second one waits while the first holds the lock."""
    monkeypatch.setenv("DIFFUSION_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "law.json"
    add_row(path, "rows", {"seed": 1})
    with ThreadPoolExecutor() as pool:
        with files.lock(tmp_path / "runs" / ".law.json.lock"):
            waiting = pool.submit(add_row, path, "rows", {"seed": 2})
            sleep(0.2)
            assert law.read(path, "rows") == [{"seed": 1}]
        waiting.result()
    assert law.read(path, "rows") == [{"seed": 1}, {"seed": 2}]


def test_parts_take_one_thread_each(monkeypatch):
    monkeypatch.setattr("sys.argv", ["law", "--part", "1", "2"])
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert law.options_of("").part == [1, 2]
    assert threads == [1]
    monkeypatch.setattr("sys.argv", ["law", "--part", "2", "2"])
    with pytest.raises(SystemExit):
        law.options_of("")


def test_a_late_start_at_T_is_the_usual_one():
    schedule, x_T = schedules.cosine(100), normal(4, 1, 8, 8)
    start, denoiser = LateStart(random_images(50, 1, 8, 8)), oracles.gaussian(schedule, 0.1, 0.5)
    usual = samplers.final(samplers.heun(denoiser, x_T, schedule.timesteps(5)))
    for t, same in ((100, True), (60, False)):
        steps = late.late(samplers.heun, start, t)(denoiser, x_T, schedule.timesteps(5), None)
        assert torch.allclose(samplers.final(steps), usual, atol=1e-4) == same


# ---- what rows say ------------------------------------------------------------------------------


def row_of(curve, x=(4, 2, 0, -2, -4), clean=1.0, chance=0.0):
    return {"log2 snr": [*x], "chance": chance, "clean": {"a": clean}, "measures": {"a": [*curve]}}


def test_the_midpoint_of_a_line_is_its_middle_between_chance_and_the_top():
    line = row_of([0.9, 0.7, 0.5, 0.3, 0.1], clean=0.9, chance=0.1)
    assert points.midpoint(line, "a") == pytest.approx(0)
    line = row_of([1, 0.8, 0.6, 0.4, 0.2], clean=1.0, chance=0.2)
    assert points.midpoint(line, "a") == pytest.approx(0)
    # Levels 0.75, 0.5 and 0.25 at 0, -1 and -2.
    knee = row_of([1, 1, 0.75, 0.25, 0])
    assert points.midpoint(knee, "a") == pytest.approx(-1)
    assert points.crossing(knee, "a", 0.5) == pytest.approx(-1)


def test_a_level_that_is_not_crossed_is_not_invented():
    for curve in ([0.4, 0.3, 0.2, 0.1, 0], [1, 1, 1, 1, 0.6]):
        assert math.isnan(points.crossing(row_of(curve), "a", 0.5))
    assert law_tables.cell([math.nan, 1.0], {}) == "none"


def test_points_vary_with_the_choice_of_the_images():
    """Half of the labels are lost at 0, half at -2: the midpoint moves with how many are which."""
    n, row = 400, {"log2 snr": [1, -1, -3], "chance": 0.0}
    own = torch.ones(4, n).double()
    own[2, : n // 2] = 0
    own[3] = 0
    spread = points.deviations(own, row)
    # With a share p left at -1: from 1 the curve falls to p, and then to 0.
    shares = torch.distributions.Binomial(n, torch.tensor(0.5)).sample((300,)) / n
    curves = [row_of([1, p, 0], x=(1, -1, -3)) for p in shares.tolist()]
    expected = stdev(points.midpoint(curve, "a") for curve in curves)
    assert spread["midpoint"] == pytest.approx(expected, rel=0.15)
    own[1] = 0.94
    assert points.deviations(own, row)["95 %"] is None


def test_the_peak_of_a_parabola_is_its_vertex():
    x = [4.0, 2.5, 1.0, -0.5, -3.0]
    assert points.peak(x, [-((a - 0.7) ** 2) for a in x]) == pytest.approx(0.7)
    assert math.isnan(points.peak(x, [5, 4, 3, 2, 1]))


def test_the_published_points_of_clones_move_by_two_octaves():
    assert pytest.approx(-4.48, abs=0.01) == law_answers.PUBLISHED
    known = law_answers.published_log2_snr
    for eigenvalue, predicted, _ in law_answers.ANCHORS.values():  # where SNR * eigenvalue is 1
        power = torch.tensor(2.0 ** (known(predicted) + 2))
        assert eigenvalue * power / (1 + power) == pytest.approx(1, rel=0.02)


def test_a_measure_between_levels_is_on_a_line():
    row = row_of([1.0, 0.8, 0.4, 0.2, 0.1])
    assert points.at_level(row, 1.0, "a") == pytest.approx(0.6)
    assert points.at_level(row, 9.0, "a") == 1.0


# ---- spreads ------------------------------------------------------------------------------------


def test_a_spread_that_is_known_better_gives_the_interval():
    values = [0.1, 0.2, 0.3]
    plain = Statement("", "", values, -0.1, 0.5, alpha=0.05 / 8)
    same = plain._replace(deviation=0.1, degrees=2)
    assert [*same.interval()] == pytest.approx([*plain.interval()])
    assert (plain.judge(), same.judge()) == ("undecided", "undecided")
    known = plain._replace(deviation=0.1, degrees=14)
    assert known.interval().margin == pytest.approx(1.855 * 0.1, rel=1e-3)
    assert known.judge() == "supported"
    assert known._replace(low=0.4).judge() == "refuted"
    assert known._replace(low=0.35).judge() == "undecided"
    equal = known._replace(values=[0.1] * 3)
    assert (equal.judge(), equal._replace(deviation=0.0).judge()) == ("supported", "undecided")
    unknown = known._replace(values=[0.1, 0.2, math.nan])
    assert unknown.judge() == "undecided"
    assert unknown.interval().low == -math.inf


def test_cells_share_a_spread_and_not_a_mean():
    cells = [[0.0, 0.1, 0.2], [5.0, 5.3, 5.6], [1.0, math.nan, 1.0]]
    expected = math.sqrt((0.1**2 + 0.3**2) / 2)
    assert law_answers.pooled(cells) == {"deviation": pytest.approx(expected), "degrees": 4}
    assert law_answers.pooled(cells[2:]) == {"deviation": 0, "degrees": 0}
    known = records(a_little)
    spread = law_answers.spread(known, DIGITS)
    assert spread["degrees"] == 14
    assert spread["deviation"] == pytest.approx(SPREAD, rel=0.4)
    assert law_answers.spread(known, CLOTHES)["degrees"] == 6
    gains = law_answers.gains(known, late.STEPS[0])
    assert law_answers.gain_spread(gains)["degrees"] == 4


# ---- verdicts -----------------------------------------------------------------------------------


def fall(middle, top=1.0, chance=0.1):
    """A curve that falls from the top to chance around a log2 SNR."""
    return [chance + (top - chance) / (1 + math.exp(-1.5 * (x - middle))) for x in law.LOG2_SNR]


def hill(middle):
    return [5 - abs(x - middle) ** 1.5 / 10 for x in law.LOG2_SNR]


PREDICTED = {DIGITS: -3.7, CLOTHES: -3.5, PHOTOGRAPHS: -4.0, PAIR: -4.5}
SPREAD = 0.035  # standard deviation of a midpoint, as in editing.json, in octaves
OFF = {"midpoint": 0.08, "95 %": None}  # standard deviations over images


def records(earlier, changed=0.0, order=0.7, gain=4.0):
    """Records of networks that lose labels so many octaves before what is predicted.

    What else happens differs by `changed` octaves from what is expected; properties last `order`
    octaves longer than labels; a late start is better by `gain`.
    """
    draw, rows, about = random.Random(0), [], {"log2 snr": [*law.LOG2_SNR], "chance": 0.1}

    def off():
        return draw.gauss(0, SPREAD)

    for job in law.jobs():
        middle = PREDICTED[job.dataset] + off() + earlier(job)
        agreement = fall(-4.6 + changed + off(), 1.0, 0.5)
        measures = {LABEL: fall(middle), "clone agreement": agreement}
        names = law.measure.PROPERTIES if job.dataset != PHOTOGRAPHS else ("mean color",)
        measures |= {name: fall(middle - order + off(), chance=0.0) for name in names}
        for name in ("susceptibility", "correlation length"):
            measures[name] = hill(middle + changed + off())
        about_network = {"clean": {LABEL: 1.0}, "deviations": {LABEL: OFF}}
        rows.append(job._asdict() | about | about_network | {"measures": measures})
    predictions = [
        {"dataset": name, "schedule": schedule, "speciation": [-4.4, -3.7], **about}
        | {"clean": dict.fromkeys(law_answers.MODELS, 1.0)}
        | {"measures": dict.fromkeys(law_answers.MODELS, fall(middle))}
        | {"clone agreement": dict.fromkeys(law_answers.MODELS, fall(middle, 1.0, 0.5))}
        | {"deviations": dict.fromkeys(law_answers.MODELS, OFF)}
        | {"how far": {"keep": 0.95, "t": [300.0, 290.0, 310.0]}}
        for name, middle in PREDICTED.items()
        for schedule in law.SCHEDULES
    ]
    starts = [
        {"dataset": name, "seed": seed, "sampler": sampler, "steps": steps, "starts": late.STARTS}
        | {
            late.MEASURE: [
                10 * math.exp(gain / 10 + off()),
                *(
                    10 * math.exp((start + 3.9 - changed) ** 2 / 10 + off())
                    for start in late.STARTS[1:]
                ),
            ]
        }
        for name in late.DATASETS
        for seed in law.SEEDS
        for sampler in samplers.__all__
        for steps in late.STEPS
    ]
    return {"law": {"rows": rows, "predictions": predictions}, "late": {"rows": starts}}


def a_little(job):
    """As in the record of the six networks, and on photographs more."""
    return 2.0 if job.dataset == PHOTOGRAPHS else 0.3


def far(job):
    """Everything is elsewhere: by the schedule, and by the network."""
    by_schedule = {"linear": 1.0, "cosine": 2.0, "flow": 3.5}[job.schedule]
    return by_schedule + 2 * bool(job.variant) + 2 * (job.dataset == PHOTOGRAPHS)


def test_all_hypotheses_are_supported_where_they_hold():
    by_part = registered.verdicts(law_answers.statements(records(a_little)))
    assert {n.split()[0]: v for n, v in by_part.items()} == dict.fromkeys(
        ["1a", "1b", "1c", "2", "3", "4", "5a", "5b", "5c", "6", "7", "8a", "8b"], "supported"
    )


def test_all_are_refuted_where_nothing_is_where_it_was_expected():
    made = records(far, changed=-2.0, order=-0.7, gain=-2.0)
    by_part = registered.verdicts(law_answers.statements(made))
    assert {*by_part.values()} == {"refuted"}


def test_hypotheses_wait_for_all_of_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(law, "OUT", tmp_path / "law.json")
    monkeypatch.setattr(late, "OUT", tmp_path / "late.json")
    assert law_answers.statements(law_answers.records()) == []
    made = records(a_little)
    made["law"]["rows"] = [row for row in made["law"]["rows"] if row["dataset"] == DIGITS]
    files.write_json(law.OUT, made["law"])
    read = law_answers.records()
    numbers = [s.hypothesis.split()[0] for s in law_answers.statements(read)]
    assert [*dict.fromkeys(numbers)] == ["2", "6", "7"]
    assert law_answers.datasets(read) == [DIGITS]


def test_tables_and_plots_of_records():
    made = records(a_little)
    by_place = {(row["data"], row["schedule"]): row for row in law_tables.points(made)}
    assert by_place[DIGITS, "flow"]["midpoint, mixtures"] == "-3.71 ± 0.08"
    measured = float(by_place[DIGITS, "flow"]["midpoint, networks"].split("\xa0")[0])
    assert measured == pytest.approx(-3.71 + 0.3, abs=0.07)
    assert by_place[DIGITS, "flow"]["midpoint, networks, over images"] == "± 0.08"
    assert by_place[DIGITS, "flow"]["speciation, classes"] == "-3.70"
    assert (PAIR, "cosine") not in by_place
    signals = {row[""]: row for row in law_tables.order(made)}
    assert signals["area"][PHOTOGRAPHS] == ""
    assert signals["slant"][DIGITS].startswith("-4.")
    assert len(law_tables.late_rows(made)) == 24
    means = law_tables.parts(made)
    assert [row["hypothesis"][0] for row in means] == [*"2555555666"]
    assert all(row.keys() >= law.SCHEDULES.keys() for row in means)
    far_rows = {(row["data"], row["schedule"]): row for row in law_tables.how_far(made)}
    assert far_rows[DIGITS, "linear"]["t"].replace("\xa0", " ") == "300 [290, 310]"
    assert 0.9 < float(far_rows[DIGITS, "linear"]["networks keep"][:4]) < 1
    published, own, *_ = law_tables.anchors(made)
    assert (published["predicted"], published["measured"]) == ("-4.72", "-4.48")
    assert own["measured"].startswith("-4.")
    statements = law_answers.statements(made)
    assert {row["verdict"] for row in registered.rows(statements)} == {"supported"}
    assert {s.unit for s in statements} == {law_answers.OCTAVES, law_answers.LOG_RATIO}
    plots = [law_plots.labels, law_plots.agreement, law_plots.changes, law_plots.signals]
    plots += [partial(law_plots.verdicts, unit=law_answers.LOG_RATIO)]
    for draw in (*plots, law_plots.late_starts):
        assert draw(made).png().startswith(b"\x89PNG")
