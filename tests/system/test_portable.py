"""What Windows lacks, or does otherwise: the fallbacks, each tried by taking away or imitating it here."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, Run

from gpt2kit import files, hardware
from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import generate
from gpt2kit.data import batches
from gpt2kit.data.batches import BlockDataset, TrainBatches
from gpt2kit.data.build import Corpus, open_or_build
from gpt2kit.data.order import BlockOrder
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import MachineError
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.runs import lifecycle
from gpt2kit.serving import app
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization.tokenizer import load

MAPS = Path("/proc/self/maps")
needs_maps = pytest.mark.skipif(not MAPS.is_file(), reason="needs /proc")


@pytest.fixture
def store(corpus: Path, tmp_path: Path) -> TokenStore:
    text = Corpus([corpus / "train.txt"], load(corpus / "tokenizer"), Reader())
    return open_or_build(text, tmp_path / "cache")


def test_without_sigusr1_the_others_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in batches.STOP_SIGNALS}
    assert len(before) == 3
    monkeypatch.delattr(signal, "SIGUSR1")
    found = runpy.run_path(str(ROOT / "src/gpt2kit/data/batches.py"))
    try:
        assert found["STOP_SIGNALS"] == [signal.SIGTERM, signal.SIGINT]
        found["_ignore_stop_signals"](0)
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_processes_that_read_ahead_start_without_a_fork_server(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert batches._start_method() == "spawn"
    order = BlockOrder(blocks=40, global_batch=8, seed=1)
    numbers = list(itertools.islice(order.micro_batches(0, 8, 0, 1), 3))
    # To the end: a spawned process of torch's that is ended while it hands over a batch may abort.
    ahead = list(TrainBatches(BlockDataset(store, 16, 16), numbers, num_workers=1))
    assert all(map(torch.equal, TrainBatches(BlockDataset(store, 16, 16), numbers), ahead)) and len(ahead) == 3


def test_a_hash_is_not_remembered_where_an_edit_can_hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no time of change; size, time of writing and number may be those of the text before."""
    text, memory = tmp_path / "text.txt", tmp_path / "digests.json"
    text.write_text("one\n", encoding="utf-8")
    (wanted,) = files.Digests(memory).of([text])
    known = json.loads(memory.read_text(encoding="utf-8"))
    memory.write_text(json.dumps({name: [*value[:-1], "of before"] for name, value in known.items()}), encoding="utf-8")
    assert files.Digests(memory).of([text]) == ["of before"]
    monkeypatch.setattr(files, "POSIX", False)
    assert files.Digests(memory).of([text]) == [wanted]


@needs_maps
def test_a_checkpoint_is_not_held_open_where_it_could_not_be_deleted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.find(run.folder)
    held = checkpoint.read(path)
    assert path.name in MAPS.read_text()
    del held
    assert path.name not in MAPS.read_text()
    monkeypatch.setattr(files, "POSIX", False)
    held = checkpoint.read(path)
    assert held["state_dict"] and path.name not in MAPS.read_text()


def test_a_checkpoint_is_set_aside_twice(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for content in ("first", "second"):
        path = folder / "epoch=0-step=7.ckpt"
        path.write_text(content)
        lifecycle.set_aside(tmp_path, 5)
        assert not path.exists() and (folder / "epoch=0-step=7.ckpt.aside").read_text() == content


def test_a_port_that_is_taken_is_seen_where_sharing_means_stealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """SO_REUSEADDR of Windows takes a port from a program that listens; here it does so from one that does not yet."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with monkeypatch.context() as here:
            here.setattr(os, "name", "nt")
            with pytest.raises(MachineError, match=f"--port {port}: not available"):
                app.check_port("127.0.0.1", port)


def test_a_session_needs_no_readline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "readline", None)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)

    def end(prompt: str) -> str:
        assert prompt == "> "
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    generate.run_session(None, GenerationOptions())  # type: ignore[arg-type]


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    cpu = torch.device("cpu")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.delattr(os, "sysconf")
    assert hardware.peak_memory(cpu) is None and hardware.resident_memory() == 0 and hardware.device_memory(cpu) is None
    assert hardware.processor_name()


def test_configs_and_pipes_are_utf8_whatever_the_system_takes_for_text(inside: Path) -> None:
    """In Python's own words for such a system: no UTF-8 mode, and a locale without letters beyond ASCII."""
    config = "trainer: {callbacks: [{class_path: gpt2kit.callbacks.TextSamples, init_args: {prompts: [春眠]}}]}\n"
    (inside / "config.yaml").write_text(config, encoding="utf-8")
    words = ["--config", "config.yaml", "--data.train_files", "text.txt", "--print_config"]
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, str(ROOT / "trainer.py"), *words], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "春眠" in done.stdout.decode("utf-8")


def _unsaid(path: Path) -> list[str]:
    """The calls of a module that leave a text's encoding to the system."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: word.value for word in node.keywords}
        mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "'r'"
        called = ast.unparse(node.func)
        opens = called == "open" and "b" not in mode
        texts = re.fullmatch(r"(?!files|durable|folder|run_folder|loggers).*\.(read|write)_text", called, re.DOTALL)
        decoded = "text" in keywords and called.startswith("subprocess.")
        if (opens or texts or decoded) and "encoding" not in keywords:
            found.append(f"{path.name} line {node.lineno}: {called}")
    return found


def test_every_text_is_opened_with_its_encoding(tmp_path: Path) -> None:
    for number, line in enumerate(('open("a")', 'p.write_text("a")', "subprocess.run([], text=True)")):
        path = tmp_path / f"{number}.py"
        path.write_text(line, encoding="utf-8")
        assert _unsaid(path), line
    modules = [*(ROOT / "src/gpt2kit").rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "data").glob("*.py")]
    modules += (ROOT / "scripts").glob("*.py")
    assert [call for path in modules for call in _unsaid(path)] == []
