"""The Python programs of the tutorials do what the text says."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from pathlib import Path

import pytest
from helpers import ROOT


def program(page: str) -> str:
    """Return the first block of Python of a tutorial."""
    text = (ROOT / "docs/tutorials" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[0]


def test_text_is_cut_into_twelve_files(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"Line {n}.\n" for n in range(100))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url: io.BytesIO(text.encode()))
    exec(program("novels.md"))
    files = sorted(Path("my_texts").iterdir())
    assert len(files) == 12 and "".join(file.read_text(encoding="utf-8") for file in files) == text


def test_raw_json_becomes_one_poem_per_line(inside: Path) -> None:
    poems = [{"title": "春", "paragraphs": ["春江，", "花月。"]}, {"title": "空", "paragraphs": []}]
    Path("raw").mkdir()
    Path("raw/poet.tang.0.json").write_text(json.dumps(poems), encoding="utf-8")
    exec(program("poems.md"))
    lines = Path("poems.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"title": "春", "text": "春江，\n花月。"}]
