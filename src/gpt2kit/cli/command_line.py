"""Check the options of a command line and of its config files before jsonargparse parses them.

Three steps: collect what is set as entries (label, dotted name, value); compare each name with the parser's options and
with the parameters of the classes that options name; report all problems at once. Values are left to jsonargparse: if
it refuses one, the values that do not fit are reported in terms of the user's options.
"""

from __future__ import annotations

import argparse
import contextlib
import pydoc
from collections.abc import Iterable, Iterator
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, _typehints  # type: ignore[attr-defined]

from gpt2kit.cli import other_names
from gpt2kit.cli.entries import Entries, Entry
from gpt2kit.cli.help import base_classes, in_words, known_classes, leaves, makes
from gpt2kit.cli.known_options import KnownOptions, Option
from gpt2kit.errors import UserError, nearest, refuse
from gpt2kit.yaml_reader import parse_or_keep

_MAX_PROBLEMS = 20  # in one message
_MAX_LENGTH = 500  # characters of each


class CommandLine:
    """The arguments of a command line, whose options are checked when it is created.

    The parser must raise its errors. `linked` names options that another one decides; they may only be set to the same
    value. If the other is None, its value is known later, and `linked_values` has the values to compare with it.
    """

    def __init__(self, parser: ArgumentParser, args: list[str], linked: dict[str, str | None] | None = None) -> None:
        self._parser, self._linked = parser, linked or {}
        self.linked_values: dict[str, Any] = {}
        self._known = KnownOptions(parser)
        self._entries = Entries(parser, self._known, self._linked)
        self._problems = self._entries.problems
        self.renames = self._entries.renames
        self._class_labels: list[tuple[str, list[str]]] = []  # with the required options that each still lacks
        self._checked: list[tuple[Option, Entry]] = []
        latest: dict[str, Entry] = {}
        for entry in self._entries.collect(args):
            self._check(entry)
            latest[entry.name] = entry
        self._check_linked(latest)
        for path in self._known.named:
            missing = self._known.required.get(path, [])
            if missing and path not in latest:  # a mapping of options, not a value
                self._problems.append(f"--{path}: needs {', '.join(missing)}")
        if len(self._problems) > _MAX_PROBLEMS:
            self._problems[_MAX_PROBLEMS:] = [f"and {len(self._problems) - _MAX_PROBLEMS:,} more"]
        refuse([_shorten(problem) for problem in self._problems])
        self.missing = self._known.required[""]

    def parse(self, *more: str) -> Namespace:
        """Parse the arguments and `more`, which replaces missing options."""
        try:
            with separate_classes():
                return self._parser.parse_args([*self._entries.arguments, *more])
        except argparse.ArgumentError as error:
            misfits = [(entry, option.hint) for option, entry in self._checked if not option.fits(entry.value)]
            refuse([f"{entry}: must be {in_words(hint)}" for entry, hint in misfits[:_MAX_PROBLEMS]])
            refuse([f"{label} needs {', '.join(names)}" for label, names in self._class_labels if names])
            missing = [] if more or self._entries.prints_help else self.missing
            refuse([f"--{name}: missing, and has no default. Add --{name} VALUE" for name in missing])
            raise UserError(_shorten(" ".join(str(error).split()))) from error

    def _check_linked(self, latest: dict[str, Entry]) -> None:
        """Compare the options that another one decides with the value that it gives them."""
        for name, source in self._linked.items():
            if name not in latest:
                continue
            value = parse_or_keep(latest[name].value)
            if source is None:
                self.linked_values[name] = value
                continue
            expected = latest[source].value if source in latest else self._known.options[source].action.default
            if repr(value) != repr(parse_or_keep(expected)):  # 0 is not False
                self._problems.append(f"{latest[name]}: {source} decides it. Omit it")

    def _check(self, entry: Entry) -> None:
        """Compare the name of an entry with the options; keep its value, or find the class that it names."""
        label, name, value = entry
        owner = self._known.option_of(name)
        self._known.mark_as_set(owner)
        option = self._known.options.get(owner)
        is_path = name == f"{owner}.class_path"
        if option and name == owner:
            is_path = isinstance(value, str) and str not in leaves(option.hint)
        if option and isinstance(option.action, ActionConfigFile) and value is not None:
            self._problems.append(f"{label}: a config file cannot name another one. Give each with --{name}")
        elif name in self._known.sections:
            self._problems.append(f"{entry}: neither options nor a config file. Indent the options, or check the path")
        elif owner in self._known.classes and is_path:
            self._name_class(owner, entry)
        elif option and name == owner and option.is_invalid_null(value):
            self._problems.append(f"{entry}: must be {in_words(option.hint)}")
        elif option and name == owner and self._known.is_named(name) and not option.fits(value):
            # jsonargparse would take the whole mapping as text.
            self._problems.append(f"{entry}: must be {in_words(option.hint)}")
        elif option and name == owner:
            self._checked.append((option, entry))
        elif owner not in self._known.classes:
            dashes = "--" if label.startswith("-") else ""
            usable = (option for option in self._known.options if option not in self._linked)
            self._report_unknown(f"{label}: no such option", name, (dashes + option for option in usable))
        elif self._known.classes[owner] and "dict_kwargs" not in name:
            known = (option.rpartition(".")[2] for option in self._known.options if option.startswith(f"{owner}."))
            self._report_unknown(f"{label}: {self._known.classes[owner]} has no such option", name, known)
        elif not self._known.classes[owner] and (new := self._known.new_name(name)):
            self._problems.append(f"{label}: no such option. Did you mean --{new}?")

    def _name_class(self, option: str, entry: Entry) -> None:
        """Find the class that an option names. If a short name is ambiguous, jsonargparse reports it."""
        if not isinstance(entry.value, str):
            self._problems.append(f"{entry}: must be a class")
            return
        hint, path = self._known.options[option].hint, entry.value
        known, bases = known_classes(hint), base_classes(hint)
        paths = [path] if "." in path else [name for name in known if name.endswith(f".{path}")]
        self._known.forget_class(option)
        try:
            paths = [name for name in paths if callable(pydoc.locate(name))]
        except pydoc.ErrorDuringImport as error:
            self._problems.append(f"{entry}: {error.value}")
            return
        if len(paths) == 1 and bases and not makes(pydoc.locate(paths[0]), bases):
            names = " or ".join(sorted({kind.__name__ for kind in bases}))
            self._problems.append(f"{entry}: not a subclass of {names}")
        elif len(paths) == 1:
            self._known.use_class(option, paths[0])
            self._class_labels.append((f"{entry.label}: {path}", self._known.required[option]))
        elif not paths and not self._known.options[option].fits(path):
            self._report_unknown(f"{entry}: no such class", path, known)

    def _report_unknown(self, problem: str, name: str, known: Iterable[str]) -> None:
        similar = ""
        if len(self._problems) < _MAX_PROBLEMS:  # the search takes a while
            names, new = list(known), other_names.new_name(name) or ""
            exact = [known for known in names if known.removeprefix("--") in (new, new.rpartition(".")[2])]
            similar = f". Did you mean {exact[0]}?" if exact else ""
            last = name.rpartition(".")[2].lstrip("-")
            if not similar and not any(option.rpartition(".")[2].lstrip("-") == last for option in names):
                similar = other_names.advise(name, self._known.options)
            similar = similar or nearest(name, names)
        self._problems.append(problem + (similar or ". See --help"))


@contextlib.contextmanager
def separate_classes() -> Iterator[None]:
    """Let a class that replaces another one begin with its own defaults.

    jsonargparse keeps the options of the other class that both have, such as a learning rate or a momentum.
    """

    def discard(parser: Any, previous: Any, value: Any) -> None:
        if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
            previous["init_args"] = Namespace()  # type: ignore[no-untyped-call]

    name = "discard_init_args_on_class_path_change"  # a private name of jsonargparse 4.53
    original = getattr(_typehints, name, None)
    if original is None:
        yield
        return
    setattr(_typehints, name, discard)
    try:
        yield
    finally:
        setattr(_typehints, name, original)


def _shorten(message: str) -> str:
    return message if len(message) <= _MAX_LENGTH else f"{message[:_MAX_LENGTH]} ..."
