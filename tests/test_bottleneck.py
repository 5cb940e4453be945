"""The study of bottlenecks: its networks, its exact solutions, and its verdicts."""

import random

import pytest
import torch

from diffusion_lib import compare, schedules
from diffusion_lib.compare.record import describe
from diffusion_lib.metrics import Interval
from other_tests.mnist.bottleneck import answers, control, ranks, toy, window

STUDIES = ("cells", "floor", "crossing")


def study_arms(name):
    if name in STUDIES:
        return compare.read_study(answers.FOLDER / f"{name}.json").arms
    return {"control": control, "window": window}[name].arms()


def record(name, sure, error):
    """A record as `compare` makes it, of seeds that differ a little."""
    draw, measured = random.Random(0), []
    arms = {arm: describe(experiment) for arm, experiment in study_arms(name).items()}
    for arm in arms:
        for seed in range(10, 15):
            for steps in (125, 2000):
                eps = [0.5, error(arms[arm]["network"]) + draw.uniform(0, 1e-3)]
                measures = {answers.SURE: sure(arm, steps) + draw.uniform(0, 1e-3)}
                errors = {"t": [1.0, 900.0], "eps": eps}
                row = {"arm": arm, "seed": seed, "steps": steps}
                measured.append(row | {"errors": errors, "measures": measures})
    return {"arms": arms, "steps": [125, 2000], "measured": measured}


def at_the_floor(network):
    numbers, pixels = answers.last_layer(network)
    return max(0.0, 1 - numbers / pixels)


def test_the_verdicts_follow_from_the_records():
    def sure(arm, steps):
        return 0.6 if "x_0" in arm and "H > D" not in arm else 0.1

    found = {name: record(name, sure, at_the_floor) for name in STUDIES}
    by_name = {v.hypothesis + v.statement: v.verdict for v in answers.verdicts(found)}
    floors = [verdict for name, verdict in by_name.items() if name.startswith("1 ")]
    assert len(floors) == 10
    assert set(floors) == {"supported"}
    assert {v for name, v in by_name.items() if name.startswith("2a")} == {"supported"}
    assert {v for name, v in by_name.items() if name.startswith("2b")} == {"refuted"}
    first, last = (v for name, v in by_name.items() if name.startswith("6 "))
    assert (first, last) == ("supported", "refuted")

    found["cells"] = record("cells", lambda arm, steps: 0.3, lambda network: 0.0)
    verdicts = answers.verdicts(found)
    assert {v.verdict for v in verdicts if v.statement.startswith("MLP 256: error")} == {"refuted"}
    assert "supported" not in {v.verdict for v in verdicts if v.hypothesis.startswith("2a")}


def test_eps_crosses_where_it_is_ahead_from_then_on():
    def sure(arm, steps):
        return 0.5 if ("eps" in arm) == (steps > 1000) else 0.2

    assert answers.crossing(record("crossing", sure, at_the_floor)) == 64 * 2000
    assert (
        answers.crossing(record("crossing", lambda arm, steps: 0.9 * ("x_0" in arm), lambda n: 0))
        is None
    )


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.2, "supported"), (-0.2, -0.1, "refuted"), (-1, 1, "undecided")],
)
def test_a_statement_is_judged_by_the_whole_interval(low, high, verdict):
    assert answers.judge(Interval(0.0, low, high), 0) == verdict


def test_an_interval_is_wider_for_seven_hypotheses():
    values = [0.1, 0.2, 0.4]
    own, usual = answers.interval(values), Interval.student_t(values)
    assert own.value == pytest.approx(usual.value)
    assert own.high - own.low > 2 * (usual.high - usual.low)


def test_the_connection_adds_the_input_times_a_number_of_the_time():
    arm = next(iter(control.arms().values()))
    torch.manual_seed(0)
    network = arm.network.build()
    x_t, t = torch.randn(3, 1, 28, 28), torch.tensor([0, 10, 900])
    added = (network(x_t, t) - network.network(x_t, t)) / x_t
    gain = added.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(added, gain.expand_as(added), atol=1e-3, rtol=1e-3)
    assert len(gain.unique()) == 3


def test_the_window_and_its_mirror_image():
    snr = torch.tensor([2.0**-6, 2.0**-3, 1.0, 100.0])
    assert window.window(snr).tolist() == pytest.approx([0.1, 1, 0.1, 0.1])
    assert window.mirror(snr).tolist() == pytest.approx([1, 0.1, 1, 1])


def test_no_denoiser_of_the_toy_beats_the_best_one():
    """The error of a mean given x_t is uncorrelated with everything that x_t says."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(8, 2, generator=generator)).Q
    schedule, x_0 = schedules.cosine(), toy.draw(plane, 50_000, generator)
    t = torch.full((len(x_0),), 500)
    x_t = schedule.add_noise(x_0, t, torch.randn(x_0.shape, generator=generator))
    best = toy.best_denoiser(x_t, t, schedule, plane)
    error = x_0 - best
    for said in (best, x_t, x_t**3):
        assert abs(float((error * said).mean())) < 3e-3
    assert float(error.square().mean()) < 0.9 * float((x_0 - x_t).square().mean())


@pytest.mark.parametrize("network", ["MLP 256", "U-Net 14/64", "transformer 14/64"])
def test_the_last_layer_is_written_as_a_product_of_matrices(network):
    experiment, _ = ranks.arms()[network]
    torch.manual_seed(0)
    denoiser = experiment.build()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    (batch,) = ranks.batches(denoiser, images, 0)
    layer = ranks.last_layer(denoiser.network)
    weights = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).double()
    error = (batch.rows.features @ weights.detach().mT - batch.rows.target).square().mean()
    assert float(error) == pytest.approx(
        float((batch.output - batch.eps).square().mean()), rel=1e-4
    )


def test_the_effective_rank_counts_directions():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    assert ranks.effective_rank(rows) == pytest.approx(5, abs=0.05)
    assert ranks.effective_rank(rows @ torch.randn(5, 40, dtype=torch.float64)) < 5
