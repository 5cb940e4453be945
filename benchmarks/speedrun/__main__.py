"""Measure a recipe with the seeds that its record lacks; without a name, print the board.

    python -m benchmarks.speedrun [NAME] [--seed 1 2 3] [--data FOLDER]

Each seed has a fresh process.  Writes records/NAME.json after each; seeds that are not the board's
are printed only, because those are for choosing.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common, speedrun
from benchmarks.speedrun import board
from diffusion_lib import config, data
from diffusion_lib.metrics import features
from diffusion_lib.system import device as hardware
from diffusion_lib.system import files


def main(arguments: Sequence[str] | None = None) -> None:
    recipes = {path.stem: path for path in sorted(speedrun.RECIPES.glob("*.py"))}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", nargs="?", choices=recipes, help="recipe")
    parser.add_argument("--seed", nargs="+", type=int, default=[*speedrun.SEEDS])
    parser.add_argument("--data", default=config.data_root(), help="folder of the data sets")
    options = parser.parse_args(arguments)
    if options.name is None:
        print(f"{board.text(board.records())}\n")
        for name, path in recipes.items():
            about = ast.get_docstring(ast.parse(path.read_text())) or ""
            print(f"{name}: {about.splitlines()[0]}")
        return
    record(recipes[options.name], options.seed, Path(options.data).resolve())


def record(recipe: Path, seeds: Sequence[int], root: Path) -> None:
    """Measure a recipe and write its record.

    Args:
        recipe: file of the recipe.
        seeds: seeds to measure.
        root: folder of the data sets.
    """
    path = speedrun.RECORDS / f"{recipe.stem}.json"
    torch.set_num_threads(speedrun.THREADS)
    # Reading them here also brings their files into memory, or downloads them.
    train, _ = data.load_splits(data.mnist, root)
    present: dict[str, Any] = {
        "recipe": speedrun.load(recipe).RECIPE.describe(),
        **common.machine(torch.device("cpu")),
        **hardware.conditions(torch.device("cpu")),
        "n": speedrun.N,
        "training images": len(train.images),
        "features sha256": features.released("mnist")[1],
    }
    measured = json.loads(path.read_text()) if path.exists() else present | {"seeds": {}}
    different = common.different_conditions(measured, present)
    if different and not {*seeds}.isdisjoint(speedrun.SEEDS):
        raise SystemExit(
            f"{path} is of another {' and '.join(different)}: delete it to measure all seeds again"
        )
    for seed in seeds:
        if str(seed) not in measured["seeds"]:
            print(f"seed {seed}:", json.dumps(result := launch(recipe, root, seed)), flush=True)
            if seed in speedrun.SEEDS:
                measured["seeds"][str(seed)] = result
                path.parent.mkdir(exist_ok=True)
                files.write_json(path, measured)


def launch(recipe: Path, root: Path, seed: int) -> dict[str, Any]:
    """Measure one seed in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.speedrun.run", str(recipe), str(root)]
        subprocess.run(
            [*command, str(seed), str(time.time()), str(out)],
            check=True,
            cwd=common.FOLDER.parent,
            env=os.environ | {"OMP_NUM_THREADS": str(speedrun.THREADS)},
        )
        return json.loads(out.read_text())


if __name__ == "__main__":
    main()
