"""What we found: the questions of the notes, answered by the committed records.

The measure of every finding was chosen before its study was run, but for five of them, and for
those of editing as its README says.  Three were added while it ran: the likelihood's, the
schedule's for DDPM alone, and the schedule's without the arms `eps, uniform`.  The two of
complexity "in general" came after.  An answer follows from the interval alone: 95 %, over seeds
where it does not say otherwise, and "undecided" wherever it holds 0, or for a share the level that
the question names.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_lib import compare, config, style, viz
from other_tests import common
from other_tests.cifar10 import complexity
from other_tests.common import Answer
from other_tests.editing import curves

FOLDER = Path(__file__).parent
PLOT = common.ASSETS / "findings.png"
STUDIES = {
    "mnist": FOLDER / "mnist" / "small_backbone.json",
    "learning rate": FOLDER / "mnist" / "learning_rate.json",
    "cifar10": FOLDER / "cifar10" / "cifar10.json",
    "complexity": FOLDER / "cifar10" / "complexity.json",
}
MEASURE = "Frechet distance"
NAIVE, DDPM, SAME_WEIGHT = "x_0, uniform, linear", "eps, snr, linear", "x_0, snr, linear"
PAIRS = [
    ", ".join(pair) for pair in product(("eps", "x_0", "v"), ("snr", "uniform", "min_snr"))
]  # of the arms with the cosine and with the linear schedule
# Nobody would train `eps, uniform`: eps_hat's error over an SNR that spans nine powers of ten.
USUAL = [pair for pair in PAIRS if pair != "eps, uniform"]
FIRST, LAST = 0, -1  # of the numbers of steps after which a study is measured


class Finding(NamedTuple):
    """A question about the difference of two arms, or of the means of two lists of arms."""

    question: str
    study: str
    contrast: str  # in words: what minus what
    arms: tuple[str | list[str], str | list[str]]
    steps: int
    lower: str  # the answer where the difference is below 0
    higher: str
    measure: str = MEASURE
    short: str = ""  # in the plot; empty: not in it


FINDINGS = [
    Finding(
        "MNIST, small network: does unweighted $x_0$ converge before DDPM's $\\epsilon$?",
        "mnist",
        "unweighted $x_0$ minus $\\epsilon$",
        (NAIVE, DDPM),
        FIRST,
        "yes",
        "no: it is behind",
        short="$x_0$ minus DDPM, 8,000 images",
    ),
    Finding(
        "What share of that is the prediction, with DDPM's weight kept?",
        "mnist",
        "$x_0$ minus $\\epsilon$, both with DDPM's weight",
        (SAME_WEIGHT, DDPM),
        FIRST,
        "this: $x_0$ is ahead by itself",
        "none: $x_0$ is behind by itself",
        short="… of that, the prediction",
    ),
    Finding(
        "And what share the weight, with $x_0$ kept? (The two add up to the first row.)",
        "mnist",
        "$x_0$ unweighted minus $x_0$ with DDPM's weight",
        (NAIVE, SAME_WEIGHT),
        FIRST,
        "this: no weight is ahead",
        "none: no weight is behind",
        short="… of that, the loss weight",
    ),
    Finding(
        "Does unweighted $x_0$ also end with better samples?",
        "mnist",
        "unweighted $x_0$ minus $\\epsilon$",
        (NAIVE, DDPM),
        LAST,
        "yes",
        "no: it is worse",
        short="$x_0$ minus DDPM, 32,000 images",
    ),
    Finding(
        "And with a better likelihood?",
        "mnist",
        "unweighted $x_0$ minus $\\epsilon$",
        (NAIVE, DDPM),
        LAST,
        "yes",
        "no: it is worse",
        "bits per dim",
    ),
    Finding(
        "Is the cosine schedule better for DDPM than the linear one?",
        "mnist",
        "DDPM with cosine minus DDPM with linear",
        ("eps, snr, cosine", DDPM),
        LAST,
        "yes",
        "no: it is worse",
        short="cosine minus linear, DDPM",
    ),
    Finding(
        "Is it better in general?",
        "mnist",
        f"cosine minus linear, mean of {len(PAIRS)} pairs of arms",
        ([f"{pair}, cosine" for pair in PAIRS], [f"{pair}, linear" for pair in PAIRS]),
        LAST,
        "yes",
        "no: it is worse",
        short="cosine minus linear, 9 pairs of arms",
    ),
    Finding(
        "The same without the arms that no one would train (`eps, uniform`)",
        "mnist",
        f"cosine minus linear, mean of {len(USUAL)} pairs of arms",
        ([f"{pair}, cosine" for pair in USUAL], [f"{pair}, linear" for pair in USUAL]),
        LAST,
        "yes",
        "no: it is worse",
        short="cosine minus linear, 8 usual pairs",
    ),
    Finding(
        "Does $x_0$ still converge first with 0.3 times the learning rate?",
        "learning rate",
        "unweighted $x_0$ minus $\\epsilon$",
        ("x_0, uniform, learning rate 0.0003", "eps, snr, learning rate 0.0003"),
        FIRST,
        "yes",
        "no: it is behind",
        short="$x_0$ minus DDPM, learning rate × 0.3",
    ),
    Finding(
        "Does $x_0$ still converge first with 3 times the learning rate?",
        "learning rate",
        "unweighted $x_0$ minus $\\epsilon$",
        ("x_0, uniform, learning rate 0.003", "eps, snr, learning rate 0.003"),
        FIRST,
        "yes",
        "no: it is behind",
        short="$x_0$ minus DDPM, learning rate × 3",
    ),
    Finding(
        "CIFAR-10 (JPEG copy): does DDPM beat $x_0$, unweighted?",
        "cifar10",
        "$x_0$, unweighted, minus $\\epsilon$",
        ("x_0, unweighted", "eps"),
        LAST,
        "no: $x_0$ is better",
        "yes",
        short="CIFAR-10: $x_0$, unweighted minus DDPM",
    ),
    Finding(
        "CIFAR-10 (JPEG copy): does DDPM beat $x_0$, weight snr?",
        "cifar10",
        "$x_0$, weight snr, minus $\\epsilon$",
        ("x_0, weight snr", "eps"),
        LAST,
        "no: $x_0$ is better",
        "yes",
        short="CIFAR-10: $x_0$ with DDPM's weight minus DDPM",
    ),
]


def record(study: str) -> dict[str, Any]:
    """Read the committed record of a study.

    Args:
        study: one of STUDIES.
    """
    return compare.load(STUDIES[study].with_suffix(".record.json"))


def records() -> dict[str, dict[str, Any]]:
    """Read the records of all studies and of editing, by name."""
    return {study: record(study) for study in STUDIES} | {"editing": common.load(curves.RECORD)}


def conditions(record: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """Describe what all arms of a study share, in words, for `viz.table`.

    Args:
        record: record of the study.
        arm: any of its arms.
    """
    fields = record["arms"][arm]
    experiment, train = config.MNIST.changed(fields).describe(), fields["train"]
    measured = record["conditions"][fields["dataset"]]
    images = f"{measured['n_likelihood']} test images, {measured['num_times']} times"
    return {
        "data": experiment["data"],
        "network": experiment["network"],
        "training": f"{train['batch_size']} images a step, learning rate {train['learning_rate']}",
        "measured after": f"{', '.join(f'{steps:,}' for steps in record['steps'])} steps",
        "seeds": ", ".join(map(str, record["seeds"])),
        "samples": f"{measured['n']} by {measured['sampler']} in {measured['steps']} steps",
        "likelihood and errors": images,
        "test images": measured["test images"],
        "features sha256": measured["features sha256"],
        "device": ", ".join(record["devices"]),
    }


def answer(finding: Finding, record: Mapping[str, Any]) -> Answer:
    """Answer a question from the record of its study.

    Args:
        finding: the question.
        record: record of `finding.study`.
    """
    steps = record["steps"][finding.steps]
    images = steps * _settings(record)["batch_size"]
    effect = compare.difference(record, finding.measure, steps, *finding.arms)
    return Answer(
        finding.question,
        common.decide(effect, finding.lower, finding.higher),
        f"{finding.contrast}: {finding.measure} after {images:,} images",
        effect,
    )


def rows(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Answer all questions about some records, as rows of a table.

    Args:
        records: records by the names of their studies, or "editing".
    """
    table: list[dict[str, Any]] = []
    for name, record in records.items():
        answers = [answer(finding, record) for finding in FINDINGS if finding.study == name]
        if name == "complexity":
            answers = complexity.answers(record, complexity.bits())
        elif name == "editing":
            answers = curves.answers(record)
        table += [
            {
                "question": given.question,
                "answer": given.answer,
                "measured": given.measured,
                "effect": given.effect,
                "seeds": f"{given.effect.n}{given.more}",
            }
            for given in answers
        ]
    return table


def draw(records: Mapping[str, Mapping[str, Any]]) -> style.Plot:
    """Draw the differences of Fréchet distances that the studies of arms found.

    Args:
        records: those of `records`.
    """
    rows = []
    for finding in FINDINGS:
        if finding.short:
            effect = answer(finding, records[finding.study]).effect
            rows.append(
                (finding.short, effect, common.decide(effect, "better", "worse", "undecided"))
            )
    about = "difference of Fréchet distances with its 95 % interval over 3 seeds; lower is better"
    return viz.forest(rows, about, "What we found, at a glance")


def summary(records: Mapping[str, Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Answer all questions, and say which commands made the records, and where.

    Args:
        records: those of `records`.
    """
    commands = [f"diffusion_lib compare {p.relative_to(common.ROOT)}" for p in STUDIES.values()]
    devices = [device for study in STUDIES for device in records[study]["devices"]]
    devices += [run["device"] for run in records["editing"]["runs"]]
    return rows(records), (
        f"The records are of {', '.join(dict.fromkeys(devices))}, and made by\n\n"
        + "\n".join(f"- `python -m {c}`" for c in [*commands, "other_tests.editing.measure"])
    )


def budget(records: Mapping[str, Mapping[str, Any]], study: str) -> str:
    """Say how long the runs of a study are.

    Args:
        records: records by the names of their studies.
        study: name of the study.
    """
    record = records[study]
    batch_size, last = _settings(record)["batch_size"], record["steps"][-1]
    steps = ", ".join(f"{steps:,}" for steps in record["steps"])
    return (
        f"The committed record: {len(record['arms'])} arms, {len(record['seeds'])} seeds, measured "
        f"after {steps} steps of {batch_size} images, which is {last * batch_size:,} images at the "
        f"longest; {', '.join(record['devices'])}."
    )


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the training that all arms of a study share."""
    return next(iter(record["arms"].values()))["train"]
