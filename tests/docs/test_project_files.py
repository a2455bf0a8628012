"""The project's address, versions, extras and make targets are the same in every file that names them."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from gpt2kit import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GITHUB = sorted((ROOT / ".github").rglob("*.yml"))
PATTERNS = ("*.md", "*.toml", "*.cff", "Dockerfile", "notebooks/*.ipynb", "docs/**/*.md", "docs/*.py", "src/**/*.*")
FILES = [
    *GITHUB,
    *(path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)) if path.is_file() and path.suffix != ".pyc"),
]


def read(name: str | Path) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_address_of_the_repository_is_that_of_the_project() -> None:
    address = PROJECT["urls"]["Repository"]
    assert address.startswith("https://github.com/")
    for path in FILES:
        for name in re.findall(r"github(?:\.com)?/([\w.-]+/gpt2kit)\b", read(path)):
            assert f"https://github.com/{name}" == address, path


def test_versions_agree() -> None:
    assert yaml.safe_load(read("CITATION.cff"))["version"] == __version__
    assert re.search(r"^## (.*)$", read("CHANGELOG.md"), re.MULTILINE)[1] == __version__  # type: ignore[index]
    torch = re.search(r"^torch==\S+$", read("requirements.txt"), re.MULTILINE)
    assert torch and torch[0] in read("Dockerfile")


def test_extras_and_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    for path in [*GITHUB, ROOT / "Dockerfile", ROOT / "notebooks/quickstart.ipynb", ROOT / "docs/index.md"]:
        for extras in re.findall(r"(?:gpt2kit|\.|/src)\[([\w,]+)\]", read(path)):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), path
    for path in [*GITHUB, ROOT / "CONTRIBUTING.md"]:
        for command in re.findall(r"^(?: {4}| *- run: )make ([a-z_ ]+)", read(path), re.MULTILINE):
            assert set(command.split()) <= targets, path


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.name)
def test_github_files_are_valid_yaml(path: Path) -> None:
    """CI checks them against GitHub's schemas, which need a network."""
    content = yaml.safe_load(read(path))
    assert content["name"] and ("jobs" in content or "body" in content)
    assert json.dumps(content.get("permissions", {"contents": "read"})) == '{"contents": "read"}'
