"""Names of functions, from a function to its name and back: `cosine`, `ddim(eta=0.5)`.

A name may have settings in parentheses, `name(key=value, ...)`: numbers and other literals of
Python, names of what can be chosen there, or plain text such as a path.  Nothing is executed.
"""

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from diffusion_lib import posterior
from diffusion_lib.checkpoints import is_same

# Arguments that the library passes itself, so that no text may set them.
_PASSED = {"T", "root", "train", "generator", "timesteps", "weight", "density", "config"}

# Settings that are functions themselves, by the name of the argument.
_CHOICES = {"variance": posterior}

_WORDS = {"none": None, "null": None, "true": True, "false": False}

_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}

_TEXT = re.compile(r"[\w./~+-][\w ./~+-]*")  # what needs no quotation marks


class Configured(partial):
    """A function with settings, equal to another one with the same."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configured) and label(self) == label(other)

    def __hash__(self) -> int:
        return hash(label(self))


def label(function: Callable[..., Any] | None) -> str:
    """Name a function, "none" for None; with the settings that a `functools.partial` was given."""
    if function is None:
        return "none"
    if not isinstance(function, partial):
        return function.__name__
    given = function.keywords
    if function.args:
        given = inspect.signature(function.func).bind_partial(*function.args).arguments | given
    settings = ", ".join(f"{name}={_write(value)}" for name, value in given.items())
    return f"{label(function.func)}({settings})"


def _write(value: Any) -> str:
    if callable(value):
        return label(value)
    plain = isinstance(value, str) and _TEXT.fullmatch(value) and literal(value) == value
    return value if plain and value == value.strip() else repr(value)


def literal(text: str) -> Any:
    """Read a literal of Python, or of TOML and JSON; any other text is that text."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def choices(registry: ModuleType | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what can be chosen by name: a mapping as it is, of a module its `__all__`."""
    if isinstance(registry, Mapping):
        return registry
    return {name: getattr(registry, name) for name in registry.__all__}


def is_known(function: Callable[..., Any], registry: ModuleType | Mapping[str, Any]) -> bool:
    """Tell whether a function is what `lookup` finds by its label."""
    try:
        choice = lookup(label(function), registry, "")
    except ValueError:
        return False
    pair = [getattr(f, "func", f) for f in (function, choice)]
    return is_same(*pair) and label(function) == label(choice)


def lookup(text: Any, registry: ModuleType | Mapping[str, Any], what: str) -> Any:
    """Look up a choice by its name, with settings if it has them; an error calls it `what`.

    Returns:
        The choice; with settings, the function that has them.

    Raises:
        ValueError: no such choice or setting; the message has the close matches and all choices.
    """
    names = choices(registry)
    if not isinstance(text, str):
        text = str(text)
    if text.strip() in names:  # also an arm whose name has parentheses
        return names[text.strip()]
    name, _, rest = text.partition("(")
    if name.strip() not in names:
        whole = any("(" in choice for choice in names)
        raise ValueError(_unknown(what, (text if whole else name).strip(), list(names)))
    choice = names[name.strip()]
    if not callable(choice):
        raise ValueError(f"{what} {name.strip()!r} takes no settings in parentheses")
    if not rest.rstrip().endswith(")"):
        raise ValueError(f"{what} {text!r:.99} must end in ): name(key=value, ...)")
    settings = {}
    known = {
        p.name: p
        for p in inspect.signature(choice).parameters.values()
        if p.name not in _PASSED and (p.default is not p.empty or p.kind is p.KEYWORD_ONLY)
    }
    for setting in _split(rest.rstrip()[:-1]):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"{what} {text!r:.99}: {setting.strip()!r} must be key=value")
        if key in settings:
            raise ValueError(f"{what} {name.strip()}: {key} is given twice")
        if key not in known:
            raise ValueError(_unknown(f"{what} {name.strip()}: setting", key, list(known)))
        settings[key] = _read(value, known[key], f"{what} {name.strip()}: {key}")
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.name not in settings:
            raise ValueError(f"{what} {name.strip()} needs {parameter.name}=...")
    return Configured(choice, **settings) if settings else choice


def _unknown(what: str, name: str, names: list[str]) -> str:
    text, lower = name[:99], name[:99].lower()
    close = [lower] if lower in names else difflib.get_close_matches(lower, names, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return f"{what} {text!r} is unknown{hint} Choose one of: {', '.join(names) or 'none'}."


def _split(text: str) -> list[str]:
    """Split at the commas outside of parentheses and quotation marks."""
    parts = re.findall(r"""(?:"[^"]*"|'[^']*'|\([^()]*\)|\[[^\[\]]*\]|[^,])+""", text)
    return [part for part in parts if part.strip()]


def _read(text: str, parameter: inspect.Parameter, what: str) -> Any:
    if parameter.name in _CHOICES:
        return lookup(text, _CHOICES[parameter.name], what)
    value, kind = literal(text), parameter.annotation
    if value == text and not _TEXT.fullmatch(text):
        raise ValueError(f"{what} cannot be read: {text!r:.99}")
    if kind in _KINDS:
        fits = isinstance(value, int | float if kind is float else kind)
        if not fits or isinstance(value, bool) > (kind is bool):
            usual = "" if parameter.default is parameter.empty else f", such as {parameter.default}"
            raise ValueError(f"{what} must be {_KINDS[kind]}{usual}; got {text!r:.99}")
    return value
