"""Scripts load no more than they need. `make lint` checks the import rules in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SENTENCE, Run, run_python

SCRIPTS = ["train_tokenizer", "test", "cache", "generate", "export", "plot", "web_demo"]
HEAVY = ("torch", "transformers", "pytorch_lightning", "lightning_fabric")
_LOADED = """
import runpy, sys
names, sys.argv = sys.argv[1].split(","), sys.argv[2:]
sys.path.insert(0, "")
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
print("loaded:", [name for name in names if name in sys.modules], file=sys.stderr)
"""


def run_and_list_imports(names: tuple[str, ...], script: str, *arguments: object, folder: Path) -> str:
    """Run a script to its end; return the line that lists which of the packages it has loaded."""
    process = run_python(folder, "-c", _LOADED, ",".join(names), ROOT / f"{script}.py", *arguments)
    return process.stderr.splitlines()[-1]


@pytest.mark.parametrize("script", [*SCRIPTS, "trainer"])
def test_every_script_prints_its_help_in_any_folder_and_only_the_trainer_loads_torch(
    script: str, tmp_path: Path
) -> None:
    process = run_python(tmp_path, "-c", _LOADED, ",".join(HEAVY), ROOT / f"{script}.py", "--help")
    (loaded,) = process.stderr.splitlines()
    assert "usage:" in process.stdout and (loaded == "loaded: []" or script == "trainer")
    assert len((ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()) <= 25


@pytest.mark.parametrize(
    ("script", "arguments", "libraries"),
    [
        ("generate", ["--prompt", "the", "--max_new_tokens", "3"], ["torch"]),
        ("test", ["--max_tokens", "200", "--files", "text.txt"], ["torch", "transformers"]),
        ("export", ["--output_dir", "hf"], ["torch", "transformers"]),
    ],
)
def test_commands_import_no_more_than_they_need(
    script: str, arguments: list[str], libraries: list[str], run: Run, tmp_path: Path
) -> None:
    """None imports Lightning, and generate.py does not import transformers."""
    (tmp_path / "text.txt").write_text(SENTENCE.format(1) * 10)
    output = run_and_list_imports(HEAVY, script, "--ckpt_path", run.folder, *arguments, folder=tmp_path)
    assert output == f"loaded: {libraries}"


def test_the_demo_loads_models_without_lightning(run: Run, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from gpt2kit.serving.models import Service, find_models\n"
        "service = Service(find_models([sys.argv[2]]), 'auto')\n"
        "service.load().join()\nmodel = next(iter(service.models.values()))\n"
        "assert model.generator is not None, model.failure\n"
        "import gpt2kit.serving.app, gpt2kit.serving.page\n"
        "print([name for name in ('pytorch_lightning', 'lightning_fabric') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", program, str(ROOT / "src"), str(run.folder)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert process.returncode == 0 and process.stdout.splitlines()[-1] == "[]", process.stderr
