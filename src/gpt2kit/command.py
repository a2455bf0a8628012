"""A function's signature and docstring become a script's command line; a user's mistake becomes one line."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import inspect
import io
import locale
import os
import re
import sys
import traceback
import typing
from argparse import ArgumentError
from collections.abc import Callable, Iterable

from jsonargparse import ArgumentParser
from jsonargparse.typing import Path as ConfigPath

from gpt2kit.errors import MachineError, UserError

_UNKNOWN = re.compile(r"(?:unrecognized arguments: --|Key '|does not accept option ')([\w.+-]+)")


def run(function: Callable[..., object], args: list[str] | None = None) -> None:
    """Call `function` with options parsed from the command line.

    A parameter that is a list takes several values and may be given several times: `--files a b --files c`; one that
    is a bool is off unless it is named: `--json`. One before a `/` in the signature is given without a name: `RUN RUN`.
    """
    guarded(lambda argv: call(function, parse(function, argv)), args)


def call(function: Callable[..., object], options: dict[str, object]) -> object:
    """Call a function with what `parse` has found for it."""
    parameters = inspect.signature(function).parameters.values()
    first = [options.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY]
    return function(*first, **options)


def parse(function: Callable[..., object], args: list[str]) -> dict[str, object]:
    """The keyword arguments for `function` that `args` asks for."""
    parser = parser_of(function)
    with explained(parser):
        config = parser.parse_args(args)
        return dict(parser.instantiate(config).as_dict())


def parser_of(function: Callable[..., object]) -> ArgumentParser:
    """The parser of a function's options."""
    parser = ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description=(inspect.getdoc(function) or "").split("\n\n")[0]
    )
    hints = typing.get_type_hints(function)
    lists = {name: item for name, hint in hints.items() if (item := _list_item(hint)) and name != "return"}
    helps = _argument_helps(function)
    for name, item in lists.items():
        parameter = inspect.signature(function).parameters[name]
        if parameter.kind is parameter.POSITIONAL_ONLY:
            parser.add_argument(name, nargs="+", type=item, help=helps.get(name, ""))
            continue
        default = parameter.default
        required = default is inspect.Parameter.empty
        parser.add_argument(
            f"--{name}",
            nargs="+",
            action="extend",
            type=item,
            required=required,
            default=None if required else default,
            help=helps.get(name, ""),
        )
    flags = [name for name, hint in hints.items() if hint is bool]
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true", help=helps.get(name, ""))
    parser.add_function_arguments(function, as_group=False, skip={*lists, *flags})
    return parser


def guarded(main: Callable[[list[str]], object], args: list[str] | None = None) -> None:
    """Run `main(args)`; print a UserError as one line on stderr and exit with its code (`--debug`: the traceback)."""
    speak_utf8()
    argv = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    try:
        main(argv)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe (head, less) has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        known = error if isinstance(error, UserError) else _machine(error)
        if known is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(known).split())}", file=sys.stderr, flush=True)
        sys.exit(known.exit_code)


def speak_utf8() -> None:
    """Have config files and what goes to a file or a pipe be UTF-8 on every system; a terminal shows ? for the rest."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            if not stream.isatty():
                stream.reconfigure(encoding="utf-8", errors=stream.errors)
            elif stream is not sys.stdin:
                stream.reconfigure(errors="replace")
    if locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        module: typing.Any = sys.modules[ConfigPath.__module__]  # it opens files in the system's encoding
        module.open = functools.partial(open, encoding="utf-8")


@contextlib.contextmanager
def explained(parser: ArgumentParser) -> typing.Iterator[None]:
    """Turn the parser's errors into UserErrors, with the nearest name for one that is unknown."""
    try:
        yield
    except ArgumentError as error:
        text = re.sub(r"Parser key \"([^\"]+)\":", r"--\1:", str(error))
        raise UserError(text.rstrip(".") + _suggestion(text, parser) + " (see --help)") from error


def check_yaml(path: str) -> None:
    """Refuse a config file that is empty or no YAML, or that says one key twice; name the place."""
    import yaml

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Strict, node: yaml.MappingNode) -> dict[object, object]:
        lines: dict[object, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(f"{path} lines {lines[key.value]} and {line}: {key.value} stands twice. Remove one")
            lines[key.value] = line
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.load(file, Strict)
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file. Check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text, so no config file. Check the path") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: {error.problem}. Indent with spaces, and quote odd text") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: {'empty' if found is None else 'no mapping of options'}. See --print_config")


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean X?' for the most similar of `names`, or nothing."""
    last = {known.rsplit(".", 1)[-1]: known for known in names}
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
    return f". Did you mean {last[near[0]]}?" if near else ""


def _suggestion(text: str, parser: ArgumentParser) -> str:
    unknown = _UNKNOWN.search(text)
    return nearest(unknown[1], (action.dest for action in parser._actions)) if unknown else ""


def _machine(error: Exception) -> MachineError | None:
    """The system's word that the machine is at its limit, as an error of ours."""
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error), re.IGNORECASE):
        return MachineError(f"not enough memory ({error}). Take a smaller model, data.batch_size or data.block_size")
    if is_lost_connection(error):
        reason = str(error).split(". ")[0]
        return MachineError(f"another process of this run has gone ({reason}). Go on with --ckpt_path last")
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"{error.filename or 'disk'}: no space left. Free some and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineError(f"{error.filename}: {error.strerror}. Check the permissions, or choose another folder")
    return None


def is_lost_connection(error: BaseException) -> bool:
    """Whether it is what torch raises when another process of a run does not answer."""
    return bool(re.search("gloo|nccl|Connection closed by peer|Connection reset", str(error), re.IGNORECASE))


def _list_item(hint: object) -> type | None:
    """X for `list[X]` and `list[X] | None`, else None."""
    for option in (hint, *typing.get_args(hint)):
        if typing.get_origin(option) is list:
            return typing.cast(type, typing.get_args(option)[0])
    return None


def _argument_helps(function: Callable[..., object]) -> dict[str, str]:
    import docstring_parser

    found = docstring_parser.parse(inspect.getdoc(function) or "")
    return {param.arg_name: param.description or "" for param in found.params}
