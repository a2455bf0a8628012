"""The notebook has no outputs, and all of its cells run, including `!` and `%` lines."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

PATH = ROOT / "notebooks" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
Shell = Callable[[str], None]


def run_cell(source: str, names: dict[str, Any], shell: Shell, pip: Shell) -> None:
    """Run a cell as Jupyter does: `!` lines in a shell, `%pip` lines with pip, `{name}` replaced by its value."""
    names |= {"_shell": shell, "_pip": pip}
    lines = [
        re.sub(r"^(\s*)(!|%pip )(.*)$", lambda m: f"{m[1]}{'_shell' if m[2] == '!' else '_pip'}(f{m[3]!r})", line)
        for line in source.splitlines()
    ]
    exec(compile("\n".join(lines), str(PATH), "exec"), names)


def no_shell(line: str) -> None:
    raise AssertionError(f"unexpected command: {line}")


def test_notebook_has_no_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert not cell["metadata"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "remove the outputs before you commit"
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}
    assert NOTEBOOK["metadata"]["language_info"] == {"name": "python"}, "a version number would be that of one machine"


def test_links_resolve() -> None:
    links = re.findall(r"\]\(([^)]+)\)", json.dumps(NOTEBOOK, ensure_ascii=False))
    assert links
    for link in links:
        assert (PATH.parent / link).is_file(), link


def test_outside_a_clone_it_clones_and_installs(inside: Path) -> None:
    """Use a repository with one file. Check the clone, the working directory and the arguments of pip."""
    source = inside / "source"
    source.mkdir()
    (source / "trainer.py").write_text("")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "a"]):
        subprocess.run(["git", *words], cwd=source, check=True)
    setup = re.sub(r'repository = "[^"]*"', f"repository = {str(source)!r}", CODE["setup"])
    installed: list[str] = []
    run_cell(setup, {}, lambda line: subprocess.run(shlex.split(line), check=True) and None, installed.append)
    assert Path.cwd() == inside / "gpt2kit" and Path("trainer.py").is_file()
    assert installed == ['install --quiet ".[plots]"']
    os.chdir("..")
    os.chdir("gpt2kit")
    run_cell(setup, {}, no_shell, no_shell)  # in the clone, so nothing is cloned again
    Path("notebooks").mkdir()
    os.chdir("notebooks")
    run_cell(setup, {}, no_shell, no_shell)
    assert Path.cwd() == inside / "gpt2kit"


def test_all_cells_run(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all cells in order, in a copy of the repository, with two training steps on a few of the demo's files."""
    for name in ("src", "configs", "data/demo.py"):
        (shutil.copytree if (ROOT / name).is_dir() else copy)(ROOT / name, inside / name)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, inside)
    outputs: list[str] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://of.the.notebook")  # as Jupyter does; matplotlib refuses it elsewhere

    def shell(line: str) -> None:
        words = shlex.split(line)
        assert words[0] == "python", line
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)

    pictures: list[bytes] = []
    display = types.ModuleType("IPython.display")
    display.Image = lambda filename, width: Path(filename).read_bytes()  # type: ignore[attr-defined]
    display.display = pictures.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    names: dict[str, Any] = {}
    for cell, source in CODE.items():
        run_cell(re.sub(r"(?m)^steps = \d+$", "steps = 2", source), names, shell, no_shell)
        if cell == "text":
            for split, kept in {"train": 100, "valid": 2, "test": 2}.items():
                for path in sorted((inside / "data/demo" / split).iterdir())[kept:]:
                    path.unlink()
    assert names["steps"] == 2, "the notebook's number of steps was not found"
    assert [picture[:8] for picture in pictures] == [b"\x89PNG\r\n\x1a\n"]
    assert any("bits per byte" in text for text in outputs)
    assert outputs[-1].startswith("def ") and "import " in outputs[-1]


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
