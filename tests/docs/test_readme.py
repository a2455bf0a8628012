"""README.md matches the code: its commands parse and run, its packages exist, its lists of files are those that run."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import pytorch_lightning as pl
from helpers import ROOT, SENTENCE, Outcome, Run

from gpt2kit.__main__ import COMMANDS, main
from gpt2kit.cli import generate
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.generation.options import GenerationOptions
from gpt2kit.training.module import GPT2Module

SOURCE = ROOT / "src" / "gpt2kit"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README.replace("\\\n", " "), re.DOTALL | re.MULTILINE)
# Commands in blocks, and those between backquotes in the text.
COMMAND_LINES = [
    line
    for line in (
        "\n".join(block for _, block in BLOCKS) + "\n".join(re.findall(r"`(gpt2kit [^`]*)`", README))
    ).splitlines()
    if line.startswith("gpt2kit ")
]
# What makes a model and its training as small as a test needs. Later options win.
SMALL = "--model.n_layer 1 --model.n_head 1 --model.n_embd 16 --data.block_size 32 --data.batch_size 4"
STEPS = "--trainer.max_steps 3 --trainer.accelerator cpu --model.optimizer.lr 0.001"


def test_every_package_and_command_has_a_row() -> None:
    rows = set(re.findall(r"^\| `([\w.]+/?)` \|", README, re.MULTILINE))
    packages = {f"{path.parent.name}/" for path in SOURCE.glob("*/__init__.py")}
    assert rows == packages | set(COMMANDS)
    assert {path.name for path in ROOT.glob("*.py")} <= set(re.findall(r"`(\w+\.py)`", README))


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with text, after a run on other text: a miniature of `make demo`."""
    folder = tmp_path_factory.mktemp("readme")
    for name, count in {"demo_texts": 4, "my_texts": 12}.items():
        (folder / name).mkdir()
        for number in range(count):
            text = "".join(SENTENCE.format(100 * number + n) for n in range(100))
            (folder / name / f"{number}.txt").write_text(f"{name}\n{text}", encoding="utf-8")
    with contextlib.chdir(folder):
        main(shlex.split(f"train demo_texts {SMALL} {STEPS}"))
    return folder


def shortened(line: str) -> str:
    """Return a command of README with options that end it within seconds."""
    if not line.startswith("gpt2kit train") or "--print_config" in line:
        return line
    line = line.replace("hf://openai-community/gpt2", "version_0")
    is_sized = "--ckpt_path" in line or "--model.init_from" in line  # by the run, or by the weights
    return f"{line} {STEPS} {'--data.block_size 32 --data.batch_size 4' if is_sized else SMALL}"


def test_every_command_runs_in_one_folder(
    folder: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, since each new one spends seconds on imports. The demo, in the next test, has a process."""
    monkeypatch.chdir(folder)
    outputs: list[Outcome] = []
    for line in COMMAND_LINES:
        if line.startswith("gpt2kit demo"):  # serves until it is stopped
            continue
        monkeypatch.setattr(sys, "stdin", io.StringIO("Once\n"))
        command, _, file = shortened(line).partition(" > ")
        _, *arguments = shlex.split(command)
        outputs.append(call(main, *arguments))
        code, out, err = outputs[-1]
        assert code == 0, f"{line}\n{err}"
        if file:
            Path(file).write_text(out, encoding="utf-8")
    (_, _, train_log), (_, test_output, _), (_, text, _), *_ = outputs
    assert "lightning_logs/version_1" in train_log, "a run of its own, and not that of the demo"
    assert "bits per byte" in test_output and text.startswith("Once")
    assert (folder / "report.html").is_file() and (folder / "config.yaml").is_file()


def test_the_demo_starts(folder: Path) -> None:
    line = next(line for line in COMMAND_LINES if line.startswith("gpt2kit demo"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    args = [sys.executable, "-m", *shlex.split(line), "--port", str(port)]
    with subprocess.Popen(args, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any(f":{port}" in line for line in lines)
        process.terminate()


def test_python_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    block = next(block for language, block in BLOCKS if language == "python")
    names: dict[str, Any] = {}
    exec(block.replace('max_time="20m"', "max_steps=2, n_layer=1, n_head=1, n_embd=16, accelerator='cpu'"), names)
    assert names["model"].generate("Once", max_new_tokens=3).startswith("Once")


def test_documentation_and_notebook_are_linked() -> None:
    pages = {"docs/index.md", "docs/troubleshooting.md", "notebooks/quickstart.ipynb"}  # index.md links all others
    assert pages <= set(re.findall(r"\]\(([^)]+)\)", README))


def files_that_run(action: Callable[[], object]) -> set[str]:
    """Return the modules of gpt2kit's packages whose functions an action calls."""
    files = set()

    def record(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and path.is_relative_to(SOURCE):
            files.add(path.relative_to(SOURCE).as_posix())

    gc.collect()  # or generators of earlier tests are closed while this one records
    threading.setprofile(record)
    sys.setprofile(record)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return {name for name in files if "/" in name}  # without errors.py, files.py and other small tools


def assert_listed(heading: str, files: set[str]) -> None:
    match = re.search(rf"\*\*{heading}\*\* \((\d+) files, about ([\d,]+) lines\): (.*?)\n\n", README, re.DOTALL)
    assert match, f"{heading}: {sorted(files)}"
    lines = sum(len((SOURCE / name).read_text().splitlines()) for name in files)
    assert set(re.findall(r"`([\w/]+\.py)`", match[3])) == files
    assert int(match[1]) == len(files)
    assert abs(int(match[2].replace(",", "")) - lines) < 0.05 * lines, f"now {lines} lines"


def test_files_from_text_to_loss(corpus: Path, tmp_path: Path) -> None:
    def text_to_loss() -> None:
        files = str(corpus / "train.txt"), str(corpus / "valid.txt")
        data = TextDataModule(*files, tokenizer=str(corpus / "tokenizer"), cache_dir=str(tmp_path))
        data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        data.prepare_data()
        data.setup("fit")
        model = GPT2Module(n_layer=1, n_head=1, n_embd=8, vocab_size=data.vocab_size, n_positions=data.block_size)
        model.model.nll(next(iter(data.train_dataloader())))

    assert_listed("From text to loss", files_that_run(text_to_loss))


def test_files_from_checkpoint_to_text(run: Run) -> None:
    def checkpoint_to_text() -> None:
        generate.generate(str(run.folder), prompt=["the"], options=GenerationOptions(max_new_tokens=4))

    assert_listed("From checkpoint to text", files_that_run(checkpoint_to_text))
