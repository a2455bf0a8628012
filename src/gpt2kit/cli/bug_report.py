"""Save a report of an error that nobody expected: the command, versions and devices, and the traceback."""

from __future__ import annotations

import re
import shlex
import sys
import traceback
from datetime import datetime
from pathlib import Path

from gpt2kit.cli import env
from gpt2kit.errors import first_line
from gpt2kit.logs import launched_rank

# Passwords: the value of --auth, and the one in a URL.
_SECRET = re.compile(r"(?<=--auth[ =])\S+|(?<=://)[^/@\s]+(?=@)")


def save(error: BaseException) -> str:
    """Save a report in the current folder, or print it if that is impossible; return a line that describes the error.

    Each rank of a run writes a file of its own.
    """
    rank = launched_rank()
    path = Path(f"gpt2kit-error-{datetime.now():%Y%m%d-%H%M%S}{f'-rank{rank}' if rank else ''}.txt")
    command = shlex.join(sys.argv)
    report = f"command           {command}\n{_machine()}\n\n{''.join(traceback.format_exception(error))}"
    report = _SECRET.sub("***", report)
    try:
        path.write_text(report, encoding="utf-8", errors="backslashreplace")
        where = str(path)
    except OSError:
        sys.stderr.write(report)
        where = "the lines above"
    kind = f"{type(error).__name__}: {first_line(error)[:300]}"
    return f"unexpected {kind} ({_place(error)}). This is a bug; please report it with {where}"


def _machine() -> str:
    try:
        return "\n".join(env.lines())
    except Exception as error:  # it may have the same cause, such as a broken installation of torch
        return f"versions          not available: {first_line(error)}"


def _place(error: BaseException) -> str:
    """Return the last line of gpt2kit's own code in the traceback, else the last line; the first is in `guarded`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames[1:] if "gpt2kit" in Path(frame.filename).parts]
    return "; ".join(f"{Path(frame.filename).name} line {frame.lineno}" for frame in (own or frames)[-1:])
