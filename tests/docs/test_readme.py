"""README.md matches the code: its commands parse and run, its packages exist, its lists of files are those that run."""

from __future__ import annotations

import gc
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import pytorch_lightning as pl
from helpers import COMMANDS, ROOT, SENTENCE, Parsed, ParseOnly, Run

from gpt2kit.cli import generate, parser
from gpt2kit.cli.train_options import parse_early
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.training.module import GPT2Module

SOURCE = ROOT / "src" / "gpt2kit"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS, SERVING_BLOCKS = (
    re.findall(r"^```\w*\n(.*?)^```$", page.replace("\\\n", " "), re.DOTALL | re.MULTILINE)
    for page in (README, SERVING)
)
COMMAND_LINES = [
    line.split("#")[0].strip()
    for block in BLOCKS + SERVING_BLOCKS
    for line in block.splitlines()
    if re.match(r"python \S+\.py", line)
]


def test_every_package_and_script_has_a_row() -> None:
    rows = set(re.findall(r"^\| `([\w.]+/?)` \|", README, re.MULTILINE))
    packages = {f"{path.parent.name}/" for path in SOURCE.glob("*/__init__.py")}
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert rows == packages | scripts


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, script, *args = shlex.split(line)
    if script in COMMANDS:
        assert parser.parse(COMMANDS[script], args)
    elif script == "trainer.py" and "--ckpt_path" in args:
        assert parse_early(args).ckpt_path
    elif script == "trainer.py" and "--model.init_from" not in args:  # the weights would be downloaded
        with pytest.raises(Parsed):
            ParseOnly(args)
    else:
        assert (ROOT / script).is_file()


def test_quick_start_runs_in_a_fresh_folder(tmp_path: Path) -> None:
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    for split, numbers in {"train": range(700), "valid": range(700, 720), "test": range(720, 740)}.items():
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text("".join(SENTENCE.format(n) for n in numbers), encoding="utf-8")
    block = next(block for block in BLOCKS if "--data configs/data/own.yaml" in block)
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 3
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outputs = []
    for line in lines:
        args = shlex.split(line.replace("--trainer.max_epochs 10", "--trainer.max_epochs 1"))[1:]
        done = subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "bits per byte" in outputs[1] and outputs[2].startswith("Once")


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
        data = TextDataModule(str(corpus / "train.txt"), tokenizer=str(corpus / "tokenizer"), cache_dir=str(tmp_path))
        data.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        data.prepare_data()
        data.setup("fit")
        model = GPT2Module(n_layer=1, n_head=1, n_embd=8, vocab_size=data.vocab_size, n_positions=data.block_size)
        model.model.nll(next(iter(data.train_dataloader())))

    assert_listed("From text to loss", files_that_run(text_to_loss))


def test_files_from_checkpoint_to_text(run: Run) -> None:
    def checkpoint_to_text() -> None:
        parser.run(generate.generate, [f"--ckpt_path={run.folder}", "--prompt=the", "--max_new_tokens=4"])

    assert_listed("From checkpoint to text", files_that_run(checkpoint_to_text))
