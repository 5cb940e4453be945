"""The preset mnist_labels in 200 steps: x_0, Muon, no attention.

Labels and guidance at 2: a digit that is asked for comes out more clearly.
x_0 with weight uniform: what short trainings see first is the shape of a digit.
Muon: as good digits in half of AdamW's steps; momentum 0.9 because there are few steps.
No attention: a step is shorter.
Batches of 32: more updates in the same time.
Learning rate 4e-3 after 20 steps, falling over the last 0.8: large steps, then no noise.
Average with decay 0.95: over the last steps alone, because the weights before are worse.
DDPM in 50 steps: the library's default sampler.
"""

from dataclasses import replace
from functools import partial

from benchmarks.speedrun import Recipe
from diffusion_lib import config, losses, optimizers, predictions, samplers

RECIPE = Recipe(
    experiment=replace(
        config.MNIST_LABELS,
        prediction=predictions.x_0,
        weight=losses.uniform,
        optimizer=partial(optimizers.muon, momentum=0.9),
        network=replace(config.MNIST_LABELS.network, attention=()),
        train=replace(
            config.MNIST_LABELS.train,
            num_steps=200,
            batch_size=32,
            learning_rate=4e-3,
            warmup_steps=20,
            cooldown=0.8,
            ema_decay=0.95,
        ),
    ),
    sampler=samplers.ddpm,
    num_steps=50,
    guidance=2.0,
)
