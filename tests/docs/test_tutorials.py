"""The Python programs of the tutorials do what the text says."""

from __future__ import annotations

import io
import json
import re
import urllib.request
from pathlib import Path

import pytest
from helpers import ROOT

from gpt2kit.text.reader import Reader


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


def test_raw_json_is_read_as_it_is(inside: Path) -> None:
    poems = [{"title": "春", "paragraphs": ["春江，", "花月。"]}, {"title": "空", "paragraphs": []}]
    Path("poet.tang.0.json").write_text(json.dumps(poems), encoding="utf-8")
    page = (ROOT / "docs/tutorials/poems.md").read_text(encoding="utf-8")
    (template,) = re.findall(r'--data\.reader\.template "(.+?)"', page)
    assert list(Reader(template=template).read([Path("poet.tang.0.json")])) == ["春江，\n花月。"]
