"""How many images a second does the network take, beside diffusers?

    python -m benchmarks.forward

Same weights, same input, no gradients.  Writes forward.json beside itself, or forward-gpu.json.
"""

from collections.abc import Callable

import torch

from benchmarks import common
from diffusion_lib import training

MINE = "diffusion_lib"


def main() -> None:
    options = common.options(__doc__)
    device, size = torch.device(options.device), options.batch_size
    x_t, t, _ = common.draw(0, size, device)
    outputs: dict[str, torch.Tensor] = {}
    ways: dict[str, Callable[[], None]] = {}
    modes = common.CPU_MODES if device.type == "cpu" else common.GPU_MODES
    for name, mode in modes.items():
        network = common.theirs(options.paper).to(device)
        if mode.channels_last:
            network.to(memory_format=torch.channels_last)
        if mode.compiled:
            network.compile()

        def theirs(name=f"diffusers, {name}", mode=mode, network=network) -> None:
            with torch.no_grad(), mode.precision(device):
                outputs[name] = network(x_t, t - 1).sample

        ways[f"diffusers, {name}"] = theirs
    denoiser = training.suit(common.ours(options.paper, device))
    if training.worth_compiling(device, 10_000):
        denoiser.network.compile()

    def mine() -> None:
        bfloat16 = training.has_bfloat16(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            outputs[MINE] = denoiser.output(x_t, t)

    ways[MINE] = mine
    seconds = common.in_turn(ways, options.rounds)
    baseline = next(iter(outputs.values()))
    record = common.machine(device) | {
        "batch size": size,
        "rounds": options.rounds,
        "ways": common.against(seconds, MINE, size),
        "largest difference of an output from diffusers' in float32": {
            name: float((output.float() - baseline).abs().max() / baseline.abs().max())
            for name, output in outputs.items()
        },
    }
    common.write("forward" if device.type == "cpu" else "forward-gpu", record)


if __name__ == "__main__":
    main()
