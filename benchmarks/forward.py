"""How many images a second does the network take, beside diffusers?

    python -m benchmarks.forward

Same weights, same input, no gradients.  Writes forward.json beside itself, or forward-gpu.json.
"""

from collections.abc import Callable

import torch

from benchmarks import common
from diffusion_lib.system import device as hardware

MINE, CALLS = "diffusion_lib", 2


def main() -> None:
    options = common.options(__doc__)
    device, size = torch.device(options.device), options.batch_size
    found = common.in_turn([theirs, mine], options.rounds, options.paper, size, device)
    baseline = found["diffusers, float32"].results[0]
    record = common.machine(device) | {
        "batch size": size,
        "rounds": options.rounds,
        "ways": common.against(found, MINE, size * CALLS),
        "difference of the outputs' norm from diffusers' in float32, relative": {
            name: abs(timed.results[0] / baseline - 1) for name, timed in found.items()
        },
    }
    common.write("forward" + common.kind(device), device, record)


def theirs(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], float]]:
    x_t, t, _ = common.draw(0, size, device)
    ways = {}
    for name, mode in common.modes(device).items():
        network = mode.prepare(common.theirs(paper), device)

        def turn(mode=mode, network=network) -> float:
            with torch.no_grad(), mode.precision(device):
                return norm([network(x_t, t - 1).sample for _ in range(CALLS)])

        ways[f"diffusers, {name}"] = turn
    return ways


def mine(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], float]]:
    x_t, t, _ = common.draw(0, size, device)
    denoiser = common.suited(paper, device)

    def turn() -> float:
        with torch.no_grad(), hardware.autocast(denoiser):
            return norm([denoiser.output(x_t, t) for _ in range(CALLS)])

    return {MINE: turn}


def norm(outputs: list[torch.Tensor]) -> float:
    return float(outputs[-1].float().norm())


if __name__ == "__main__":
    main()
