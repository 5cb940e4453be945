"""A guard around what only looks at work: whatever goes wrong there, the work goes on."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Guard:
    """Make calls whose results are only looked at, until one of them fails.

    The first exception becomes a warning; calls after it are left out.  So a looker-on that is
    broken, such as an installed package that cannot be imported, costs its pictures and nothing
    else.

    Args:
        name: what looks, for the warning.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = False

    def __call__(
        self, look: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        """Return what `look` returns, or None where it or an earlier call failed."""
        if self.failed:
            return None
        try:
            return look(*args, **kwargs)
        except Exception as error:
            self.failed = True
            with suppress(Exception):  # warnings can be turned into errors
                warnings.warn(
                    f"{self.name} failed and is left out from here on; nothing else is affected "
                    f"({type(error).__name__}: {error})",
                    stacklevel=2,
                )
            return None
