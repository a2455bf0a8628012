"""The notebook has no outputs, its links resolve, and its cells run, including `!` and `%` lines."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SENTENCE

from gpt2kit.__main__ import main

PATH = ROOT / "notebooks" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}
Shell = Callable[[str], None]
SMALL = [
    *("--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--data.block_size=16", "--data.batch_size=2"),
    *("--data.tokenizer.vocab_size=300", "--trainer.max_steps=2", "--trainer.accelerator=cpu"),
]


def execute(source: str, names: dict[str, Any], shell: Shell, pip: Shell) -> None:
    """Run a cell as Jupyter does: `!` lines in a shell, `%pip` lines with pip, `{name}` in both by its value."""
    names |= {"_shell": shell, "_pip": pip}
    lines = [
        re.sub(r"^(\s*)(!|%pip )(.*)$", lambda m: f"{m[1]}{'_shell' if m[2] == '!' else '_pip'}(f{m[3]!r})", line)
        for line in source.splitlines()
    ]
    exec(compile("\n".join(lines), str(PATH), "exec"), names)


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


def test_links_to_the_documentation_resolve() -> None:
    links = re.findall(r"/blob/main/([^)]+)\)", json.dumps(NOTEBOOK, ensure_ascii=False))
    assert links
    for link in links:
        assert (ROOT / link).is_file(), link


def test_cells_run_from_an_upload_to_a_picture(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All cells in order, with a text file and a zip archive, and two training steps."""
    outputs: dict[str, str] = {}
    installed: list[str] = []
    pictures: list[bytes] = []

    def upload() -> dict[str, bytes]:
        lines = [SENTENCE.format(n) for n in range(400)]
        Path("first.txt").write_text("".join(lines[:200]), encoding="utf-8")
        with zipfile.ZipFile("more.zip", "w") as archive:
            archive.writestr("second.txt", "".join(lines[200:]))
        return {name: Path(name).read_bytes() for name in ("first.txt", "more.zip")}

    def shell(line: str) -> None:
        command, verb, *args = shlex.split(line)
        assert command == "gpt2kit", line
        capsys.readouterr()
        main([verb, *args, *SMALL] if verb == "train" else [verb, *args])
        outputs[verb] = capsys.readouterr().out

    modules: dict[str, dict[str, Any]] = {
        "google.colab": {"files": types.SimpleNamespace(upload=upload)},
        "IPython": {"version_info": (9, 0)},  # matplotlib reads it
        "IPython.display": {"Image": lambda filename, width: Path(filename).read_bytes(), "display": pictures.append},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("MPLBACKEND", "module://of.the.notebook")  # Jupyter sets such a backend; commands cannot use it
    names: dict[str, Any] = {}
    for source in CODE.values():
        execute(source, names, shell, installed.append)
    assert len(installed) == 1 and "git+https://" in installed[0]
    assert sorted(path.name for path in Path("my_texts").iterdir()) == ["first.txt", "second.txt"]
    assert [picture[:8] for picture in pictures] == [b"\x89PNG\r\n\x1a\n"]
    assert "bits per byte" in outputs["test"] and outputs["generate"].count("The") >= 3
