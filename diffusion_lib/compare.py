"""Paired comparisons: arms over seeds, intervals, verdicts.

    record = compare({"eps": config.MNIST, "x_0": other}, seeds=(0, 1, 2), steps=(500, 1000))
    viz.table(differences(record, "Frechet distance", 1000))

An arm is an `Experiment`.  All arms of a seed start from the same weights (where their networks
have the same shapes) and see the same batches, times and noise; all of them are measured on the
same test images with the same noise, and their samples start from the same x_T.  So what arms have
in common cancels in their difference d_s at seed s, and

    mean(d) +- t_{n-1}(0.975) * sd(d) / sqrt(n)

is a 95 % interval for what another seed would have given [Student 1908].  One comparison in twenty
leaves 0 out by chance: where there are many rows, a few verdicts are luck.

Every training and every measurement is a file under "runs", named after the experiment that made
it.  A study that was stopped goes on, and an added arm, seed or number of steps costs only itself.
Processes share a study by locking what they work on: several of them, started by torchrun or by
hand in one folder, do it together.
"""

import base64
import hashlib
import io
import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import special
from torch import Tensor

from diffusion_lib import config, data, evaluation, features, metrics, runs, samplers
from diffusion_lib.config import Experiment
from diffusion_lib.data import Dataset, Images
from diffusion_lib.evaluation import Conditions
from diffusion_lib.runs import Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files
from diffusion_lib.system.progress import Bar

_FORMAT = "diffusion_lib study 1"
_SHOWN = 8  # samples of each run that its record keeps
_PATIENCE = 1.0  # seconds between looks at what other processes have done

ERRORS = ("x_0 error", "eps error", "v error")
"""Held-out mean squared errors a pixel, averaged over t: those of every arm on one yardstick."""


class Study(NamedTuple):
    """The arguments of `compare`, as a file holds them."""

    arms: dict[str, Experiment]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    conditions: Conditions


class Difference(NamedTuple):
    """What one arm has that another has not, over n seeds."""

    value: float
    low: float  # of the 95 % interval
    high: float
    standard_error: float  # of the paired difference
    unpaired_standard_error: float  # had the arms not shared their seeds
    n: int

    @property
    def verdict(self) -> str:
        """ "lower", "higher" or "not distinguishable"."""
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        return "lower" if self.value < 0 else "higher"


# ---- running ---------------------------------------------------------------------------------


def compare(
    arms: Mapping[str, Experiment],
    seeds: Sequence[int],
    steps: Sequence[int],
    conditions: Conditions,
    root: str | Path | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Train and measure what is missing of a study; returns its record.

    Shows a progress bar over the whole study.  Stopped at any moment and called again, it goes on,
    and ends with the same record.

    Args:
        arms: by name; `train.seed` and `train.num_steps` of an arm are replaced by the study's.
        seeds: of trainings, at least 2.
        steps: numbers of training steps at which every arm is measured.  A longer training goes on
            from a shorter one.
        conditions: how to measure; n = 0 samples nothing, for data sets without features.
        root: folder of the data sets, None for `config.data_root()`.
        device: None takes the GPU if there is one.

    Returns:
        {"arms", "seeds", "steps", "conditions", "devices", "floor", "measured": one for each arm,
        seed and number of steps, in this order}: plain values, for JSON.

    Raises:
        ValueError: fewer than 2 arms or seeds, a seed or number of steps twice; conditions that an
            arm cannot be measured under (all before anything is trained); what `runs.train`
            refuses.
        FloatingPointError: an arm diverged; the message names it.
    """
    study = Study(dict(arms), tuple(seeds), tuple(sorted(steps)), conditions)
    place = _Place(str(root or config.data_root()), device or config.device())
    _check(study, place)
    jobs = [(name, seed) for seed in study.seeds for name in study.arms]
    measured = {job: found for job in jobs if (found := _found(*job, study, place))}
    longest = study.steps[-1]
    total, done = len(jobs) * longest, len(measured) * longest
    # The rate is that of the whole time, as arms differ; what was done before is not part of it.
    with Bar(None, "study", total, done, " steps", smoothing=0) as bar:
        while len(measured) < len(jobs):
            for name, seed in [job for job in jobs if job not in measured]:
                bar.note(f"{name}, seed {seed}")
                with _claim(name, seed, study, place) as mine:
                    # Of what another process holds, it may just have written the last measure.
                    found = (_work if mine else _found)(name, seed, study, place)
                if found:
                    measured[name, seed] = found
                    bar.update(longest)
                    break  # look first at what other processes have finished meanwhile
            else:
                time.sleep(_PATIENCE)  # they hold all that is left
    return _record(study, measured, place)


class _Place(NamedTuple):
    """Where a study runs."""

    root: str
    device: torch.device

    def folder(self, experiment: Experiment) -> Path:
        return config.runs_root() / experiment.name(_fingerprint(experiment.dataset, self.root))


def _check(study: Study, place: _Place) -> None:
    """Refuse what cannot be trained or measured before hours are spent on the rest."""
    if len(study.arms) < 2:
        raise ValueError(f"a comparison needs at least 2 arms; got {list(study.arms)}")
    for what, given, least in (("seeds", study.seeds, 2), ("steps", study.steps, 1)):
        if len(given) < least or len(set(given)) < len(given):
            raise ValueError(f"{what} must be at least {least} and all different; got {[*given]}")
    for name, arm in study.arms.items():
        try:
            for seed in study.seeds:
                _at(arm, seed, study.steps[0]).build()
            _check_conditions(arm, study.conditions, place)
        except (TypeError, ValueError) as error:
            raise ValueError(f"arm {name!r}: {error}") from error


def _check_conditions(arm: Experiment, asked: Conditions, place: _Place) -> None:
    train, test = (_split(arm.dataset, place.root, part) for part in (True, False))
    for images in (train, test):
        data.check(images, arm.network.image_shape)
    evaluation.check_enough(test, asked.n_likelihood, "test images for the likelihood")
    if asked.n:
        name = config.label(arm.dataset)
        if name not in features.RELEASED:
            raise ValueError(
                f"no feature network is released for the data set {name!r}, so that samples of it "
                'cannot be measured: use the conditions {"n": 0}'
            )
        network = features.load(name)
        metrics.check_count(asked.n, network.classify.in_features, "samples")
        evaluation.check_enough(train, asked.n, "training images for the floor")
        schedule = arm.schedule(arm.T)
        schedule.timesteps(asked.steps or arm.T)  # refuses more sampling steps than T


def _at(arm: Experiment, seed: int, steps: int) -> Experiment:
    """One arm with one seed, at one number of steps."""
    return replace(arm, train=replace(arm.train, seed=seed, num_steps=steps))


def _chain(name: str, seed: int, study: Study) -> list[Experiment]:
    """One arm with one seed, at every number of steps."""
    return [_at(study.arms[name], seed, steps) for steps in study.steps]


def _found(name: str, seed: int, study: Study, place: _Place) -> list[dict[str, Any]] | None:
    """The measures of one arm with one seed, if all are there."""
    found = []
    for experiment in _chain(name, seed, study):
        measures = _read_measures(experiment, study, place)
        if measures is None:
            return None
        found.append(measures)
    return found


@contextmanager
def _claim(name: str, seed: int, study: Study, place: _Place) -> Iterator[bool]:
    """Whether this process may work on one arm with one seed, at whatever number of steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a warm-up longer than 1 step, which nothing trains
        folder = place.folder(_at(study.arms[name], seed, 1))
    claim = folder.with_name(f".{folder.name}.lock")
    try:
        claim.parent.mkdir(parents=True, exist_ok=True)
        claim.touch()
    except OSError as error:
        raise files.not_written(claim, error) from error
    with files.lock(claim) as mine:
        yield mine


def _work(name: str, seed: int, study: Study, place: _Place) -> list[dict[str, Any]]:
    """Train and measure one arm with one seed, at every number of steps."""
    dataset = study.arms[name].dataset
    train, test = (_labelled(dataset, place.root, part) for part in (True, False))
    found, start = [], None
    for experiment in _chain(name, seed, study):
        folder = place.folder(experiment)
        measures = _read_measures(experiment, study, place)
        if measures is None:
            try:
                run = runs.train(experiment, train, test, folder, place.device, start)
                measures = _measure(run, experiment, study, place)
            except (ValueError, FloatingPointError) as error:
                error.add_note(f"This was arm {name!r}, seed {seed}.")
                raise
        found.append(measures)
        # A learning rate that has fallen at the end is not gone on from: that trains from step 0.
        start = folder if experiment.train.cooldown == 0 else None
    return found


def _split(dataset: Dataset, root: str, train: bool) -> Tensor:
    return _labelled(dataset, root, train).images


@cache
def _labelled(dataset: Dataset, root: str, train: bool) -> Images:
    return data.load(dataset, root, train)


@cache
def _fingerprint(dataset: Dataset, root: str, train: bool = True) -> str:
    return runs.fingerprint(_split(dataset, root, train))


# ---- measuring -------------------------------------------------------------------------------


def _conditions(experiment: Experiment, study: Study, place: _Place) -> dict[str, Any]:
    """All that the measures of a run depend on, apart from the run and the device."""
    dataset = experiment.dataset
    found: dict[str, Any] = {"test images": _fingerprint(dataset, place.root, False)}
    if study.conditions.n:
        found["features sha256"] = features.released(config.label(dataset))[1]
    return asdict(study.conditions) | found


def _read_measures(experiment: Experiment, study: Study, place: _Place) -> dict[str, Any] | None:
    """What was measured of a run under the study's conditions, if anything was."""
    path = _measures_file(experiment, study, place)
    conditions = _conditions(experiment, study, place)
    try:
        found = json.loads(path.read_text())
        return found if found["conditions"] == conditions else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged one is measured again


def _measures_file(experiment: Experiment, study: Study, place: _Place) -> Path:
    """In the folder of the run; studies that measure differently share the run."""
    told = json.dumps(_conditions(experiment, study, place), sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    return place.folder(experiment) / f"compared-{digest}.json"


def _measure(run: Run, experiment: Experiment, study: Study, place: _Place) -> dict[str, Any]:
    """The measures of a run, which are written into its folder, or returned with a warning."""
    asked, train = study.conditions, experiment.train
    test = _split(experiment.dataset, place.root, False)
    images = evaluation.some(test, asked.n_likelihood, "test images for the likelihood")
    times = min(asked.num_times, experiment.T)
    bound = metrics.bits_per_dim(run.denoiser, images, times, seed=asked.seed)
    errors = metrics.errors_per_t(run.denoiser, images, seed=asked.seed)
    found = {"bits per dim": bound.total.mean, "L_0": bound.L_0}
    for name, values in zip(ERRORS, (errors.x_0, errors.eps, errors.v), strict=True):
        # Of the evenly spaced times: t = 1 stands beside them, for plots.
        found[name] = fmean(values[1:] or values)
    record: dict[str, Any] = {
        "conditions": _conditions(experiment, study, place),
        "device": _devices(run, place.device),
        "images seen": train.num_steps * train.batch_size,
        "errors": {
            name: [_short(value) for value in values] for name, values in errors._asdict().items()
        },
    }
    if asked.n:
        sampler = config.resolve(asked.sampler, samplers, "sampler")
        samples = runs.sample(run, asked.n, asked.seed, sampler, asked.steps)
        found |= _quality(samples, experiment.dataset, place)
        record["samples"] = _to_png(samples[:_SHOWN])
    record["measures"] = {name: _short(value) for name, value in found.items()}
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    try:
        files.write_text(_measures_file(experiment, study, place), text)
    except OSError as error:
        warnings.warn(
            f"the measures of {run.folder} are in the study's record, but not kept beside the run: "
            f"a study that is stopped measures it again ({error})",
            stacklevel=2,
        )
    return record


def _devices(run: Run, device: torch.device) -> str:
    """Where a run was trained and, if that is another place, measured."""
    described = run.describe()
    trained = ", ".join(described[name] for name in ("device", "precision", "memory layout"))
    measured = f"{hardware.name(device)}, {hardware.precision(device)}, {hardware.layout(device)}"
    return trained if trained == measured else f"{trained}; measured on {measured}"


def _quality(images: Tensor, dataset: Dataset, place: _Place) -> dict[str, float]:
    """How images compare with the test split; no intervals, as a study has its seeds for those."""
    network = features.load(config.label(dataset))
    return metrics.values(network.describe_images(images), _reference(dataset, place.root))


@cache
def _reference(dataset: Dataset, root: str) -> Tensor:
    network = features.load(config.label(dataset))
    return network.describe_images(_split(dataset, root, False)).features


def _floor(dataset: Dataset, n: int, place: _Place) -> dict[str, float]:
    """What n real training images score in the place of samples."""
    train = _split(dataset, place.root, True)
    images = evaluation.some(train, n, "training images for the floor")
    return {name: _short(value) for name, value in _quality(images, dataset, place).items()}


def _to_png(images: Tensor) -> str:
    """Images side by side as a PNG, in text."""
    row = torch.cat(list(images), dim=2).permute(1, 2, 0).squeeze(-1)
    file = io.BytesIO()
    Image.fromarray(row.numpy()).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _short(value: float) -> float:
    return float(f"{value:.6g}")


# ---- the record ------------------------------------------------------------------------------


def _record(
    study: Study, measured: Mapping[tuple[str, int], list[dict[str, Any]]], place: _Place
) -> dict[str, Any]:
    rows, devices = [], set()
    for name in study.arms:
        for seed in study.seeds:
            for steps, found in zip(study.steps, measured[name, seed], strict=True):
                row = {"arm": name, "seed": seed, "steps": steps, **found}
                del row["conditions"]
                if seed != study.seeds[0]:
                    row.pop("samples", None)  # pictures of one seed are enough
                devices.add(row.pop("device"))
                rows.append(row)
    sets = {config.label(arm.dataset): arm for arm in study.arms.values()}
    floors = {}
    if study.conditions.n:
        floors = {
            label: _floor(arm.dataset, study.conditions.n, place) for label, arm in sets.items()
        }
    return {
        "format": _FORMAT,
        "arms": {name: described(arm) for name, arm in study.arms.items()},
        "seeds": list(study.seeds),
        "steps": list(study.steps),
        "conditions": {label: _conditions(arm, study, place) for label, arm in sets.items()},
        "devices": sorted(devices),
        "floor": floors,
        "measured": rows,
    }


def described(arm: Experiment) -> dict[str, Any]:
    """An arm as a record has it: without the seed and steps, which its study decides."""
    told = json.loads(arm.to_json())
    del told["train"]["seed"], told["train"]["num_steps"]
    return told


def read_study(path: str | Path) -> Study:
    """A study from a JSON file.

        {"preset": "mnist", "all": {"train": {"batch_size": 32}},
         "arms": {"eps": {}, "x_0": {"prediction": "x_0"}},
         "seeds": [0, 1, 2], "steps": [500, 1000], "conditions": {"n": 500}}

    An arm is the preset with the changes of "all" and its own; "all" and "conditions" may be left
    out.  Names of functions are looked up, never executed.

    Raises:
        FileNotFoundError, ValueError: no such file; not a study; an unknown name.
    """
    path = Path(path)
    _demand_file(path, "a study")
    try:
        told = json.loads(path.read_text(), object_pairs_hook=_without_repeats)
        if told.get("format") == _FORMAT:
            raise ValueError(
                "it is the record of one that has run. Give the file of the study itself to go on "
                "with it; compare.load reads its record"
            )
        if "network" in told:
            raise ValueError("it is an experiment, such as a run has; a study has arms")
        unknown = told.keys() - {"preset", "all", "arms", "seeds", "steps", "conditions"}
        if unknown:
            raise ValueError(f"it has no {', '.join(sorted(unknown))}")
        preset = config.choose(told["preset"], config.PRESETS, "preset")
        arms = {
            name: preset.changed(told.get("all", {})).changed(changes)
            for name, changes in told["arms"].items()
        }
        seeds, steps = (_whole_numbers(told[name], name) for name in ("seeds", "steps"))
        return Study(arms, seeds, steps, Conditions(**told.get("conditions", {})))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not a study: {reason}") from error


def _whole_numbers(found: Any, name: str) -> tuple[int, ...]:
    if not isinstance(found, list) or any(type(number) is not int for number in found):
        raise ValueError(f"{name} must be a list of whole numbers; got {found!r}")
    return tuple(found)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two entries of one name JSON itself would forget the first."""
    for name, _ in pairs:
        if sum(name == other for other, _ in pairs) > 1:
            raise ValueError(f"{name!r} stands there twice")
    return dict(pairs)


def load(path: str | Path) -> dict[str, Any]:
    """Read the record of a study.

    Raises:
        FileNotFoundError, ValueError: no such file; not such a record.
    """
    _demand_file(Path(path), "the record of a study")
    try:
        record = json.loads(Path(path).read_text())
        found = record.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the record of a study ({error})") from error
    if found != _FORMAT:
        raise ValueError(f"{path} is not the record of a study: its format is {found!r:.99}")
    return record


def _demand_file(path: Path, what: str) -> None:
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder: give the file of {what}, as JSON")
    if not path.is_file():
        same = path.with_name(f"{path.name}.json")
        hint = f"did you mean {same}?" if same.is_file() else f"give the file of {what}, as JSON"
        raise FileNotFoundError(f"{path} does not exist: {hint}")


# ---- looking at a record: nothing is trained -------------------------------------------------


def values(record: Mapping[str, Any], measure: str, arm: str, steps: int) -> list[float]:
    """A measure of an arm after so many steps, one for each seed.

    Raises:
        ValueError: no such arm, steps or measure.
    """
    found = _rows(record, arm, steps)
    for row in found:
        config.choose(measure, row["measures"], "measure")
    return [row["measures"][measure] for row in found]


def difference(
    record: Mapping[str, Any],
    measure: str,
    steps: int,
    arm: str | Sequence[str],
    other: str | Sequence[str],
) -> Difference:
    """A measure of one arm less that of another, paired by seed.

    Args:
        arm, other: names; several on a side stand for their mean, so that the effect of one choice
            can be averaged over the others that a study crosses with it.

    Raises:
        ValueError: no such arms, steps or measure; arms of different data sets, whose measures
            are not of one kind.
    """
    named = [[names] if isinstance(names, str) else list(names) for names in (arm, other)]
    sides = []
    for names in named:
        found = [values(record, measure, name, steps) for name in names]
        sides.append([fmean(of_seed) for of_seed in zip(*found, strict=True)])
    if len(sets := {record["arms"][name]["dataset"] for names in named for name in names}) > 1:
        raise ValueError(
            f"arms of different data sets cannot be compared: {', '.join(sorted(sets))}"
        )
    return paired(*sides)


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """The mean of one - other with its t interval; entries of one index share a seed.

    Raises:
        ValueError: different lengths, or fewer than 2 entries.
    """
    n = len(one)
    if n != len(other) or n < 2:
        raise ValueError(
            f"pairs need two equally long lists, at least 2 each; got {n}, {len(other)}"
        )
    gaps = [a - b for a, b in zip(one, other, strict=True)]
    standard_error = stdev(gaps) / math.sqrt(n)
    margin = float(special.stdtrit(n - 1, 0.975)) * standard_error
    unpaired = math.hypot(stdev(one), stdev(other)) / math.sqrt(n)
    value = fmean(gaps)
    return Difference(value, value - margin, value + margin, standard_error, unpaired, n)


def differences(
    record: Mapping[str, Any], measure: str, steps: int, baseline: str | None = None
) -> list[dict[str, str]]:
    """Rows for `viz.table`: the arms of a data set against one of them, by default the first arm.

    Raises:
        ValueError: no such arm, steps or measure; a baseline alone with its data set.
    """
    baseline = baseline or next(iter(record["arms"]))
    config.choose(baseline, record["arms"], "arm")
    dataset = record["arms"][baseline]["dataset"]
    alike = [arm for arm, told in record["arms"].items() if told["dataset"] == dataset]
    pairs = [(arm, baseline) for arm in alike if arm != baseline]
    if not pairs:
        raise ValueError(f"no other arm is trained on {dataset}, the data set of {baseline!r}")
    rows = []
    for row, (arm, _) in zip(contrasts(record, measure, steps, pairs), pairs, strict=True):
        mean = {"arm": arm, measure: f"{fmean(values(record, measure, arm, steps)):.4g}"}
        del row["images seen"], row["arm"], row["less"]
        rows.append(mean | row)
    mean = fmean(values(record, measure, baseline, steps))
    first = dict.fromkeys(rows[0], "")
    return [first | {"arm": f"{baseline} (baseline)", measure: f"{mean:.4g}"}, *rows]


def contrasts(
    record: Mapping[str, Any], measure: str, steps: int, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, str]]:
    """Rows for `viz.table`: the difference of each pair of arms, with what pairing was worth.

    Raises:
        ValueError: no such arms, steps or measure.
    """
    rows = []
    for arm, other in pairs:
        told = difference(record, measure, steps, arm, other)
        seen = f"{_rows(record, arm, steps)[0]['images seen']:,}"
        row = {"images seen": seen, "arm": arm, "less": other}
        row |= {"difference": interval(told), "verdict": told.verdict}
        row["standard error"] = f"{told.standard_error:.2g}"
        row["if unpaired"] = f"{told.unpaired_standard_error:.2g}"
        rows.append(row)
    return rows


def pairing(record: Mapping[str, Any], steps: int) -> list[dict[str, str]]:
    """Rows for `viz.table`: what sharing seeds was worth, for each measure.

    The standard errors of the differences of all pairs of arms of one data set, as they are and as
    they would have been unpaired: the square root of their mean squares, and their ratio.  Below
    1, pairing has helped.

    Raises:
        ValueError: no such steps.
    """
    arms = record["arms"]
    pairs = [
        pair
        for pair in combinations(arms, 2)
        if arms[pair[0]]["dataset"] == arms[pair[1]]["dataset"]
    ]
    rows = []
    for measure in record["measured"][0]["measures"]:
        told = [difference(record, measure, steps, *pair) for pair in pairs]
        paired_error = math.sqrt(fmean(d.standard_error**2 for d in told))
        unpaired_error = math.sqrt(fmean(d.unpaired_standard_error**2 for d in told))
        rows.append(
            {
                "measure": measure,
                "pairs of arms": str(len(pairs)),
                "standard error": f"{paired_error:.3g}",
                "if unpaired": f"{unpaired_error:.3g}",
                "ratio": f"{paired_error / unpaired_error:.2f}" if unpaired_error else "",
            }
        )
    return rows


def interval(told: Difference) -> str:
    """`value [low, high]`, to three digits."""
    return f"{told.value:.3g} [{told.low:.3g}, {told.high:.3g}]"


def series(
    record: Mapping[str, Any], measure: str, arm: str
) -> tuple[list[int], list[float], list[float]]:
    """Images seen, mean over seeds and its 95 % margin, for a plot of quality against budget.

    Raises:
        ValueError: no such arm or measure.
    """
    seen, means, margins = [], [], []
    for steps in record["steps"]:
        mean, margin = _mean(values(record, measure, arm, steps))
        seen.append(_rows(record, arm, steps)[0]["images seen"])
        means.append(mean)
        margins.append(margin)
    return seen, means, margins


def table(record: Mapping[str, Any], measures: Sequence[str], steps: int) -> list[dict[str, str]]:
    """Rows for `viz.table`: measures of every arm, mean over seeds +- 95 % margin; then the floor.

    Raises:
        ValueError: no such steps or measure.
    """
    rows = []
    for arm in record["arms"]:
        row = {"arm": arm}
        for measure in measures:
            mean, margin = _mean(values(record, measure, arm, steps))
            row[measure] = f"{mean:.3g} ± {margin:.2g}"
        rows.append(row)
    for dataset, floor in record["floor"].items():
        told = {name: f"{floor[name]:.3g}" if name in floor else "" for name in measures}
        rows.append({"arm": f"floor: {dataset} training images"} | told)
    return rows


def _mean(found: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and the margin of its 95 % interval."""
    n = len(found)
    return fmean(found), float(special.stdtrit(n - 1, 0.975)) * stdev(found) / math.sqrt(n)


def errors(
    record: Mapping[str, Any], kind: str, arm: str, steps: int
) -> tuple[list[int], list[float]]:
    """Times and mean errors over seeds of "x_0", "eps", "v" or "bound", for `viz.curve`."""
    rows = _rows(record, arm, steps)
    config.choose(kind, rows[0]["errors"], "error")
    columns = zip(*(row["errors"][kind] for row in rows), strict=True)
    return rows[0]["errors"]["t"], [fmean(column) for column in columns]


def shown(record: Mapping[str, Any], arm: str, steps: int) -> Tensor:
    """The first samples of an arm's first seed, uint8 [N, C, H, W], N <= 8.

    Image i starts from the same x_T in all arms.

    Raises:
        ValueError: no such arm or steps; a study that sampled nothing.
    """
    row = _rows(record, arm, steps)[0]
    if "samples" not in row:
        raise ValueError("this study sampled nothing: its conditions have n = 0")
    with Image.open(io.BytesIO(base64.b64decode(row["samples"]))) as picture:
        pixels = torch.from_numpy(np.array(picture))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    width = record["arms"][arm]["network"]["image_shape"][2]
    return torch.stack(pixels.permute(2, 0, 1).split(width, dim=2))


def _rows(record: Mapping[str, Any], arm: str, steps: int) -> list[dict[str, Any]]:
    config.choose(arm, record["arms"], "arm")
    config.choose(str(steps), {str(n): n for n in record["steps"]}, "number of steps")
    return [row for row in record["measured"] if (row["arm"], row["steps"]) == (arm, steps)]
