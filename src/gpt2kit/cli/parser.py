"""Build a command line from a function's signature and docstring, and print errors as one line."""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import io
import locale
import os
import re
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser
from jsonargparse.typing import Path as ConfigPath

from gpt2kit import files, logs
from gpt2kit.cli import bug_report, renamed
from gpt2kit.cli.help import Parser, invocation
from gpt2kit.cli.known_options import CommandLine
from gpt2kit.errors import MachineError, UserError, first_line, printable

Value = TypeVar("Value")
# What the system reports about a path that no file or folder can have.
_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
# Types of parameters. Arguments before the first option are values of the Positional one: `test.py last` is `test.py
# --ckpt_path last`. A Repeated option takes one value each time: `--prompt a --prompt b`.
Positional = Annotated[Value, "positional"]
Repeated = Annotated[list[Value], "repeated"]
# The libraries whose errors are those of a connection.
_NETWORK = ("aiohttp", "httpcore", "httpx", "requests", "urllib3")


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
    renamed.log_renames(command.renames)
    return options


def split_positional(args: list[str], option: str) -> tuple[list[str], list[str]]:
    """Return the arguments before the first option, which are values of `option`, and the others."""
    count = next((index for index, arg in enumerate(args) if arg[:1] == "-" and arg != "-"), len(args))
    values, others = args[:count], args[count:]
    if values and any(arg.partition("=")[0] == option for arg in others):
        raise UserError(f"{values[0]}: {option} is given, too. Leave out one of the two")
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
        hint, item = hints[name], _list_item(hints[name])
        options: dict[str, typing.Any] = {"help": helps.get(name, "")}
        if _is_group(hint):
            add_options(parser, hint)
            continue
        if hint is bool and parameter.default is True:  # --x and --no_x
            options |= {"action": ActionYesNo(no_prefix="no_"), "default": True}
        elif hint is bool:
            options |= {"action": "store_true"}
        else:
            options |= {"type": item or hint}
            if "repeated" in getattr(annotated[name], "__metadata__", ()):
                options |= {"action": "append"}
            elif item:
                options |= {"nargs": "+", "action": "extend"}
            default = parameter.default
            if default is parameter.empty:
                options |= {"required": True}
            else:
                options |= {"default": list(default) if item and default is not None else default}
        containers.get(name, parser).add_argument(f"--{name}", **options)


def _is_group(hint: object) -> bool:
    """Return whether a type is a dataclass of options."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def guarded(main: Callable[[list[str]], object], args: list[str] | None = None) -> None:
    """Run `main(args)`; print any error as one line on stderr and exit with its code (`--debug`: the traceback)."""
    use_utf8()
    logs.configure()
    argv = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in argv
    argv = [arg for arg in argv if arg != "--debug"]
    thread_hook, threading.excepthook = threading.excepthook, functools.partial(_report_thread, debug=debug)
    try:
        main(argv)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except SystemExit:
        raise
    except BaseException as error:  # a panic of a library in Rust is not an Exception
        known = error if isinstance(error, UserError) else machine_error(error)
        if debug:
            traceback.print_exc()
        print_error(known or bug_report.save(error), logs.launched_rank())
        sys.exit(known.exit_code if known else 1)
    finally:
        threading.excepthook = thread_hook


def _report_thread(failure: threading.ExceptHookArgs, debug: bool) -> None:
    """Report an error that has ended a thread as one line; the command continues, or fails for the same reason."""
    error = failure.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    if debug:
        traceback.print_exception(error)
    known = error if isinstance(error, UserError) else machine_error(error)
    message = printable(" ".join(str(known or bug_report.save(error)).split()))
    sys.stderr.write(f"warning: {message}\n")
    sys.stderr.flush()


def print_error(error: object, rank: int = 0) -> None:
    """Print an error as one line on stderr. A rank other than 0 is named."""
    message = f"error: {printable(' '.join(str(error).split()))}\n"
    sys.stderr.write(f"rank {rank}: {message}" if rank else message)  # one write, so that lines of ranks do not mix
    sys.stderr.flush()


def use_utf8() -> None:
    """Read and write UTF-8 on every system. A terminal with another encoding shows ? for characters that it lacks."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            if not stream.isatty():
                stream.reconfigure(encoding="utf-8", errors=stream.errors)
            elif stream is not sys.stdin:
                stream.reconfigure(errors="replace")
    if locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        module: typing.Any = sys.modules[ConfigPath.__module__]  # it opens files in the system's encoding
        module.open = functools.partial(open, encoding="utf-8")


def machine_error(error: BaseException) -> UserError | None:
    """Return a UserError if an error reports a limit of the machine, such as a full disk, or a bad path; else None."""
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", str(error), re.IGNORECASE):
        detail = f" ({first_line(error)[:200]})" if str(error).strip() else ""
        return MachineError(f"not enough memory{detail}. Use a smaller model, data.batch_size or data.block_size")
    number = files.error_number(error)
    if number is not None and getattr(error, "filename", None) is not None:
        return _file_error(number, error)
    if _is_lost_connection(error):
        reason = str(error).split(". ")[0]
        return MachineError(
            f"another process of this run has ended ({reason}). See its error; resume with --ckpt_path last"
        )
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in _NETWORK:
        return MachineError(f"network: {first_line(error)[:200]}. Check the connection, or use files on this machine")
    return None if number is None else _file_error(number, error)


def _file_error(number: int, error: BaseException) -> UserError:
    """Describe an error of the system by its path and its number."""
    path, reason, advice = getattr(error, "filename", None), os.strerror(number), "Check the path and the disk"
    if number in (errno.ENOSPC, errno.EDQUOT):
        reason, advice = "no space left", "Free some and run the same command again"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "Check the permissions, or choose another folder"
    elif number == errno.EFBIG:
        advice = "Raise the limit on the size of files (ulimit -f)"
    elif number == errno.EMFILE:
        advice = "Raise the limit on open files (ulimit -n)"
    elif number == errno.ENOENT:
        advice = "It may have been deleted or moved while the command was running"
    where = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else "a file that this command writes"
    if path and number in _PATH_ERRORS:
        return UserError(f"{where[:100]}: {reason}. Choose another path")
    return MachineError(f"{where}: {reason}. {advice}")


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether torch raised an error because another process of the run does not answer."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):  # torch need not be imported
        return True
    return bool(re.search("gloo|nccl|Connection closed by peer|Connection reset", str(error), re.IGNORECASE))


def _list_item(hint: object) -> type | None:
    """Return X for `list[X]`, `Sequence[X]` and unions with them, else None."""
    for option in (hint, *typing.get_args(hint)):
        if typing.get_origin(option) in (list, Sequence):
            return typing.cast(type, typing.get_args(option)[0])
    return None
