"""The text of `--help`, and the types of options in words.

One formatter for every command takes texts from docstrings and knows no command.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import pkgutil
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

# What an error calls a type.
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
WIDTH = 120  # columns; fewer in a narrower terminal
COLUMN = 42  # where the texts begin
CHOICES_WIDTH = 20  # a longer list of values is in the text
_NAMES = {"files": "FILE", "file": "FILE", "dir": "FOLDER", "path": "PATH", "output": "FILE", "time": "TIME"}
_TYPES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "BOOL"}
# Actions of jsonargparse that are no options of a command.
_INTERNAL = ("ActionLink", "_ActionConfigLoad", "_ActionHelpClassPath")


class HelpFormatter(DefaultHelpFormatter):
    """Prints an option with the type of its value, its text (in short, the first sentence of it) and its default."""

    def __init__(self, prog: str, is_short: bool = False) -> None:
        self._is_short = is_short
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        argparse.HelpFormatter.__init__(self, prog, max_help_position=COLUMN, width=width)

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        """Leave out the options: their list follows."""
        return f"usage: {(usage or '%(prog)s [options]') % {'prog': self._prog}}\n\n"

    def add_argument(self, action: argparse.Action) -> None:
        if is_option(action) or isinstance(action, argparse._HelpAction):
            super().add_argument(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return invocation(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        text = text.replace("(default: ", "(default:\0")  # stays on one line
        return [line.replace("\0", " ") for line in textwrap.wrap(text, width, break_on_hyphens=False)]

    def _expand_help(self, action: argparse.Action) -> str:
        """Return the text of an option, which `--print_config=comments` also prints."""
        return describe(action, self._is_short)


class Parser(ArgumentParser):
    """A parser that prints its help, and that of the classes that its options name, with a HelpFormatter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})

    def add_class_arguments(self, class_type: type, *args: Any, **kwargs: Any) -> list[str]:
        """Add the parameters of a class. Only dataclasses have texts below their fields, whose search is slow."""
        set_parsing_settings(docstring_parse_attribute_docstrings=dataclasses.is_dataclass(class_type))
        names: list[str] = super().add_class_arguments(class_type, *args, **kwargs)
        return names


def is_option(action: argparse.Action) -> bool:
    """Return whether users may set an option; `--help` and links between options are not of this kind."""
    internal = isinstance(action, argparse._HelpAction) or type(action).__name__ in _INTERNAL
    return not internal and action.help != argparse.SUPPRESS


def describe(action: argparse.Action, is_short: bool = False) -> str:
    """Return the text of an option with its default."""
    text, default = text_of(action, is_short), format_default(action)
    return f"{text} (default: {default})" if default and "Default: " not in text else text


def text_of(action: argparse.Action, is_short: bool = False) -> str:
    """Return the text of an option, and the names of the options of its class; in short only the first sentence."""
    text = " ".join((action.help or "").split())
    if text == "show this help message and exit":  # argparse's
        text = "Print this help and exit."
    if is_short:
        first, *others = re.split(r"(?<=\.) (?=[A-Z`0-9])", text)
        text = " ".join([first, *(sentence for sentence in others if "Default: " in sentence)])
    elif metavar(action) == "NAME" and any(value not in text for value in choices(action)):
        text += f" Values: {', '.join(choices(action))}."
    if names := class_options(action):
        listed = "" if is_short else f"Options: {', '.join(names)}. "
        text += f" {listed}See {action.option_strings[0]}.help."
    return text


def invocation(action: argparse.Action) -> str:
    """Return an option as it is typed: `--top_k INT`, `--help[=all]`."""
    names = ", ".join(name for name in action.option_strings if not name.endswith("+"))
    value = metavar(action)
    return names + value if value.startswith("[=") else f"{names} {value}".rstrip()


def metavar(action: argparse.Action) -> str:
    """Return the placeholder of an option's value: from its name, its choices or its type; empty for a flag."""
    if action.metavar and not hasattr(action, "_typehint"):  # jsonargparse sets it for options with types
        return str(action.metavar)
    if action.nargs == 0 or isinstance(action, ActionYesNo):
        return ""
    if values := choices(action):
        name = f"{{{','.join(values)}}}" if len(",".join(values)) < CHOICES_WIDTH else "NAME"
    else:
        kinds = [_TYPES.get(kind, "CLASS") if isinstance(kind, type) else str(kind) for kind in kinds_of(action)]
        name = _NAMES.get(action.dest.rpartition(".")[2].rpartition("_")[2]) or "|".join(dict.fromkeys(kinds))
    name = name.replace("INT|FLOAT", "NUMBER")
    if typing.get_origin(getattr(action, "_typehint", None)) in (list, tuple, Sequence):
        return f"[{name},...]"
    return f"{name} ..." if action.nargs == "+" else name


def kinds_of(action: argparse.Action) -> list[Any]:
    """Return the innermost types of an option, and the values of its literals, without None."""
    hint = getattr(action, "_typehint", action.type)
    return [kind for kind in leaves(hint) if not isinstance(kind, list) and kind not in (None, type(None), ...)]


def choices(action: argparse.Action) -> list[str]:
    """Return the possible values of an option that has no others."""
    kinds = kinds_of(action)
    return [] if any(isinstance(kind, type) for kind in kinds) else list(dict.fromkeys(map(str, kinds)))


def class_options(action: argparse.Action) -> list[str]:
    """Return the names of the options of the class that an option names, if it is a class of gpt2kit."""
    if named_values(getattr(action, "_typehint", None)):  # jsonargparse has no help for what a name stands for
        return []
    path = action.default.get("class_path") if isinstance(action.default, (dict, Namespace)) else None
    for kind in [pkgutil.resolve_name(path)] if path else kinds_of(action):
        if isinstance(kind, type) and kind.__module__.startswith("gpt2kit."):
            return [name for name in inspect.signature(kind).parameters if name != "params"]
    return []


def format_default(action: argparse.Action) -> str:
    """Return the default of an option as it is typed; empty for None and for flags."""
    value = action.default
    if value in (None, argparse.SUPPRESS, "", [], ()) or isinstance(action, argparse._StoreTrueAction):
        return ""
    if isinstance(value, (Namespace, dict)):
        spec = dict(value.as_dict() if isinstance(value, Namespace) else value)
        arguments = ", ".join(f"{name} {v}" for name, v in (spec.get("init_args") or {}).items() if v is not None)
        kind = str(spec.get("class_path", "")).rpartition(".")[2]
        return f"{kind} ({arguments})" if arguments else kind
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if isinstance(value, (int, float, str)) else type(value).__name__


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


def named_values(hint: Any) -> Any:
    """Return the type of the values of a mapping of names, if an option may be one; else None."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for part in typing.get_args(hint) if is_union else (hint,):
        if typing.get_origin(part) is dict:
            return typing.get_args(part)[1]
    return None


def in_words(hint: Any) -> str:
    """Describe a type."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return f"{'one of ' if inner[1:] else ''}{', '.join(dict.fromkeys(map(str, inner)))}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return "options"
    return _WORDS.get(hint, "a list" if typing.get_origin(hint) in (list, tuple) else "a class")
