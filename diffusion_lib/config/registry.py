"""Names of functions: from a function to its name, and from a name to the function."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any


def label(function: Callable[..., Any] | None) -> str:
    """Name a function, "none" for None; with the arguments that a `functools.partial` was given."""
    if function is None:
        return "none"
    if isinstance(function, partial):
        values = [*map(str, function.args), *(f"{k}={v}" for k, v in function.keywords.items())]
        return f"{label(function.func)}({', '.join(values)})"
    return function.__name__


def choices(registry: ModuleType | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what can be chosen by name: a mapping as it is, of a module its `__all__`."""
    if isinstance(registry, Mapping):
        return registry
    return {name: getattr(registry, name) for name in registry.__all__}


def lookup(name: Any, registry: ModuleType | Mapping[str, Any], what: str) -> Any:
    """Look up a choice by its name; an error calls it `what`.

    Raises:
        ValueError: no such choice; the message has the close matches and all choices.
    """
    names = choices(registry)
    if isinstance(name, str) and name in names:
        return names[name]
    text = str(name)[:99]
    lower = text.lower()
    close = [lower] if lower in names else difflib.get_close_matches(lower, names, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise ValueError(f"{what} {name!r:.99} is unknown{hint} Choose one of: {', '.join(names)}.")
