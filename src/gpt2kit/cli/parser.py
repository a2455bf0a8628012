"""Build a command line from a function's signature and docstring."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser

from gpt2kit.cli import other_names
from gpt2kit.cli.command_line import CommandLine
from gpt2kit.cli.failures import guarded
from gpt2kit.cli.help import Parser, invocation
from gpt2kit.errors import UserError

Value = TypeVar("Value")
# Types of parameters. Arguments before the first option are values of the Positional one: `test.py last` is `test.py
# --ckpt_path last`. A Repeated option takes one value each time: `--prompt a --prompt b`.
Positional = Annotated[Value, "positional"]
Repeated = Annotated[list[Value], "repeated"]


def run(function: Callable[..., object], args: list[str] | None = None, name: str | None = None) -> None:
    """Call `function` with options parsed from the command line. `name` is the command's, by default the script's.

    A list takes several values and may be repeated: `--files a b --files c`. A bool is a flag: `--json`.
    """
    guarded(lambda argv: call(function, parse(function, argv, name)), args)


def call(function: Callable[..., object], options: dict[str, object]) -> object:
    """Call a function with the options that `parse` returned for it."""
    options = dict(options)
    for name, hint in typing.get_type_hints(function).items():
        if _is_group(hint):
            options[name] = hint(**{field.name: options.pop(field.name) for field in dataclasses.fields(hint)})
    return function(**options)


def parse(function: Callable[..., object], args: list[str], name: str | None = None) -> dict[str, object]:
    """Parse the arguments of a command line to options of `function`."""
    parser = parser_of(function, name)
    positional = _positional(function)
    if positional:
        values, args = split_positional(args, f"--{positional}")
        if len(values) > 1 and not _list_item(typing.get_type_hints(function)[positional]):
            raise UserError(f"unexpected argument {values[1]!r} after {values[0]!r}. Options begin with --")
        args = [*args, f"--{positional}", *values] if values else args
    args = ["--help" if arg == "--help=all" else arg for arg in args]  # as for gpt2kit train
    command = CommandLine(parser, args)
    try:
        options = dict(parser.instantiate(command.parse()).as_dict())
    except ValueError as error:  # of an optional class: jsonargparse raises it for all members of the union
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    other_names.log_renames(command.renames)
    return options


def split_positional(args: list[str], option: str) -> tuple[list[str], list[str]]:
    """Return the arguments before the first option, which are values of `option`, and the others."""
    count = next((index for index, arg in enumerate(args) if arg[:1] == "-" and arg != "-"), len(args))
    values, others = args[:count], args[count:]
    if values and any(arg.partition("=")[0] == option for arg in others):
        raise UserError(f"{values[0]}: {option} is also given. Leave out one of the two")
    return values, others


def parser_of(function: Callable[..., object], name: str | None = None) -> ArgumentParser:
    """Return the parser of a function's options, in the order of its signature.

    A parameter that is a dataclass stands for its fields. They are a group of `--help`, and those of a base class
    another one.
    """
    description = (inspect.getdoc(function) or "").split("\n\n")[0]
    epilog = "--debug shows the traceback of an error."
    parser = Parser(name, exit_on_error=False, allow_abbrev=False, description=description, epilog=epilog)
    add_options(parser, function)
    positional = _positional(function)
    if positional:
        form = positional.upper() + (" ..." if _list_item(typing.get_type_hints(function)[positional]) else "")
        is_required = inspect.signature(function).parameters[positional].default is inspect.Parameter.empty
        required = [invocation(action) for action in parser._actions if action.required and action.dest != positional]
        parser.usage = " ".join(["%(prog)s", form if is_required else f"[{form}]", *required, "[options]"])
    return parser


def _positional(function: Callable[..., object]) -> str | None:
    """Return the name of the positional parameter of a function, if it has one."""
    hints = typing.get_type_hints(function, include_extras=True)
    return next((name for name, hint in hints.items() if "positional" in getattr(hint, "__metadata__", ())), None)


def add_options(parser: ArgumentParser, source: Callable[..., object]) -> None:
    """Add the parameters of a function, or the fields of a dataclass, as options."""
    hints, annotated = typing.get_type_hints(source), typing.get_type_hints(source, include_extras=True)
    classes = [base for base in reversed(source.__mro__) if _is_group(base)] if isinstance(source, type) else [source]
    entries = [entry for each in classes for entry in docstring_parser.parse_from_object(each).params]
    helps = {entry.arg_name: entry.description for entry in entries}
    containers: dict[str, typing.Any] = {}
    for each in reversed(classes) if isinstance(source, type) else ():
        group = parser.add_argument_group((inspect.getdoc(each) or "").partition(".")[0])
        containers |= dict.fromkeys(inspect.get_annotations(each), group)
    for name, parameter in inspect.signature(source).parameters.items():
        hint, item, default = hints[name], _list_item(hints[name]), parameter.default
        options: dict[str, typing.Any] = {"help": helps.get(name, "")}
        if _is_group(hint):
            add_options(parser, hint)
            continue
        if hint is bool and default is True:  # --x and --no_x
            options |= {"action": ActionYesNo(no_prefix="no_"), "default": True}
        elif hint is bool:
            options["action"] = "store_true"
        else:
            options["type"] = item or hint
            if "repeated" in getattr(annotated[name], "__metadata__", ()):
                options["action"] = "append"
            elif item:
                options |= {"nargs": "+", "action": "extend"}
            if default is parameter.empty:
                options["required"] = True
            else:
                options["default"] = list(default) if item and default is not None else default
        containers.get(name, parser).add_argument(f"--{name}", **options)


def _is_group(hint: object) -> bool:
    """Return whether a type is a dataclass of options."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _list_item(hint: object) -> type | None:
    """Return X for `list[X]`, `Sequence[X]` and unions with them, else None."""
    for option in (hint, *typing.get_args(hint)):
        if typing.get_origin(option) in (list, Sequence):
            return typing.cast(type, typing.get_args(option)[0])
    return None
