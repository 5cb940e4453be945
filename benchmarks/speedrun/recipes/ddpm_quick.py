"""The quick budget of ddpm.ipynb: noise predicted, linear schedule, no labels.

What a newcomer's machine draws first. Its choices are those of `config.quick`; they were made with
seed 100, as those of all recipes (other_tests/LOG.md).
"""

from benchmarks.speedrun import Recipe
from diffusion_lib import config

RECIPE = Recipe(config.quick(config.MNIST), num_steps=100)
