"""What the type of an option accepts, for types as they stand in signatures."""

from __future__ import annotations

import argparse
import enum
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from jsonargparse import ArgumentParser


def parts(hint: Any) -> Iterator[Any]:
    """The types that a type is made of; `str` for literals."""
    if typing.get_origin(hint) is typing.Literal:
        yield str
    elif inner := typing.get_args(hint):
        for one in inner:
            yield from parts(one)
    else:
        yield hint


def bases(hint: Any) -> list[type]:
    """The classes of a type that are named by their paths in a config."""
    kinds = [one for one in parts(hint) if isinstance(one, type) and not issubclass(one, enum.Enum)]
    return [kind for kind in kinds if kind.__module__.partition(".")[0] not in sys.stdlib_module_names]


def classes(hint: Any) -> dict[str, type]:
    """The classes that an option of this type may name, by their paths."""
    found: dict[str, type] = {}
    waiting = bases(hint)
    while waiting:
        kind = waiting.pop(0)
        found[public_path(kind)] = kind
        waiting += kind.__subclasses__()
    return found


def public_path(kind: type) -> str:
    """The shortest path by which a class can be imported: `gpt2kit.optim.Muon`, not where it is defined."""
    names = kind.__module__.split(".")
    modules = [".".join(names[:end]) for end in range(1, len(names))]
    short = (name for name in modules if getattr(sys.modules.get(name), kind.__qualname__, None) is kind)
    return f"{next(short, kind.__module__)}.{kind.__qualname__}"


def parameters(kind: Any, supplied: bool = False) -> dict[str, inspect.Parameter]:
    """The parameters of a class; without the first, if whoever calls it supplies that."""
    try:
        signature = inspect.signature(kind, eval_str=True)
    except (NameError, AttributeError):  # a type that is only imported for type checkers
        signature = inspect.signature(kind)
    except ValueError:  # of C, without a signature
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}
    return dict(list(signature.parameters.items())[supplied:])


def fits(hint: Any, value: yaml.Node | str) -> bool:
    """Whether jsonargparse takes a value for an option of this type."""
    if isinstance(hint, str) or hint is inspect.Parameter.empty:
        return True
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
    except ValueError:  # a type that it does not know
        return True
    try:
        if isinstance(value, str):
            parser.parse_args([f"--value={value}"])
        else:
            key = yaml.ScalarNode("tag:yaml.org,2002:str", "value")
            parser.parse_string(yaml.serialize(yaml.MappingNode("tag:yaml.org,2002:map", [(key, value)])))
    except argparse.ArgumentError:
        return False
    return True


def in_words(hint: Any) -> str:
    """A type, as one says it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if origin is None and hint in words:
        return words[hint]
    return "a class" if bases(hint) else "a list" if origin else getattr(hint, "__name__", str(hint))
