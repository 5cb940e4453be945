"""Interrupts: deferred to the end of a block, and shown as one sentence."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(KeyboardInterrupt):
    """A Ctrl-C whose message says what is saved: notebooks show that in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@contextmanager
def explain_stop(state: str) -> Iterator[None]:
    """Say what is saved where Ctrl-C ends the block; the outermost of nested blocks does."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(f"Stopped. {state}") from None


@contextmanager
def defer_interrupts() -> Iterator[Callable[[], None]]:
    """Defer Ctrl-C (or a notebook's stop button) in the block; the yielded function delivers it.

    SIGTERM is deferred too where the program handles it, as the command line does.
    """
    pending: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python delivers signals to the main thread only
        return
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(handler := signal.getsignal(number))
    }
    for number in handlers:
        signal.signal(number, lambda number, _: pending.append(number))

    def deliver() -> None:
        if pending:
            signal.raise_signal(pending[0])  # to the present handler, perhaps of an outer block

    try:
        yield deliver
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
