"""Progress bars: a line of a terminal, or one output of a notebook's cell.

    for name in Bar(names, "decoding"):
        ...

A bar only observes: an error while one is drawn costs the bars, never the work.
"""

import html
import io
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Generic, TypeVar

from tqdm import tqdm

from diffusion_lib.system.guard import Guard

Item = TypeVar("Item")
_observe = Guard("the progress bar")
_RUNNING = (
    '<div style="display: flex; gap: 1.5em; align-items: center"><span style="min-width: 10em">'
    '{name}</span><span role="progressbar" style="width: 18em; background: #8884"><span style="'
    'display: block; width: {share:.2%}; border-top: 0.5em solid #0072b2"></span></span>'
    "<span>{n_fmt} / {total_fmt}</span><span>{remaining} left</span>{note}</div>"
)
_DONE = '<div style="color: #888">{name}: {n_fmt} / {total_fmt} in {elapsed} {note}</div>'


class Bar(tqdm, Generic[Item]):
    """A progress bar, around the items of a loop or as a context that is updated.

    It is tqdm without a thread.  A cell of a notebook has one output: a line for each open bar, and
    a gray one for what was done last; none if a program runs it.  The rate leaves out the `initial`
    earlier steps; `smoothing` is the weight of the latest step in it, 0 for the mean rate.
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
        _observe(self._open, settings | {"unit": unit, "smoothing": smoothing, "leave": None})

    def _open(self, settings: dict[str, Any]) -> None:
        for bar in list(self._instances):  # of work that ended in an error
            if isinstance(bar, Bar) and bar.error is not self.error:
                bar.close()
        self.output = None
        if (shell := _notebook()) is not None:
            if shell.execution_count != Bar.outputs[0]:
                Bar.outputs = shell.execution_count, [], []
            self.output = _, bars, _ = Bar.outputs
            if all(bar.disable for bar in bars):
                bars.clear()
            settings |= {"file": io.StringIO(), "ascii": False, "position": 0, "leave": not bars}
            # A program that runs a notebook, such as nbconvert, answers no questions.
            settings["disable"] = not shell.get_parent()["content"].get("allow_stdin", True)
            bars.append(self)
        super().__init__(**settings, mininterval=0.5, miniters=1)

    def __iter__(self) -> Iterator[Item]:
        with self:
            yield from self.count(() if self.iterable is None else self.iterable)

    def count(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, and count each after its turn."""
        for item in items:
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
        content = {"text/html": "".join(bar.to_html() for bar in bars)}
        if handle:
            handle[0].update(content, raw=True)
        else:
            from IPython.display import display  # there in a notebook

            handle.append(display(content, raw=True, display_id=True))

    def to_html(self) -> str:
        """Draw the bar and the time left; of a closed one, a gray line with the time it took."""
        style = _DONE if self.disable else _RUNNING
        share = min(1, self.n / self.total) if self.total else 0
        name, note = (html.escape(text or "") for text in (self.desc, self.postfix))
        fields = {"bar_format": style, "ncols": None, "name": name, "note": note, "share": share}
        return self.format_meter(**{**self.format_dict, **fields})


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


def _notebook() -> Any:
    """Return the shell of the notebook that runs; None outside of notebooks."""
    ipython = sys.modules.get("IPython")  # imported where there is a notebook
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if hasattr(shell, "kernel") else None
