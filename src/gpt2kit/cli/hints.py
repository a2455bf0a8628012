"""What the type hint of an option allows: its parts, the classes that may be named, and a description for an error."""

from __future__ import annotations

import sys
import types
import typing
from typing import Any

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def leaves(hint: Any) -> list[Any]:
    """Return the innermost types of a type hint."""
    inner = typing.get_args(hint)
    return [leaf for part in inner for leaf in leaves(part)] if inner else [hint]


def base_classes(hint: Any) -> list[type]:
    """Return the classes in a type hint that are not Python's own."""
    return [leaf for leaf in leaves(hint) if isinstance(leaf, type) and leaf.__module__ != "builtins"]


def known_classes(hint: Any) -> dict[str, type]:
    """Return the classes that an option may name, by the shortest paths that import them."""
    known: dict[str, type] = {}
    queue = base_classes(hint)
    for kind in queue:
        names = kind.__module__.split(".")
        modules = [".".join(names[:end]) for end in range(1, len(names))]
        short = (name for name in modules if getattr(sys.modules.get(name), kind.__qualname__, None) is kind)
        known[f"{next(short, kind.__module__)}.{kind.__qualname__}"] = kind
        queue += kind.__subclasses__()
    return known


def makes(named: object, bases: list[type]) -> bool:
    """Return whether calling `named`, a class or a function with annotations, gives an object of one of the classes."""
    if not isinstance(named, type):
        try:
            named = typing.get_type_hints(named).get("return")
        except (NameError, TypeError):
            return False
    return isinstance(named, type) and issubclass(named, tuple(bases))


def in_words(hint: Any) -> str:
    """Describe a type."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return f"{'one of ' if inner[1:] else ''}{', '.join(dict.fromkeys(map(str, inner)))}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    return _WORDS.get(hint, "a list" if typing.get_origin(hint) in (list, tuple) else "a class")
