"""Tables of speed, memory and faults from the committed records of the benchmarks.

Every function here takes `records()`; `other_tests.report` writes what they return into a README.
"""

import json
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from benchmarks import common
from diffusion_lib.metrics import Interval

DEFAULT = "diffusers, float32"  # as its users run it without settings
Records = Mapping[str, Mapping[str, Any]]
Rows = list[dict[str, str]]


def records() -> dict[str, dict[str, Any]]:
    """Read all committed records, by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in common.FOLDER.glob("*.json")}


def goal_row(question: str, goal: str, measured: str, met: bool, benchmark: str) -> dict[str, str]:
    """Make the row of one measurement.

    Args:
        question: what was measured.
        goal: value to be reached, or "" where there is none.
        measured: value with its interval.
        met: whether the goal is met.
        benchmark: module of `benchmarks` that measured it.
    """
    return {
        "question": question,
        "goal": goal,
        "measured": measured,
        "met": ("yes" if met else "no") if goal else "",
        "benchmark": f"`{benchmark}`",
    }


def fastest_peer(ways: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of the fastest way that is not ours.

    Args:
        ways: result of `common.speeds`.
    """
    peers = [name for name in ways if not name.startswith("diffusion_lib")]
    return max(peers, key=lambda name: ways[name]["images a second"])


def speed_vs_diffusers(records: Records, suffix: str = "") -> Rows:
    """Compare training, network and sampling with diffusers.

    Args:
        records: all records.
        suffix: "" for a processor that is slow in bfloat16, "-bfloat16" for a fast one.
    """
    rows = []
    for command, what, goal, least_of_fastest in (
        ("train_step", "training", 2.2, 1.4),
        ("forward", "the network forward", 2.5, 1.5),
        ("sampling", "sampling, DDIM", 2.5, 1.5),
    ):
        ways = records[command + suffix]["ways"]
        for name, least, note in (
            (DEFAULT, goal, "as it comes"),
            (fastest_peer(ways), least_of_fastest, "the fastest peer here"),
        ):
            speedup = Interval(*ways[name]["ours is faster by"])
            rows.append(
                goal_row(
                    f"{what}: images a second beside {name}, {note}",
                    f"{least} times",
                    f"{speedup:.2f}",
                    speedup.value >= least,
                    command,
                )
            )
    return rows


def performance(records: Records) -> Rows:
    """List every goal, what was measured, and whether it was met.

    Args:
        records: all records.
    """
    return [
        *speed_vs_diffusers(records),
        overhead(records["train_step"]),
        precision(records["precision"]),
        *memory(records["memory"]["MB, all"]),
        start_up(records["start_up"]["seconds more than torch"]),
        *digits(records["time_to_digits"]),
    ]


def overhead(record: Mapping[str, Any]) -> dict[str, str]:
    """Say how much longer the trainer's step takes than the bare one.

    Args:
        record: record of train_step.
    """
    # How many times as fast the trainer's step is as the bare one: below 1.
    ratio = record["ways"]["diffusion_lib, the bare step"]["ours is faster by"]
    low, value, high = (100 * (1 / x - 1) for x in sorted(ratio, reverse=True))
    return goal_row(
        "data, moving average, clipping, checks: more than the bare step",
        "5 %",
        f"{value:.1f} % [{low:.1f}, {high:.1f}]",
        value <= 5,
        "train_step",
    )


def precision(record: Mapping[str, Any]) -> dict[str, str]:
    """Say how much higher the held-out loss is in bfloat16.

    Args:
        record: record of precision.
    """
    value, low, high = record["bfloat16 less float32"]
    usual = fmean(record["held-out loss"]["float32"])
    return goal_row(
        f"bfloat16 less float32: held-out loss after {record['steps']:,} steps, 3 seeds",
        "at most 1 % more at the upper end",
        f"{100 * value / usual:.1f} % [{100 * low / usual:.1f}, {100 * high / usual:.1f}]",
        high <= 0.01 * usual,
        "precision",
    )


def memory(megabytes: Mapping[str, list[float]]) -> Rows:
    """Compare the memory of training and sampling with diffusers.

    Args:
        megabytes: repeated measurements of each way.
    """

    def size(way: str) -> str:
        values = megabytes[way]
        return f"{median(values):.0f} MB [{min(values):.0f}, {max(values):.0f}]"

    rows = []
    for what in ("trains", "samples a batch"):
        ours, peer = f"diffusion_lib {what}", f"diffusers {what}"
        rows.append(
            goal_row(
                f"memory of a process that {what}, beside diffusers",
                "no more",
                f"{size(ours)}, {size(peer)}",
                median(megabytes[ours]) <= median(megabytes[peer]),
                "memory",
            )
        )
    eight, one = "diffusion_lib samples 8 batches", "diffusion_lib samples a batch"
    growth = goal_row(
        "memory of sampling 8 batches beside 1",
        "no growth beyond the spread",
        f"{size(eight)}, {size(one)}",
        min(megabytes[eight]) <= max(megabytes[one]),
        "memory",
    )
    return [*rows, growth]


def start_up(seconds: Mapping[str, float]) -> dict[str, str]:
    """Say how long importing the library takes.

    Args:
        seconds: times above that of importing torch alone.
    """
    library = seconds["torch, diffusion_lib"]
    return goal_row(
        "`import diffusion_lib` after `import torch`",
        "0.3 s",
        f"{library:.2f} s; with all that a notebook uses "
        f"{seconds['torch, all that a notebook imports']:.2f} s",
        library <= 0.3,
        "start_up",
    )


def digits(record: Mapping[str, Any]) -> Rows:
    """List the shares of real digits after minutes of training, and the time of a grid.

    Args:
        record: record of time_to_digits.
    """
    rows = []
    for name, least in (
        ("a plain loop with diffusers: eps, linear", 0.0),
        ("the experiment of ddpm.ipynb with AdamW: eps, linear", 0.7),
        ("v, cosine, AdamW", 0.95),
        ("v, cosine, AdamW, labels, guided", 0.95),
    ):
        for seed, run in record["ways"][name].items():
            share, low, high = run["confident"]
            minutes = f"{run['seconds'] / 60:.1f} minutes"
            rows.append(
                goal_row(
                    f"real digits among {record['n']} after {minutes}: {name}, seed {seed}",
                    f"{100 * least:.0f} %" if least else "",
                    f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
                    share >= least,
                    "time_to_digits",
                )
            )
    for way, seeds in record["ways"].items():
        for run in seeds.values():
            rows += [
                goal_row(
                    f"{name.removeprefix('seconds for ')}: {way}",
                    "0.3 s",
                    f"{seconds} s",
                    seconds < 0.3,
                    "time_to_digits",
                )
                for name, seconds in run.items()
                if name.startswith("seconds for 64")
            ]
    return rows


def limit(records: Records, suffix: str = "") -> str:
    """Describe the machine, and how much of it the training step uses.

    Args:
        records: all records.
        suffix: as in `speed_vs_diffusers`.
    """
    record = records["train_step" + suffix]
    chosen = "bfloat16" if record["bfloat16 chosen"] else "float32"
    peak = record[f"GFLOP/s, {chosen}"]
    work = record["GFLOP an image, forward and backward"]
    ours, diffusers = (
        record["ways"][way]["images a second"]
        for way in ("diffusion_lib, as its trainer runs it", DEFAULT)
    )
    used = ours * work
    return (
        f"{record['device']}, {record['processor']}, torch {record['torch']}. Matrices are "
        f"multiplied at {record['GFLOP/s, float32']} GFLOP/s in float32 and "
        f"{record['GFLOP/s, bfloat16']} in "
        f"bfloat16 there, so the library chose {chosen}. Its training step does {used:.0f} "
        f"GFLOP/s, {100 * used / peak:.0f} % of that; diffusers' as it comes "
        f"{diffusers / ours * used:.0f}. "
        f"At the speed of the product any loop would be "
        f"{peak / work / diffusers:.2f} times as fast as "
        f"diffusers'. {record['parameters'] / 1e6:.2f} million parameters, batches of "
        f"{record['batch size']}."
    )


def in_bfloat16(records: Records) -> tuple[Rows, str]:
    """Compare with diffusers on a processor that is fast in bfloat16, and describe it.

    Args:
        records: all records.
    """
    return speed_vs_diffusers(records, "-bfloat16"), limit(records, "-bfloat16")


def on_a_gpu(records: Records) -> tuple[Rows, str]:
    """List the speed of every way on a GPU at the paper's size, and what was not measured.

    Args:
        records: all records.
    """
    training, calls = records["train_step-gpu"], records["forward-gpu"]
    names = {"training": "diffusion_lib, as its trainer runs it", "calls": "diffusion_lib"}

    def cells(record: Mapping[str, Any], ours: str, way: str) -> tuple[str, str]:
        way = way.replace("diffusion_lib", ours, 1)
        if way not in record["ways"]:
            return "", ""
        measured = record["ways"][way]
        faster = measured.get("ours is faster by")
        times = f"{Interval(*faster):.2f}" if faster else ""
        return f"{measured['images a second']:,.0f}", times

    ways = [name for name in calls["ways"] if not name.startswith("diffusion_lib")]
    rows = []
    for way in [*ways, "diffusion_lib, not compiled", "diffusion_lib"]:
        row = {"": way + ", compiled" * (way == "diffusion_lib")}
        for what, record in (("training", training), ("calls", calls)):
            speed, times = cells(record, names[what], way)
            row |= {f"{what}: images a second": speed, f"{what}: ours is faster by": times}
        rows.append(row)
    share = training["share of the speed of a product (model FLOP utilisation)"]
    profile = ", ".join(f"{name} {100 * s:.0f} %" for name, s in training["profile"].items() if s)
    bare = training["ways"]["diffusion_lib, the bare step"]["images a second"]
    return rows, (
        f"{training['device']}, torch {training['torch']}, {training['parameters'] / 1e6:.1f} "
        f"million parameters, batches of {training['batch size']}, means of {training['rounds']} "
        f"ratios of turns and their 95 % interval. The compiled bare step, without data, moving "
        f"average and clipping, does {bare:,.0f} images a second. Training reaches "
        f"{100 * share:.0f} % of the {training['GFLOP/s, bfloat16'] / 1000:.0f} TFLOP/s of a "
        f"product in bfloat16. Where the time of the GPU goes: {profile}."
    )


def parts(records: Records) -> tuple[Rows, str]:
    """Compare each part of a training step with the speed of a product and of a copy.

    Args:
        records: all records.
    """
    record = records["parts-bfloat16"]
    rows = [
        {
            "part": part["part"],
            "ms": f"{part['ms']:.0f}",
            "speed": next(f"{part[unit]} {unit}" for unit in ("GFLOP/s", "GB/s") if unit in part),
            "of the limit": f"{100 * part['share']:.0f} %",
        }
        for part in record["parts"]
    ]
    step, call = (
        sum(part["ms"] for part in work) / sum(part["ms"] * min(1, part["share"]) for part in work)
        for work in (record["parts"], record["parts of a call"])
    )
    return rows, (
        f"With every part at its limit a step would be {step:.2f} times as fast, and a call "
        f"{call:.2f} times. A step of {record['batch size']} images, mean of {record['repeats']}; "
        f"the limit is {record['GFLOP/s, bfloat16']} GFLOP/s of a product of matrices in bfloat16, "
        f"or {record['GB/s']} GB/s that a copy of 256 MB reads and writes: what is still in a "
        f"cache may be faster, and small products are slower. {record['device']}, "
        f"{record['processor']} (`python -m benchmarks.parts`)."
    )


def growth(records: Records) -> tuple[Rows, str]:
    """Compare the speed of training at each width, resolution and batch.

    Args:
        records: all records.
    """
    record, rows = records["growth-bfloat16"], []
    for point in record["points"]:
        ways = point["ways"]
        best = fastest_peer(ways)
        rows.append(
            {
                "width": str(point["width"]),
                "pixels": f"{point['pixels']} × {point['pixels']}",
                "images in a batch": str(point["images"]),
                "images a second": f"{ways['diffusion_lib']['images a second']:.3g}",
                "diffusers": f"{ways[best]['images a second']:.3g} ({best.split(', ', 1)[1]})",
                "times": f"{Interval(*ways[best]['ours is faster by']):.2f}",
            }
        )
    return rows, (
        f"Images a second in training, beside the best of diffusers' modes at each point; means of "
        f"{record['rounds']} ratios of turns and their 95 % interval. {record['device']}, "
        f"{record['processor']} (`python -m benchmarks.growth`)."
    )


def evaluation_time(records: Records) -> str:
    """Say how long the metrics of many samples take.

    Args:
        records: all records.
    """
    record = records["evaluate"]
    return (
        f"Once sampled, {record['n']:,} images are measured in {record['seconds']:.0f} seconds "
        f"with {record['peak memory, GB']} GB of memory ({record['device']}, "
        "`python -m benchmarks.evaluate`)."
    )


def processes(records: Records) -> tuple[Rows, str]:
    """Compare the weights and the speed of 1, 2 and 4 processes.

    Args:
        records: all records.
    """
    record = records["processes"]
    alone = record["processes"]["1"]["images a second"]
    rows = []
    for n, run in record["processes"].items():
        speedup = common.ratio(run["images a second"], alone)
        off = max(run["largest difference of a weight"])
        rows.append(
            {
                "processes": n,
                "images a second": f"{fmean(run['images a second']):.0f}",
                "times one process": "" if n == "1" else f"{speedup:.2f}",
                "largest difference of a weight": "" if n == "1" else f"{off:.1e}",
            }
        )
    return rows, (
        f"A U-Net of digits with labels, {record['steps']} steps of "
        f"{record['batch size']} images, one thread for each process, on {record['cores']} cores "
        f"({record['processor']}); speeds are means of {len(alone)} trainings in turn "
        "(`python -m benchmarks.processes`)."
    )


def eight_gpus(records: Records) -> str:
    """Estimate a large training, and say what the estimate is made of.

    Args:
        records: all records.
    """
    record = records["eight_gpus"]
    low, high = record["shares of the peak"]
    share = f"{100 * low:.0f} to {100 * high:.0f} %"
    slow, fast = record["hours of training"]
    slow_samples, fast_samples = record["hours of sampling"]
    each = record["batch size"] // record["GPUs"]
    return (
        f"- Work: {record['GFLOP of an image, forward and backward']} GFLOP for each image of a "
        f"training step ({record['parameters'] / 1e6:.1f} million parameters, counted by torch), "
        f"{record['steps']:,} steps of {record['batch size']}.\n"
        f"- Training: {fast:.1f} to {slow:.1f} hours, if the GPUs reach {share} of "
        f"{record['peak of one, TFLOP/s']:.0f} TFLOP/s each (NVIDIA's figure for a dense "
        f"product in bfloat16 on an H100). With {each} images a GPU the parts of a step are small, "
        "so expect the lower share.\n"
        f"- {record['samples']:,} samples in {record['sampling steps']:,} steps: "
        f"{60 * fast_samples:.0f} to {60 * slow_samples:.0f} minutes, on the same terms.\n"
        f"- Memory of a GPU: {record['GB of weights and their copies']} GB for weights, gradients, "
        f"AdamW's moments, the moving average and the buckets, and "
        f"{record['GB kept for the gradient']} GB that a step of {each} images keeps for its "
        "gradient in bfloat16 (counted by hooks on steps of the CPU, without dropout's masks), "
        "beside what CUDA itself needs.\n\n"
        "The share of the peak is an assumption, not a measurement "
        "(`python -m benchmarks.eight_gpus`)."
    )


def faults(records: Records) -> tuple[Rows, str]:
    """List what was done to runs, and what was lost by it.

    Args:
        records: all records.
    """
    record = records["faults"]
    return (
        [{name: str(value) for name, value in fault.items()} for fault in record["faults"]],
        f"Trainings of {record['steps of each training']} steps, {record['minutes']} minutes in "
        f"all; {record['device']}, torch {record['torch']}, `python -m tests.faults`.",
    )
