"""Digits without labels after 10 s: as labels_20s, but 90 steps, and no labels.

An average over the last steps alone (0.9), because there are only 90. What it is held against is
diffusers_60s, and that loop after 8 minutes (benchmarks/time_to_digits.json).
"""

from dataclasses import replace

from benchmarks.speedrun import Recipe
from benchmarks.speedrun.recipes import labels_20s

LABELS = labels_20s.RECIPE.experiment

RECIPE = Recipe(
    replace(
        LABELS,
        network=replace(LABELS.network, classes=0),
        train=replace(LABELS.train, num_steps=90, warmup_steps=9, ema_decay=0.9),
    ),
    num_steps=50,
)
