"""Scripts load no more than they need. `make lint` checks the import rules in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SENTENCE, Run, run_scripts

SCRIPTS = ["train_tokenizer", "test", "cache", "generate", "export", "plot", "web_demo"]
HEAVY = ("torch", "transformers", "pytorch_lightning", "lightning_fabric")


def loaded(modules: list[str]) -> list[str]:
    return [name for name in HEAVY if name in modules]


@pytest.mark.parametrize("script", [*SCRIPTS, "trainer"])
def test_every_script_prints_its_help_in_any_folder_and_only_the_trainer_loads_torch(
    script: str, tmp_path: Path
) -> None:
    [finished] = run_scripts(tmp_path, [f"{script}.py", "--help"])
    assert finished.code == 0 and not finished.err, finished
    assert "usage:" in finished.out and (not loaded(finished.modules) or script == "trainer")
    assert len((ROOT / f"{script}.py").read_text(encoding="utf-8").splitlines()) <= 25


def test_commands_import_no_more_than_they_need(run: Run, tmp_path: Path) -> None:
    """None imports Lightning, and generate.py does not import transformers."""
    (tmp_path / "text.txt").write_text(SENTENCE.format(1) * 10)
    finished = run_scripts(
        tmp_path,
        ["generate.py", str(run.folder), "--prompt", "the", "--max_new_tokens", "3"],
        ["test.py", str(run.folder), "--max_tokens", "200", "--files", "text.txt"],
        ["export.py", str(run.folder), "--output_dir", "hf"],
    )
    assert [each.code for each in finished] == [0, 0, 0], finished
    assert [loaded(each.modules) for each in finished] == [["torch"], *[["torch", "transformers"]] * 2]


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
