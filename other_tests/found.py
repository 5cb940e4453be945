"""What we found: the questions of the notes, answered by the committed records.

    python -m other_tests.found        writes the table and the budgets into the READMEs

The measure of every row was chosen before its study was run, but for five of them, and for those of
editing as its README says.  Three were added while it ran: the likelihood's, the schedule's for
DDPM alone, and the schedule's without the arms `eps, uniform`.  The two of complexity "in general"
came after.  An answer follows from the interval alone: 95 %, over seeds where it does not say
otherwise, and "undecided" wherever it holds 0, or for a share the level that is asked about.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from diffusion_lib import compare
from diffusion_lib.compare import Difference
from other_tests.cifar10 import complexity
from other_tests.editing import curves
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
EXTREME = "eps, uniform"  # eps_hat's error divided by SNR, which spans nine powers of ten


def record(study: str) -> dict[str, Any]:
    """The committed record of a study."""
    return compare.load(STUDIES[study].with_suffix(".record.json"))


def check(found: dict[str, Any], study: Path) -> None:
    """Refuse a record that is not of the study in a file as it is now.

    Raises:
        ValueError: it has other arms, seeds, steps or conditions.
    """
    arms, seeds, steps, conditions = compare.read_study(study)
    wanted = {
        "arms": {name: compare.described(arm) for name, arm in arms.items()},
        "seeds": list(seeds),
        "steps": list(steps),
    }
    for name, value in wanted.items():
        if found[name] != value:
            raise ValueError(f"{study.name} has other {name} than its record: run it again")
    for told in found["conditions"].values():
        if not asdict(conditions).items() <= told.items():
            raise ValueError(f"{study.name} has other conditions than its record: run it again")


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
        "effect": f"{told:.3g}",
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

    def seen(steps: int, measure: str = MEASURE) -> str:
        return f"{measure} after {steps * batch:,} images"

    cosine, linear = (
        [arm for arm in found["arms"] if arm.endswith(schedule)]
        for schedule in ("cosine", "linear")
    )
    usual = [[arm for arm in arms if not arm.startswith(EXTREME)] for arms in (cosine, linear)]
    yes_no = ("yes", "no: it is behind")
    better = ("yes", "no: it is worse")
    return [
        row(
            "MNIST, small network: does unweighted $x_0$ converge before DDPM's $\\epsilon$?",
            "mnist",
            f"unweighted $x_0$ less $\\epsilon$: {seen(first)}",
            told(NAIVE, DDPM, first),
            yes_no,
        ),
        row(
            "What share of that is the prediction, with DDPM's weight kept?",
            "mnist",
            f"$x_0$ less $\\epsilon$, both with DDPM's weight: {seen(first)}",
            told(SAME_WEIGHT, DDPM, first),
            ("this: $x_0$ is ahead by itself", "none: $x_0$ is behind by itself"),
        ),
        row(
            "And what share the weight, with $x_0$ kept? (The two add up to the first row.)",
            "mnist",
            f"$x_0$ unweighted less $x_0$ with DDPM's weight: {seen(first)}",
            told(NAIVE, SAME_WEIGHT, first),
            ("this: no weight is ahead", "none: no weight is behind"),
        ),
        row(
            "Does unweighted $x_0$ also end with better samples?",
            "mnist",
            f"unweighted $x_0$ less $\\epsilon$: {seen(last)}",
            told(NAIVE, DDPM, last),
            better,
        ),
        row(
            "And with a better likelihood?",
            "mnist",
            f"unweighted $x_0$ less $\\epsilon$: {seen(last, 'bits per dim')}",
            compare.difference(found, "bits per dim", last, NAIVE, DDPM),
            better,
        ),
        row(
            "Is the cosine schedule better for DDPM than the linear one?",
            "mnist",
            f"DDPM with cosine less DDPM with linear: {seen(last)}",
            told("eps, snr, cosine", DDPM, last),
            better,
        ),
        row(
            "Is it better in general?",
            "mnist",
            f"cosine less linear, mean of {len(cosine)} pairs of arms: {seen(last)}",
            told(cosine, linear, last),
            better,
        ),
        row(
            "The same without the arms that no one would train (`eps, uniform`)",
            "mnist",
            f"cosine less linear, mean of {len(usual[0])} pairs of arms: {seen(last)}",
            told(*usual, last),
            better,
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
    """Does x_0 lose ground to eps with the complexity of the data?"""
    found, bits = record("complexity"), complexity.bits()
    rows = []
    for name, arm in (("unweighted", "x_0, uniform"), ("with DDPM's weight", "x_0, snr")):
        gaps = [f"{label} {complexity.mean_gap(found, label, arm).value:.2f}" for label in bits]
        question = f"Does $x_0$, {name}, lose ground to $\\epsilon$ as the data grow more complex?"
        what = (
            "growth of the gap log2(error of $x_0$ / error of $\\epsilon$), in $v$, for each "
            f"doubling of the bits of a picture; the gap: {', '.join(gaps)} (CIFAR-10 as a JPEG "
            "copy)"
        )
        answers = ("contradicted: it gains ground", "supported")
        seeds = complexity.slope(found, bits, arm)
        sets = complexity.slope_over_sets(found, bits, arm)
        rows.append(row(f"{question} On these four data sets", "complexity", what, seeds, answers))
        rows.append(
            row(
                f"{question} In general",
                "complexity",
                "the same; the interval is that of a line through four data sets",
                sets,
                answers,
            )
            | {"seeds": f"{seeds.n}, {sets.n} data sets"}
        )
    return rows


def what_we_found() -> str:
    """The table."""
    return tables.markdown(
        [*mnist(), *learning_rate(), *cifar10(), *complexity_rows(), *curves.answers()]
    )


def budget(study: str, arm: str) -> str:
    """How long the runs of a study are, in words."""
    found = record(study)
    train, last = found["arms"][arm]["train"], found["steps"][-1]
    steps = ", ".join(f"{steps:,}" for steps in found["steps"])
    return (
        f"The committed record: {len(found['arms'])} arms, {len(found['seeds'])} seeds, measured "
        f"after {steps} steps of {train['batch_size']} images, which is "
        f"{last * train['batch_size']:,} images at the longest; {', '.join(found['devices'])}."
    )


# README and name of a text in it -> what writes it.
TABLES: dict[tuple[Path, str], Callable[[], str]] = {
    (tables.README, "what we found"): what_we_found,
    (tables.README, "same hand"): curves.same_hand,
    (FOLDER / "mnist" / "README.md", "budget"): partial(budget, "mnist", DDPM),
    (FOLDER / "cifar10" / "README.md", "budget"): partial(budget, "cifar10", "eps"),
}


def main() -> None:
    for (readme, name), make in TABLES.items():
        readme.write_text(tables.replace_table(readme.read_text(), name, make()))


if __name__ == "__main__":
    main()
