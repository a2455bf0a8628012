"""Scripts load no more than they need. `make lint` checks the import rules in pyproject.toml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SENTENCE, Run, run_python

SCRIPTS = ["train_tokenizer", "test", "cache", "generate", "export", "plot", "web_demo"]
HEAVY = ("torch", "transformers", "pytorch_lightning", "lightning_fabric")
_LOADED = """
import json, runpy, sys
names, *commands = map(json.loads, sys.argv[1:])
sys.path.insert(0, "")
for sys.argv in commands:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, stop.code
    print("loaded:", [name for name in names if name in sys.modules], file=sys.stderr)
"""


def run_and_list_imports(folder: Path, *commands: list[str]) -> tuple[str, list[str]]:
    """Run scripts one after another in a new process; return the output, and which packages are loaded after each."""
    own = [[str(ROOT / f"{script}.py"), *arguments] for script, *arguments in commands]
    process = run_python(folder, "-c", _LOADED, *map(json.dumps, [HEAVY, *own]))
    return process.stdout, [line for line in process.stderr.splitlines() if line.startswith("loaded: ")]


@pytest.mark.parametrize("script", [*SCRIPTS, "trainer"])
def test_every_script_prints_its_help_in_any_folder_and_only_the_trainer_loads_torch(
    script: str, tmp_path: Path
) -> None:
    out, (loaded,) = run_and_list_imports(tmp_path, [script, "--help"])
    assert "usage:" in out and (loaded == "loaded: []" or script == "trainer")
    assert len((ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()) <= 25


def test_commands_import_no_more_than_they_need(run: Run, tmp_path: Path) -> None:
    """None imports Lightning, and generate.py does not import transformers."""
    (tmp_path / "text.txt").write_text(SENTENCE.format(1) * 10)
    _, loaded = run_and_list_imports(
        tmp_path,
        ["generate", str(run.folder), "--prompt", "the", "--max_new_tokens", "3"],
        ["test", str(run.folder), "--max_tokens", "200", "--files", "text.txt"],
        ["export", str(run.folder), "--output_dir", "hf"],
    )
    assert loaded == ["loaded: ['torch']", *["loaded: ['torch', 'transformers']"] * 2]


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
