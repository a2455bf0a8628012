"""Errors that a user can fix, each kind with its exit code, and helpers for their messages.

A message is one line: what and where, why, and what to do. It is printed without a traceback.
A run that a signal stopped exits with 128 + the signal's number. Any other exception is a bug of gpt2kit or of a
library: the exit code is 1, and `cli.failures` saves its traceback.
"""

import difflib
import re
from collections.abc import Callable, Iterable

# A terminal obeys control characters, and a message may quote a file that anyone may have written.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MAX_LENGTH = 20_000


class UserError(Exception):
    """A wrong option or configuration."""

    exit_code = 2


class DataError(UserError):
    """Text, a tokenizer, or a file of a run's folder that cannot be used."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint or model file that cannot be used."""

    exit_code = 4


class MachineError(UserError):
    """A problem with the disk, the memory, the network, a port or the device."""

    exit_code = 5


class DivergedError(UserError):
    """NaN or Inf in the loss or the gradient."""

    exit_code = 6


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without a full stop; its class if it has none."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def printable(message: str) -> str:
    """Return a message of limited length without control characters, except newlines and tabs."""
    if len(message) > _MAX_LENGTH:
        message = f"{message[:_MAX_LENGTH]} ..."
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", message)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return '. Did you mean X?' for the most similar of `names`, or an empty string."""
    last = {known.rsplit(".", 1)[-1]: known for known in names}
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.6)
    return f". Did you mean {last[near[0]]}?" if near else ""


class Problems:
    """Collects problems, so that one error reports all of them.

    Args:
        messages: the first problems.
    """

    def __init__(self, messages: Iterable[str] = ()) -> None:
        self.messages = list(messages)

    def check(self, condition: object, message: str) -> None:
        """Add `message` unless `condition` holds."""
        if not condition:
            self.messages.append(message)


def refuse(problems: list[str]) -> None:
    """Raise one UserError that names every problem, if there are any."""
    if problems:
        raise UserError("; ".join(problems))


def problems_of(check: Callable[..., object], *args: object, **kwargs: object) -> list[str]:
    """Call `check`; return the message of the UserError that it raises as a list, which is empty without an error."""
    try:
        check(*args, **kwargs)
    except UserError as error:
        return [str(error)]
    return []
