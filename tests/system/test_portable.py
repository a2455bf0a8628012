"""Windows lacks signals, fork servers, change times and more. Each test removes one of them on this system."""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, Run

from gpt2kit import files
from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.cli import generate
from gpt2kit.generation.options import GenerationOptions

MAPS = Path("/proc/self/maps")


def test_training_stops_for_the_signals_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGHUP", "SIGUSR1"):
        monkeypatch.delattr(signal, name)
    module = runpy.run_path(str(ROOT / "src/gpt2kit/training/checkpointing.py"))
    assert module["STOP_SIGNALS"] == [signal.SIGTERM, signal.SIGINT]


def test_text_is_hashed_again_where_edits_may_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, cache = tmp_path / "text.txt", tmp_path / "digests.json"
    text.write_text("one\n", encoding="utf-8")
    (digest,) = files.Digests(cache).of([text])
    entries = json.loads(cache.read_text(encoding="utf-8"))
    cache.write_text(json.dumps({name: [*entry[:-1], "outdated"] for name, entry in entries.items()}), encoding="utf-8")
    assert files.Digests(cache).of([text]) == ["outdated"]
    monkeypatch.setattr(files, "POSIX", False)
    assert files.Digests(cache).of([text]) == [digest]


@pytest.mark.skipif(not MAPS.is_file(), reason="needs /proc")
def test_an_open_checkpoint_can_be_deleted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a mapped file cannot be deleted, a checkpoint is read and not mapped."""
    path = paths.find(run.folder)
    gc.collect()  # of earlier tests
    content = checkpoint.read(path)
    assert path.name in MAPS.read_text()
    del content
    monkeypatch.setattr(files, "POSIX", False)
    content = checkpoint.read(path)
    assert content["state_dict"] and path.name not in MAPS.read_text()


def test_an_interactive_session_works_without_readline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "readline", None)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)

    def end(prompt: str) -> str:
        assert prompt == "> "
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    generate.run_session(None, GenerationOptions())  # type: ignore[arg-type]


def test_configs_and_pipes_are_utf8_whatever_the_locale_is(inside: Path) -> None:
    config = "trainer: {callbacks: [{class_path: gpt2kit.callbacks.TextSamples, init_args: {prompts: [春眠]}}]}\n"
    (inside / "config.yaml").write_text(config, encoding="utf-8")
    arguments = ["--config", "config.yaml", "--data.train_files", "text.txt", "--print_config"]
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    environment.pop("PYTHONIOENCODING", None)
    command = [sys.executable, str(ROOT / "trainer.py"), *arguments]
    process = subprocess.run(command, env=environment, capture_output=True)
    assert process.returncode == 0, process.stderr.decode(errors="replace")
    assert "春眠" in process.stdout.decode("utf-8")
