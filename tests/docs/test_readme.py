"""The README's tree, commands and options exist, and so do the commands of docs/serving.md."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import COMMANDS, ROOT, SENTENCE, Parsed, ParseOnly

from gpt2kit.cli import parser
from gpt2kit.cli.train_options import parse_early

README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS, SERVING_BLOCKS = (
    re.findall(r"^```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) for page in (README, SERVING)
)
COMMAND_LINES = [
    line.split("#")[0].strip()
    for block in BLOCKS + SERVING_BLOCKS
    for line in block.splitlines()
    if line.startswith("python ")
]


def tree() -> list[str]:
    """Return the paths in the README's tree; folders end in a slash."""
    paths, folder = [], ""
    for line in next(block for block in BLOCKS if "src/gpt2kit/" in block).splitlines():
        name = line.split()[0]
        folder = name if name.endswith("/") and not line.startswith(" ") else folder
        paths.append(folder + name if line.startswith(" ") else name)
    return paths


def test_tree_matches_the_repository() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert not missing, f"the README's tree names missing files: {missing}"
    present = {f"src/gpt2kit/{path.parent.name}/" for path in (ROOT / "src/gpt2kit").glob("*/__init__.py")}
    present |= {path.name for path in ROOT.glob("*.py")}
    present |= {f"configs/{path.name}/" for path in (ROOT / "configs").iterdir()}
    assert not present - set(tree()), f"missing in the README's tree: {sorted(present - set(tree()))}"


def test_readme_is_short() -> None:
    assert len(README.splitlines()) - len(tree()) < 175, "without the tree"


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, script, *words = shlex.split(line)
    if script in COMMANDS:
        assert parser.parse(COMMANDS[script], words)
    elif script == "trainer.py" and "--ckpt_path" in words:
        assert parse_early(words).ckpt_path
    elif script == "trainer.py":
        with pytest.raises(Parsed):
            ParseOnly([word for word in words if word != "--plan"])
    else:
        assert (ROOT / script).is_file()


def test_options_in_the_table_exist() -> None:
    for script, options in re.findall(r"^\| `(\w+\.py)` \|.*\| `(--.*)` \|$", README, re.MULTILINE):
        if script in COMMANDS:
            text = parser.parser_of(COMMANDS[script]).format_help()
        else:
            words = [sys.executable, script, "--help"]
            text = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for option in options.split():
            assert option.rstrip("*") in text or option == "--reader.document", f"{script} {option}"


def test_the_four_commands_run(tmp_path: Path) -> None:
    """Run the README's four commands for your own text in an empty folder."""
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    for split, numbers in {"train": range(700), "valid": range(700, 720), "test": range(720, 740)}.items():
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text("".join(SENTENCE.format(n) for n in numbers), encoding="utf-8")
    block = next(block for block in BLOCKS if "--files data/train" in block)
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 4
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outputs = []
    for line in lines:
        words = shlex.split(line.replace("--trainer.max_epochs 10", "--trainer.max_epochs 1"))[1:]
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "bits per byte" in outputs[2] and outputs[3].startswith("Once")


def test_every_page_is_linked() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} | {"notebooks/quickstart.ipynb"}
    assert not pages - set(re.findall(r"\]\(([^)]+)\)", README))
