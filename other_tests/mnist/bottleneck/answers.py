"""The statements of the eight hypotheses of REGISTRATION.md, from the committed records."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy import stats

from diffusion_lib import compare, data, losses, metrics, predictions
from diffusion_lib.metrics import Interval, features
from other_tests import common, registered
from other_tests.mnist.bottleneck import control, outputs, toy, window
from other_tests.registered import DISTANCE, gaps, minus

FOLDER = Path(__file__).parent  # of the records
REGISTERED = FOLDER  # of the studies
ALPHA = 0.05 / 8  # eight hypotheses
SURE = "confidence > 0.9"
DDPM, NAIVE = "eps, snr", "x_0, uniform"
Statement = partial(registered.Statement, alpha=ALPHA)
OfDistance = partial(Statement, unit=DISTANCE)
BETTER = {SURE: max, DISTANCE: min}
PREDICTIONS, WEIGHTS = ("eps", "v", "x_0"), ("snr", "snr_plus_1", "uniform", "min_snr")
CELLS = [", ".join(cell) for cell in product(PREDICTIONS, WEIGHTS)]
NARROW, WIDE = ("MLP 256", "U-Net 14/64"), ("MLP 1024", "U-Net 14/256")
PIXELS = 28 * 28
FLOOR = 1 - 256 / PIXELS  # of the narrow networks, and of those of `control`
ROUNDING = 0.01  # ten times the standard error of an error on 2,000 images
MARGIN, GAIN = 0.02, 0.1  # of the floor; of a share of sure samples that matters
GAP = 5  # of a distance that matters
# By the numbers that are let through, of 784.
WIDTHS = {"MLP 128": 128, "MLP 256": 256, "MLP 512": 512, "MLP 768": 768}
WIDTHS |= {"MLP 1024": 784, "MLP 1568": 784}
STUDIES = ["cells", "cells_ddim", "again", "floor", "control", "rates", "window"]
SAMPLERS = {"DDPM": "crossing", "DDIM": "crossing_ddim"}
STUDIES += SAMPLERS.values()
Record = Mapping[str, Any]


def interval(values: Sequence[float]) -> Interval:
    """Estimate the mean of independent values at the level of this study."""
    return Interval.student_t(values, ALPHA)


def records() -> dict[str, Record]:
    """Read the records that hold all registered seeds, by the names of their studies."""
    by_study: dict[str, Record] = {}
    for name in STUDIES:
        file, path = REGISTERED / f"{name}.json", FOLDER / f"{name}.record.json"
        seeds = compare.read_study(file if file.exists() else REGISTERED / "cells.json").seeds
        by_study |= registered.load({name: path}, seeds)
    jobs = {(name, seed) for name, (_, seeds) in outputs.arms().items() for seed in seeds}
    for name, path, registered_jobs, keys in (
        ("outputs", outputs.RECORD, jobs, ("network", "seed")),
        ("toy", toy.RECORD, {*toy.jobs()}, toy.JOB),
    ):
        record = common.load(path) if path.exists() else {"measured": []}
        if registered_jobs <= {tuple(row[key] for key in keys) for row in record["measured"]}:
            by_study[name] = record
    return by_study


def of_shared_seeds(*of_studies: Record) -> list[dict[str, Any]]:
    """Return records without the seeds that one of them lacks, so that arms can be paired."""
    seeds = sorted(set.intersection(*(set(record["seeds"]) for record in of_studies)))
    return [
        {**record, "seeds": seeds}
        | {"measured": [row for row in record["measured"] if row["seed"] in seeds]}
        for record in of_studies
    ]


def measured(
    record: Record, arm: str, measure: str = DISTANCE, steps: int | None = None
) -> list[float]:
    """Return a measure of the samples for each seed, by default after the longest training."""
    return compare.values(record, measure, arm, steps or record["steps"][-1])


def best(record: Record, network: str, prediction: str, measure: str = DISTANCE) -> list[float]:
    """Return a measure of the samples, for the weight that has the best of it in the mean."""
    arms = [f"{network}: {prediction}, {weight}" for weight in WEIGHTS]
    there = (measured(record, arm, measure) for arm in arms if arm in record["arms"])
    return BETTER[measure](there, key=fmean)


def sure_of_noise(n: int = 500) -> float:
    """Return the share of images of noise, clipped to [-1, 1], of which the classifier is sure."""
    noise = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    described = features.load("mnist").extract_features(data.to_uint8(noise))
    return float((described.probabilities.amax(1) > metrics.CONFIDENT).double().mean())


def output_measure(by_study: Mapping[str, Record], network: str, name: str) -> list[float]:
    """Return a measure of the outputs of a network, for each seed."""
    rows = by_study["outputs"]["measured"]
    return [row[name] for row in rows if row["network"] == network]


def last_layer(network: Mapping[str, Any]) -> tuple[int, int]:
    """Return H and D: the numbers that a last layer sees, and the pixels that it makes of them.

    Args:
        network: record of the network of an arm.
    """
    channels, height, width = network["image_shape"]
    if network.get("kind", "unet") == "mlp":
        return network["width"], channels * height * width
    return network["width"], channels * network.get("patch", 1) ** 2


def floor_of(network: Mapping[str, Any]) -> float:
    """Return 1 - H / D, or 0: the share of the noise that a linear last layer cannot output.

    Args:
        network: record of the network of an arm.
    """
    numbers, pixels = last_layer(network)
    return max(0.0, 1 - numbers / pixels)


def floors(by_study: Mapping[str, Record]) -> dict[str, float]:
    """Return 1 - H / D, or 0, of each network of `cells` and `floor` with a linear last layer."""
    result = {}
    for study in ("cells", "floor"):
        for arm, fields in by_study[study]["arms"].items():
            result[arm.split(":")[0]] = floor_of(fields["network"])
    return result


def distance_of_eps(by_study: Mapping[str, Record], network: str) -> list[float]:
    """Return the distance of samples of "eps, snr" of any network of `outputs`, for each seed."""
    arm = f"{network}: {DDPM}"
    study = next(name for name in ("cells", "floor", "control") if arm in by_study[name]["arms"])
    return measured(by_study[study], arm)


def errors_and_distances(
    by_study: Mapping[str, Record], time: int
) -> dict[str, tuple[float, float]]:
    """Return the error of the outputs of "eps, snr" at a time, and the distance, by network."""
    return {
        network: (
            fmean(output_measure(by_study, network, f"error at {time}")),
            fmean(distance_of_eps(by_study, network)),
        )
        for network in outputs.arms()
    }


def rank_correlation(by_study: Mapping[str, Record], time: int) -> float:
    """Return Spearman's correlation of errors at a time and distances over the networks."""
    pairs = [*errors_and_distances(by_study, time).values()]
    ranks = stats.rankdata(pairs, axis=0)
    return float(np.corrcoef(ranks.T)[0, 1])


def floor_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 1: no error below the floor, and none far above it."""
    statements = []
    for network, floor in floors(by_study).items():
        above = [error - floor for error in output_measure(by_study, network, "error at 900")]
        if floor > MARGIN + ROUNDING:
            text = f"{network}: error of the output minus {floor:.3f}"
            statements.append(Statement("1a the floor is a bound", text, above, -ROUNDING))
            statements.append(Statement("1b and is reached", text, above, -ROUNDING, MARGIN))
    return statements


def place_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 2: it does not matter where the network is narrow, and a way around it helps."""
    statements = []
    for network in ("MLP 1024, 256 in", "MLP 1024, 256 out"):
        above = [error - FLOOR for error in output_measure(by_study, network, "error at 900")]
        text = f"{network}: error of the output minus {FLOOR:.3f}"
        statements.append(Statement("2a narrow in one place", text, above, -ROUNDING, 0.1))
    above = [error - 0.5 for error in output_measure(by_study, "encoder-decoder", "error at 900")]
    text = "encoder-decoder, 392 of 784 in its middle: error of the output minus 0.5"
    statements.append(Statement("2a narrow in one place", text, above, -ROUNDING))
    around, without = of_shared_seeds(by_study["control"], by_study["cells"])
    for network in ("MLP 256 + skip", "U-Net 14/64 + skip"):
        error = output_measure(by_study, network, "error at 900")
        text = f"{network}: error of the output"
        statements.append(Statement("2b a way around it", text, error, -math.inf, FLOOR / 5))
        changed = control.NETWORKS[network][0]
        gain = minus(best(around, network, "eps"), best(without, changed, "eps"))
        text = f"{network}: distance of eps, minus that without it"
        statements.append(OfDistance("2b a way around it", text, gain, -math.inf, -GAP))
    return statements


def cell_statements(
    by_study: Mapping[str, Record], study: str = "cells"
) -> list[registered.Statement]:
    """Hypothesis 3: with H < D prediction and weight decide, with H > D no prediction is out.

    By the share that is sure, which is not valid for noise (REGISTRATION.md, "Changes").  `study`
    is "cells_ddim" for the same by DDIM, of which only a change of a verdict is told.
    """
    record, statements = by_study[study], []
    for network in NARROW:
        naive = measured(record, f"{network}: x_0, uniform", SURE)
        text = f"{network}: x_0 with uniform minus the best cell of eps"
        effect = minus(naive, best(record, network, "eps", SURE))
        statements.append(Statement("3a the prediction, H < D", text, effect, GAIN))
        text = f"{network}: x_0, uniform minus snr"
        effect = minus(naive, measured(record, f"{network}: x_0, snr", SURE))
        statements.append(Statement("3b the weight, H < D", text, effect, GAIN))
    for network in WIDE:
        text = f"{network}: best cell of x_0 minus best of eps"
        effect = minus(*(best(record, network, name, SURE) for name in ("x_0", "eps")))
        statements.append(Statement("3c no lead, H > D", text, effect, -math.inf, GAIN))
    return statements


def again_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 3 again, by the distance to real digits and on other seeds."""
    record, statements = by_study["again"], []
    for network in NARROW:
        naive = measured(record, f"{network}: x_0, uniform")
        text = f"{network}: distance of x_0 with uniform minus the best cell of eps"
        effect = minus(naive, best(record, network, "eps"))
        statements.append(OfDistance("3d the prediction again", text, effect, -math.inf, -GAP))
        text = f"{network}: distance of x_0, uniform minus snr"
        effect = minus(naive, measured(record, f"{network}: x_0, snr"))
        statements.append(OfDistance("3e the weight again", text, effect, -math.inf, -GAP))
    text = f"{WIDE[0]}: distance of the best cell of x_0 minus best of eps"
    effect = minus(*(best(record, WIDE[0], prediction) for prediction in ("x_0", "eps")))
    return [*statements, OfDistance("3f no lead again, H > D", text, effect, -GAP)]


def exact_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 4: what is left above the floor is not for want of a better last layer."""
    statements = []
    for network in outputs.WIDE_ENOUGH:
        exact = output_measure(by_study, network, "error with the exact last layer")
        own = output_measure(by_study, network, "error at 900")
        share = [1 - a / b for a, b in zip(exact, own, strict=True)]
        if fmean(own) > ROUNDING:
            text = f"{network}: share of the error that the exact last layer removes"
            statements.append(Statement("4 above the floor", text, share, -math.inf, 0.5))
    return statements


def dose_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 5: the wider an MLP, the nearer samples of eps are to real digits."""
    of_width = [distance_of_eps(by_study, network) for network in WIDTHS]
    seeds = min(map(len, of_width))
    of_seed = zip(*(values[:seeds] for values in of_width), strict=True)
    numbers = [*WIDTHS.values()]
    correlations = [float(np.corrcoef(numbers, values)[0, 1]) for values in of_seed]
    text = "correlation of the distance with the numbers let through"
    return [Statement("5 dose and response", text, correlations, -math.inf, 0.0)]


def window_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 6: what is learned where labels are decided matters most."""
    record, statements = by_study["window"], []
    for prediction, other in product(PREDICTIONS, ("noisier", "cleaner")):
        text = f"{prediction}: distance with the weight inside minus {other}"
        arms = (f"{prediction}, inside", f"{prediction}, {other}")
        effect = minus(*(measured(record, arm) for arm in arms))
        statements.append(OfDistance("6 the window", text, effect, -math.inf, 0.0))
    return statements


def crossing_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 7: with skips x_0 is ahead early and not late."""
    (first, early), *_, (last, late) = gaps(by_study["crossing"], NAIVE, DDPM).items()
    text = "after {:,} images: distance of x_0 with uniform minus eps with snr"
    return [
        OfDistance("7a x_0 ahead early", text.format(first), early, -math.inf, 0.0),
        OfDistance("7b x_0 behind late", text.format(last), late, 0.0),
    ]


def best_mixes(record: Record, width: int) -> dict[tuple[int, int], dict[int, float]]:
    """Return the best k of the toy with a width by (d, D) and seed."""
    errors: dict[tuple[int, int], dict[int, list[tuple[float, float]]]] = {}
    for row in record["measured"]:
        if row["H"] == width:
            of_seed = errors.setdefault((row["d"], row["D"]), {})
            of_seed.setdefault(row["seed"], []).append((row["error"], row["k"]))
    return {
        cell: {seed: min(pairs)[1] for seed, pairs in of_seed.items()}
        for cell, of_seed in errors.items()
    }


def mix_statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Hypothesis 8: D / (D + d) says better than a constant which k is best."""
    by_cell = best_mixes(by_study["toy"], max(toy.WIDTHS))
    seeds = sorted(set.intersection(*map(set, by_cell.values())))

    def misses(rule: Callable[[int, int], float]) -> list[float]:
        return [fmean(abs(by_cell[d, D][seed] - rule(d, D)) for d, D in by_cell) for seed in seeds]

    law = misses(lambda d, D: D / (D + d))
    return [
        Statement(
            "8 the best mix",
            f"distance of the best k from D / (D + d) minus that from {constant}",
            minus(law, misses(lambda d, D, constant=constant: constant)),
            -math.inf,
            0.0,
        )
        for constant in (0.75, 1.0)
    ]


# What is stated -> the records that it needs.
MAKERS = {
    floor_statements: ("cells", "floor", "outputs"),
    place_statements: ("cells", "control", "outputs"),
    cell_statements: ("cells",),
    again_statements: ("again",),
    exact_statements: ("outputs",),
    dose_statements: ("cells", "floor"),
    window_statements: ("window",),
    crossing_statements: ("crossing",),
    mix_statements: ("toy",),
}


def statements(by_study: Mapping[str, Record]) -> list[registered.Statement]:
    """Make the statements of all hypotheses whose records are there, in the order of these."""
    return sorted(registered.make(MAKERS, by_study), key=lambda statement: statement.hypothesis)


def less_varied(record: Record) -> dict[str, float]:
    """Return arms that are ahead of their network's "eps, snr" with a recall lower by 0.1.

    The record is of a study that has this arm for each of its networks.
    """
    result = {}
    for arm in record["arms"]:
        network, colon, _ = arm.rpartition(": ")
        base = f"{network}{colon}{DDPM}"
        (distance, least), (recall, own) = (
            [fmean(measured(record, a, name)) for a in (arm, base)] for name in (DISTANCE, "recall")
        )
        if distance < least and own - recall >= GAIN:
            result[arm] = recall - own
    return result


def cell_rows(record: Record, measure: str = DISTANCE) -> list[dict[str, str]]:
    """Make a table of a measure: each cell minus "eps, snr" of the same network.

    Intervals are at 1 - 0.05 / 8, as all of this study.

    Args:
        record: record of `cells`, or of the same by DDIM.
        measure: measure of the samples, after the longest training.
    """
    spec, table = ".1f" if measure == DISTANCE else ".2f", []
    for cell in CELLS:
        row = {"": cell}
        for network in (*NARROW, *WIDE):
            arm, base = f"{network}: {cell}", f"{network}: {DDPM}"
            effect = ""
            if arm in record["arms"]:
                own, other = (measured(record, a, measure) for a in (arm, base))
                gap = format(interval(minus(own, other)), f"+{spec}")
                effect = format(interval(own), spec) if arm == base else gap
            row[network] = effect
        table.append(row)
    return table


def around_rows(by_study: Mapping[str, Record]) -> list[dict[str, str]]:
    """Make a table of the networks of `control`: distances, and less those of the same networks.

    Intervals are at 1 - 0.05 / 8, as all of this study.
    """
    record, cells = of_shared_seeds(by_study["control"], by_study["cells"])
    table = []
    for arm in record["arms"]:
        network, cell = arm.split(": ")
        (changed, _), own = control.NETWORKS[network], measured(record, arm)
        gap = minus(own, measured(cells, f"{changed}: {cell}"))
        row = {"network": network, "cell": cell, DISTANCE: f"{interval(own):.1f}"}
        table.append(row | {"minus that of the network without": f"{interval(gap):+.1f}"})
    return table


def size_rows(record: Record) -> list[dict[str, str]]:
    """Make a table of the four networks of `cells`, and of what two cells gain by training."""
    table = []
    for network in (*NARROW, *WIDE):
        fields = record["arms"][f"{network}: {DDPM}"]["network"]
        numbers, pixels = last_layer(fields)
        row = {"network": network, "H": f"{numbers}", "D": f"{pixels}"}
        row["1 - H/D, or 0"] = f"{floor_of(fields):.2f}"
        for cell in (DDPM, NAIVE):
            for steps in record["steps"]:
                distances = measured(record, f"{network}: {cell}", steps=steps)
                row[f"{cell}, {steps:,} steps"] = f"{fmean(distances):.1f}"
        table.append(row)
    return table


def floor_rows(by_study: Mapping[str, Record]) -> list[dict[str, str]]:
    """Make a table of the floors, the errors, what the exact last layer leaves of them, and ranks.

    Beside the effective rank of the outputs stands that of noise in as many dimensions as the last
    layer can output.  Intervals are at 1 - 0.05 / 8, as all of this study.
    """
    table = []
    for network, floor in sorted(floors(by_study).items(), key=lambda item: -item[1]):
        measures = partial(output_measure, by_study, network)
        row = {"network": network, "1 - H/D, or 0": f"{floor:.3f}"}
        row |= {f"error at {t}": f"{fmean(measures(f'error at {t}')):.3f}" for t in (100, 500)}
        row["error at 900"] = f"{interval(measures('error at 900'))}"
        exact = "error with the exact last layer"
        row[exact] = f"{interval(measures(exact))}" if network in outputs.WIDE_ENOUGH else ""
        row["effective rank"] = f"{fmean(measures('effective rank')):.0f}"
        row["of noise in min(H, D) dimensions"] = (
            f"{rank_of_noise(round((1 - floor) * PIXELS)):.0f}"
        )
        table.append(row)
    return table


def training_rows(by_study: Mapping[str, Record]) -> list[dict[str, str]]:
    """Make a table of errors at t = 900 of networks with H >= D by training, means of seeds."""
    table, rates = [], {", rate x 1/3": "a third of the rate", ", rate x 3": "three times the rate"}
    trainings = {", 500 steps": "500 steps", "": "2,000 steps", ", 8000 steps": "8,000 steps"}
    for network in outputs.WIDE_ENOUGH:
        row = {"error at 900": network}
        for training, name in (trainings | rates).items():
            errors = output_measure(by_study, network + training, "error at 900")
            row[name] = f"{fmean(errors):.3f}" if errors else ""
        table.append(row)
    return table


def mix_rows(record: Record) -> list[dict[str, str]]:
    """Make a table of the toy: the law, the best k of each width, and what other k cost.

    The cost is the mean error of the seeds, over that of k = 1, in the widest perceptron.
    """
    table, best = [], {width: best_mixes(record, width) for width in toy.WIDTHS}
    errors: dict[tuple[int, int, float], list[float]] = {}
    for row in record["measured"]:
        if row["H"] == max(toy.WIDTHS):
            errors.setdefault((row["d"], row["D"], row["k"]), []).append(row["error"])
    for d, D in best[max(toy.WIDTHS)]:
        of_x_0 = fmean(errors[d, D, 1.0])
        row = {"d": f"{d}", "D": f"{D}", "D / (D + d)": f"{D / (D + d):.2f}"}
        row |= {f"best k, H = {w}": f"{fmean(best[w][d, D].values()):.2f}" for w in toy.WIDTHS}
        for k in (0.0, 0.5, 0.9):
            cost = fmean(errors[d, D, k]) / of_x_0
            row[f"error of k = {k:g} / of 1"] = f"{cost:,.0f}" if cost > 10 else f"{cost:.2f}"
        table.append(row)
    return table


def rank_of_noise(dimensions: int) -> float:
    """Return the effective rank of isotropic noise in as many pictures as `outputs` looks at.

    Their covariances differ a little from direction to direction, so it is below the number of
    dimensions [Page 1993].
    """
    return dimensions * math.exp(-dimensions / (2 * outputs.NUM_TEST))


def share_inside(record: Record, arm: str) -> float:
    """Return the share of the weighted error of a trained network that lies inside of the window.

    Of the held-out errors of x_0_hat at evenly spaced times, in the mean over seeds.  x_0_hat is
    clipped to [-1, 1], so at little signal this is less than the loss that was trained on.
    """
    experiment = window.arms()[arm]
    times, errors = compare.errors(record, "x_0", arm, record["steps"][-1])
    schedule, t = experiment.schedule(experiment.T), torch.tensor(times, dtype=torch.int64)
    weight = losses.implied_weight(experiment.weight, predictions.x_0, schedule, t)
    weighted, snr = weight * torch.tensor(errors), schedule.snr(t)
    inside = (snr.log2() >= window.LOW) & (snr.log2() <= window.HIGH)
    return float(torch.trapezoid(weighted * inside) / torch.trapezoid(weighted))


def window_rows(record: Record) -> list[dict[str, str]]:
    """Make a table of the arms of `window`: where their errors lie, and how good samples are.

    Intervals are at 1 - 0.05 / 8, as all of this study.
    """
    return [
        {
            "prediction, weight": arm,
            "share of the error inside": f"{share_inside(record, arm):.2f}",
            DISTANCE: f"{interval(measured(record, arm)):.1f}",
            "sure": f"{interval(measured(record, arm, SURE)):.2f}",
            "recall": f"{interval(measured(record, arm, 'recall')):.2f}",
        }
        for arm in record["arms"]
    ]
