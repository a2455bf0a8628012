from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gpt2kit.data import build
from gpt2kit.data.build import Corpus
from gpt2kit.data.store import TokenStore
from gpt2kit.text import reader
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer


@pytest.fixture(scope="session")
def trained(corpus: Path) -> Tokenizer:
    """The tokenizer of the tiny corpus."""
    return tokenizer.load(corpus / "tokenizer")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and pieces so small that a few lines of text make many shards."""
    monkeypatch.setattr(build, "BATCH", 40)
    monkeypatch.setattr(reader, "PIECE_LENGTH", 30)


@pytest.fixture
def two_files(tmp_path: Path) -> None:
    """`a.txt` and `b.txt` with 50 lines each."""
    for name in "ab":
        content = "".join(f"{name} line {number} 日本\n" for number in range(50))
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")


@pytest.fixture
def build_store(tmp_path: Path, trained: Tokenizer) -> Callable[..., TokenStore]:
    """Build the store of all .txt files of the test."""

    def build_store(cache: str = "cache", progress: build.Progress | None = None, **options: object) -> TokenStore:
        paths = sorted(tmp_path.glob("*.txt"))
        text = Corpus(paths, trained, **{"reader": Reader("line"), "shard_tokens": 60, **options})  # type: ignore[arg-type]
        return build.open_or_build(text, tmp_path / cache, progress or (lambda done, total: None))

    return build_store
