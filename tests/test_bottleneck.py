"""The study of bottlenecks: its networks, its exact solutions, and its verdicts."""

import json
import math
import random
from dataclasses import replace
from functools import cache, partial
from itertools import product

import pytest
import torch
from torch import nn

from diffusion_lib import compare, losses, schedules
from diffusion_lib.compare.record import FORMAT, describe
from other_tests import registered
from other_tests.mnist.bottleneck import answers, control, outputs, plots, toy, window
from other_tests.mnist.bottleneck.answers import Statement

ERRORS = [f"error at {time}" for time in outputs.TIMES]
FLAT = {"sure": lambda arm, steps: 0.3, "error": lambda network: 0.3}


@cache
def described(name):
    """The arms of a study as a record has them."""
    if name in ("cells", "again", "floor", *answers.SAMPLERS.values()):
        arms = compare.read_study(answers.REGISTERED / f"{name}.json").arms
    else:
        arms = {"control": control, "window": window}[name].arms()
    return {arm: describe(experiment) for arm, experiment in arms.items()}


def record(name, sure, steps=(500, 2000)):
    """A record as `compare` makes it, of seeds that differ a little."""
    draw, measured, arms = random.Random(0), [], described(name)
    seeds = list(range(15, 20) if name == "again" else range(10, 15))
    for arm in arms:
        for seed in seeds:
            for n in steps:
                share = sure(arm, n) + draw.uniform(0, 1e-3)
                measures = {answers.SURE: share, answers.DISTANCE: 60 * (1 - share)}
                row = {"arm": arm, "seed": seed, "steps": n, "images seen": 64 * n}
                measured.append(row | {"measures": measures})
    return {"arms": arms, "seeds": seeds, "steps": list(steps), "measured": measured}


def studies(sure, error):
    """Records of all studies in which samples and outputs are given by functions."""
    by_study = {
        name: record(name, sure) for name in ("cells", "again", "floor", "control", "window")
    }
    for name in answers.SAMPLERS.values():
        by_study[name] = record(name, sure, (500, 8000))
    draw = random.Random(1)
    rows = [
        dict.fromkeys(ERRORS, error(network) + draw.uniform(0, 1e-3))
        | {
            "network": network,
            "seed": seed,
            "error with the exact last layer": 0.9 * error(network),
        }
        for network in outputs.arms()
        for seed in range(10, 15)
    ]
    return by_study | {"outputs": {"measured": rows}}


def floor_of(network):
    if network in answers.WIDTHS:
        return max(0.005, 1 - answers.WIDTHS[network] / 784)
    floors = {"7/16": 0.6735, "7/32": 0.347, "14/64": 0.6735, "14/128": 0.347, "decoder": 0.55}
    wide = 0.02 if "skip" in network else 0.05
    own = next((floor for end, floor in floors.items() if network.endswith(end)), wide)
    return answers.FLOOR + 0.01 if network.startswith("MLP 1024, 256") else own


def sure_if_all_hold(arm, steps):
    network, _, cell = arm.rpartition(": ")
    if network.endswith("+ skip"):
        return 0.5
    if network.startswith(answers.NARROW):
        return 0.6 if cell == "x_0, uniform" else 0.02
    if network:  # wide, and wider
        return 0.5 + answers.WIDTHS.get(network, 0) / 1e4
    ahead = {"inside": 0.6, "x_0, uniform": 0.5 if steps < 8000 else 0.3, "eps, snr": 0.4}
    return next((share for end, share in ahead.items() if cell.endswith(end)), 0.2)


def verdicts(by_study):
    return registered.verdicts(answers.statements(by_study))


def test_all_hypotheses_are_supported_where_they_hold():
    by_part = verdicts(studies(sure_if_all_hold, floor_of))
    assert set(by_part.values()) == {"supported"}
    numbers = " ".join(name.split()[0] for name in by_part)
    assert numbers == "1a 1b 2a 2b 3a 3b 3c 3d 3e 3f 4 5 6 7a 7b"


def test_none_is_supported_where_nothing_differs_and_errors_are_below_the_floor():
    by_part = verdicts(studies(FLAT["sure"], FLAT["error"]))
    held = {name for name, verdict in by_part.items() if verdict == "supported"}
    assert held == {"3c no lead, H > D", "3f no lead again, H > D", "4 above the floor"}
    assert by_part["1a the floor is a bound"] == "refuted"
    assert by_part["3a the prediction, H < D"] == "refuted"


def test_another_seed_of_one_study_changes_no_pair_of_studies():
    by_study = studies(sure_if_all_hold, floor_of)
    before = answers.around_rows(by_study)
    cells = by_study["cells"]
    added = [row | {"seed": 20} for row in cells["measured"] if row["seed"] == 10]
    by_study["cells"] = cells | {
        "seeds": [*cells["seeds"], 20],
        "measured": cells["measured"] + added,
    }
    assert answers.around_rows(by_study) == before
    assert {len(part.values) for part in answers.place_statements(by_study)} == {5}


def test_the_eight_networks_with_a_floor():
    parts = answers.floor_statements(studies(FLAT["sure"], floor_of))
    names = {part.text.split(":")[0] for part in parts}
    assert names == {
        *("MLP 128", "MLP 256", "MLP 512", "U-Net 14/64", "U-Net 14/128", "U-Net 7/16"),
        *("U-Net 7/32", "transformer 14/64"),
    }


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.5, 0.51, 0.52], "supported"),
        ([-0.5, -0.51, -0.52], "refuted"),
        ([0.1, 0.3, -0.2], "undecided"),
    ],
)
def test_a_statement_is_judged_by_the_whole_interval(values, verdict):
    assert Statement("", "", values, 0.0).judge() == verdict


def test_one_part_of_many_is_refuted_at_a_stricter_level():
    edge = Statement("", "", [-0.2, -0.21, -0.22], 0.0)
    assert edge.judge() == "refuted"
    assert registered.verdict([edge] * 50) == "undecided"


def test_eps_crosses_where_it_is_ahead_from_then_on():
    def sure(arm, steps):
        return 0.5 if ("eps" in arm) == (steps > 1000) else 0.2

    by_images = registered.gaps(
        record("crossing", sure, (500, 2000, 8000)), answers.NAIVE, answers.DDPM
    )
    assert registered.crossing(by_images) == 64 * 2000
    assert registered.crossing_interval(by_images, 20) == [64 * 2000] * 2
    never = record("crossing", lambda arm, steps: 0.9 * ("x_0" in arm))
    by_images = registered.gaps(never, answers.NAIVE, answers.DDPM)
    assert registered.crossing(by_images) is None
    assert registered.crossing(by_images, [0, 0, 1]) is None


def mixes(best):
    """A record of the toy in which the best k is given by a function, but once."""

    def off(*job):
        return 0.11 * (job == (2, 64, 256, 12))

    rows = [
        dict(zip(toy.JOB, (d, D, *job), strict=True))
        | {"error": abs(job[-1] - best(d, D) + off(d, D, *job[:-1]))}
        for d, D in toy.CELLS
        for job in product(toy.WIDTHS, toy.SEEDS, toy.MIXES)
    ]
    return {"measured": rows}


def test_a_mix_is_nearest_to_the_law_or_to_a_constant():
    def verdict(best):
        return verdicts({"toy": mixes(best)})["8 the best mix"]

    assert verdict(lambda d, D: D / (D + d)) == "supported"
    assert verdict(lambda d, D: 0.77) == "refuted"


def test_the_table_of_the_toy_names_the_best_mix_and_what_others_cost():
    rows = {(row["d"], row["D"]): row for row in answers.mix_rows(mixes(lambda d, D: 0.8))}
    assert len(rows) == len(toy.CELLS)
    row = rows["8", "64"]
    assert (row["D / (D + d)"], row["best k, H = 64"], row["best k, H = 256"]) == (
        "0.89",
        *["0.80"] * 2,
    )
    assert row["error of k = 0 / of 1"] == "4.00"
    assert row["error of k = 0.9 / of 1"] == "0.50"


def test_without_a_spread_nothing_is_decided():
    assert Statement("", "", [0.7, 0.7, 0.7], 0.0).judge() == "undecided"
    assert Statement("", "", [math.nan] * 3, 0.0).judge() == "undecided"


def narrow_network(kind):
    """A network of the controls, with random weights in place of zeros."""
    torch.manual_seed(0)
    name = next(name for name in control.arms() if name.startswith(kind))
    network = control.arms()[name].network.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def test_the_connection_adds_the_input_times_a_number_of_the_time():
    network = narrow_network("MLP 256 + skip")
    x_t, t = torch.randn(3, 1, 28, 28), torch.tensor([0, 10, 900])
    gain = torch.linalg.lstsq(
        x_t.flatten(1)[:, :, None],
        (network(x_t, t) - network.network(x_t, t)).flatten(1)[:, :, None],
    ).solution
    expected = network.gain(network.network.condition(x_t, t, None))
    torch.testing.assert_close(gain[:, :, 0], expected, atol=1e-4, rtol=1e-4)


def test_narrow_layers_let_256_numbers_through():
    x_t, t = torch.randn(900, 1, 28, 28), torch.full((900,), 900)
    network = narrow_network("MLP 1024, 256 out")
    out = network(x_t, t).flatten(1)
    assert torch.linalg.matrix_rank(out - out.mean(0), rtol=1e-4) == control.NARROW
    network = narrow_network("MLP 1024, 256 in")
    weight = network.hidden[0][0].weight
    hidden = torch.linalg.svd(weight).Vh[control.NARROW :].T  # directions that it does not see
    unseen = (torch.randn(900, hidden.shape[1]) @ hidden.T).view(x_t.shape)
    torch.testing.assert_close(network(x_t + unseen, t), network(x_t, t), atol=1e-3, rtol=1e-3)


def test_the_windows_are_min_snr_in_one_place_each():
    snr = torch.tensor([2.0**-6, 2.0**-3, 1.0, 100.0])
    base = losses.min_snr(snr)
    for weight, chosen in ((window.noisier, [0]), (window.inside, [1]), (window.cleaner, [2, 3])):
        expected = [1.0 if k in chosen else window.ELSEWHERE for k in range(4)]
        assert (weight(snr) / base).tolist() == pytest.approx(expected)


def test_no_denoiser_of_the_toy_beats_the_best_one():
    """The error of a mean given x_t is uncorrelated with everything that x_t says."""
    generator = torch.Generator().manual_seed(0)
    points = toy.mixture(3, 8, generator)
    schedule, x_0 = schedules.cosine(), toy.draw(points, 50_000, generator)
    t = torch.full((len(x_0),), 500)
    x_t = schedule.add_noise(x_0, t, torch.randn(x_0.shape, generator=generator))
    best = toy.best_denoiser(x_t, t, schedule, points)
    error = x_0 - best
    for said in (best, x_t, x_t**3):
        assert abs(float((error * said).mean())) < 3e-3
    assert float(error.square().mean()) < 0.9 * float((x_0 - x_t).square().mean())


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0])
def test_the_toy_learns(k, monkeypatch):
    monkeypatch.setattr(toy, "NUM_TEST", 256)
    errors = []
    for steps in (1, 60):
        monkeypatch.setattr(toy, "STEPS", steps)
        errors.append(toy.measure(2, 8, 64, 10, k))
    assert errors[1] < errors[0]


def small_denoiser(network, width):
    """A denoiser of the study with another width, whose last layer is not zero."""
    experiment, _ = outputs.arms()[network]
    torch.manual_seed(0)
    smaller = replace(experiment.network, width=width)
    denoiser = replace(experiment, network=smaller).build()
    layer = outputs.last_layer(denoiser.network)
    nn.init.normal_(layer.weight, std=0.3)
    nn.init.normal_(layer.bias, std=0.3)
    return denoiser, layer


@pytest.mark.parametrize(("network", "width"), [("MLP 1024", 32), ("U-Net 14/256", 16)])
def test_the_last_layer_is_written_as_a_product_of_matrices(network, width):
    denoiser, layer = small_denoiser(network, width)
    seen = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x_t = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        output = denoiser.output(x_t, torch.full((3,), 900))
    rows = outputs.rows_of(layer, seen[0], output)
    weights = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1).detach().double()
    torch.testing.assert_close(rows.features @ weights.mT, rows.target, atol=1e-4, rtol=1e-4)


def test_the_exact_last_layer_of_a_narrow_network_is_at_its_floor(monkeypatch):
    """Noise that 64 directions of 784 could hold, seen by random features of it."""
    monkeypatch.setattr(outputs, "NUM_TRAIN", 2000)
    monkeypatch.setattr(outputs, "NUM_TEST", 500)
    denoiser, _ = small_denoiser("MLP 256", 64)
    images = torch.randint(0, 256, (2000, 1, 28, 28), dtype=torch.uint8)
    own = outputs.measure(denoiser, images)
    exact = outputs.error_with_exact_last_layer(denoiser, images, images)
    assert 1 - 64 / 784 - answers.ROUNDING < exact < 1.02 < own["error at 900"]
    assert own["effective rank"] <= 64


def test_records_are_read_and_drawn(tmp_path, monkeypatch):
    """Those that there are, under the names that their scripts write."""
    monkeypatch.setattr(answers, "FOLDER", tmp_path)
    for module in (outputs, toy):
        monkeypatch.setattr(module, "RECORD", tmp_path / module.RECORD.name)
    assert answers.records() == {}
    by_study = studies(sure_if_all_hold, floor_of)
    by_study["toy"] = mixes(lambda d, D: D / (D + d))
    for name, made in by_study.items():
        if name in ("outputs", "toy"):
            {"outputs": outputs, "toy": toy}[name].RECORD.write_text(json.dumps(made))
        else:
            compare.save(made | {"format": FORMAT}, tmp_path / f"{name}.record.json")
    read = answers.records()
    assert read.keys() == by_study.keys()
    table = registered.rows(answers.statements(read))
    assert {row["verdict"] for row in table} == {"supported"}
    assert "above 0.1" in {row["expected"] for row in table}
    for draw in (plots.floor, plots.errors, plots.cells, plots.window, plots.mixes):
        assert draw(read).png().startswith(b"\x89PNG")
    plot = registered.draw([s for s in answers.statements(read) if s.unit == answers.DISTANCE])
    assert plot.png().startswith(b"\x89PNG")


def test_cells_are_held_against_ddpm_and_floors_against_errors():
    by_study = studies(sure_if_all_hold, floor_of)
    rows = {row[""]: row for row in answers.cell_rows(by_study["cells"], answers.SURE)}
    assert rows["eps, snr"]["MLP 256"].startswith("0.02")
    assert rows["x_0, uniform"]["MLP 256"].startswith("+0.58")
    assert rows["v, min_snr"]["U-Net 14/256"] == ""
    for row in by_study["cells"]["measured"]:
        row["measures"]["Frechet distance"] = 5.0 + (row["arm"].endswith("uniform"))
    rows = {row[""]: row for row in answers.cell_rows(by_study["cells"], "Frechet distance")}
    assert rows["v, uniform"]["MLP 1024"].startswith("+1.0")
    around = {(row["network"], row["cell"]): row for row in answers.around_rows(by_study)}
    gap = around["MLP 1024, 256 in", "x_0, uniform"]["minus that of the network without"]
    own = answers.measured(by_study["control"], "MLP 1024, 256 in: x_0, uniform")
    assert gap.startswith(f"{own[0] - 6:+.1f}")
    narrow, *_, wide = answers.size_rows(by_study["cells"])
    assert (narrow["H"], narrow["1 - H/D, or 0"]) == ("256", "0.67")
    assert (wide["D"], wide["1 - H/D, or 0"], wide["x_0, uniform, 2,000 steps"]) == (
        "196",
        "0.00",
        "6.0",
    )
    for row in by_study["outputs"]["measured"]:
        row["effective rank"] = 10.0 + row["seed"] % 2
    first, *_, last = answers.floor_rows(by_study)
    assert (first["network"], first["1 - H/D, or 0"]) == ("MLP 128", "0.837")
    assert first["error at 900"].startswith("0.837")
    assert (first["effective rank"], last["of noise in min(H, D) dimensions"]) == ("10", "644")
    assert 115 < int(first["of noise in min(H, D) dimensions"]) < 128
    assert first["error with the exact last layer"] == ""
    assert last["1 - H/D, or 0"] == "0.000"
    wide = next(r for r in answers.floor_rows(by_study) if r["network"] == "MLP 1024")
    assert wide["error at 900"].startswith("0.0054")
    assert wide["error with the exact last layer"].startswith("0.0045")


def test_errors_stand_by_length_and_rate_of_the_training():
    by_study = studies(FLAT["sure"], floor_of)
    for name, (_, seeds) in outputs.other_trainings().items():
        error = 0.25 if "8000" in name else 0.75
        rows = [{"network": name, "seed": seed, "error at 900": error} for seed in seeds]
        by_study["outputs"]["measured"] += rows
    by_network = {row["error at 900"]: row for row in answers.training_rows(by_study)}
    assert tuple(by_network) == outputs.WIDE_ENOUGH
    perceptron, unet = by_network["MLP 1024"], by_network["U-Net 14/256"]
    assert [*perceptron.values()][1:] == ["0.750", "0.005", "0.250", "0.750", "0.750"]
    assert [*unet.values()][1:] == ["0.750", "0.051", "", "", ""]


def test_arms_of_little_variety_are_named():
    cells = record("cells", sure_if_all_hold)
    for row in cells["measured"]:
        row["measures"]["recall"] = 0.5 - 0.3 * row["arm"].startswith("MLP 256: x_0, ")
    for row in cells["measured"]:  # behind, and not named
        if row["arm"] in ("MLP 256: x_0, snr", "MLP 256: x_0, min_snr"):
            row["measures"][answers.DISTANCE] = 80
        elif row["arm"] == "MLP 256: x_0, snr_plus_1":
            row["measures"]["recall"] = 0.45
    assert answers.less_varied(cells) == {"MLP 256: x_0, uniform": pytest.approx(-0.3)}


def test_the_larger_the_error_of_the_outputs_the_worse_the_samples():
    by_study = studies(lambda arm, steps: 1 - floor_of(arm.split(":")[0]), floor_of)
    assert answers.rank_correlation(by_study, 100) > 0.8
    error, distance = answers.errors_and_distances(by_study, 900)["MLP 128"]
    assert (error, distance) == pytest.approx((1 - 128 / 784, 60 * (1 - 128 / 784)), rel=2e-3)
    mean = sum(answers.distance_of_eps(by_study, "MLP 256 + skip")) / 5
    assert mean == pytest.approx(60 * 0.02, abs=0.06)


def test_the_share_of_the_error_in_a_window_and_where_eps_overtakes():
    """A window with one error in it, that is three times as large as another out of it."""
    by_study = studies(sure_if_all_hold, floor_of)
    snr = schedules.linear(1000).snr(torch.tensor([200, 400, 800]))
    assert snr.log2().tolist() == pytest.approx([1.0, -2.0, -9.3], abs=1.0)
    loss = torch.tensor([1.0, 3.0, 0.0]) / losses.min_snr(snr)
    for row in by_study["window"]["measured"]:
        row["errors"] = {"t": [1, 200, 400, 800, 1000], "x_0": [0.0, *loss.tolist(), 0.0]}
        row["measures"]["recall"] = 0.5
    share = partial(answers.share_inside, by_study["window"])
    assert share("v, min_snr") == pytest.approx(0.75)
    assert share("eps, inside") == pytest.approx(3 / (3 + window.ELSEWHERE))
    rows = {row["prediction, weight"]: row for row in answers.window_rows(by_study["window"])}
    assert rows["v, min_snr"]["share of the error inside"] == "0.75"
    assert rows["x_0, inside"][answers.DISTANCE].startswith("24.0")
    by_sampler = {name: by_study[study] for name, study in answers.SAMPLERS.items()}
    assert registered.draw_crossing(by_sampler, 0.05).png().startswith(b"\x89PNG")
    arms = answers.NAIVE, answers.DDPM
    ddpm, ddim = registered.crossing_rows(by_sampler, *arms, 0.05)
    assert (ddpm["sampler"], ddim["sampler"]) == ("DDPM", "DDIM")
    assert ddpm["32,000 images"].startswith("-6.0")
    assert ddpm["512,000 images"].startswith("+6.0")
    assert ddpm["eps, snr ahead from"] == "512,000 [512,000, 512,000]"


def test_the_effective_rank_counts_directions():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    assert outputs.effective_rank(rows) == pytest.approx(5, abs=0.05)
    assert outputs.effective_rank(rows @ torch.randn(5, 40, dtype=torch.float64)) < 5


def test_the_classifier_is_sure_of_noise():
    """So that the share of samples of which it is sure does not say that they are digits."""
    assert 0.3 < answers.sure_of_noise() < 0.5
