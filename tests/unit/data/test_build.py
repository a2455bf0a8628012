"""A store is built once for a text, continued after an interruption, and repaired when it is damaged."""

from __future__ import annotations

import errno
import gzip
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import ODD_TEXTS, SAMPLE_TEXTS, TOKENIZER_KINDS, Outcome, train_each_kind
from tokenizers import Tokenizer

from gpt2kit.data import build
from gpt2kit.data.build import Corpus, encode_batches
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import UnfinishedPiece
from gpt2kit.tokenization import tokenizer, trainers
from gpt2kit.tokenization.options import TokenizerSpec

BuildStore = Callable[..., TokenStore]
UINT16 = np.dtype("<u2")


def content(tokens: TokenStore) -> dict[str, bytes]:
    """Return the shards and their .doc files."""
    return {path.name: path.read_bytes() for path in tokens.folder.glob("0*")}


def mark_as_old(folder: Path) -> None:
    """Set the time of each shard, so that `rewritten` recognizes new ones."""
    for path in folder.glob("0*"):
        os.utime(path, (1e9, 1e9))


def rewritten(folder: Path) -> list[str]:
    """Return the shards that were written after `mark_as_old`."""
    return sorted(path.name for path in folder.glob("0*.bin") if path.stat().st_mtime != 1e9)


def test_text_tokenizer_and_reader_decide_the_store(tmp_path: Path, two_files: None, build_store: BuildStore) -> None:
    tokens = build_store()
    assert build_store().folder == tokens.folder
    by_file = build_store(reader=Reader("file"))
    assert by_file.folder != tokens.folder and by_file.documents == 2
    other = trainers.train_char(["line"], TokenizerSpec())
    text = Corpus(sorted(tmp_path.glob("*.txt")), other, Reader("line"), shard_tokens=60)
    assert text.key(text.digests(tmp_path / "cache")) != tokens.folder.name
    lines = (tmp_path / "a.txt").read_text(encoding="utf-8")
    (tmp_path / "a.txt").write_text(lines.replace("line 7", "line 8"), encoding="utf-8")  # the same size
    changed = build_store()
    assert changed.folder != tokens.folder and changed.fingerprint != tokens.fingerprint


def test_the_format_is_part_of_the_key(tmp_path: Path, trained: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text('{"text": "one"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    paths = [tmp_path / "a.txt", tmp_path / "a.jsonl"]
    stores = [build.open_or_build(Corpus([path], trained, Reader("line")), tmp_path / "c") for path in paths]
    assert [tokens.bytes for tokens in stores] == [15, 3]


def test_an_interrupted_build_continues_and_ends_the_same(
    two_files: None, small_batches: None, build_store: BuildStore
) -> None:
    uninterrupted = build_store("uninterrupted")
    folder = uninterrupted.folder.parent.parent / "interrupted" / uninterrupted.folder.name
    interruptions = 0
    while not (folder / "index.json").is_file():
        finished = {path.name for path in folder.glob("0*.bin")}
        mark_as_old(folder)
        batches = itertools.count(1)

        def interrupt(done: int, total: int, batches: Iterator[int] = batches) -> None:
            if next(batches) == 6:
                raise KeyboardInterrupt

        try:
            build_store("interrupted", interrupt)
        except KeyboardInterrupt:
            interruptions += 1
            with open(folder / "journal.jsonl", "a") as journal:
                journal.write('{"name": "0000')  # an incomplete line
        assert not finished & {*rewritten(folder)}, "finished shards are not written again"
    assert interruptions > 2
    continued = TokenStore(folder)
    assert continued.index == uninterrupted.index and content(continued) == content(uninterrupted)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip_a_bit(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:9] + bytes([raw[9] ^ 1]) + raw[10:])


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def lengthen(path: Path) -> None:
    os.truncate(path, 60 << 30)  # a file with a hole, whose checksum would take a minute


DAMAGE = {"shortened": shorten, "one bit": flip_a_bit, "missing": Path.unlink, "pipe": make_pipe, "huge": lengthen}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", ["000002.bin", "000001.doc", "index.json"])
def test_a_damaged_shard_alone_is_rebuilt(
    name: str,
    damage: Callable[[Path], None],
    two_files: None,
    small_batches: None,
    build_store: BuildStore,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = build_store()
    before = content(tokens)
    damage(tokens.folder / name)
    mark_as_old(tokens.folder)
    again = build_store()
    assert content(again) == before and again.index == tokens.index
    assert rewritten(again.folder) == ([f"{name[:6]}.bin"] if name != "index.json" else [])
    has_index = not (name == "index.json" and damage is Path.unlink)
    assert ("it is rebuilt from the text" in capsys.readouterr().err) == has_index


def test_a_damaged_cache_of_hashes_is_ignored(tmp_path: Path, two_files: None, build_store: BuildStore) -> None:
    tokens = build_store()
    for path in (tokens.folder / "verified.json", tmp_path / "cache/digests.json"):
        for noise in ("[]", '{"x": 3}', "nothing"):
            path.write_text(noise)
            assert build_store().folder == tokens.folder
        make_pipe(path)
        assert build_store().folder == tokens.folder


@pytest.mark.parametrize("change", [{"pieces": 1}, {"documents": 1}, {"pieces": "x"}, {"bytes": -1}])
def test_a_journal_that_does_not_match_the_text_makes_no_store(
    change: dict[str, object], two_files: None, small_batches: None, build_store: BuildStore
) -> None:
    tokens = build_store()
    (tokens.folder / "index.json").unlink()
    journal = tokens.folder / "journal.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    records[2] |= {name: records[2][name] + 1 if value == 1 else value for name, value in change.items()}
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    if 1 in change.values():  # a valid record of another text
        with pytest.raises(DataError, match="does not match the text"):
            build_store()
    assert build_store().index == tokens.index


def test_a_shard_that_cannot_be_reproduced_is_reported_and_the_next_build_starts_anew(
    two_files: None, small_batches: None, build_store: BuildStore
) -> None:
    tokens = build_store()
    (tokens.folder / "index.json").unlink()
    journal = tokens.folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace(tokens.shards[2].sha256, "0" * 64))
    with pytest.raises(DataError, match="does not match the text and was reset"):
        build_store()
    assert build_store().index == tokens.index


def test_a_store_of_an_old_format_is_rebuilt(
    tmp_path: Path,
    two_files: None,
    build_store: BuildStore,
    trained: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = build_store()
    with monkeypatch.context() as patch:
        patch.setattr(build, "FORMAT", 3)
        corpus = Corpus(sorted(tmp_path.glob("*.txt")), trained, Reader("line"), shard_tokens=60)
        key = corpus.key(corpus.digests(tmp_path / "cache"))
    assert key != tokens.folder.name
    # Nothing of an old store is used, even if it is in the folder of the new format.
    before = content(tokens)
    old = {"name": "000000.bin", "tokens": 9, "pieces": 2, "documents": 2, "bytes": 9, "characters": 9}
    old |= {"open_tokens": 0, "sha256": "0", "documents_sha256": "0"}
    (tokens.folder / "journal.jsonl").write_text(json.dumps(old) + "\n")
    index = {"format": 3, "dtype": "<u2", "eos_id": 0, "append_eos": True, "tokenizer": "", "sources": ["a.txt"]}
    (tokens.folder / "index.json").write_text(json.dumps({**index, "notes": [], "shards": [old]}))
    again = build_store()
    assert "not a valid index (another format); it is rebuilt from the text" in capsys.readouterr().err
    assert content(again) == before and again.index == tokens.index


def test_a_full_disk_is_reported_in_one_line_and_the_build_continues_later(
    tmp_path: Path,
    two_files: None,
    small_batches: None,
    build_store: BuildStore,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., Outcome],
) -> None:
    expected = build_store()
    syncs = itertools.count()

    def fill_up(descriptor: int) -> None:
        if next(syncs) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "other"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        code, _, err = call(lambda _: build_store("other"))
    assert code == 5 and len(err.splitlines()) == 1 and "no space left" in err
    folder = tmp_path / "other" / expected.folder.name
    assert not list(folder.glob(".*")) and not (folder / "index.json").exists()
    assert (folder / "journal.jsonl").read_text()
    assert build_store("other").index == expected.index


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_text_that_changes_while_it_is_read_makes_no_store(
    change: str, tmp_path: Path, two_files: None, build_store: BuildStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = Reader.documents

    def change_after_reading(self: Reader, path: Path) -> Iterator[str]:
        yield from documents(self, path)
        if path.name == "b.txt":
            path.write_text("other") if change == "edited" else path.unlink()

    monkeypatch.setattr(Reader, "documents", change_after_reading)
    with pytest.raises(DataError, match=r"b\.txt: (changed while|not found)"):
        build_store()
    assert not list(tmp_path.rglob("index.json"))


def test_a_text_that_changes_while_another_process_builds_it_makes_no_store(
    tmp_path: Path, two_files: None, build_store: BuildStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_while_waiting(folder: Path, remedy: str = "") -> None:
        if remedy:  # the second look, when the other process has released the lock
            (tmp_path / "b.txt").write_text("other")

    monkeypatch.setattr(build, "_open", change_while_waiting)
    with pytest.raises(DataError, match=r"b\.txt: changed while"):
        build_store()
    assert not list(tmp_path.rglob("index.json"))


def test_an_error_in_the_text_leaves_no_folder(tmp_path: Path, build_store: BuildStore) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(DataError, match="line 2"):
        build_store()
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(DataError, match="no text"):
        build_store()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_text_that_is_not_unicode_is_reported_with_its_piece(tmp_path: Path, build_store: BuildStore) -> None:
    class Broken(Reader):
        def documents(self, path: object) -> Iterator[str]:
            yield from ("valid", "half \ud83d")

    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"piece 1 of the text: surrogates not allowed \('\\ud83d'\)\. Fix the reader"):
        build_store(reader=Broken())


@pytest.mark.parametrize("document", ["line", "file"])
def test_each_source_has_its_pieces_documents_and_tokens(
    document: str, tmp_path: Path, trained: Tokenizer, small_batches: None, build_store: BuildStore
) -> None:
    contents = ["", "one fox\ntwo\n", "\n" * 3, "the quick brown fox " * 20, "last"]
    for number, text in enumerate(contents):
        (tmp_path / f"{number}.txt").write_text(text)
    reader = Reader(document)
    tokens = build_store(reader=reader, shard_tokens=30)
    assert len(tokens.shards) > 3
    sources = tokens.index.sources
    assert sum(source.pieces for source in sources) == sum(shard.pieces for shard in tokens.shards)
    assert sum(source.documents for source in sources) == tokens.documents
    assert 1 + sum(source.tokens for source in sources) == tokens.tokens
    start = 1
    for number, source in enumerate(sources):
        assert source.name == str(tmp_path / f"{number}.txt")
        pieces = list(reader.read([tmp_path / f"{number}.txt"]))
        assert source.pieces == len(pieces)
        assert source.documents == sum(not isinstance(piece, UnfinishedPiece) for piece in pieces)
        own = tokens[start : start + source.tokens]
        expected = [token for piece in pieces for token in trained.encode(piece).ids]
        assert own[own != tokens.index.eos_id].tolist() == expected
        start += source.tokens
    (tokens.folder / "index.json").unlink()
    (tokens.folder / "000002.bin").unlink()
    again = build_store(reader=reader, shard_tokens=30)
    assert again.index == tokens.index, "the counts do not depend on what had to be encoded"


def test_files_that_are_not_reached_count_nothing(two_files: None, build_store: BuildStore) -> None:
    sources = build_store(reader=Reader("line", max_documents=2)).index.sources
    assert [(source.pieces, source.documents) for source in sources] == [(2, 2), (0, 0)]


def test_progress_counts_the_bytes_of_files_as_stored(tmp_path: Path, trained: Tokenizer) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"the quick brown fox\n" * 1000))
    calls: list[tuple[int, int]] = []
    corpus = Corpus([path], trained, Reader("line"))
    build.open_or_build(corpus, tmp_path / "c", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (path.stat().st_size, path.stat().st_size)


def test_notes_of_the_reader_are_kept_in_the_store(tmp_path: Path, build_store: BuildStore) -> None:
    (tmp_path / "a.txt").write_text("a long line\nx\n")
    for _ in range(2):
        assert build_store(reader=Reader("line", min_chars=3)).notes[0].startswith("1 documents left out")


BATCHES = [
    SAMPLE_TEXTS,
    ODD_TEXTS,
    [],
    [UnfinishedPiece("a piece"), " of a document"],
    *([text] for text in ODD_TEXTS),
    [text * 60 for text in SAMPLE_TEXTS],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of every kind."""
    folder = tmp_path_factory.mktemp("kinds")
    train_each_kind(folder)
    return folder


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_batches_are_encoded_as_single_texts(kind: str, folder: Path) -> None:
    loaded = tokenizer.load(folder / kind)
    for (texts, ids), batch in zip(encode_batches(BATCHES, loaded, UINT16), BATCHES, strict=True):
        assert texts is batch and all(array.dtype == UINT16 for array in ids)
        assert [array.tolist() for array in ids] == [
            loaded.encode(text, add_special_tokens=False).ids for text in batch
        ]
    assert not list(encode_batches([], loaded, UINT16))


def test_at_most_a_few_batches_are_read_ahead(trained: Tokenizer) -> None:
    read = 0

    def batches() -> Iterator[list[str]]:
        nonlocal read
        for _ in range(60):
            read += 1
            yield SAMPLE_TEXTS

    for done, _ in enumerate(encode_batches(batches(), trained, UINT16), 1):
        assert read <= done + build.AHEAD
    assert read == done == 60


@pytest.mark.parametrize("how", ["close", "interrupt", "reader", "ids"])
def test_an_early_end_leaves_no_thread(how: str, trained: Tokenizer) -> None:
    def batches() -> Iterator[list[str]]:
        for number in range(1000):
            if how == "reader" and number == 10:
                raise DataError("bad line")
            yield SAMPLE_TEXTS

    encoded = encode_batches(batches(), trained, np.dtype("u1") if how == "ids" else UINT16)
    if how == "ids":
        with pytest.raises((OverflowError, DeprecationWarning)):  # ids above 255; the latter is that of older numpy
            list(encoded)
    else:
        next(encoded)
    if how == "close":
        encoded.close()  # type: ignore[attr-defined]
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            encoded.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    elif how == "reader":
        with pytest.raises(DataError, match="bad line"):
            list(encoded)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoding")]
