"""Progress bars for people: a line of a terminal, or one output of a notebook.

    for name in Bar(names, "decoding"):
        ...

A bar only looks.  Whatever goes wrong while one is drawn costs that bar, never the work.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakSet

from tqdm import tqdm

Item = TypeVar("Item")


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

    _open: ClassVar[WeakSet["Bar[Any]"]] = WeakSet()
    _line: "_Line | None" = None
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
        self._error = getattr(sys, "last_value", None)
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self._only_looks():
            self._close_left_over()
            cell = _cell()
            if cell is not None:
                self._line = _Line(cell)
            self._tqdm = _Tqdm(
                desc=description,
                total=total,
                initial=initial,
                unit=unit,
                smoothing=smoothing,
                mininterval=0.5,
                miniters=1,
                file=self._line,
                # In a terminal tqdm finds a place, and a bar beneath another one leaves nothing.
                position=None if self._line is None else 0,
                leave=None if self._line is None else True,
            )
            self._open.add(self)

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
        if self._tqdm is None:
            return
        with self._only_looks():
            if note is not None:
                self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(n)

    def note(self, text: str) -> None:
        """Show this behind the numbers, at once."""
        if self._tqdm is not None:
            with self._only_looks():
                self._tqdm.set_postfix_str(text)

    def start(self, n: int) -> None:
        """Say that n steps were done before this bar was opened."""
        if self._tqdm is not None:
            self._tqdm.initial = self._tqdm.n = self._tqdm.last_print_n = n

    def close(self) -> None:
        """Leave the bar as it is, or nothing of one that is inside of another."""
        bar, self._tqdm = self._tqdm, None
        with self._only_looks():
            if bar is not None:
                bar.close()
            if self._line is not None:
                self._line.close()

    @contextmanager
    def _only_looks(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            bar, self._tqdm = self._tqdm, None
            with suppress(Exception):
                _warn(f"{type(error).__name__}: {error}")
            with suppress(Exception):
                if bar is not None:
                    bar.close()
            with suppress(Exception):
                if self._line is not None:
                    self._line.close()

    def _close_left_over(self) -> None:
        """Close the bars of work that ended in an error: a traceback can keep them alive."""
        for bar in list(self._open):
            if bar._error is not self._error:
                bar.close()


class _Tqdm(tqdm):
    """Without a thread of its own, and without a lock that an error leaves locked."""

    monitor_interval = 0  # the thread is for bars that skip updates

    def refresh(self, nolock: bool = False, lock_args: tuple[Any, ...] | None = None) -> None:
        if not self.disable:
            with nullcontext() if nolock else self.get_lock():
                self.display()


class _Line:
    """What tqdm writes to in a notebook: a line of an output."""

    encoding = "utf-8"  # so that tqdm draws with blocks

    def __init__(self, cell: int) -> None:
        latest = _Output.latest
        if latest is None or latest.cell != cell or not latest.is_open():
            latest = _Output.latest = _Output(cell)
        self.output, self.text, self.open = latest, "", True
        latest.lines.append(self)

    def write(self, text: str) -> None:
        if text.strip():  # no carriage return, no line end
            self.text = text.strip()
            self.output.show()

    def flush(self) -> None:
        """As files have it; `write` leaves nothing to do."""

    def close(self) -> None:
        """Take the line away, unless it is the first."""
        first, *others = self.output.lines
        self.open = False
        if first is not self and self in others:
            self.output.lines.remove(self)
            self.output.show()


class _Output:
    """An output of a notebook that is drawn again and again, with the lines of open bars."""

    latest: ClassVar["_Output | None"] = None

    def __init__(self, cell: int) -> None:
        self.cell = cell
        self.lines: list[_Line] = []
        self.handle: Any = None

    def is_open(self) -> bool:
        return any(line.open for line in self.lines)

    def show(self) -> None:
        from IPython.display import display  # there in a notebook

        content = {"text/plain": "\n".join(line.text for line in self.lines)}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)


def _cell() -> int | None:
    """Number of the notebook's cell that is executed; None outside of notebooks."""
    ipython = sys.modules.get("IPython")  # imported where there is a notebook
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "execution_count", 0) if hasattr(shell, "kernel") else None


@cache
def _warn(error: str) -> None:
    warnings.warn(f"a progress bar could not be shown ({error}); the work goes on", stacklevel=2)
