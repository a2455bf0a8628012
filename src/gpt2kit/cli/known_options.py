"""Check the options of a command line and of its config files before jsonargparse parses them.

Three steps: collect what is set as entries (label, dotted name, value); compare each name with the parser's options and
with the parameters of the classes that options name; report all problems at once. Values are left to jsonargparse: if
it refuses one, the values that do not fit are reported in terms of the user's options.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import pydoc
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from gpt2kit import config_files, yaml_reader
from gpt2kit.cli import other_names
from gpt2kit.cli.help import base_classes, in_words, known_classes, leaves, makes
from gpt2kit.cli.other_names import Rename
from gpt2kit.errors import UserError, nearest, refuse

_MAX_PROBLEMS = 20  # in one message
_MAX_LENGTH = 500  # characters of each
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
        is_null = value is None or (str not in kinds and _parse(value) is None)
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


class CommandLine:
    """The arguments of a command line, whose options are checked when it is created.

    The parser must raise its errors. `linked` names options that another one decides; they may only be set to the same
    value. If the other is None, its value is known later, and `linked_values` has the values to compare with it.
    """

    def __init__(self, parser: ArgumentParser, args: list[str], linked: dict[str, str | None] | None = None) -> None:
        self._parser, self._linked = parser, linked or {}
        self.linked_values: dict[str, Any] = {}
        self._args: list[str] = []  # without linked options
        self._sections = {"", *(parser.groups or ())}
        self._options: dict[str, Option] = {}  # with the parameters of classes
        self._classes: dict[str, str] = {}  # options that name classes, with the path of the class if it is known
        self._required: dict[str, list[str]] = {}  # required options not set yet, of the command ("") and of classes
        self._class_labels: list[tuple[str, list[str]]] = []  # with the required options that each still lacks
        self._entries: list[tuple[Option, Entry]] = []
        self._problems: list[str] = []
        self.renames: list[Rename] = []  # old names that are read under their new ones
        self._prints_help = False  # --help, --print_config or that of a class: jsonargparse prints it, and exits
        self._add_options(parser, "")
        latest: dict[str, Entry] = {}
        for entry in self._collect(args):
            self._check(entry)
            latest[entry.name] = entry
        self._check_linked(latest)
        if len(self._problems) > _MAX_PROBLEMS:
            self._problems[_MAX_PROBLEMS:] = [f"and {len(self._problems) - _MAX_PROBLEMS:,} more"]
        refuse([_shorten(problem) for problem in self._problems])
        self.missing = self._required[""]

    def parse(self, *more: str) -> Namespace:
        """Parse the arguments and `more`, which replaces missing options."""
        self._drop_defaults_of_other_classes()
        try:
            return self._parser.parse_args([*self._args, *more])
        except argparse.ArgumentError as error:
            misfits = [(entry, option.hint) for option, entry in self._entries if not option.fits(entry.value)]
            refuse([f"{entry}: must be {in_words(hint)}" for entry, hint in misfits[:_MAX_PROBLEMS]])
            refuse([f"{label} needs {', '.join(names)}" for label, names in self._class_labels if names])
            missing = [] if more or self._prints_help else self.missing
            refuse([f"--{name}: missing, and has no default. Add --{name} VALUE" for name in missing])
            raise UserError(_shorten(" ".join(str(error).split()))) from error

    def _drop_defaults_of_other_classes(self) -> None:
        """Let a class have its own defaults: jsonargparse passes it those of the default class, such as a momentum."""
        for name, path in self._classes.items():
            default = self._options[name].action.default if name in self._options else None
            if path and isinstance(default, (dict, Namespace)) and default.get("class_path", path) != path:
                self._options[name].parser.set_defaults({name: {"class_path": path}})

    def _add_options(self, parser: ArgumentParser, owner: str) -> None:
        """Add the options of a parser, and the parameters of the classes that they name by default."""
        self._required[owner] = [action.dest.removeprefix(f"{owner}.") for action in parser._actions if action.required]
        for action in parser._actions:
            name, hint = action.dest, getattr(action, "_typehint", action.type)
            if name.endswith(".help"):  # jsonargparse adds it for each option that names a class
                self._classes[name.removesuffix(".help")] = ""
            elif name not in ("help", "print_config"):
                self._options[name] = Option(parser, action, hint)
                if isinstance(action.default, (dict, Namespace)) and "class_path" in action.default:
                    self._add_class(name, action.default["class_path"])
                for kind in leaves(hint):
                    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                        self._add_class(name, f"{kind.__module__}.{kind.__qualname__}")

    def _add_class(self, option: str, path: str) -> None:
        """Add the parameters of a class that an option names."""
        parser = ArgumentParser(exit_on_error=False)
        kind: Any = pydoc.locate(path)
        add = parser.add_class_arguments if isinstance(kind, type) else parser.add_function_arguments
        # The caller of a Callable passes its first parameter.
        skip: set[str | int] = {1} if typing.get_origin(self._options[option].hint) is Callable else set()
        add(kind, option, as_group=False, fail_untyped=False, skip=skip)
        self._classes[option] = path
        self._add_options(parser, option)

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

    def _collect(self, args: list[str]) -> Iterator[Entry]:
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
                self._args += parsed
                self._prints_help = True
                if name == "help" and equals:  # =all is handled before
                    self._problems.append(f"{argument}: unknown kind of help. Use --help or --help=all")
                continue
            if equals:
                values = [value, *values]
            if option and not action:  # a parameter of a class, or unknown
                values = values[:1] or [""]
            limit = _LIMITS.get(action.nargs if action else None, 1) if option else 0
            if limit and not values:
                self._problems.append(f"{option}: needs a value")
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
            if name not in self._linked:
                self._args += parsed
            self._report_extra(action, option, values, limit)

    def _report_extra(self, action: argparse.Action | None, option: str, values: list[str], limit: int) -> None:
        """Report the values of an option that are more than it takes, or that follow no option."""
        extra = values[limit:]
        if not extra:
            return
        problem = f"unexpected argument '{extra[0]}'"
        if extra[0].partition("=")[0] in self._options:
            problem += f". Did you mean --{extra[0]}?"
        elif option:
            problem += f" after {option}, which takes {'one' if limit else 'no'} value"
        if isinstance(action, argparse._AppendAction):
            problem += f'. Quote it: {option} "{" ".join(values)}"'
        elif limit and "list[" in str(getattr(action, "_typehint", "")).lower():
            problem += f". Several are written {option}=[{','.join(values)}]"
        elif limit:
            problem += ". Text and checkpoints come before the options"
        self._problems.append(problem)

    def _accepts_file(self, action: argparse.Action | None, name: str) -> bool:
        """Return whether the value of an option may be a config file."""
        is_class = name in self._classes and str not in leaves(self._options[name].hint)
        return isinstance(action, ActionConfigFile) or name in self._sections or is_class

    def _flatten(self, label: str, name: str, parent: Any, key: Any, file: str = "") -> Iterator[Entry]:
        """Yield an entry for each option in the value `parent[key]`.

        A section or a class may have a file of its own. The value is then replaced by the content of the file, and old
        names in it by new ones.
        """
        value = parent[key]
        has_options = name in self._sections or name in self._classes
        if has_options and isinstance(value, str):
            try:
                value = parent[key] = self._read_file(name, value, file)
            except UserError as error:
                self._problems.append(str(error))
                return
            if not name:
                self.renames += other_names.move_options(value)
        if has_options and isinstance(value, list):
            if None in value:
                self._problems.append(f"{Entry(label, name, value)}: null is not a value of this list. Remove it")
            for index in range(len(value)):
                yield from self._flatten(label, name, value, index, file)
        elif isinstance(value, yaml_reader.Mapping) and (has_options or "class_path" in value):
            yield from self._flatten_mapping(name, value)
        else:
            kind = other_names.new_kind(value)
            if kind is not value and name in self._options and kind in leaves(self._options[name].hint):
                self.renames.append(Rename(file or label, f"{name} {value}" if file else str(value), kind))
                parent[key] = value = kind
            yield Entry(label, name, value)

    def _read_file(self, name: str, value: str, file: str) -> Any:
        """Return the content of the file that the value of a section or a class names, else the value as it is."""
        path = os.path.normpath(os.path.join(os.path.dirname(file), value))
        if not name or (os.path.isfile(path) and str not in leaves(self._options[name].hint)):
            return config_files.load(path)
        collection = None if file else _parse(value)
        return collection if isinstance(collection, (dict, list)) else value

    def _flatten_mapping(self, name: str, values: yaml_reader.Mapping) -> Iterator[Entry]:
        """Yield an entry for each option in a section, or in a class and its parameters."""
        for key in sorted(values, key=lambda key: key != "class_path"):  # the class comes before its parameters
            inner = f"{name}.{key}" if name else key
            if key == "init_args" and isinstance(values[key], yaml_reader.Mapping):
                inner = name
            place = f"{values.file} line {values.lines[key]}: " if values.file else "--"
            if values.file and (new := self._new_name(inner)):
                old_key, key = key, new.rpartition(".")[2]
                if key in values:
                    self._problems.append(f"{place}{inner}: an old name of {new}, which is set, too. Omit it")
                    continue
                values[key] = other_names.new_value(inner, values.pop(old_key))
                self.renames.append(Rename(values.file, inner, new))
                inner = new
            if "class_path" in values and key not in _CLASS_KEYS:
                self._problems.append(f"{place}{inner}: not accepted beside class_path. Move it under init_args")
            yield from self._flatten(place + inner.removesuffix(".class_path"), inner, values, key, values.file)

    def _new_name(self, name: str) -> str | None:
        """Return the new name of an option, if `name` is an old one and no current option."""
        new = other_names.new_name(name)
        is_class_known = self._classes.get(name.rpartition(".")[0]) != ""
        is_renamed = new in self._options or not is_class_known
        return new if is_renamed and name not in self._options else None

    def _check_linked(self, latest: dict[str, Entry]) -> None:
        """Compare the options that another one decides with the value that it gives them."""
        for name, source in self._linked.items():
            if name not in latest:
                continue
            value = _parse(latest[name].value)
            if source is None:
                self.linked_values[name] = value
                continue
            expected = latest[source].value if source in latest else self._options[source].action.default
            if repr(value) != repr(_parse(expected)):  # 0 is not False
                self._problems.append(f"{latest[name]}: {source} decides it. Omit it")

    def _check(self, entry: Entry) -> None:
        """Compare the name of an entry with the options; keep its value, or find the class that it names."""
        label, name, value = entry
        owner = name.removesuffix(".class_path")
        while owner not in self._options and "." in owner:
            owner = owner.rpartition(".")[0]
        for prefix, names in self._required.items():
            if owner.removeprefix(f"{prefix}.") in names:
                names.remove(owner.removeprefix(f"{prefix}."))
        option = self._options.get(owner)
        is_path = name == f"{owner}.class_path"
        if option and name == owner:
            is_path = isinstance(value, str) and str not in leaves(option.hint)
        if option and isinstance(option.action, ActionConfigFile) and value is not None:
            self._problems.append(f"{label}: a config file cannot name another one. Give each with --{name}")
        elif name in self._sections:
            self._problems.append(f"{entry}: neither options nor a config file. Indent the options, or check the path")
        elif owner in self._classes and is_path:
            self._name_class(owner, entry)
        elif option and name == owner and option.is_invalid_null(value):
            self._problems.append(f"{entry}: must be {in_words(option.hint)}")
        elif option and name == owner:
            self._entries.append((option, entry))
        elif owner not in self._classes:
            dashes = "--" if label.startswith("-") else ""
            self._report_unknown(f"{label}: no such option", name, (dashes + option for option in self._options))
        elif self._classes[owner] and "dict_kwargs" not in name:
            known = (option.rpartition(".")[2] for option in self._options if option.startswith(f"{owner}."))
            self._report_unknown(f"{label}: {self._classes[owner]} has no such option", name, known)
        elif not self._classes[owner] and (new := self._new_name(name)):
            self._problems.append(f"{label}: no such option. Did you mean --{new}?")

    def _name_class(self, option: str, entry: Entry) -> None:
        """Find the class that an option names. If a short name is ambiguous, jsonargparse reports it."""
        if not isinstance(entry.value, str):
            self._problems.append(f"{entry}: must be a class")
            return
        hint, path = self._options[option].hint, entry.value
        known, bases = known_classes(hint), base_classes(hint)
        paths = [path] if "." in path else [name for name in known if name.endswith(f".{path}")]
        self._classes[option] = ""
        self._options = {name: old for name, old in self._options.items() if not name.startswith(f"{option}.")}
        try:
            paths = [name for name in paths if callable(pydoc.locate(name))]
        except pydoc.ErrorDuringImport as error:
            self._problems.append(f"{entry}: {error.value}")
            return
        if len(paths) == 1 and bases and not makes(pydoc.locate(paths[0]), bases):
            names = " or ".join(sorted({kind.__name__ for kind in bases}))
            self._problems.append(f"{entry}: not a subclass of {names}")
        elif len(paths) == 1:
            self._add_class(option, paths[0])
            self._class_labels.append((f"{entry.label}: {path}", self._required[option]))
        elif not paths and not self._options[option].fits(path):
            self._report_unknown(f"{entry}: no such class", path, known)

    def _report_unknown(self, problem: str, name: str, known: Iterable[str]) -> None:
        similar = ""
        if len(self._problems) < _MAX_PROBLEMS:  # the search takes a while
            names, new = list(known), other_names.new_name(name) or ""
            exact = [known for known in names if known.removeprefix("--") in (new, new.rpartition(".")[2])]
            similar = f". Did you mean {exact[0]}?" if exact else ""
            last = name.rpartition(".")[2].lstrip("-")
            if not similar and not any(option.rpartition(".")[2].lstrip("-") == last for option in names):
                similar = other_names.advise(name)
            similar = similar or nearest(name, names)
        self._problems.append(problem + (similar or ". See --help"))


def _shorten(message: str) -> str:
    return message if len(message) <= _MAX_LENGTH else f"{message[:_MAX_LENGTH]} ..."


def _dump(value: Any) -> str:
    """Return a value as YAML text."""
    plain = json.loads(json.dumps(value, default=str))  # without subclasses of dict
    return str(yaml.safe_dump(plain, sort_keys=False))


def _parse(value: Any) -> Any:
    """Parse YAML text; return any other value unchanged."""
    try:
        return yaml_reader.parse(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):  # ValueError: a number such as 0x_
        return value
