"""A rank that dies is named by all others within seconds, also by those that would wait for it forever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2kit.training import watch
from gpt2kit.training.watch import Watch

RANK = """
import sys, time
from gpt2kit.training import watch
watch.PATIENCE = 0.5
rank, port = int(sys.argv[1]), int(sys.argv[2])
server = watch.listening() if rank == 0 else None
if server:
    port = server.getsockname()[1]
    print(port, flush=True)
mine = watch.Watch(rank, ("127.0.0.1", port), "word", lambda who: print("last words:", who, flush=True), server)
print("in", flush=True)
command = sys.stdin.readline()   # blocked, as in an exchange that never returns
if command == "leave\\n":
    mine.close()
elif command == "fail\\n":
    mine.close("no text in it")
    sys.exit(3)
"""


class Process:
    def __init__(self, rank: int, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(watch.__file__).parents[2])},
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline()) if rank == 0 else port
        assert self._process.stdout.readline() == "in\n"

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def told(self, command: str = "") -> tuple[int, str, str]:
        """Exit code, stdout and stderr, after it has read a command or was ended."""
        if command:
            out, err = self._process.communicate(command + "\n", timeout=10)
        else:
            assert self._process.wait(10) is not None
            assert self._process.stdout and self._process.stderr and self._process.stdin
            out, err = self._process.stdout.read(), self._process.stderr.read()
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                pipe.close()
        return self._process.returncode, out, err


@pytest.mark.parametrize("dying", [0, 1, 2])
def test_ranks_that_hang_are_ended_with_the_name_of_the_dead_one(dying: int) -> None:
    ranks = [Process(0)]
    ranks += [Process(rank, ranks[0].port) for rank in (1, 2)]
    time.sleep(0.2)
    begun = time.monotonic()
    ranks[dying].kill()
    for rank in ranks:
        if rank is not ranks[dying]:
            code, out, err = rank.told()
            assert code == 5 and err.startswith(f"error: rank {dying}") and "has gone" in err, err
            assert f"last words: rank {dying}" in out
    assert time.monotonic() - begun < 5


def test_a_rank_that_stops_for_a_reason_is_named_with_it() -> None:
    ranks = [Process(0)]
    ranks += [Process(rank, ranks[0].port) for rank in (1, 2)]
    assert ranks[1].told("fail")[0] == 3
    for rank in (ranks[0], ranks[2]):
        code, _, err = rank.told()
        assert code == 5 and "rank 1 on " in err and "has stopped: no text in it" in err


def test_leaving_in_peace_ends_nobody() -> None:
    ranks = [Process(0)]
    ranks += [Process(rank, ranks[0].port) for rank in (1, 2)]
    assert ranks[2].told("leave") == (0, "", "")
    time.sleep(1)
    assert ranks[0].told("leave") == (0, "", "")
    time.sleep(1)
    assert ranks[1].told("leave") == (0, "", "")


def test_strangers_are_not_listened_to() -> None:
    server = watch.listening()
    port = server.getsockname()[1]
    mine = Watch(0, ("127.0.0.1", port), "word", server=server)
    for words in (
        b"\x00\xff\n",
        b'{"word": "wrong", "rank": 1, "host": "x"}\n',
        b'{"bye": true}\n',
        b"[]\n",
        b"x" * 9999,
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
    assert mine.gone(0.5) == ""
    mine.close()
