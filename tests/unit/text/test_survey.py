from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2kit.errors import DataError
from gpt2kit.text.reader import Reader, Selection
from gpt2kit.text.sources import PathOrURL
from gpt2kit.text.survey import Survey, survey
from gpt2kit.tokenization.cache import load_or_train
from gpt2kit.tokenization.options import TokenizerSpec


class CountingReader(Reader):
    """Counts how often a file is read."""

    reads = 0

    def documents(self, path: PathOrURL) -> Iterator[str]:
        CountingReader.reads += 1
        return super().documents(path)


def test_a_text_is_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("春春\na\n\nlonger\n", encoding="utf-8")
    assert survey([path], Reader("line"), tmp_path / "cache") == Survey(documents=3, bytes=13, characters=9, longest=6)
    text = Survey(documents=1, bytes=17, characters=13, longest=13)
    before = CountingReader.reads
    assert survey([path], CountingReader(), tmp_path / "cache") == text
    assert survey([path.rename(tmp_path / "b.txt")], CountingReader(), tmp_path / "cache") == text
    assert CountingReader.reads == before + 1
    for saved in (tmp_path / "cache/surveys").glob("*.json"):
        saved.write_text("{", encoding="utf-8")
    assert survey([tmp_path / "b.txt"], CountingReader(), tmp_path / "cache") == text
    (tmp_path / "b.txt").write_text("changed")
    assert survey([tmp_path / "b.txt"], CountingReader(), tmp_path / "cache").bytes == 7


def test_a_text_of_many_pieces_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2kit.text.reader.PIECE_LENGTH", 100)
    path = tmp_path / "a.txt"
    path.write_text("line\n" * 999)
    assert survey([path, path], Reader(), tmp_path / "cache") == Survey(2, 2 * 4995, 2 * 4995, 4995)


def test_files_without_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"a\.txt: no text found"):
        survey([tmp_path / "a.txt"], Reader(), tmp_path / "cache")


class ChangingReader(Reader):
    """Reads a file that another program changes meanwhile."""

    def documents(self, path: PathOrURL) -> Iterator[str]:
        yield from super().documents(path)
        Path(path).write_text("other")


def test_nothing_is_cached_for_a_text_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path, cache_dir = tmp_path / "a.txt", tmp_path / "cache"
    for read in (survey, lambda *text: load_or_train(TokenizerSpec("char"), [Selection(*text[:2])], cache_dir)):
        path.write_text("text")
        with pytest.raises(DataError, match=r"a\.txt: changed while"):
            read([path], ChangingReader(), cache_dir)
    assert not [*cache_dir.glob("surveys/*.json"), *cache_dir.glob("tokenizers/*/tokenizer.json")]
