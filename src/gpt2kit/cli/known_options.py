"""The options that a command line may set: those of its parser, and the parameters of the classes that options name."""

from __future__ import annotations

import argparse
import dataclasses
import pydoc
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from gpt2kit import yaml_reader
from gpt2kit.cli import other_names
from gpt2kit.cli.help import leaves, named_values
from gpt2kit.data.texts import is_name


class Option(NamedTuple):
    """An option of a command, or a parameter of a class that an option names."""

    parser: ArgumentParser
    action: argparse.Action
    hint: Any

    def is_invalid_null(self, value: Any) -> bool:
        """Return whether a value is null, and the option neither has this value nor lacks a default.

        jsonargparse accepts it in a config file. --print_config prints it for an option without a default.
        """
        if self.action.required:
            return False
        kinds = leaves(self.hint)
        is_null = value is None or (str not in kinds and yaml_reader.parse_or_keep(value) is None)
        return is_null and not any(kind in (None, type(None), Any) for kind in kinds)

    def fits(self, value: Any) -> bool:
        """Return whether jsonargparse accepts a value."""
        config = Namespace()  # type: ignore[no-untyped-call]
        is_list = self.action.nargs == "+" or isinstance(self.action, argparse._AppendAction)
        config[self.action.dest] = [value] if is_list else value
        try:
            self.parser.validate(config, skip_required=True)
        except (TypeError, ValueError):
            return False
        return True


class KnownOptions:
    """The options of a parser, and the parameters of the classes that they name by default or that `use_class` adds."""

    def __init__(self, parser: ArgumentParser) -> None:
        self.sections = {"", *(parser.groups or ())}
        self.options: dict[str, Option] = {}
        self.classes: dict[str, str] = {}  # options that name classes, with the path of the class if it is known
        self.required: dict[str, list[str]] = {}  # required options not set yet, of the command ("") and of classes
        self.named: list[str] = []  # the names that `add_name` has added
        self._by_name: dict[str, Any] = {}  # options that may be a mapping of names, with the type of its values
        self._add(parser, "")

    def _add(self, parser: ArgumentParser, owner: str) -> None:
        """Add the options of a parser, and the parameters of the classes that they name by default."""
        self.required[owner] = [action.dest.removeprefix(f"{owner}.") for action in parser._actions if action.required]
        for action in parser._actions:
            name, hint = action.dest, getattr(action, "_typehint", action.type)
            if name.endswith(".help"):  # jsonargparse adds it for each option that names a class
                self.classes[name.removesuffix(".help")] = ""
            elif name not in ("help", "print_config"):
                self.options[name] = Option(parser, action, hint)
                if values := named_values(hint):
                    self._by_name[name] = values
                    continue
                if isinstance(action.default, (dict, Namespace)) and "class_path" in action.default:
                    self.use_class(name, action.default["class_path"])
                for kind in leaves(hint):
                    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                        self.use_class(name, f"{kind.__module__}.{kind.__qualname__}")

    def use_class(self, option: str, path: str) -> None:
        """Add the parameters of a class that an option names."""
        parser = ArgumentParser(exit_on_error=False)
        kind: Any = pydoc.locate(path)
        add = parser.add_class_arguments if isinstance(kind, type) else parser.add_function_arguments
        # The caller of a Callable passes its first parameter.
        skip: set[str | int] = {1} if typing.get_origin(self.options[option].hint) is Callable else set()
        add(kind, option, as_group=False, fail_untyped=False, skip=skip)
        self.classes[option] = path
        self._add(parser, option)

    def forget_class(self, option: str) -> None:
        """Remove the parameters of the class that an option names."""
        self.classes[option] = ""
        self.options = {name: old for name, old in self.options.items() if not name.startswith(f"{option}.")}

    def option_of(self, name: str) -> str:
        """Return the option to which a dotted name belongs: itself, or one that names a class; else its first part."""
        name = name.removesuffix(".class_path")
        while name not in self.options and "." in name:
            name = name.rpartition(".")[0]
        return name

    def mark_as_set(self, option: str) -> None:
        """Note that a required option is not missing."""
        for owner, names in self.required.items():
            if (name := option.removeprefix(f"{owner}.")) in names:
                names.remove(name)

    def has_options(self, name: str) -> bool:
        """Return whether the value of a name may be a mapping of options: a section, a class, or one by names."""
        return name in self.sections or name in self.classes or name in self._by_name

    def add_name(self, option: str, name: str) -> str:
        """Add the options of a name in a mapping of names, such as `data.train_files.poems`; return what is wrong."""
        path = f"{option}.{name}"
        if option not in self._by_name or path in self.options:
            return ""
        if not is_name(name):
            return "not a name: a letter, then letters, digits, - and _. Rename it"
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{path}", type=self._by_name[option])
        self._add(parser, path)
        self.named.append(path)
        for inner in [inner for inner in self.classes if inner.startswith(f"{path}.")]:
            kinds = [kind for kind in leaves(self.options[inner].hint) if kind is not type(None)]
            if len(kinds) == 1:  # jsonargparse takes this class, too, if the value names none
                self.use_class(inner, f"{kinds[0].__module__}.{kinds[0].__qualname__}")
        return ""

    def defaults(self) -> dict[str, Any]:
        """Return the default value of each option."""
        return {name: option.action.default for name, option in self.options.items()}

    def is_named(self, name: str) -> bool:
        """Return whether an option is in a mapping of names."""
        return any(name == path or name.startswith(f"{path}.") for path in self.named)

    def new_name(self, name: str) -> str | None:
        """Return the new name of an option, if `name` is an old one and no current option."""
        new = other_names.new_name(name)
        is_class_known = self.classes.get(name.rpartition(".")[0]) != ""
        is_renamed = new in self.options or not is_class_known
        return new if is_renamed and name not in self.options else None
