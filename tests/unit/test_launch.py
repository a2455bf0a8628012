"""Ranks end when the process that started them has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

RANK = "from gpt2kit.launch import follow_launcher; follow_launcher(); print('rank', flush=True); input()"
LAUNCHER = f"""
import os, subprocess, sys
from gpt2kit.launch import follow_launcher
follow_launcher()
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}], env=os.environ | {{"LOCAL_RANK": "1"}})
rank.wait()
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_rank_ends_with_its_launcher(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], env=environment, **pipes) as launcher:  # type: ignore[call-overload]
        assert launcher.stdout.readline() == b"rank\n"
        launcher.send_signal(number)
        assert launcher.stdout.read() == b"", "the rank has closed the pipe, though its input is still open"


def test_a_rank_of_another_launcher_is_left_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LOCAL_RANK": "1"}
    environment |= {"GPT2KIT_LAUNCHER_PID": "999999999", "TORCHELASTIC_RUN_ID": "1"}
    program = f"import time; {RANK.replace('input()', 'time.sleep(1)')}; print('end')"
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert process.stdout == "rank\nend\n"
