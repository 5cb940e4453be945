"""The README's tables of speed and of faults, from the committed records of the benchmarks.

python -m benchmarks.tables
"""

import json
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

from benchmarks import common
from other_tests.mnist import few_steps, guidance, tables

AS_IT_COMES = "diffusers, float32"


def load(name: str) -> dict[str, Any]:
    return json.loads((common.FOLDER / f"{name}.json").read_text())


def beside(kind: str = "") -> list[dict[str, str]]:
    """Training, network and sampling side by side with diffusers, and the goals.

    Args:
        kind: of the records: "" of a processor that is slow in bfloat16, "-bfloat16" of a fast one.
    """
    rows = []
    for command, what, goal in (
        ("train_step", "training", 2.2),
        ("forward", "the network forward", 2.0),
        ("sampling", "sampling, DDIM", 2.0),
    ):
        ways = load(command + kind)["ways"]
        peers = {name: told for name, told in ways.items() if not name.startswith("diffusion_lib")}
        best = max(peers, key=lambda name: peers[name]["images a second"])
        for name, least in ((AS_IT_COMES, goal), (best, 1.25)):
            ratio = peers[name]["ours is faster by"]
            called = f"{name}, as it comes" if least == goal else f"{name}, the fastest peer here"
            rows.append(
                goal_row(
                    f"{what}: images a second beside {called}",
                    f"{least} times",
                    f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]",
                    ratio[0] >= least,
                    command,
                )
            )
    return rows


def goal_row(question: str, goal: str, measured: str, met: bool, command: str) -> dict[str, str]:
    return {
        "question": question,
        "goal": goal,
        "measured": measured,
        "met": ("yes" if met else "no") if goal else "",
        "command": f"`python -m benchmarks.{command}`",
    }


def performance() -> str:
    """Every goal, what was measured, and whether it was met."""
    rows = beside()

    def row(question: str, goal: str, measured: str, met: bool, command: str) -> None:
        rows.append(goal_row(question, goal, measured, met, command))

    # How many times as fast the trainer's step is as the bare one: below 1.
    faster = load("train_step")["ways"]["diffusion_lib, the bare step"]["ours is faster by"]
    low, mid, high = (100 * (1 / x - 1) for x in sorted(faster, reverse=True))
    row(
        "data, moving average, clipping, checks: more than the bare step",
        "5 %",
        f"{mid:.1f} % [{low:.1f}, {high:.1f}]",
        mid <= 5,
        "train_step",
    )
    told = load("precision")
    value, low, high = told["bfloat16 less float32"]
    usual = fmean(told["held-out loss"]["float32"])
    row(
        f"bfloat16 less float32: held-out loss after {told['steps']} steps, 3 seeds",
        "at most 2 % more",
        f"{100 * value / usual:.1f} % [{100 * low / usual:.1f}, {100 * high / usual:.1f}]",
        high <= 0.02 * usual,
        "precision",
    )
    memory = load("memory")["MB, all"]

    def size(way: str) -> str:
        values = memory[way]
        return f"{median(values):.0f} MB [{min(values):.0f}, {max(values):.0f}]"

    for what in ("trains", "samples a batch"):
        ours, theirs = f"diffusion_lib {what}", f"diffusers {what}"
        row(
            f"memory of a process that {what}, beside diffusers",
            "no more",
            f"{size(ours)}, {size(theirs)}",
            median(memory[ours]) <= median(memory[theirs]),
            "memory",
        )
    eight, one = "diffusion_lib samples 8 batches", "diffusion_lib samples a batch"
    row(
        "memory of sampling 8 batches beside 1",
        "no growth beyond the spread",
        f"{size(eight)}, {size(one)}",
        min(memory[eight]) <= max(memory[one]),
        "memory",
    )
    more = load("start_up")["seconds more than torch"]
    row(
        "`import diffusion_lib` after `import torch`",
        "0.3 s",
        f"{more['torch, diffusion_lib']:.2f} s; with all that a notebook uses "
        f"{more['torch, all that a notebook imports']:.2f} s",
        more["torch, diffusion_lib"] <= 0.3,
        "start_up",
    )
    digits = load("time_to_digits")
    for name, least in (
        ("a plain loop with diffusers: eps, linear", 0.0),
        ("the experiment of ddpm.ipynb, as in the quick budget: eps, linear", 0.7),
        ("the preset mnist_fast: v, cosine", 0.95),
        ("the preset mnist_labels, guided: v, cosine", 0.95),
    ):
        for seed, found in digits["ways"][name].items():
            share, low, high = found["confident"]
            minutes = f"{found['seconds'] / 60:.1f} minutes"
            row(
                f"real digits among {digits['n']} after {minutes}: {name}, seed {seed}",
                f"{100 * least:.0f} %" if least else "",
                f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
                share >= least,
                "time_to_digits",
            )
    for way, grids in digits["ways"].items():
        for grid in grids.values():
            for name in (name for name in grid if name.startswith("seconds for 64")):
                row(
                    f"{name.removeprefix('seconds for ')}: {way}",
                    "5 s",
                    f"{grid[name]} s",
                    grid[name] < 5,
                    "time_to_digits",
                )
    return tables.markdown(rows)


def limit(kind: str = "") -> str:
    """The machine, and how much of it the training step uses; `kind` as in `beside`."""
    told = load("train_step" + kind)
    chosen = "bfloat16" if told["bfloat16 chosen"] else "float32"
    peak, mine = told[f"GFLOP/s, {chosen}"], told["ways"]["diffusion_lib, as its trainer runs it"]
    profile = ", ".join(f"{name} {100 * share:.0f} %" for name, share in told["profile"].items())
    theirs = told["ways"][AS_IT_COMES]["images a second"]
    used = mine["images a second"] * told["GFLOP an image, forward and backward"]
    return (
        f"{told['device']}, {told['processor']}, torch {told['torch']}. Matrices are multiplied at "
        f"{told['GFLOP/s, float32']} GFLOP/s in float32 and {told['GFLOP/s, bfloat16']} in "
        f"bfloat16 there, so the library chose {chosen}. Its training step does {used:.0f} "
        f"GFLOP/s, {100 * used / peak:.0f} % of that; diffusers' as it comes "
        f"{theirs / mine['images a second'] * used:.0f}. "
        f"At the speed of the product any loop would be "
        f"{peak / told['GFLOP an image, forward and backward'] / theirs:.2f} times as fast as "
        f"diffusers'. {told['parameters'] / 1e6:.2f} million parameters, batches of "
        f"{told['batch size']}. "
        f"Where the time of a step goes: {profile}."
    )


def in_bfloat16() -> str:
    """The same side by side on a processor that is fast in bfloat16, and what it is."""
    return f"{tables.markdown(beside('-bfloat16'))}\n\n{limit('-bfloat16')}"


def few() -> str:
    """Samplers in few steps, of MNIST."""
    return f"{tables.markdown(few_steps.table())}\n\n{few_steps.verdict()}"


def time() -> str:
    """How long the metrics of many samples take."""
    told = load("evaluate")
    return (
        f"Once sampled, {told['n']:,} images are measured in {told['seconds']:.0f} seconds "
        f"with {told['peak memory, GB']} GB of memory ({told['device']}, "
        "`python -m benchmarks.evaluate`)."
    )


def guided() -> str:
    """The scales of guidance, of MNIST."""
    return f"{tables.markdown(guidance.table())}\n\n{guidance.verdict()}"


def processes() -> str:
    """What 1, 2 and 4 processes reach, and how fast."""
    told = load("processes")
    found = told["processes"]
    alone = found["1"]["images a second"]
    rows = []
    for n, of_n in found.items():
        faster = common.ratio(of_n["images a second"], alone)
        row = {
            "processes": n,
            "images a second": f"{fmean(of_n['images a second']):.0f}",
            "times one process": f"{faster:.2f}",
            "largest difference of a weight": f"{max(of_n['largest difference of a weight']):.1e}",
        }
        alike = dict.fromkeys(("times one process", "largest difference of a weight"), "")
        rows.append(row | (alike if n == "1" else {}))
    return (
        f"{tables.markdown(rows)}\n\nThe preset `mnist_labels`, {told['steps']} steps of "
        f"{told['batch size']} images, one thread for each process, on {told['cores']} cores "
        f"({told['processor']}); speeds are means of {len(alone)} trainings in turn "
        "(`python -m benchmarks.processes`)."
    )


def eight_gpus() -> str:
    """An estimate, and what it is made of."""
    told = load("eight_gpus")
    bad, good = told["shares of the peak"]
    share = f"{100 * bad:.0f} to {100 * good:.0f} %"
    slow, fast = told["hours of training"]
    slow_samples, fast_samples = told["hours of sampling"]
    each = told["batch size"] // told["GPUs"]
    return (
        f"- Work: {told['GFLOP of an image, forward and backward']} GFLOP for each image of a "
        f"training step ({told['parameters'] / 1e6:.1f} million parameters, counted by torch), "
        f"{told['steps']:,} steps of {told['batch size']}.\n"
        f"- Training: {fast:.1f} to {slow:.1f} hours, if the GPUs reach {share} of "
        f"{told['peak of one, TFLOP/s']:.0f} TFLOP/s each (NVIDIA's figure for a dense product in "
        f"bfloat16 on an H100). With {each} images a GPU the parts of a step are small, so expect "
        "the lower share.\n"
        f"- {told['samples']:,} samples in {told['sampling steps']:,} steps: "
        f"{60 * fast_samples:.0f} to {60 * slow_samples:.0f} minutes, on the same terms.\n"
        f"- Memory of a GPU: {told['GB of weights and their copies']} GB for weights, gradients, "
        f"AdamW's moments, the moving average and the buckets, and "
        f"{told['GB kept for the gradient']} GB that a step of {each} images keeps for its "
        "gradient in bfloat16 (counted by hooks on steps of the CPU, without dropout's masks), "
        "beside what CUDA itself needs.\n\n"
        "The share of the peak is an assumption, not a measurement "
        "(`python -m benchmarks.eight_gpus`)."
    )


def faults() -> str:
    """What was done to runs, and what was lost by it."""
    told = load("faults")
    rows = [{name: str(value) for name, value in found.items()} for found in told["faults"]]
    return (
        f"{tables.markdown(rows)}\n\nTrainings of {told['steps of each training']} steps, "
        f"{told['minutes']} minutes in all; {told['device']}, torch {told['torch']}, "
        "`python -m tests.faults`."
    )


TABLES: dict[str, Callable[[], str]] = {
    "performance": performance,
    "limit": limit,
    "in bfloat16": in_bfloat16,
    "few steps": few,
    "guidance": guided,
    "processes": processes,
    "eight gpus": eight_gpus,
    "time": time,
    "faults": faults,
}


def main() -> None:
    text = tables.README.read_text()
    for name, make in TABLES.items():
        text = tables.replace_table(text, name, make())
    tables.README.write_text(text)


if __name__ == "__main__":
    main()
