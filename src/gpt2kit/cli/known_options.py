"""Compares the options that a command line and its config files name with those of the parser, before it parses them.
All that do not exist are reported at once, each with the nearest one that does."""

from __future__ import annotations

import argparse
import inspect
import os
import pydoc
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from gpt2kit.cli import config_files, option_types
from gpt2kit.errors import UserError, nearest, refuse

SHOWN = 20  # problems in one message
TEXT = "tag:yaml.org,2002:str"
Value = yaml.Node | str
"""A node of a config file, or a text of the command line."""


@dataclass
class ClassSpec:
    """A class that an option names, and the parameters that are set for it."""

    label: str
    path: str
    parameters: Mapping[str, inspect.Parameter]
    names: set[str] = field(default_factory=set)

    @property
    def missing(self) -> list[str]:
        """The parameters that must be set, and are not."""
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        required = [name for name, p in self.parameters.items() if p.default is p.empty and p.kind not in several]
        return [name for name in required if name not in self.names]


class CommandLine:
    """The arguments of a command. Labels are options as the user wrote them; those of config files have their place.

    Args:
        parser: of all options; it must raise its errors (`exit_on_error=False`).
        linked: options that another one decides. They may be given only if they agree with it.
    """

    def __init__(self, parser: ArgumentParser, linked: Mapping[str, str] | None = None) -> None:
        self._parser = parser
        self._linked = dict(linked or {})
        self._args: list[str] = []  # without linked options
        self._actions = parser._option_string_actions
        self._options = {
            name[2:]: action
            for name, action in self._actions.items()
            if name.startswith("--") and not name.endswith(("help", "print_config"))
        }
        self._sections = {name.rpartition(".")[0] for name in self._options}
        self._positional = next((action.dest for action in parser._actions if not action.option_strings), None)
        self._problems: dict[str, tuple[str, Iterable[str]]] = {}  # with the name that is unknown, and the known ones
        self._settings: list[tuple[str, Any, Value]] = []  # label, type and value
        self._specs: list[ClassSpec] = []
        self._latest: dict[str, ClassSpec | None] = {}  # of each option that names a class
        self._values: dict[str, tuple[str, Any]] = {}  # of linked options, and of those that decide them
        self._seen: set[str] = set()

    @property
    def missing(self) -> list[str]:
        """The options that must be given, and are not."""
        return [action.dest for action in self._parser._actions if action.required and action.dest not in self._seen]

    def read(self, args: list[str]) -> None:
        """Compare arguments and the config files that they name with the parser's options; refuse what is unknown."""
        groups = [[""]]  # each option with all words that follow it
        for word in args:
            if self._is_option(word):
                groups.append([word])
            else:
                groups[-1].append(word)
        for option, *values in groups:
            self._argument(option, values)
        for name, source in self._linked.items():
            label, value = self._values.get(name, ("", None))
            _, decided = self._values.get(source, ("", self._options[source].default))
            if label and repr(value) != repr(decided):  # 0 is not False
                self._wrong(f"{label} {value}: {source} decides it. Leave it out")
        problems = []
        for problem, (name, known) in list(self._problems.items())[:SHOWN]:  # to look for similar names takes a while
            similar = nearest(name, known) or ". See --help" if name else ""
            problems.append(problem + similar)
        if len(self._problems) > SHOWN:
            problems.append(f"and {len(self._problems) - SHOWN:,} more")
        refuse(problems)

    def parse(self, *more: str) -> Namespace:
        """Parse what was read, and `more`."""
        try:
            return self._parser.parse_args([*self._args, *more])
        except argparse.ArgumentError as error:
            raise UserError(self._explained(error)) from error

    def _is_option(self, word: str) -> bool:
        """Whether argparse takes a word for an option, not for a value."""
        if not word.startswith("-") or word == "-" or self._parser._negative_number_matcher.match(word):
            return False
        return word.partition("=")[0] in self._actions or " " not in word

    def _argument(self, word: str, values: list[str]) -> None:
        """Compare an option of the command line, or an empty word, and all words behind it."""
        option, equals, value = word.partition("=")
        if option not in self._actions and word[:2] in self._actions:  # -cFILE
            option, equals, value = word[:2], "=", word[2:].removeprefix("=")
        name = option.removeprefix("--")
        if option == "-c":
            name = "config"
        if name not in self._linked:
            self._args += [word, *values] if word else values
        if option in self._actions and option.endswith(("help", "-h", "print_config")):
            return
        if option and not self._owner(name):
            self._unknown(option, name, (f"--{known}" for known in self._options))
            return
        if equals:
            values = [value, *values]
        most = self._most(option, bool(equals))
        if most and not values:
            self._wrong(f"{option}: needs a value")
        for value in values[:most]:
            self._option(option, name, value, "")
        for value in values[most:]:
            self._stray(value, option, most)

    def _most(self, option: str, glued: bool) -> int:
        """How many values an option takes at most."""
        nargs = self._actions[option].nargs if option in self._actions else None
        if not option or nargs == 0:
            return 0
        return sys.maxsize if nargs == "+" and not glued else 1

    def _stray(self, value: str, option: str, most: int) -> None:
        """Report an argument that belongs to no option; `option` is the one before it."""
        if self._positional:
            self._seen.add(self._positional)
        elif value.partition("=")[0] in self._options:
            self._wrong(f"unexpected argument '{value}'. Did you mean --{value}?")
        elif not option:
            self._wrong(f"unexpected argument '{value}'")
        elif most == 0:
            self._wrong(f"unexpected argument '{value}' after {option}, which takes no value")
        else:
            several = f". Several are written {option}=[a,b]" if f"{option}+" in self._actions else ""
            self._wrong(f"unexpected argument '{value}' after {option}, which takes one value{several}")

    def _wrong(self, problem: str) -> None:
        self._problems[problem] = ("", ())

    def _unknown(self, label: str, name: str, known: Iterable[str], what: str = "no such option") -> None:
        self._problems[f"{label}: {what}"] = (name, known)

    def _owner(self, name: str) -> str:
        """The option that a name belongs to: itself, or one that names a class whose parameter it is; else nothing."""
        owner = name
        while owner not in self._options and "." in owner:
            owner = owner.rpartition(".")[0]
        action = self._options.get(owner)
        return owner if action and (owner == name or option_types.bases(_hint(action))) else ""

    def _option(self, label: str, name: str, value: Value, file: str) -> None:
        """Compare the value of an option that is known, or belongs to one that is."""
        owner = self._owner(name)
        option, parameter = owner.rstrip("+"), name[len(owner) + 1 :].removeprefix("init_args.")
        hint = _hint(self._options[owner])
        self._seen.add(option)
        if option in (*self._linked, *self._linked.values()):
            self._values[option] = (label, _python(value))
        try:
            if parameter and parameter != "class_path":
                self._parameter(label, option, parameter, value, file)
            elif option == "config" and "--print_config" in self._actions:
                if isinstance(value, str):  # files that a file names are jsonargparse's matter
                    self._mapping(config_files.load(value), "", value)
            elif option in self._sections:
                self._section(label, option, value, file)
            elif option_types.bases(hint):
                self._class(label, option, hint, value, file)
            else:
                self._settings.append((label, hint, value))
        except UserError as error:
            self._wrong(str(error))

    def _mapping(self, node: yaml.MappingNode, prefix: str, file: str) -> None:
        for key, value in config_files.pairs(node):
            name = prefix + key.value
            if self._owner(name):
                self._option(_label(name, key, file), name, value, file)
            else:
                self._unknown(_label(name, key, file), name, self._options)

    def _section(self, label: str, section: str, value: Value, file: str) -> None:
        node, place = _resolved(value, file)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, f"{section}.", place)
        elif isinstance(value, str) or _text(node):
            self._wrong(f"{label} {_shown(value)}: no such config file. Check the path, or name an option of {section}")
        else:
            self._wrong(f"{label} has no options under it. Indent them, or remove the line")

    def _class(self, label: str, option: str, hint: Any, value: Value, file: str) -> None:
        """Compare what stands for a class or several: names, files, or mappings of `class_path` and `init_args`."""
        named = str not in option_types.parts(hint)  # else a text is a value by itself
        node, file = _resolved(value, file) if named else (_node(value), file)
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._class(label, option, hint, item, file)
        elif isinstance(node, yaml.MappingNode):
            self._class_mapping(label, option, hint, node, file)
        elif named and _text(node):
            self._name_class(label, option, hint, _text(node))
        else:
            self._settings.append((label, hint, value))

    def _class_mapping(self, label: str, option: str, hint: Any, node: yaml.MappingNode, file: str) -> None:
        entries = {key.value: (key, value) for key, value in config_files.pairs(node)}
        if "class_path" in entries:
            self._name_class(label, option, hint, _text(entries["class_path"][1]))
        for name, (key, value) in entries.items():
            where = _label(f"{option}.{name}", key, file)
            if name == "init_args" and isinstance(value, yaml.MappingNode):
                for key, item in config_files.pairs(value):
                    self._parameter(_label(f"{option}.{key.value}", key, file), option, key.value, item, file)
            elif name not in ("class_path", "init_args", "dict_kwargs") and "class_path" in entries:
                self._wrong(f"{where}: not beside class_path. Parameters stand under init_args")
            elif "class_path" not in entries:
                self._parameter(where, option, name, value, file)

    def _name_class(self, label: str, option: str, hint: Any, path: str) -> None:
        """Remember the class that an option names. If a short name means several, jsonargparse says which."""
        known = option_types.classes(hint)
        try:
            kinds = [pydoc.locate(path)] if "." in path else [k for n, k in known.items() if n.endswith(f".{path}")]
        except pydoc.ErrorDuringImport as error:
            raise UserError(f"{label} {path}: {error.value}") from error
        self._latest[option] = None
        if not any(map(callable, kinds)):
            self._unknown(f"{label} {path}", path, known, "no such class")
        elif len(kinds) == 1:
            supplied = typing.get_origin(hint) is Callable  # the first parameter, by who calls it
            spec = self._latest[option] = ClassSpec(label, path, option_types.parameters(kinds[0], supplied))
            self._specs.append(spec)

    def _parameter(self, label: str, option: str, name: str, value: Value, file: str) -> None:
        """Compare a parameter of the class that an option names, or has by default."""
        if option not in self._latest and option in self._options:
            self._latest[option] = _default_class(self._options[option])
        spec = self._latest.get(option)
        if spec is None:
            return
        name, _, deeper = name.partition(".")
        spec.names.add(name)
        if name in spec.parameters:
            hint = spec.parameters[name].annotation
            if option_types.bases(hint) and isinstance(value, yaml.CollectionNode):
                self._class(label, f"{option}.{name}", hint, value, file)
            elif not deeper:
                self._settings.append((label, hint, value))
        elif all(parameter.kind is not parameter.VAR_KEYWORD for parameter in spec.parameters.values()):
            self._unknown(label, name, spec.parameters, f"{spec.path} has no such option")

    def _explained(self, error: argparse.ArgumentError) -> str:
        """The first value that does not fit, in terms of its option; else what the parser says."""
        for label, hint, value in self._settings:
            if not option_types.fits(hint, value):
                return f"{label} {_shown(value)}: must be {option_types.in_words(hint)}"
        for spec in self._specs:
            if spec.missing:
                return f"{spec.label}: {spec.path} needs {', '.join(spec.missing)}"
        missing = [f"--{name}: missing, and has no default" for name in self.missing]
        return "; ".join(missing) or " ".join(str(error).split())


def _hint(action: argparse.Action) -> Any:
    return getattr(action, "_typehint", action.type)


def _label(name: str, key: yaml.Node, file: str) -> str:
    return f"{file} line {key.start_mark.line + 1}: {name}" if file else f"--{name}"


def _resolved(value: Value, file: str) -> tuple[yaml.Node, str]:
    """A value as a node; of the file that it names, if it does so."""
    node = _node(value)
    text = value if isinstance(value, str) else _text(node)
    path = os.path.normpath(os.path.join(os.path.dirname(file), text))
    return (config_files.load(path), path) if text and os.path.isfile(path) else (node, file)


def _node(value: Value) -> yaml.Node:
    """A value as YAML; text that is none as itself."""
    if not isinstance(value, str):
        return value
    try:
        return config_files.compose(value) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
    except yaml.YAMLError:
        return yaml.ScalarNode(TEXT, value)


def _text(node: yaml.Node) -> str:
    """The text that a node is; empty if it is something else."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) and node.tag == TEXT else ""


def _python(value: Value) -> Any:
    try:
        return yaml.safe_load(value if isinstance(value, str) else yaml.serialize(value))
    except yaml.YAMLError:
        return value


def _shown(value: Value) -> str:
    """A value as the user wrote it, on one line."""
    if isinstance(value, yaml.ScalarNode):
        return str(value.value)
    return " ".join((value if isinstance(value, str) else yaml.serialize(value)).split())[:100]


def _default_class(action: argparse.Action) -> ClassSpec | None:
    """The class that an option names if nothing is said: its default, or the only one there is."""
    known = list(option_types.classes(_hint(action)))
    default = action.default.get("class_path") if isinstance(action.default, (dict, Namespace)) else None
    path = default or (known[0] if len(known) == 1 else "")
    kind = pydoc.locate(path) if path else None
    return ClassSpec(f"--{action.dest}", path, option_types.parameters(kind, False)) if kind else None
