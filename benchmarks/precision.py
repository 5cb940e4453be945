"""Does training in bfloat16 cost quality?

    python -m benchmarks.precision

The quick budget of ddpm.ipynb, with three seeds, each in float32 and in bfloat16 from the same
weights, on the same batches, times and noise.  Writes precision.json beside itself.
"""

from dataclasses import replace

import torch

from benchmarks import common
from diffusion_lib import compare, config, data, losses, viz
from diffusion_lib.system import device as hardware

SEEDS = (0, 1, 2)


def main() -> None:
    options = common.options(__doc__)
    device = torch.device(options.device)
    train, test = (data.mnist(config.data_root(), part).images for part in (True, False))
    held_out = data.to_float(test[:2000]).to(device)
    losses_of: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    experiment = config.quick(config.MNIST)
    num_steps = experiment.train.num_steps
    for seed in SEEDS:
        settings = replace(experiment.train, seed=seed)
        for name, values in losses_of.items():
            with hardware.overridden(precision=name):
                trainer = replace(experiment, train=settings).trainer(device)
                for _ in viz.progress(trainer.run(train), num_steps, f"{name}, seed {seed}"):
                    pass
            values.append(float(losses.held_out_loss(trainer.ema, held_out)))
    difference = compare.paired(losses_of["bfloat16"], losses_of["float32"])
    record = common.machine(device) | {
        "steps": num_steps,
        "held-out images": len(held_out),
        "held-out loss": {name: common.rounded(values) for name, values in losses_of.items()},
        "bfloat16 less float32": common.rounded(difference),
    }
    common.write("precision", device, record)


if __name__ == "__main__":
    main()
