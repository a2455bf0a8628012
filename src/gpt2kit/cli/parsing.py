"""Options from a command line and its config files. All that cannot be understood is told at once, a line for each: a
mistake is noted and left out, and the rest is parsed again."""

from __future__ import annotations

import argparse
import difflib
import inspect
import pydoc
import re
import typing
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from gpt2kit.errors import UserError


@dataclass
class Parsed:
    """What a command line says."""

    config: Namespace | None
    """None: too much is wrong to say anything of the rest."""
    words: list[str]
    """Those of the command line that were understood; a config file in which something was not is a text in it."""
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Of options that must be given and are not; `config` has something in their place."""
    left_out: set[str] = field(default_factory=set)
    """Options that exist, and whose values were not understood: `config` has their defaults."""


class _Mistake(NamedTuple):
    option: str
    said: str
    missing: bool = False


def parse(parser: ArgumentParser, words: list[str]) -> Parsed:
    """The parser must raise its errors (`exit_on_error=False`)."""
    prints = [word for word in words if word.startswith("--print_config")]
    found = Parsed(None, [word for word in words if word not in prints])
    if any(type(action).__name__ == "ActionConfigFile" for action in parser._actions):
        found.problems = [problem for path in config_files(words) for problem in _file_problems(path, parser)]
    if found.problems:  # what such a file decides is not known
        return found
    known = {action.dest for action in parser._actions}
    filled = set[str]()
    while True:
        try:
            found.config = parser.parse_args(found.words)
            break
        except ArgumentError as error:
            before = found.words
            for option, said, missing in _mistakes(str(error), parser, words):
                told = found.missing if missing else found.problems
                told += [said] if said not in told and not (missing and option in found.left_out) else []
                found.left_out |= {option} & known
                if not missing:
                    found.words = _without(found.words, option)
                elif option not in filled and f"--{option}" in parser._option_string_actions:
                    filled.add(option)
                    found.words = [*found.words, f"--{option}=[]"]
            if found.words == before:
                break
    if prints and not found.problems:
        parser.parse_args(words)  # it prints, and leaves; what must be given may be missing
    return found


def config_files(words: list[str]) -> list[str]:
    """The config files that a command line names."""
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("-c", "--config", action="append", default=[])
    return list(given.parse_known_args(words)[0].config)


def nearest(name: str, names: Iterable[str]) -> str:
    """'. Did you mean X?' for the most similar of `names`, or nothing."""
    last = {known.rsplit(".", 1)[-1]: known for known in names}
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
    return f". Did you mean {last[near[0]]}?" if near else ""


def _file_problems(path: str, parser: ArgumentParser) -> list[str]:
    """Whether a config file is empty or no YAML, says one key twice, or has a section that is none; with the place."""
    import yaml

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Strict, node: yaml.MappingNode) -> dict[object, object]:
        lines: dict[object, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{path} line {line}: a key must be the name of an option")
            if key.value in lines:
                raise UserError(f"{path} lines {lines[key.value]} and {line}: {key.value} stands twice. Remove one")
            lines[key.value] = line
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.load(file, Strict)
    except UserError as error:
        return [str(error)]
    except FileNotFoundError:
        return [f"{path}: no such config file. Check the path"]
    except UnicodeDecodeError:
        return [f"{path}: not UTF-8 text, so no config file. Check the path"]
    except OSError as error:
        return [f"{path}: cannot be read ({error.strerror}). Check the path"]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return [f"{path}{where}: {error.problem}. Indent with spaces, and quote odd text"]
    except yaml.YAMLError as error:
        return [f"{path}: {' '.join(str(error).split())}. Is this a config file?"]
    if not isinstance(found, dict):
        return [f"{path}: {'empty' if found is None else 'no mapping of options'}. See --print_config"]
    sections = {action.dest.split(".")[0] for action in parser._actions if "." in action.dest}
    empty = [name for name in found if name in sections and not isinstance(found[name], (dict, str))]
    return [f"{path}: {name} has no options under it. Indent them, or remove the line" for name in empty]


def _mistakes(text: str, parser: ArgumentParser, words: list[str]) -> Iterator[_Mistake]:
    """What the parser's error means."""
    known = [action.dest for action in parser._actions]
    if text.startswith("unrecognized arguments: "):
        for group in re.split(r" (?=--)", text.split(": ", 1)[1]):
            name = group.split(" ")[0].split("=")[0]
            if name.startswith("--"):
                yield _Mistake(name[2:], f"{name}: no such option{nearest(name, known) or '. See --help'}")
            else:
                said = "belongs to no option. Several values are written --option=[a,b]"
                yield from (_Mistake(word, f"{word}: {said}") for word in _as_written(group, words))
    elif match := re.match(r"Group '([\w.]+)' does not accept option '(.+?)'|Option '(.+?)' is not accepted", text):
        name = match[3] or f"{match[1]}.{match[2]}"
        yield _Mistake(name, f"{name}: no such option{nearest(name, known) or '. See --help'}")
    elif match := re.match(r"the following arguments are required: (.*)", text):
        for name in match[1].split(", "):
            yield _Mistake(name, f"{name}: missing. Say what it is", missing=True)
    elif match := re.match(r"argument --([\w.]+)\S*: (.*)", text, re.DOTALL):
        yield _Mistake(match[1], f"--{match[1]}: {' '.join(match[2].split())}")
    elif match := re.match(r'Parser key "([\w.]+)":(.*)', text, re.DOTALL):
        action = next((action for action in parser._actions if action.dest == match[1]), None)
        yield _wrong_value(match[1], match[2], getattr(action, "_typehint", None), words)
    else:
        yield _Mistake("", " ".join(text.split()))


def _as_written(text: str, words: list[str]) -> list[str]:
    """Which words a text is made of; they may have spaces in them."""
    found = []
    while text:
        fitting = [word for word in words if word and f"{text} ".startswith(f"{word} ")]
        found.append(max(fitting, key=len, default=text.split(" ")[0]))
        text = text[len(found[-1]) :].lstrip(" ")
    return found or [""]


def _wrong_value(option: str, text: str, kind: object, words: list[str]) -> _Mistake:
    """Of an option that exists: what the parser says of its value, shortened to what helps."""
    dashes = "--" if any(word.partition("=")[0].rstrip("+").startswith(f"--{option}") for word in words) else ""
    if tried := re.search(r"Problem with given class_path.*?(?=- Not a valid|- Problem with|$)", text, re.DOTALL):
        text = tried[0]  # of several types that the value may have, the first is meant
    if match := re.search(r"class_path '(.+?)':\s+.*?arguments are required: (.*)", text):
        return _Mistake(option, f"{dashes}{option}: {match[1]} needs {match[2]}")
    if match := re.search(r"Option '(.+?)' is not accepted", text):
        owner = re.search(r"class_path[ =]'(.+?)'", text)
        name = f"{option}.{match[1]}"
        has = f"{owner[1]} has no such option{nearest(match[1], _parameters(owner[1]))}" if owner else "no such option"
        return _Mistake(name, f"{dashes}{name}: {has}")
    if match := re.search(r"Multiple subclasses with name (\w+)\. .*?: (.*?)\.?$", text, re.MULTILINE):
        return _Mistake(option, f"{dashes}{option} {match[1]}: one of several. Say which: {match[2]}")
    if match := re.search(r"dot import path string: (\S+)|class_path '(.+?)':\s+(?:module .* has no|No module)", text):
        given = match[1] or match[2]
        return _Mistake(option, f"{dashes}{option} {given}: no such class{nearest(given, _classes(kind))}")
    if match := re.search(r"Unable to load config [\"'](.*?)[\"']$", text, re.MULTILINE):
        return _Mistake(option, f"{dashes}{option} {match[1]}: a section, not an option. Name one of its options")
    inner = list(re.finditer(r'Parser key "(.+?)":', text))
    name = ".".join(dict.fromkeys([option, *(key[1] for key in inner)]))
    about = re.split(r"- (?:Not a valid|Problem with)", text[inner[-1].end() if inner else 0 :])[0]
    found = re.findall(r"Expected an? (?!path but)(.+?)(?:\. Got value: .*)?$", about, re.MULTILINE)
    wanted = list(dict.fromkeys(map(_in_words, found)))
    value = re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value: .*)?$", about, re.MULTILINE)
    if not wanted or not value:
        return _Mistake(name, f"{dashes}{name}: {' '.join(text.split())}")
    return _Mistake(name, f"{dashes}{name} {value[1]}: must be {' or '.join(wanted)}")


def _in_words(kind: str) -> str:
    """A type as the parser writes it."""
    said = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
    plain = re.sub(r"^<class '(?:[\w.]*\.)?(\w+)'>$", r"\1", kind)
    return said.get(plain, re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", plain).replace("'", ""))


def _parameters(path: str) -> list[str]:
    """The options of a class."""
    try:
        return list(inspect.signature(pydoc.locate(path)).parameters)  # type: ignore[arg-type]
    except (pydoc.ErrorDuringImport, TypeError, ValueError):
        return []


def _classes(kind: Any) -> list[str]:
    """The names of all classes that an option of this type may name."""
    if inner := typing.get_args(kind):
        return [name for one in inner for name in _classes(one)]
    if not isinstance(kind, type):
        return []
    below: list[type] = kind.__subclasses__()
    return [f"{kind.__module__}.{kind.__name__}", *(name for one in below for name in _classes(one))]


def _without(words: list[str], option: str) -> list[str]:
    """The words, without an option and its values; it stands among them, or else in the config files that they name.
    A word that belongs to no option counts as one itself; of several such the last."""
    if option in words:
        last = len(words) - 1 - words[::-1].index(option)
        return words[:last] + words[last + 1 :]
    left, dropping = [], False
    for word in words:
        drop = dropping
        if re.match("-[^0-9.]", word):
            name, equals, _ = word.partition("=")
            name = name.rstrip("+").replace(".init_args.", ".")
            drop = name == f"--{option}" or name.startswith(f"--{option}.")
            dropping = drop and not equals  # values of its own follow
        if not drop:
            left.append(word)
    if left != words:
        return left
    words = _joined(words)
    left = [_file_without(word, option.split(".")) for word in words]
    outer = option.rpartition(".")[0]
    return _without(words, outer) if left == words and "." in outer else left


def _joined(words: list[str]) -> list[str]:
    """`--config FILE`, `-c FILE` and `-cFILE` as one word."""
    left: list[str] = []
    for word in words:
        if left and left[-1] in ("-c", "--config"):
            left[-1] = f"--config={word}"
        elif word.startswith("-c") and len(word) > 2:
            left.append(f"--config={word[2:].removeprefix('=')}")
        else:
            left.append(word)
    return left


def _file_without(word: str, path: list[str]) -> str:
    """`--config=FILE` as `--config=TEXT`, if the file has an option that is to go."""
    import yaml

    name, _, value = word.partition("=")
    if name != "--config":
        return word
    tree = yaml.safe_load(value)
    if not isinstance(tree, dict):
        with open(value, encoding="utf-8") as file:
            tree = yaml.safe_load(file)
    return f"--config={yaml.safe_dump(tree)}" if _forget(tree, path) else word


def _forget(tree: Any, path: list[str]) -> bool:
    """Take an option out of nested mappings; of a list, out of each; whether it was there."""
    if isinstance(tree, list):
        return any([_forget(one, path) for one in tree])
    if not isinstance(tree, dict):
        return False
    for depth in range(len(path), 0, -1):
        name = ".".join(path[:depth])
        if name in tree and depth < len(path):
            return _forget(tree[name], path[depth:])
        if name in tree:
            del tree[name]
            return True
    return _forget(tree.get("init_args"), path)
