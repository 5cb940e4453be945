"""Names of functions: from a function to its name, and from a name to the function."""

import difflib
from collections.abc import Callable, Collection
from functools import partial
from types import ModuleType
from typing import Any


def label(function: Callable[..., Any] | None) -> str:
    """Its name, "none" for None; with the arguments that a `functools.partial` was given."""
    if function is None:
        return "none"
    if isinstance(function, partial):
        given = [*map(str, function.args), *(f"{k}={v}" for k, v in function.keywords.items())]
        return f"{label(function.func)}({', '.join(given)})"
    return function.__name__


def choose(name: str, choices: dict[str, Any], what: str) -> Any:
    """The choice of that name.

    Raises:
        ValueError: there is none; the message has the close matches and all choices.
    """
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{what} {name!r:.99} is unknown{_suggest(str(name)[:99], choices)}")
    return choices[name]


def resolve(name: str, module: ModuleType, what: str) -> Any:
    """The function of that name in a module's `__all__`; an error calls it `what`.

    Raises:
        ValueError: it lists none; the message has the close matches and all choices.
    """
    return choose(name, {choice: getattr(module, choice) for choice in module.__all__}, what)


def _suggest(name: str, choices: Collection[str]) -> str:
    lower = name.lower()
    close = [lower] if lower in choices else difflib.get_close_matches(lower, choices, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return f"{hint} Choose one of: {', '.join(choices)}."
