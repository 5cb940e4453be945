"""How many images a second does the network take, beside diffusers?

    python -m benchmarks.forward

Same weights, same input, no gradients.  Writes forward.json beside itself, or forward-gpu.json.
"""

from collections.abc import Callable

import torch

from benchmarks import common
from diffusion_lib.system import device as hardware

OURS, CALLS = "diffusion_lib", 2


def main() -> None:
    options = common.options(__doc__)
    device, size = torch.device(options.device), options.batch_size
    timings = common.interleaved_timings(
        [diffusers_ways, our_ways], options.rounds, options.paper, size, device
    )
    peer = timings.get("diffusers, float32")
    record = common.machine(device) | {
        "batch size": size,
        "rounds": options.rounds,
        "ways": common.speeds(timings, OURS, size * CALLS),
        "difference of the outputs' norm from diffusers' in float32, relative": {
            name: abs(timed.results[0] / peer.results[0] - 1)
            for name, timed in timings.items()
            if peer
        },
    }
    common.write("forward" + common.record_suffix(device), device, record)


def diffusers_ways(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], float]]:
    x_t, t, _ = common.draw(0, size, device)
    ways = {}
    for name, mode in common.modes(device).items():
        network = mode.prepare(common.diffusers_network(paper), device)

        def turn(mode=mode, network=network) -> float:
            with torch.no_grad(), mode.precision(device):
                return norm([network(x_t, t - 1).sample for _ in range(CALLS)])

        ways[f"diffusers, {name}"] = turn
    return ways


def our_ways(paper: bool, size: int, device: torch.device) -> dict[str, Callable[[], float]]:
    x_t, t, _ = common.draw(0, size, device)
    ways = {}
    for name, steps in common.our_modes(OURS, device).items():
        denoiser = common.as_the_library_runs_it(paper, device, steps)

        def turn(denoiser=denoiser) -> float:
            with torch.no_grad(), hardware.autocast(denoiser):
                return norm([denoiser.output(x_t, t) for _ in range(CALLS)])

        ways[name] = turn
    return ways


def norm(outputs: list[torch.Tensor]) -> float:
    return float(outputs[-1].float().norm())


if __name__ == "__main__":
    main()
