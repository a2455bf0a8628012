"""Run a command. An exception becomes one line on stderr and an exit code.

An unexpected one is a bug: a report is saved, with the command, versions, devices and the traceback.
"""

from __future__ import annotations

import errno
import functools
import io
import locale
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse.typing import Path as ConfigPath

from gpt2kit import files, logs
from gpt2kit.cli import env
from gpt2kit.errors import MachineError, UserError, first_line, printable

# What the system reports about a path that no file or folder can have.
_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
# Passwords: the value of --auth, and the one in a URL.
_SECRET = re.compile(r"(?<=--auth[ =])\S+|(?<=://)[^/@\s]+(?=@)")
# The libraries whose errors are those of a connection.
_NETWORK = ("aiohttp", "httpcore", "httpx", "requests", "urllib3")


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
        known, rank = known_error(error), logs.launched_rank()
        if debug:
            traceback.print_exc()
        print_error(known or save_report(error), f"rank {rank}: error" if rank else "error")
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
    print_error(known_error(error) or save_report(error), "warning")


def print_error(error: object, label: str = "error") -> None:
    """Print an error as one line on stderr."""
    message = printable(" ".join(str(error).split()))
    sys.stderr.write(f"{label}: {message}\n")  # one write, so that the lines of several ranks do not mix
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
        module: Any = sys.modules[ConfigPath.__module__]  # it opens files in the system's encoding
        module.open = functools.partial(open, encoding="utf-8")


def known_error(error: BaseException) -> UserError | None:
    """Return a UserError for an error that reports a limit of the machine, such as a full disk, or a bad path.

    A UserError is returned as it is. For any other error the result is None.
    """
    if isinstance(error, UserError):
        return error
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
        reason, advice = "no space left", "Free some space and run the same command again"
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


def save_report(error: BaseException) -> str:
    """Save a report in the current folder, or print it if that is impossible; return a line that describes the error.

    Each rank of a run writes a file of its own.
    """
    rank = logs.launched_rank()
    path = Path(f"gpt2kit-error-{datetime.now():%Y%m%d-%H%M%S}{f'-rank{rank}' if rank else ''}.txt")
    command = shlex.join(sys.argv)
    report = f"command           {command}\n{_versions()}\n\n{''.join(traceback.format_exception(error))}"
    report = _SECRET.sub("***", report)
    try:
        path.write_text(report, encoding="utf-8", errors="backslashreplace")
        where = str(path)
    except OSError:
        sys.stderr.write(report)
        where = "the lines above"
    kind = f"{type(error).__name__}: {first_line(error)[:300]}"
    return f"unexpected {kind} ({_place(error)}). This is a bug; please report it with {where}"


def _versions() -> str:
    try:
        return "\n".join(env.lines())
    except Exception as error:  # it may have the same cause, such as a broken installation of torch
        return f"versions          not available: {first_line(error)}"


def _place(error: BaseException) -> str:
    """Return the last line of gpt2kit's own code in the traceback, else the last line; the first is in `guarded`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames[1:] if "gpt2kit" in Path(frame.filename).parts]
    return "; ".join(f"{Path(frame.filename).name} line {frame.lineno}" for frame in (own or frames)[-1:])
