"""A fixed number of fuzzing cases, and every case that once found a fault. `make fuzz` tries more."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT

from gpt2kit.__main__ import COMMANDS


@pytest.mark.skipif(sys.platform != "linux", reason="a case is a forked process, watched through /proc")
def test_hostile_files_options_and_requests_end_with_one_line() -> None:
    command = [sys.executable, ROOT / "tests/fuzz/fuzz.py", "--cases", "1", "--jobs", "1"]
    process = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert process.returncode == 0, process.stdout + process.stderr


def test_every_command_is_fuzzed() -> None:
    source = (ROOT / "tests/fuzz/targets.py").read_text(encoding="utf-8")
    commands = re.findall(r'^    "(\w+)": \(\[', source.partition("BASE = {")[2], re.MULTILINE)
    assert commands == list(COMMANDS)


def test_kept_cases_are_small() -> None:
    for path in (ROOT / "tests/data/fuzz").glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8")).keys() == {"cause", "target", "args", "changes"}
        assert path.stat().st_size < 20_000, path
