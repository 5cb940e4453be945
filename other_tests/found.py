"""What we found: the questions of the notes, answered by the committed records of the studies.

    python -m other_tests.found        writes the table into the README

The measure of every row was chosen before its study was run.  An answer follows from the interval
alone: 95 %, over seeds, and "undecided" wherever it holds 0.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusion_lib import compare
from diffusion_lib.compare import Difference
from other_tests.cifar10 import complexity
from other_tests.mnist import tables

FOLDER = Path(__file__).parent
STUDIES = {
    "mnist": FOLDER / "mnist" / "small_backbone.json",
    "learning rate": FOLDER / "mnist" / "learning_rate.json",
    "cifar10": FOLDER / "cifar10" / "cifar10.json",
    "complexity": FOLDER / "cifar10" / "complexity.json",
}
MEASURE = "Frechet distance"
NAIVE, DDPM, SAME_WEIGHT = "x_0, uniform, linear", "eps, snr, linear", "x_0, snr, linear"


def record(study: str) -> dict[str, Any]:
    """The committed record of a study."""
    return compare.load(STUDIES[study].with_suffix(".record.json"))


def row(question: str, study: str, what: str, told: Difference, answers: tuple[str, str]) -> dict:
    """A row of the table.

    Args:
        what: the difference in words, and of what measure.
        answers: where the difference is lower, and where it is higher, than 0.
    """
    answer = dict(zip(("lower", "higher"), answers, strict=True)).get(told.verdict)
    return {
        "question": question,
        "answer": answer or "undecided: not distinguishable",
        "measured": what,
        "effect": compare.interval(told),
        "seeds": str(told.n),
        "device": ", ".join(record(study)["devices"]),
        "command": f"`python -m diffusion_lib compare {STUDIES[study].relative_to(tables.ROOT)}`",
    }


def mnist() -> list[dict]:
    """A small backbone on MNIST: who is first, who ends better, and why; and the schedule."""
    found = record("mnist")
    first, last = found["steps"][0], found["steps"][-1]
    batch = found["arms"][DDPM]["train"]["batch_size"]

    def told(arm: str | list[str], other: str | list[str], steps: int) -> Difference:
        return compare.difference(found, MEASURE, steps, arm, other)

    def seen(steps: int) -> str:
        return f"{MEASURE} after {steps * batch:,} images"

    cosine, linear = (
        [arm for arm in found["arms"] if arm.endswith(schedule)]
        for schedule in ("cosine", "linear")
    )
    yes_no = ("yes", "no: it is behind")
    return [
        row(
            "MNIST, small network: does $x_0$ converge first?",
            "mnist",
            f"unweighted $x_0$ less $\\epsilon$: {seen(first)}",
            told(NAIVE, DDPM, first),
            yes_no,
        ),
        row(
            "Does it also end better?",
            "mnist",
            f"unweighted $x_0$ less $\\epsilon$: {seen(last)}",
            told(NAIVE, DDPM, last),
            ("yes", "no: it ends worse"),
        ),
        row(
            "Is that the prediction?",
            "mnist",
            f"$x_0$ less $\\epsilon$, both with DDPM's weight: {seen(first)}",
            told(SAME_WEIGHT, DDPM, first),
            ("in part or whole: it helps with the weight held fixed", "no: it hurts by itself"),
        ),
        row(
            "Is it a matter of weighting?",
            "mnist",
            f"$x_0$ unweighted less $x_0$ with DDPM's weight: {seen(first)}",
            told(NAIVE, SAME_WEIGHT, first),
            ("in part or whole: the weight helps by itself", "no: the weight hurts by itself"),
        ),
        row(
            "Is the cosine schedule better than the linear one?",
            "mnist",
            f"cosine less linear, mean of {len(cosine)} pairs of arms: {seen(last)}",
            told(cosine, linear, last),
            ("yes", "no: it is worse"),
        ),
    ]


def learning_rate() -> list[dict]:
    """Is it a hyper-parameter: does the surprise outlive another learning rate?"""
    found = record("learning rate")
    first = found["steps"][0]
    seen = first * found["arms"]["eps, snr, learning rate 0.001"]["train"]["batch_size"]
    return [
        row(
            f"Does $x_0$ still converge first with {words} the learning rate?",
            "learning rate",
            f"unweighted $x_0$ less $\\epsilon$: {MEASURE} after {seen:,} images",
            compare.difference(
                found,
                MEASURE,
                first,
                f"x_0, uniform, learning rate {rate}",
                f"eps, snr, learning rate {rate}",
            ),
            ("yes", "no: it is behind"),
        )
        for words, rate in (("0.3 times", "0.0003"), ("3 times", "0.003"))
    ]


def cifar10() -> list[dict]:
    """Small photographs: does DDPM win there?"""
    found = record("cifar10")
    last = found["steps"][-1]
    seen = last * found["arms"]["eps"]["train"]["batch_size"]
    return [
        row(
            f"CIFAR-10 (JPEG copy): does DDPM beat $x_0$, {name}?",
            "cifar10",
            f"$x_0$, {name}, less $\\epsilon$: {MEASURE} after {seen:,} images",
            compare.difference(found, MEASURE, last, f"x_0, {name}", "eps"),
            ("no: $x_0$ is better", "yes"),
        )
        for name in ("unweighted", "weight snr")
    ]


def complexity_rows() -> list[dict]:
    """Does the gap between x_0 and eps grow with the complexity of the data?"""
    bits = json.loads(complexity.BITS.read_text())["bits"]
    found = record("complexity")
    return [
        row(
            f"Does the gap grow with the complexity of the data ($x_0$, {name})?",
            "complexity",
            "growth of log2(error of $x_0$ / error of $\\epsilon$), in $v$, for each doubling of "
            "the bits of a picture",
            complexity.slope(found, bits, arm),
            ("contradicted: it shrinks", "supported"),
        )
        for name, arm in (("unweighted", "x_0, uniform"), ("DDPM's weight", "x_0, snr"))
    ]


def what_we_found() -> str:
    """The table."""
    return tables.markdown([*mnist(), *learning_rate(), *cifar10(), *complexity_rows()])


TABLES: dict[str, Callable[[], str]] = {"what we found": what_we_found}


def main() -> None:
    text = tables.README.read_text()
    for name, make in TABLES.items():
        text = tables.replace_table(text, name, make())
    tables.README.write_text(text)


if __name__ == "__main__":
    main()
