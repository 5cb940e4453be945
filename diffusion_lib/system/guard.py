"""A guard around observers, such as progress bars: their failure does not stop the work."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


class Guard:
    """Call an observer until it fails: its first exception becomes a warning, and it is left out.

    Args:
        name: name of the observer, for the warning.
    """

    def __init__(self, name: str) -> None:
        self.name, self.failed = name, False

    def __call__(
        self, observe: Callable[P, Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result | None:
        """Return the result of `observe`, or None where it or an earlier call failed."""
        try:
            return None if self.failed else observe(*args, **kwargs)
        except Exception as error:
            self.failed = True
            with suppress(Exception):  # warnings can be turned into errors
                warnings.warn(
                    f"{self.name} failed and is left out from here on; nothing else is affected "
                    f"({type(error).__name__}: {error})",
                    stacklevel=2,
                )
            return None
