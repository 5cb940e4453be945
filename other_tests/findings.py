"""What we found: the questions of the notes, answered by the committed records.

The measure of a finding was chosen before its study was run where the table says "planned".
"Added" are the likelihood's, the schedule's for DDPM alone and without the arms `eps, uniform`
(while the study ran), epsilon's with `min_snr`, the two of complexity over data sets, that of the
three properties in editing (after a first look), those of narrow networks (registered against the
best cell of epsilon, here against DDPM's), and all that only the six sentences say.  An answer
follows from the interval alone: 95 %, over seeds where it does not say otherwise, and "undecided"
wherever it holds 0, or for a share the level that the question names.  Beside it stands what is
left of it when all rows are taken together.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_lib import compare, config, style, viz
from other_tests import common
from other_tests.cifar10 import complexity, few_steps
from other_tests.common import Answer
from other_tests.editing import curves
from other_tests.mnist import flow, guidance
from other_tests.mnist.bottleneck import answers as bottleneck

FOLDER = Path(__file__).parent
PLOT = common.ASSETS / "findings.png"
STUDIES = {
    "mnist": FOLDER / "mnist" / "small_backbone.json",
    "learning rate": FOLDER / "mnist" / "learning_rate.json",
    "bottleneck": FOLDER / "mnist" / "bottleneck" / "again.json",
    "crossing": FOLDER / "mnist" / "bottleneck" / "crossing.json",
    "cifar10": FOLDER / "cifar10" / "cifar10.json",
    "complexity": FOLDER / "cifar10" / "complexity.json",
}
MEASURE = "Frechet distance"
NAIVE, DDPM, SAME_WEIGHT = "x_0, uniform, linear", "eps, snr, linear", "x_0, snr, linear"
FLATTER = "eps, min_snr, linear"  # DDPM with less weight on nearly clean pictures
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
    chosen: str = "planned"


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
        short="$x_0$ with DDPM's weight minus DDPM, 8,000 images",
    ),
    Finding(
        "And what share the weight, with $x_0$ kept? (The two add up to the first row.)",
        "mnist",
        "$x_0$ unweighted minus $x_0$ with DDPM's weight",
        (NAIVE, SAME_WEIGHT),
        FIRST,
        "this: no weight is ahead",
        "none: no weight is behind",
        short="$x_0$ minus $x_0$ with DDPM's weight, 8,000 images",
    ),
    Finding(
        "Does $\\epsilon$ gain as well by less weight on nearly clean pictures (`min_snr`)?",
        "mnist",
        "$\\epsilon$ with `min_snr` minus $\\epsilon$ with DDPM's weight",
        (FLATTER, DDPM),
        FIRST,
        "yes",
        "no: it loses",
        short="DDPM with min_snr minus DDPM, 8,000 images",
        chosen="added",
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
        chosen="added",
    ),
    Finding(
        "Is the cosine schedule better for DDPM than the linear one?",
        "mnist",
        "DDPM with cosine minus DDPM with linear",
        ("eps, snr, cosine", DDPM),
        LAST,
        "yes",
        "no: it is worse",
        short="cosine minus linear, DDPM, 32,000 images",
        chosen="added",
    ),
    Finding(
        "Is it better on average over these nine combinations of prediction and weight?",
        "mnist",
        f"cosine minus linear, mean of {len(PAIRS)} pairs of arms",
        ([f"{pair}, cosine" for pair in PAIRS], [f"{pair}, linear" for pair in PAIRS]),
        LAST,
        "yes",
        "no: it is worse",
    ),
    Finding(
        "The same without the combination that no one would train (`eps, uniform`)",
        "mnist",
        f"cosine minus linear, mean of {len(USUAL)} pairs of arms",
        ([f"{pair}, cosine" for pair in USUAL], [f"{pair}, linear" for pair in USUAL]),
        LAST,
        "yes",
        "no: it is worse",
        short="cosine minus linear, mean over predictions and weights",
        chosen="added",
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
    *(
        Finding(
            f"MNIST, {network}: does unweighted $x_0$ draw better digits than DDPM?",
            "bottleneck",
            "unweighted $x_0$ minus $\\epsilon$",
            (f"{arm}: x_0, uniform", f"{arm}: eps, snr"),
            LAST,
            "yes",
            "no: it is behind",
            chosen="added",
        )
        for arm, network in (
            ("MLP 256", "MLP whose last layer sees 256 numbers for 784 pixels"),
            ("U-Net 14/64", "U-Net whose last layer sees 64 numbers for 196 pixels"),
            ("MLP 1024", "MLP whose last layer sees 1,024 numbers for 784 pixels"),
        )
    ),
    *(
        Finding(
            f"MNIST, {network}: does one connection from input to output help DDPM?",
            "way around",
            "DDPM with it minus DDPM without it",
            (f"{network} + skip: eps, snr", f"{network}: eps, snr"),
            LAST,
            "yes",
            "no: it is worse",
            chosen="added",
        )
        for network in ("MLP 256", "U-Net 14/64")
    ),
    *(
        Finding(
            f"MNIST, small U-Net with skips: is unweighted $x_0$ ahead after {images} images?",
            "crossing",
            "unweighted $x_0$ minus $\\epsilon$",
            ("x_0, uniform", "eps, snr"),
            steps,
            "yes",
            "no: it is behind",
        )
        for steps, images in ((FIRST, "32,000"), (LAST, "512,000"))
    ),
    Finding(
        "CIFAR-10 (JPEG copy): does DDPM beat $x_0$, unweighted?",
        "cifar10",
        "$x_0$, unweighted, minus $\\epsilon$",
        ("x_0, unweighted", "eps"),
        LAST,
        "no: $x_0$ is better",
        "yes",
        short="CIFAR-10: $x_0$ minus DDPM, 32,000 images",
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
    Finding(
        "MNIST: does flow matching differ from diffusion (cosine, $v$) at the same SNR?",
        "flow",
        "flow minus diffusion, same SNR and weight, DDIM in 50 steps",
        flow.PAIRS[0],
        LAST,
        "yes: it is better",
        "yes: it is worse",
        short="flow minus diffusion, same SNR, 64,000 images",
    ),
    # What the six sentences say besides.
    Finding(
        "Is unweighted $x_0$ behind in likelihood after 8,000 images?",
        "mnist",
        "unweighted $x_0$ minus $\\epsilon$",
        (NAIVE, DDPM),
        FIRST,
        "no: it is ahead",
        "yes",
        "bits per dim",
        chosen="added",
    ),
    *(
        Finding(
            f"Does the cosine schedule change DDPM's {what}?",
            "mnist",
            "DDPM with cosine minus DDPM with linear",
            ("eps, snr, cosine", DDPM),
            LAST,
            "yes: lower",
            "yes: higher",
            measure,
            chosen="added",
        )
        for what, measure in (
            ("bits per dim", "bits per dim"),
            ("share of digits that a classifier is sure of", "confidence > 0.9"),
            ("precision", "precision"),
        )
    ),
    *(
        Finding(
            f"CIFAR-10 (JPEG copy): does DDPM beat $x_0$, {arm}, by DDIM in few steps?",
            "few steps",
            f"$x_0$, {arm}, minus $\\epsilon$, DDIM in {few_steps.NUM_STEPS[0]} steps",
            (f"x_0, {arm}", "eps"),
            LAST,
            "no: $x_0$ is better",
            "yes",
            chosen="added",
        )
        for arm in ("unweighted", "weight snr")
    ),
    *(
        Finding(
            f"MNIST: does flow matching on its own schedule differ from diffusion in {what}?",
            "flow",
            "flow minus diffusion, each on its own schedule, DDIM in 50 steps",
            flow.PAIRS[2],
            LAST,
            "yes: it is better",
            "yes: it is worse",
            measure,
            chosen="added",
        )
        for what, measure in (("samples", MEASURE), ("likelihood", "bits per dim"))
    ),
]


def record(study: str) -> dict[str, Any]:
    """Read the committed record of a study.

    Args:
        study: one of STUDIES.
    """
    return compare.load(STUDIES[study].with_suffix(".record.json"))


def records() -> dict[str, dict[str, Any]]:
    """Read the records of all studies and of all else that `sentences` needs, by name."""
    return {study: record(study) for study in STUDIES} | {
        "way around": _way_around(),
        "flow": compare.load(flow.RECORD),
        "editing": common.load(curves.RECORD),
        "few steps": few_steps.load()[min(few_steps.NUM_STEPS)],
        "guidance": common.load(guidance.RECORD),
    }


def _way_around() -> dict[str, Any]:
    """Join the records of networks with and without a connection from input to output."""
    folder = STUDIES["bottleneck"].parent
    both = (compare.load(folder / f"{name}.record.json") for name in ("cells", "control"))
    without, record = bottleneck.of_shared_seeds(*both)
    if without["conditions"] != record["conditions"]:
        raise ValueError("the two records have other conditions and cannot be joined")
    arms, rows = without["arms"] | record["arms"], without["measured"] + record["measured"]
    return record | {"arms": arms, "measured": rows}


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
    effect = compare.difference(
        record, finding.measure, record["steps"][finding.steps], *finding.arms
    )
    return Answer(
        finding.question,
        common.decide(effect, finding.lower, finding.higher),
        f"{finding.contrast}: {finding.measure} after "
        f"{images_seen(record, finding.steps):,} images",
        effect,
        chosen=finding.chosen,
    )


def answers(records: Mapping[str, Mapping[str, Any]]) -> list[Answer]:
    """Answer all questions about some records.

    Args:
        records: records by the names of their studies, or "editing".
    """
    result = []
    for name, record in records.items():
        if name == "complexity":
            result += complexity.answers(record, complexity.bits())
        elif name == "editing":
            result += curves.answers(record)
        else:
            result += [answer(finding, record) for finding in FINDINGS if finding.study == name]
    return result


def rows(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Answer all questions about some records, as rows of a table.

    Args:
        records: those of `answers`.
    """
    return [
        {
            "question": given.question,
            "answer": given.answer,
            "measured": given.measured,
            "effect": given.effect,
            "seeds": f"{given.effect.n}{given.more}",
            "chosen": given.chosen,
        }
        for given in answers(records)
    ]


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
    about = "difference of Fréchet distances, 95 % interval over 3 seeds"
    return viz.forest(rows, about, "Differences of trainings, lower is better")


def summary(records: Mapping[str, Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Answer all questions, and say which commands made the records, and where.

    Args:
        records: those of `records`.
    """
    commands = [f"diffusion_lib compare {p.relative_to(common.ROOT)}" for p in STUDIES.values()]
    devices = [device for study in STUDIES for device in records[study]["devices"]]
    devices += records["flow"]["devices"]
    devices += [run["device"] for run in records["editing"]["runs"]]
    table = rows(records)
    for row, p in zip(table, common.holm(answers(records)), strict=True):
        row["p, all rows"] = f"{p:.2g}"
        if p < 0.05:
            row["answer"] = f"**{row['answer']}**"
    commands.append("diffusion_lib compare other_tests/mnist/bottleneck/cells.json")
    made = ["other_tests.mnist.bottleneck.control", "other_tests.mnist.flow"]
    made.append("other_tests.editing.measure")
    return table, (
        f"The records are of {', '.join(dict.fromkeys(devices))}, and made by\n\n"
        + "\n".join(f"- `python -m {c}`" for c in [*commands, *made])
    )


def budget(records: Mapping[str, Mapping[str, Any]], study: str) -> str:
    """Say how long the runs of a study are.

    Args:
        records: records by the names of their studies.
        study: name of the study.
    """
    record = records[study]
    batch_size = _settings(record)["batch_size"]
    steps = ", ".join(f"{steps:,}" for steps in record["steps"])
    return (
        f"The committed record: {len(record['arms'])} arms, {len(record['seeds'])} seeds, measured "
        f"after {steps} steps of {batch_size} images, which is {images_seen(record, LAST):,} "
        f"images at the longest; {', '.join(record['devices'])}."
    )


def images_seen(record: Mapping[str, Any], steps: int) -> int:
    """Return how many images the arms of a study had seen.

    Args:
        record: record of the study.
        steps: FIRST or LAST.
    """
    return record["steps"][steps] * _settings(record)["batch_size"]


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the training that all arms of a study share."""
    return next(iter(record["arms"].values()))["train"]
