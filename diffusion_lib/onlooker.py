"""A guard around what only looks at work: whatever goes wrong there, the work goes on."""

import warnings
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Onlooker:
    """Makes calls whose results are only looked at, until one of them fails.

    The first exception becomes a warning; calls after it are left out.  So an onlooker that is
    broken, such as an installed package that cannot be imported, costs its pictures and nothing
    else.

    Args:
        name: of what looks, for the warning.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = False

    def __call__(self, look: Callable[[], Result]) -> Result | None:
        """Return what `look` returns, or None where it or an earlier call failed."""
        if self.failed:
            return None
        try:
            return look()
        except Exception as error:
            self.failed = True
            warnings.warn(
                f"{self.name} failed and is left out from here on; nothing else is affected "
                f"({type(error).__name__}: {error})",
                stacklevel=3,
            )
            return None
