"""Scripts that start quickly. What may import what is in pyproject.toml; `make lint` checks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "script", ["train_tokenizer", "trainer", "test", "cache", "generate", "export", "plot", "web_demo"]
)
def test_every_script_answers_help_from_any_folder(script: str, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "usage:" in told.stdout and not told.stderr
    assert len((ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()) <= 25


def test_training_a_tokenizer_needs_no_torch() -> None:
    words = "import sys; sys.argv = ['train_tokenizer.py', '--help']; import runpy"
    program = f"""{words}
try:
    runpy.run_path({str(ROOT / "train_tokenizer.py")!r}, run_name="__main__")
except SystemExit:
    pass
print("heavy:", sorted({{"torch", "transformers", "pytorch_lightning"}} & set(sys.modules)))"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.endswith("heavy: []\n")
