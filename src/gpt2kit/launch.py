"""End the ranks of a run when the process that started them has ended."""

from __future__ import annotations

import os
import signal
import threading
import time

_LAUNCHER = "GPT2KIT_LAUNCHER_PID"
# Variables of launchers that watch their processes themselves.
_OTHER_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
_SECONDS = 0.5  # between checks


def follow_launcher() -> None:
    """In a rank that Lightning has started, end with rank 0; in rank 0, name this process to the ranks.

    A rank that starts waits in torch for rank 0 for up to half an hour, and no Python code runs there but in a thread.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_LAUNCHER] = str(os.getpid())
        return
    launcher = os.environ.get(_LAUNCHER, "")
    if not launcher.isdecimal() or any(name in os.environ for name in _OTHER_LAUNCHERS):
        return
    if os.getppid() == int(launcher) or not _is_alive(int(launcher)):  # else the variable is of an earlier run
        threading.Thread(target=_end_after, args=(int(launcher),), daemon=True).start()


def _end_after(launcher: int) -> None:
    while os.getppid() == launcher:  # another process adopts the children of one that has ended
        time.sleep(_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # there os.kill ends a process, and a process keeps the number of its parent
        return True
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
