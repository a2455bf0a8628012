"""Collect what the arguments of a command line and its config files set, as entries. Their values stay as they are."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from gpt2kit import config_files, yaml_reader
from gpt2kit.cli import other_names
from gpt2kit.cli.help import leaves
from gpt2kit.cli.known_options import KnownOptions
from gpt2kit.cli.other_names import Rename
from gpt2kit.errors import UserError

_LIMITS: dict[object, int] = {0: 0, "+": sys.maxsize}  # number of values by `nargs`; 1 for any other
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


class Entry(NamedTuple):
    """A value that is set. The label is the option as the user wrote it, with its place if that is in a file."""

    label: str
    name: str
    value: Any

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else json.dumps(self.value, ensure_ascii=False, default=str)
        return f"{self.label} {' '.join(value.split())[:100]}"


class Entries:
    """The entries of a command line, in its order, with old names replaced by new ones.

    Args:
        parser: the parser of the options.
        known: its options. The caller adds the parameters of the class that an entry names before it takes the next
            entry.
        skipped: options that jsonargparse does not get.
    """

    def __init__(self, parser: ArgumentParser, known: KnownOptions, skipped: Collection[str] = ()) -> None:
        self._parser, self._known, self._skipped = parser, known, skipped
        self.arguments: list[str] = []  # for jsonargparse
        self.problems: list[str] = []
        self.renames: list[Rename] = []  # old names that are read under their new ones
        self.prints_help = False  # --help, --print_config or that of a class: jsonargparse prints it, and exits

    def collect(self, args: list[str]) -> Iterator[Entry]:
        """Yield what the arguments set. Report options without a value, and arguments that belong to no option."""
        actions = self._parser._option_string_actions
        for argument, *values in self._split(args):
            option, equals, value = argument.partition("=")
            if option not in actions and argument[:2] in actions:  # -cFILE
                option, equals, value = argument[:2], "=", argument[2:]
            action = actions.get(option)
            name = action.dest if action else (option.removeprefix("--") or option).replace(".init_args.", ".")
            parsed = [argument, *values] if argument else values  # what jsonargparse gets
            if action and name.endswith(("help", "print_config")):
                self.arguments += parsed
                self.prints_help = True
                if name == "help" and equals:  # =all is handled before
                    self.problems.append(f"{argument}: unknown kind of help. Use --help or --help=all")
                continue
            if equals:
                values = [value, *values]
            if option and not action:  # a parameter of a class, or unknown
                values = values[:1] or [""]
            limit = _LIMITS.get(action.nargs if action else None, 1) if option else 0
            if limit and not values:
                self.problems.append(f"{option}: needs a value")
            if values and self._accepts_file(action, name):
                values[0] = config_files.locate(values[0])
                parsed = [f"{option}={values[0]}"]
            holder: list[Any] = values[:limit]
            renames = len(self.renames)
            for index in range(len(holder)):
                yield from self._flatten(option, "" if isinstance(action, ActionConfigFile) else name, holder, index)
            if len(self.renames) > renames:  # the new names, and the content of config files instead of their paths
                texts = [value if isinstance(value, str) else _dump(value) for value in holder]
                parsed = [f"{option}={texts[0]}"] if limit == 1 else [option, *texts]
            if name not in self._skipped:
                self.arguments += parsed
            self._report_extra(action, option, values, limit)

    def _split(self, args: list[str]) -> list[list[str]]:
        """Return each option with the arguments up to the next one, as argparse decides; the first group has none."""
        groups = [[""]]
        for arg in args:
            is_number = self._parser._negative_number_matcher.match(arg)
            parts = arg.partition("=")[0].split(".")  # of an option, or of one of a class
            names = itertools.accumulate(parts, "{}.{}".format)
            is_text = " " in arg and not any(name in self._parser._option_string_actions for name in names)
            if arg[:1] != "-" or arg == "-" or is_number or is_text:
                groups[-1].append(arg)
            else:
                groups.append([arg])
        return groups

    def _report_extra(self, action: argparse.Action | None, option: str, values: list[str], limit: int) -> None:
        """Report the values of an option that are more than it takes, or that follow no option."""
        extra = values[limit:]
        if not extra:
            return
        problem = f"unexpected argument '{extra[0]}'"
        if extra[0].partition("=")[0] in self._known.options:
            problem += f". Did you mean --{extra[0]}?"
        elif option:
            problem += f" after {option}, which takes {'one' if limit else 'no'} value"
        if isinstance(action, argparse._AppendAction):
            problem += f'. Quote it: {option} "{" ".join(values)}"'
        elif limit and "list[" in str(getattr(action, "_typehint", "")).lower():
            problem += f". Several are written {option}=[{','.join(values)}]"
        elif limit:
            problem += ". Text and checkpoints come before the options"
        self.problems.append(problem)

    def _accepts_file(self, action: argparse.Action | None, name: str) -> bool:
        """Return whether the value of an option may be a config file."""
        is_class = name in self._known.classes and str not in leaves(self._known.options[name].hint)
        return isinstance(action, ActionConfigFile) or name in self._known.sections or is_class

    def _flatten(self, label: str, name: str, parent: Any, key: Any, file: str = "") -> Iterator[Entry]:
        """Yield an entry for each option in the value `parent[key]`.

        A section or a class may have a file of its own. The value is then replaced by the content of the file, and old
        names in it by new ones.
        """
        value = parent[key]
        has_options = self._known.has_options(name)
        if has_options and isinstance(value, str):
            try:
                value = parent[key] = self._read_file(name, value, file)
            except UserError as error:
                self.problems.append(str(error))
                return
            if not name:
                renames, problems = other_names.move_options(value, self._known.defaults())
                self.renames += renames
                self.problems += problems
        if has_options and isinstance(value, list):
            if None in value:
                self.problems.append(f"{Entry(label, name, value)}: null is not a value of this list. Remove it")
            for index in range(len(value)):
                yield from self._flatten(label, name, value, index, file)
        elif isinstance(value, yaml_reader.Mapping) and (has_options or "class_path" in value):
            yield from self._flatten_mapping(name, value)
        else:
            kind = other_names.new_kind(value)
            if kind is not value and name in self._known.options and kind in leaves(self._known.options[name].hint):
                self.renames.append(Rename(file or label, f"{name} {value}" if file else str(value), kind))
                parent[key] = value = kind
            yield Entry(label, name, value)

    def _read_file(self, name: str, value: str, file: str) -> Any:
        """Return the content of the file that the value of a section or a class names, else the value as it is."""
        path = os.path.normpath(os.path.join(os.path.dirname(file), value))
        if not name or (os.path.isfile(path) and str not in leaves(self._known.options[name].hint)):
            return config_files.load(path)
        collection = None if file else yaml_reader.parse_or_keep(value)
        return collection if isinstance(collection, (dict, list)) else value

    def _flatten_mapping(self, name: str, values: yaml_reader.Mapping) -> Iterator[Entry]:
        """Yield an entry for each option in a section, or in a class and its parameters."""
        for key in sorted(values, key=lambda key: key != "class_path"):  # the class comes before its parameters
            inner = f"{name}.{key}" if name else key
            if problem := self._known.add_name(name, key):
                self.problems.append(f"{values.file + ': ' if values.file else '--'}{inner}: {problem}")
                continue
            if key == "init_args" and isinstance(values[key], yaml_reader.Mapping):
                inner = name
            place = f"{values.file} line {values.lines[key]}: " if values.file else "--"
            if values.file and (new := self._known.new_name(inner)):
                old_key, key = key, new.rpartition(".")[2]
                if key in values and not other_names.is_unset(values[key], self._known.defaults().get(new)):
                    self.problems.append(f"{place}{inner}: an old name of {new}, which is also set. Omit it")
                    continue
                values[key] = other_names.new_value(inner, values.pop(old_key))
                self.renames.append(Rename(values.file, inner, new))
                inner = new
            if "class_path" in values and key not in _CLASS_KEYS:
                self.problems.append(f"{place}{inner}: not accepted next to class_path. Move it under init_args")
            yield from self._flatten(place + inner.removesuffix(".class_path"), inner, values, key, values.file)


def _dump(value: Any) -> str:
    """Return a value as YAML text."""
    plain = json.loads(json.dumps(value, default=str))  # without subclasses of dict
    return str(yaml.safe_dump(plain, sort_keys=False))
