"""Progress bars: a line of a terminal, or one output of a notebook.

    for name in Bar(names, "decoding"):
        ...

A bar only observes: an error while one is drawn costs the bars, never the work.
"""

import io
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Generic, TypeVar

from tqdm import tqdm

from diffusion_lib.system.guard import Guard

Item = TypeVar("Item")
_observe = Guard("the progress bar")


class Bar(tqdm, Generic[Item]):
    """A progress bar, around the items of a loop or as a context that is updated.

    It is tqdm without a thread and with one output in a cell of a notebook, which open bars share:
    a line each.  The rate leaves out the `initial` earlier steps; `smoothing` is the weight of the
    latest step in it, from 0 for the mean rate to 1.
    """

    _instances: ClassVar[Any]  # tqdm's: the bars that are open
    monitor_interval = 0  # no thread
    outputs: ClassVar[tuple[int, list["Bar"], list[Any]]] = (0, [], [])  # cell, bars, handle
    disable: bool = True  # until it is drawn

    def __init__(
        self,
        items: Iterable[Item] | None = None,
        description: str = "",
        total: int | None = None,
        initial: int = 0,
        unit: str = "it",
        smoothing: float = 0.3,
    ) -> None:
        self.iterable = items
        self.error = getattr(sys, "last_value", None)
        settings = {"iterable": items, "desc": description, "total": total, "initial": initial}
        _observe(self._open, settings | {"unit": unit, "smoothing": smoothing})

    def _open(self, settings: dict[str, Any]) -> None:
        for bar in list(self._instances):  # of work that ended in an error
            if isinstance(bar, Bar) and bar.error is not self.error:
                bar.close()
        self.output = None
        settings["leave"] = None  # below another bar it leaves nothing
        if (cell := _cell()) is not None:
            if cell != Bar.outputs[0] or all(bar.disable for bar in Bar.outputs[1]):
                Bar.outputs = cell, [], []
            self.output, is_first = Bar.outputs, not Bar.outputs[1]
            self.output[1].append(self)
            settings |= {"file": io.StringIO(), "ascii": False, "position": 0, "leave": is_first}
        super().__init__(**settings, mininterval=0.5, miniters=1)

    def __iter__(self) -> Iterator[Item]:
        with self:
            for item in () if self.iterable is None else self.iterable:
                yield item
                self.update()

    def update(self, n: float | None = 1) -> None:
        """Count n more steps."""
        if not self.disable:
            _observe(super().update, n)

    def note(self, text: str) -> None:
        """Show a note behind the numbers at once."""
        if not self.disable:
            _observe(self.set_postfix_str, text)

    def close(self) -> None:
        """Leave the bar as it is, or nothing of one that is inside of another."""
        with suppress(Exception):  # a stream that was closed
            super().close()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar in the terminal or in the output of the cell."""
        if self.output is None:
            super().display(msg, pos)
            return
        _, bars, handle = self.output
        if msg == "":  # closed, and not the first
            bars[:] = [bar for bar in bars if bar is not self]
        content = {"text/plain": "\n".join(map(str, bars))}
        if handle:
            handle[0].update(content, raw=True)
        else:
            from IPython.display import display  # there in a notebook

            handle.append(display(content, raw=True, display_id=True))


def progress(
    steps: Iterable[Item], total: int, description: str = ""
) -> Generator[Item, None, None]:
    """Yield the states of a trainer or sampler, with a live progress bar.

    `total` counts the steps with those before a trainer was resumed.
    """
    interval = max(1, total // 200)
    with Bar(description=description, total=total) as bar:
        for n, step in enumerate(steps, start=1):
            done = getattr(step, "step", n)  # a trainer's states have their number
            if n == 1:
                bar.initial = bar.n = bar.last_print_n = done - 1
            bar.update()
            if n % interval == 0 or n == 1 or done == total:  # reading a loss synchronizes a GPU
                state: Any = step
                bar.note(f"t = {state.t}" if hasattr(step, "t") else f"loss {state.loss:.4f}")
            yield step


def _cell() -> int | None:
    """Return the number of the notebook's cell that runs; None outside of notebooks."""
    ipython = sys.modules.get("IPython")  # imported where there is a notebook
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "execution_count", 0) if hasattr(shell, "kernel") else None
