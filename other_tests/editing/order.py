"""How fast do the errors of inversion and reconstruction fall with the number of steps?

    python -m other_tests.editing.order        draws the plot

On normal pixels, whose best denoiser and probability flow are known in closed form, so that what is
left is the error of the steps alone.  `tests/test_editing.py` asserts the slopes.
"""

import torch

from diffusion_lib import editing, rng, samplers, schedules, style
from diffusion_lib.oracles import gaussian, gaussian_flow
from diffusion_lib.samplers import final
from other_tests import common

PLOT = common.ASSETS / "editing-order.png"
T, MEAN, STD = 4000, 0.1, 0.2
STEPS = (10, 20, 40, 80, 160, 320)


def errors() -> dict[str, list[float]]:
    """Compute the mean absolute error of a pixel for each of STEPS, over half of the schedule.

    Those of reconstruction alone start from the exact x_t and end at T / 8, because the last step,
    to 0, is DDIM's in every sampler.
    """
    schedule = schedules.linear(T)
    denoiser = gaussian(schedule, MEAN, STD)
    x_0 = (MEAN + STD * rng.normal((50, 1, 1, 1), rng.generator(0))).clamp(-1, 1).double()
    t, end = T // 2, T // 8
    x_t, x_end = (gaussian_flow(schedule, MEAN, STD, x_0, time) for time in (t, end))
    result: dict[str, list[float]] = {}

    def add(name: str, off: torch.Tensor) -> None:
        result.setdefault(name, []).append(off.abs().mean().item())

    for n in STEPS:
        times = schedule.timesteps(2 * n)
        for repeats in (1, 2):
            inverted = final(editing.invert(denoiser, x_0, t, times, repeats))
            back = final(editing.reconstruct(denoiser, inverted, t, times))
            name = "invert, reconstruct" if repeats == 1 else "with 2 evaluations a step"
            add(name, back - x_0)
        times = [*(t - round((t - end) * i / n) for i in range(n + 1)), 0]
        for sampler in (samplers.ddim, samplers.dpm_solver, samplers.heun):
            steps = editing.reconstruct(denoiser, x_t, t, times, sampler)
            x_s = next(step.x_t for step in steps if step.t == end)
            add(f"reconstruct by {sampler.__name__}", x_s - x_end)
    return result


@style.look
def plot() -> style.Plot:
    """Draw the errors against the number of steps."""
    figure, lines = style.figure(size=(8, 3.4)), errors()
    (axis,) = figure.axes
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="mean error of a pixel")
    style.draw(axis, {name: (STEPS, values) for name, values in lines.items()})
    for slope, name in ((1, "invert, reconstruct"), (2, "reconstruct by heun")):
        falling = [1.6 * lines[name][0] * (STEPS[0] / n) ** slope for n in STEPS]
        axis.plot(STEPS, falling, ":", color=style.GRAY, linewidth=1)
        axis.annotate(f"slope −{slope}", (STEPS[1], falling[1]), (6, 2), textcoords="offset points")
    axis.set_xticks(STEPS)
    style.name_ends(axis)
    return figure


if __name__ == "__main__":
    PLOT.write_bytes(plot().png())
