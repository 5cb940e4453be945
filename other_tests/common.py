"""What the experiments share: folders, records, the command line, and the form of an answer."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy import stats

from diffusion_lib import compare, config
from diffusion_lib.compare import Difference
from diffusion_lib.runs import Run
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files

ROOT = Path(__file__).parent.parent
ASSETS = ROOT / "assets"


class Answer(NamedTuple):
    """The answer to a question, and the difference that it follows from."""

    question: str
    answer: str
    measured: str  # the difference in words, and of what measure
    effect: Difference
    more: str = ""  # what the interval is over besides seeds
    chosen: str = "planned"  # before the study was run, or "added" after a first look
    level: float = 0.0  # what the effect is held against
    degrees: int = 0  # of freedom of the interval; 0: one less than there are seeds


def decide(
    effect: Difference, lower: str, higher: str, undecided: str = "undecided: not distinguishable"
) -> str:
    """Choose the answer that the interval of a difference leaves.

    Args:
        effect: difference with its 95 % interval.
        lower: answer where the whole interval is below 0.
        higher: answer where it is above 0.
        undecided: answer where it holds 0.
    """
    return {"lower": lower, "higher": higher}.get(effect.verdict, undecided)


def holm(answers: Sequence[Answer]) -> list[float]:
    """Return the p-value of each answer, corrected for their number [Holm 1979].

    Where none of the effects is real, one or more of the values are below 0.05 in at most one
    case of twenty.

    Args:
        answers: all answers of one table.
    """
    values = []
    for given in answers:
        t = abs(given.effect.value - given.level) / given.effect.standard_error
        values.append(2 * float(stats.t.sf(t, given.degrees or given.effect.n - 1)))
    corrected, largest = [0.0] * len(values), 0.0
    for rank, k in enumerate(sorted(range(len(values)), key=lambda k: values[k])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[k]))
        corrected[k] = largest
    return corrected


def load(path: str | Path) -> dict[str, Any]:
    """Read a record.

    Args:
        path: JSON file, absolute or relative to the root of the repository.
    """
    return json.loads((ROOT / path).read_text())


def parser(about: str | None) -> argparse.ArgumentParser:
    """Make the parser of an experiment's command line, with the folder of the data sets.

    Args:
        about: docstring of the command, whose first line describes it.
    """
    made = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    made.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    return made


def run_study(study: compare.Study, root: str | Path, path: Path) -> None:
    """Train and measure what the record of a study lacks; arguments as of `run_studies`."""
    run_studies({path: study}, root)


def run_studies(studies: Mapping[Path, compare.Study], root: str | Path) -> None:
    """Train and measure what the records of studies lack, and write them after every seed.

    A lost machine costs one seed, or the first two, which a comparison needs.  A seed is measured
    in all studies before the next begins, so that nothing needs its weights again.

    Args:
        studies: arms, seeds, numbers of steps, conditions, by the files of their records, which
            need not be there.
        root: folder of the data sets.
    """
    for n in range(2, max(len(study.seeds) for study in studies.values()) + 1):
        for path, study in studies.items():
            start = compare.load(path) if path.exists() else None
            if start is None or len(start["seeds"]) <= n:
                first = study._replace(seeds=study.seeds[:n])
                compare.save(compare.compare(first, root, start=start), path)


def provenance(run: Run) -> dict[str, Any]:
    """Describe how a run was made and where it is measured, for its record.

    Args:
        run: run with a folder.
    """
    return {
        "experiment": load((run.folder / "experiment.json").resolve()),
        "device": hardware.name(run.denoiser.schedule.signal.device),
        "torch": torch.__version__,
    }


def training(run: Run) -> dict[str, Any]:
    """Describe how a run was trained, for its record.

    Args:
        run: run with a log.
    """
    versions = [start["torch"] for start in run.log if "torch" in start]
    described = run.describe() | {"torch": ", then ".join(dict.fromkeys(versions))}
    return {k: v for k, v in described.items() if k not in ("run", "weights")}  # of this machine


def measure_run(
    about: str | None, measure: Callable[[str, str], dict[str, Any]], path: Path
) -> None:
    """Write the record of the run that the command line names, if it names one.

    Args:
        about: docstring of the command.
        measure: function (folder of the run, folder of the data sets) -> record.
        path: file of the record.
    """
    made = parser(about)
    made.add_argument("run", nargs="?", help="folder of the run to measure")
    options = made.parse_args()
    if options.run:
        files.write_json(path, measure(options.run, options.data))
