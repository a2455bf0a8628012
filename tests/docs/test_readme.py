"""The README says what is there: its tree, its commands, its options; and the commands of docs/serving.md."""

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
    """The paths of the README's tree, folders ending in a slash."""
    found, folder = [], ""
    for line in next(block for block in BLOCKS if "src/gpt2kit/" in block).splitlines():
        name = line.split()[0]
        folder = name if name.endswith("/") and not line.startswith(" ") else folder
        found.append(folder + name if line.startswith(" ") else name)
    return found


def test_the_tree_is_the_tree() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert not missing, f"the README's tree names what is not there: {missing}"
    present = {f"src/gpt2kit/{path.parent.name}/" for path in (ROOT / "src/gpt2kit").glob("*/__init__.py")}
    present |= {path.name for path in ROOT.glob("*.py")}
    present |= {f"configs/{path.name}/" for path in (ROOT / "configs").iterdir()}
    assert not present - set(tree()), f"the README's tree lacks {sorted(present - set(tree()))}; give each a phrase"


def test_it_is_short() -> None:
    assert len(README.splitlines()) - len(tree()) < 175, "the tree aside"


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_its_commands_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_options_in_its_table_exist() -> None:
    for script, options in re.findall(r"^\| `(\w+\.py)` \|.*\| `(--.*)` \|$", README, re.MULTILINE):
        if script in COMMANDS:
            told = parser.parser_of(COMMANDS[script]).format_help()
        else:
            words = [sys.executable, script, "--help"]
            told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for option in options.split():
            assert option.rstrip("*") in told or option == "--reader.document", f"{script} {option}"


def test_your_own_text_in_four_commands(tmp_path: Path) -> None:
    """The README's four commands, as they stand, in a folder of their own."""
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
    told = []
    for line in lines:
        words = shlex.split(line.replace("--trainer.max_epochs 10", "--trainer.max_epochs 1"))[1:]
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert "bits per byte" in told[2] and told[3].startswith("Once")


def test_every_page_is_linked() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} | {"notebooks/quickstart.ipynb"}
    assert not pages - set(re.findall(r"\]\(([^)]+)\)", README))
