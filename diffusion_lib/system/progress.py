"""Progress bars for people: a line of a terminal, or one output of a notebook.

    for name in Bar(names, "decoding"):
        ...

A bar only looks.  Whatever goes wrong while one is drawn costs the bars, never the work.
"""

import io
import sys
from collections.abc import Generator, Iterable, Iterator, Sized
from contextlib import nullcontext, suppress
from typing import Any, ClassVar, Generic, Self, TypeVar

from tqdm import tqdm

from diffusion_lib.system.guard import Guard

Item = TypeVar("Item")
_look = Guard("the progress bar")


class Bar(Generic[Item]):
    """A progress bar, around what a loop goes over or as a context that is updated.

    In a notebook a bar has one output, which those inside of it share: a line each, as long as they
    are open.  In a terminal they stand beneath each other.

    Args:
        items: what a loop goes over; None where `update` is called.
        description: stands before the bar.
        total: number of steps; None for the number of items.
        initial: steps that were done before, which the rate leaves out.
        unit: what the steps are, behind their numbers.
        smoothing: 1 for the rate of this moment, 0 for that of the whole time.
    """

    _tqdm: "_Tqdm | None" = None

    def __init__(
        self,
        items: Iterable[Item] | None = None,
        description: str = "",
        total: int | None = None,
        initial: int = 0,
        unit: str = "it",
        smoothing: float = 0.3,
    ) -> None:
        self._items = items
        if total is None and isinstance(items, Sized):
            total = len(items)
        settings = {"desc": description, "total": total, "initial": initial}
        self._tqdm = _look(_Tqdm, **settings, unit=unit, smoothing=smoothing)

    def __iter__(self) -> Iterator[Item]:
        if self._items is None:
            raise TypeError("this bar has no items to go over: give it some, or update it")
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def update(self, n: int = 1, note: str | None = None) -> None:
        """Count n more steps; show the note behind the numbers from now on."""
        if (bar := self._tqdm) is not None:
            if note is not None:
                _look(bar.set_postfix_str, note, refresh=False)
            _look(bar.update, n)

    def note(self, text: str) -> None:
        """Show this behind the numbers, at once."""
        if (bar := self._tqdm) is not None:
            _look(bar.set_postfix_str, text)

    def start(self, n: int) -> None:
        """Say that n steps were done before this bar was opened."""
        if self._tqdm is not None:
            self._tqdm.initial = self._tqdm.n = self._tqdm.last_print_n = n

    def close(self) -> None:
        """Leave the bar as it is, or nothing of one that is inside of another."""
        bar, self._tqdm = self._tqdm, None
        if bar is not None:
            with suppress(Exception):  # of a stream that has been closed since
                bar.close()


def progress(
    steps: Iterable[Item], total: int, description: str = ""
) -> Generator[Item, None, None]:
    """Pass on the states of a trainer or sampler, with a live progress bar.

    Args:
        total: number of steps; a trainer that goes on from a saved state starts part of the way.
    """
    every = max(1, total // 200)
    with Bar(description=description, total=total) as bar:
        for n, step in enumerate(steps, start=1):
            done, note = getattr(step, "step", n), None  # a trainer's states know their number
            if n == 1:
                bar.start(done - 1)
            if n % every == 0 or n == 1 or done == total:  # a GPU would have to wait for every loss
                state: Any = step
                note = f"t = {state.t}" if hasattr(step, "t") else f"loss {state.loss:.4f}"
            bar.update(note=note)
            yield step


class _Tqdm(tqdm):
    """Without a thread, and without a lock that an error leaves locked; in a notebook one output.

    Bars of a cell that are open together share an output: `shared` is (cell, bars, handle).
    """

    _instances: ClassVar[Any]  # tqdm's: the bars that are open
    monitor_interval = 0  # the thread is for bars that skip updates
    shared: ClassVar[tuple[int, list["_Tqdm"], list[Any]]] = (0, [], [])

    def __init__(self, **settings: Any) -> None:
        self.error = getattr(sys, "last_value", None)
        for bar in list(getattr(_Tqdm, "_instances", ())):  # of work that ended in an error
            if bar.error is not self.error:
                with suppress(Exception):
                    bar.close()
        if (cell := _cell()) is not None:
            if cell != self.shared[0] or all(bar.disable for bar in self.shared[1]):
                _Tqdm.shared = cell, [], []
            self.output, first = self.shared, not self.shared[1]
            self.output[1].append(self)
            settings |= {"file": io.StringIO(), "ascii": False, "position": 0, "leave": first}
        else:
            self.output, settings["leave"] = None, None  # beneath another one it leaves nothing
        try:
            super().__init__(**settings, mininterval=0.5, miniters=1)
        except BaseException:  # else the next bar would be drawn beneath this one
            self._instances.discard(self)
            raise

    def __del__(self) -> None:
        """Leave the closing to `Bar`, also where the making of this one failed."""

    def refresh(self, nolock: bool = False, lock_args: tuple[Any, ...] | None = None) -> None:
        if not self.disable:
            with nullcontext() if nolock else self.get_lock():
                self.display()

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
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


def _cell() -> int | None:
    """Number of the notebook's cell that is executed; None outside of notebooks."""
    ipython = sys.modules.get("IPython")  # imported where there is a notebook
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "execution_count", 0) if hasattr(shell, "kernel") else None
