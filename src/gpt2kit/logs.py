"""Print log records of gpt2kit on stderr, on rank 0 only. Modules log with `logging.getLogger(__name__)`."""

from __future__ import annotations

import logging
import os
import sys

from gpt2kit.errors import printable


def launched_rank() -> int:
    """Return the rank that the launcher gave to this process; works before a process group exists."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0"
    return int(rank) if rank.isdecimal() else 0  # other programs use these names, too


class _RankZeroHandler(logging.Handler):
    """Prints `note: ...` or `warning: ...`."""

    def emit(self, record: logging.LogRecord) -> None:
        if launched_rank() == 0:
            level = "note" if record.levelno < logging.WARNING else "warning"
            sys.stderr.write(f"{level}: {printable(record.getMessage())}\n")
            sys.stderr.flush()


def configure() -> None:
    """Print notes and warnings. Only commands call this: a program that imports gpt2kit sets up logging itself."""
    logger = logging.getLogger("gpt2kit")
    if not any(isinstance(handler, _RankZeroHandler) for handler in logger.handlers):
        logger.addHandler(_RankZeroHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a handler of the root logger would print each record again
