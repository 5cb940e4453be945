"""A guard around observers, such as progress bars: their failure does not stop the work."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Guard:
    """Call an observer until it fails.

    The first exception becomes a warning, and later calls are skipped.  An observer that is broken,
    such as a package that cannot be imported, costs its own output and nothing else.

    Args:
        name: name of the observer, for the warning.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = False

    def __call__(
        self,
        observe: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result | None:
        """Return the result of `observe`, or None where it or an earlier call failed."""
        if self.failed:
            return None
        try:
            return observe(*args, **kwargs)
        except Exception as error:
            self.failed = True
            with suppress(Exception):  # warnings can be turned into errors
                warnings.warn(
                    f"{self.name} failed and is left out from here on; nothing else is affected "
                    f"({type(error).__name__}: {error})",
                    stacklevel=2,
                )
            return None
