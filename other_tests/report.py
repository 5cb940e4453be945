"""Write the generated tables of all READMEs and the plot of findings from committed records.

    python -m other_tests.report

A table stands between two comments that name it, `<!-- NAME -->` and `<!-- end of NAME -->`, in any
README.  A test fails where it is not the one that this command writes, so a figure that is in no
record cannot be in a README.  To add a table, add a function to TABLES and the two comments.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import objects_trials, time_to_objects
from benchmarks import tables as benchmarks
from benchmarks.speedrun import board
from diffusion_lib import viz
from other_tests import extensions, findings, release, sentences
from other_tests.cifar10 import objects
from other_tests.common import ROOT, load
from other_tests.editing import curves
from other_tests.mnist import few_steps, flow, full_budget, guidance

READMES = [
    path
    for folder in (
        ".",
        "benchmarks",
        "benchmarks/*",
        "diffusion_lib",
        "other_tests",
        "other_tests/*",
    )
    for path in sorted(ROOT.glob(f"{folder}/README.md"))
]

# Name of a table -> (function from records to rows, text or a tuple of these; reader of records).
TABLES: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
    "seven functions": (
        partial(extensions.rows, names=extensions.SEVEN, folder=ROOT),
        lambda: None,
    ),
    "extensions": (extensions.rows, lambda: None),
    "six sentences": (sentences.text, findings.records),
    "what we found": (findings.summary, findings.records),
    "mnist budget": (partial(findings.budget, study="mnist"), findings.records),
    "cifar10 budget": (partial(findings.budget, study="cifar10"), findings.records),
    "same hand": (curves.same_hand, partial(load, curves.RECORD)),
    "few steps": (few_steps.summary, partial(load, few_steps.RECORD)),
    "guidance": (guidance.summary, partial(load, guidance.RECORD)),
    "flow": (flow.differences, partial(load, flow.RECORD)),
    "the runs": (full_budget.comparison, full_budget.records),
    "differences": (full_budget.differences, full_budget.records),
    "learned variance": (full_budget.learned_variance, full_budget.records),
    "conditions": (full_budget.conditions, full_budget.records),
    "performance": (benchmarks.performance, benchmarks.records),
    "limit": (benchmarks.limit, benchmarks.records),
    "in bfloat16": (benchmarks.in_bfloat16, benchmarks.records),
    "parts": (benchmarks.parts, benchmarks.records),
    "on a gpu": (benchmarks.on_a_gpu, benchmarks.records),
    "processes": (benchmarks.processes, benchmarks.records),
    "eight gpus": (benchmarks.eight_gpus, benchmarks.records),
    "time": (benchmarks.evaluation_time, benchmarks.records),
    "faults": (benchmarks.faults, benchmarks.records),
    "growth": (benchmarks.growth, benchmarks.records),
    "objects of cifar10": (objects.summary, partial(load, objects.RECORD)),
    "objects": (time_to_objects.summary, benchmarks.records),
    "objects trials": (objects_trials.table, objects_trials.trials),
    "speedrun": (board.text, board.records),
    "releases": (release.rows, release.records),
}


def write(name: str) -> str:
    """Write a table from its records, in Markdown.

    Args:
        name: one of TABLES.
    """
    make, read = TABLES[name]
    view = make(read())
    parts = view if isinstance(view, tuple) else (view,)
    return "\n\n".join(p if isinstance(p, str) else str(viz.table(p).data) for p in parts)


def fill(text: str) -> str:
    """Return the text of a README with all of its tables written anew.

    Args:
        text: Markdown with pairs of comments.
    """

    def table(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{write(match[1])}\n<!-- end of {match[1]} -->"

    return re.sub(r"<!-- (.+) -->\n[\s\S]*?<!-- end of \1 -->", table, text)


def main() -> None:
    for readme in READMES:
        readme.write_text(fill(readme.read_text()))
    findings.PLOT.write_bytes(findings.draw(findings.records()).png())


if __name__ == "__main__":
    main()
