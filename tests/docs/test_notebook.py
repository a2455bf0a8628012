"""The notebook has no outputs, its links resolve, and its cells run, including `!` and `%` lines."""

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
from helpers import COMMANDS, ROOT

from gpt2kit.cli import parser, train

PATH = ROOT / "notebooks" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
Shell = Callable[[str], None]


def execute(source: str, names: dict[str, Any], shell: Shell, pip: Shell) -> None:
    """Run a cell as Jupyter does: `!` lines in a shell, `%pip` lines with pip, `{name}` in both by its value."""
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
            assert cell["outputs"] == [] and cell["execution_count"] is None, "strip the outputs before committing"
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}
    assert NOTEBOOK["metadata"]["language_info"] == {"name": "python"}, "a version depends on the machine"


def test_links_resolve() -> None:
    links = re.findall(r"\]\(([^)]+)\)", json.dumps(NOTEBOOK, ensure_ascii=False))
    assert links
    for link in links:
        assert (PATH.parent / link).is_file(), link


def test_setup_clones_and_installs_once(inside: Path) -> None:
    """The repository is a local folder here."""
    repository = inside / "source"
    repository.mkdir()
    (repository / "trainer.py").write_text("")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for args in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "a"]):
        subprocess.run(["git", *args], cwd=repository, check=True)
    setup = re.sub(r'repository = "[^"]*"', f"repository = {str(repository)!r}", CODE["setup"])
    pip_calls: list[str] = []
    execute(setup, {}, lambda line: subprocess.run(shlex.split(line), check=True) and None, pip_calls.append)
    assert Path.cwd() == inside / "gpt2kit" and Path("trainer.py").is_file()
    assert pip_calls == ['install --quiet ".[plots]"']
    execute(setup, {}, no_shell, no_shell)  # again in the clone
    Path("notebooks").mkdir()
    os.chdir("notebooks")
    execute(setup, {}, no_shell, no_shell)
    assert Path.cwd() == inside / "gpt2kit"


def test_cells_run_from_text_to_generation(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All cells in order, with two training steps on a few of the demo's files."""
    shutil.copytree(ROOT / "configs", inside / "configs")
    (inside / "data").mkdir()
    shutil.copy(ROOT / "data/demo.py", inside / "data")
    shutil.copy(ROOT / "trainer.py", inside)  # by which the setup knows the repository
    monkeypatch.setenv("MPLBACKEND", "module://of.the.notebook")  # Jupyter sets such a backend; scripts cannot use it
    outputs: list[str] = []

    def shell(line: str) -> None:
        python, script, *args = shlex.split(line)
        assert python == "python", line
        capsys.readouterr()
        if script == "trainer.py":
            train.main(args)
        elif script in COMMANDS and script != "plot.py":
            parser.run(COMMANDS[script], args)
        else:  # a process of its own, as in Jupyter, because the backend is read when matplotlib is imported
            path = Path(script) if Path(script).is_file() else ROOT / script
            process = subprocess.run([sys.executable, str(path), *args], capture_output=True, encoding="utf-8")
            assert process.returncode == 0, process.stderr
        outputs.append(capsys.readouterr().out)

    pictures: list[bytes] = []
    display = types.ModuleType("IPython.display")
    display.Image = lambda filename, width: Path(filename).read_bytes()  # type: ignore[attr-defined]
    display.display = pictures.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    names: dict[str, Any] = {}
    for cell, source in CODE.items():
        execute(re.sub(r"(?m)^steps = \d+$", "steps = 2", source), names, shell, no_shell)
        if cell == "text":
            for split, count in {"train": 20, "valid": 1, "test": 1}.items():
                for path in sorted((inside / "data/demo" / split).iterdir())[count:]:
                    path.unlink()
    assert names["steps"] == 2, "the notebook's number of steps was not found"
    assert [picture[:8] for picture in pictures] == [b"\x89PNG\r\n\x1a\n"]
    assert any("bits per byte" in text for text in outputs)
    assert outputs[-1].startswith("def ") and "import " in outputs[-1]
