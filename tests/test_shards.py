from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, train_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpt2kit.data import build as shards
from gpt2kit.data import store as store_module
from gpt2kit.data.build import Corpus
from gpt2kit.data.store import Damaged, TokenStore
from gpt2kit.errors import DataError
from gpt2kit.text import reader as text
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer


@pytest.fixture
def trained(corpus: Path) -> Tokenizer:
    return tokenizer.load(corpus / "tokenizer")


def build(folder: Path, trained: Tokenizer, reader: Reader | None = None, shard_tokens: int = 1 << 20) -> TokenStore:
    paths = sorted(folder.glob("*.txt"))
    corpus = Corpus(paths, trained, reader or Reader(), shard_tokens=shard_tokens)
    return shards.open_or_build(corpus, folder / "cache")


def write(folder: Path, lines: int = 50) -> None:
    for name in "ab":
        (folder / f"{name}.txt").write_text("".join(f"{name} line {n} 日本\n" for n in range(lines)), encoding="utf-8")


def test_a_store_is_its_documents_each_ended_and_the_first_begun(tmp_path: Path, trained: Tokenizer) -> None:
    write(tmp_path, 3)
    store = build(tmp_path, trained)
    eos = tokenizer.eos_id(trained)
    lines = [f"{name} line {n} 日本" for name in "ab" for n in range(3)]
    expected = [eos]
    for line in lines:
        expected += [*trained.encode(line).ids, eos]
    assert store[0 : len(store)].tolist() == expected
    assert (store.documents, store.characters) == (6, sum(map(len, lines)))
    assert store.bytes == sum(len(line.encode()) for line in lines)
    assert store.dtype == np.uint16


def test_any_span_reads_across_file_borders(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    whole = build(tmp_path, trained)
    monkeypatch.setattr(shards, "BATCH", 40)
    parts = build(tmp_path, trained, shard_tokens=60)
    assert len(parts.shards) > 5
    tokens = whole[0 : len(whole)]
    assert len(parts) == len(whole)
    for start in range(0, len(whole), 17):
        for length in (0, 1, 59, 200):
            assert np.array_equal(parts[start : start + length], tokens[start : start + length])


def test_a_long_document_in_pieces_is_one_document(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("word " * 100)
    monkeypatch.setattr(text, "PIECE", 50)
    store = build(tmp_path, trained)
    assert store.documents == 1 and store.bytes == 500
    assert (store[0 : len(store)] == tokenizer.eos_id(trained)).sum() == 2


def test_text_tokenizer_and_reader_decide_the_key(tmp_path: Path, trained: Tokenizer, corpus: Path) -> None:
    write(tmp_path)
    first = build(tmp_path, trained)
    assert build(tmp_path, trained).folder == first.folder
    by_file = build(tmp_path, trained, Reader("file"))
    assert by_file.folder != first.folder and by_file.documents == 2
    content = (tmp_path / "a.txt").read_text(encoding="utf-8")
    (tmp_path / "a.txt").write_text(content.replace("line 7", "line 8"), encoding="utf-8")  # the same size
    changed = build(tmp_path, trained)
    assert changed.folder != first.folder and changed.fingerprint != first.fingerprint
    train_tokenizer([str(corpus / "train.txt")], tmp_path / "other", vocab_size=300)
    assert build(tmp_path, tokenizer.load(tmp_path / "other")).folder not in (first.folder, changed.folder)


def test_a_killed_build_goes_on_and_ends_the_same(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BATCH", 40)
    (tmp_path / "straight").mkdir()
    (tmp_path / "killed").mkdir()
    write(tmp_path / "straight")
    write(tmp_path / "killed")
    straight = build(tmp_path / "straight", trained, shard_tokens=60)
    real = shards._write_shard
    left = [4]

    def dying(*args: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "killed", trained, shard_tokens=60)
    folder = tmp_path / "killed/cache" / straight.folder.name
    with open(folder / "journal.jsonl", "a") as journal:
        journal.write('{"name": "0000')  # a line torn by the kill
    encoded: list[str] = []
    monkeypatch.setattr(
        shards,
        "_write_shard",
        lambda *args: encoded.append("shard") or real(*args),  # type: ignore[func-returns-value]
    )
    resumed = build(tmp_path / "killed", trained, shard_tokens=60)
    assert resumed.shards == straight.shards
    assert len(encoded) == len(straight.shards) - 4 + 1  # the finished ones are not written again; one finds the end
    for shard in straight.shards:
        assert (resumed.folder / shard.name).read_bytes() == (straight.folder / shard.name).read_bytes()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:9] + bytes([raw[9] ^ 1]) + raw[10:])


@pytest.mark.parametrize("harm", [shorten, flip, Path.unlink], ids=["shortened", "one bit", "gone"])
@pytest.mark.parametrize("name", ["000002.bin", "000001.doc", "index.json"])
def test_a_damaged_file_is_found_and_made_again_alone(
    name: str,
    harm: Callable[[Path], None],
    tmp_path: Path,
    trained: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shards, "BATCH", 40)
    write(tmp_path)
    store = build(tmp_path, trained, shard_tokens=60)
    content = {path.name: path.read_bytes() for path in store.folder.glob("0*")}
    harm(store.folder / name)
    written: list[str] = []
    real = shards._write_shard

    def noting(*args: object) -> object:
        shard = real(*args)  # type: ignore[arg-type]
        written.extend([shard.name] if shard else [])
        return shard

    monkeypatch.setattr(shards, "_write_shard", noting)
    again = build(tmp_path, trained, shard_tokens=60)
    assert {path.name: path.read_bytes() for path in again.folder.glob("0*")} == content
    assert again.fingerprint == store.fingerprint and again.notes == store.notes
    assert written == ([f"{name[:6]}.bin"] if name != "index.json" else [])
    assert ("is built again from the text" in capsys.readouterr().err) == (
        not (name == "index.json" and harm is Path.unlink)
    )


def test_lengths_and_hashes_are_those_of_the_documents_wherever_files_are_cut(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BATCH", 40)
    monkeypatch.setattr(text, "PIECE", 30)
    lines = ["one", "the quick brown fox " * 40, "日本 " * 100, "two", "x" * 200]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    store = build(tmp_path, trained, shard_tokens=25)
    assert len(store.shards) > 5 and any(shard.documents == 0 for shard in store.shards)
    lengths = store.lengths()
    assert lengths[:, 1].tolist() == [len(line.encode()) for line in lines]
    assert lengths[:, 2].tolist() == [len(line) for line in lines]
    start = 1
    for line, count in zip(lines, lengths[:, 0].tolist(), strict=True):
        assert trained.decode(store[start : start + count].tolist()) == line
        start += count + 1
    assert start == len(store)
    hashes = [int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little") for line in lines]
    assert np.concatenate([*store.hashes()]).tolist() == hashes


def test_documents_without_an_end_follow_one_another(tmp_path: Path, trained: Tokenizer) -> None:
    write(tmp_path, 3)
    ended = build(tmp_path, trained)
    store = shards.open_or_build(
        Corpus(sorted(tmp_path.glob("*.txt")), trained, Reader(), append_eos=False), tmp_path / "cache"
    )
    eos = tokenizer.eos_id(trained)
    tokens = ended[0 : len(ended)]
    assert store[0 : len(store)].tolist() == [eos, *tokens[tokens != eos].tolist()]
    assert (store.documents, store.bytes, store.ends, ended.ends) == (6, ended.bytes, 0, 6)
    assert np.array_equal(store.lengths(), ended.lengths())


@given(st.lists(st.integers(0, 1 << 60)))
def test_numbers_survive_packing(numbers: list[int]) -> None:
    assert store_module.unpacked(store_module.packed(numbers)).tolist() == numbers


@pytest.mark.parametrize(
    "change", [{"dtype": "|O"}, {"name": "../x.bin"}, {"tokens": -1}, {"tokens": "9"}, {"more": 1}, {"format": 2}]
)
def test_an_index_that_cannot_be_is_refused(change: dict[str, object], tmp_path: Path, trained: Tokenizer) -> None:
    write(tmp_path)
    folder = build(tmp_path, trained).folder
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    (index if change.keys() & {"dtype", "more", "format"} else index["shards"][0]).update(change)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(Damaged, match="not a sound index"):
        TokenStore(folder)


def test_a_full_disk_is_one_line_and_the_build_goes_on_when_there_is_room(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(shards, "BATCH", 40)
    write(tmp_path)
    straight = build(tmp_path, trained, shard_tokens=60)
    real = os.fsync
    left = [9]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "other"))
        real(descriptor)

    paths = sorted(tmp_path.glob("*.txt"))
    corpus = Corpus(paths, trained, Reader(), shard_tokens=60)
    monkeypatch.setattr(os, "fsync", full)
    code, _, err = call(lambda _: shards.open_or_build(corpus, tmp_path / "other"))
    assert code == 5 and len(err.splitlines()) == 1 and "no space left" in err
    folder = tmp_path / "other" / straight.folder.name
    assert not list(folder.glob(".*")) and not (folder / "index.json").exists()
    assert (folder / "journal.jsonl").read_text()
    left[0] = 1 << 30
    again = shards.open_or_build(corpus, tmp_path / "other")
    assert again.shards == straight.shards


def test_no_text_is_an_error_and_leaves_no_index(tmp_path: Path, trained: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(DataError, match="no text"):
        build(tmp_path, trained)
    assert not list(tmp_path.rglob("index.json"))


def test_many_ids_take_four_bytes(tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 2)
    monkeypatch.setattr(tokenizer, "size", lambda _: 1 << 17)
    assert build(tmp_path, trained).dtype == np.uint32


def test_the_same_bytes_under_another_name_are_another_text(tmp_path: Path, trained: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text('{"text": "one"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    stores = [
        shards.open_or_build(Corpus([tmp_path / n], trained, Reader()), tmp_path / "c") for n in ("a.txt", "a.jsonl")
    ]
    assert [store.bytes for store in stores] == [15, 3]


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_text_that_changes_while_it_is_read_makes_no_store(
    change: str, tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    real = Reader.documents

    def changing(self: Reader, path: Path) -> object:
        yield from real(self, path)
        if path.name == "b.txt":
            path.write_text("other") if change == "edited" else path.unlink()

    monkeypatch.setattr(Reader, "documents", changing)
    with pytest.raises(DataError, match=r"b\.txt: (was changed while|has vanished)"):
        build(tmp_path, trained)
    assert not list(tmp_path.rglob("index.json"))


def test_progress_counts_the_bytes_of_the_files_as_they_lie_there(tmp_path: Path, trained: Tokenizer) -> None:
    import gzip

    write(tmp_path)
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes() * 50))
    told: list[tuple[int, int]] = []
    shards.open_or_build(
        Corpus([packed], trained, Reader()), tmp_path / "c", progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (packed.stat().st_size, packed.stat().st_size)


def test_what_was_left_out_is_told_again_from_the_cache(tmp_path: Path, trained: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("a long line\nx\n")
    for _ in range(2):
        assert build(tmp_path, trained, Reader(min_chars=3)).notes[0].startswith("1 documents left out")


def test_an_early_error_leaves_no_folder(tmp_path: Path, trained: Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(DataError, match="line 2"):
        build(tmp_path, trained)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_an_index_of_noise_is_built_again(
    tmp_path: Path, trained: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    store = build(tmp_path, trained)
    for noise in (os.urandom(300), b"[]", b'{"format": 3}'):
        (store.folder / "index.json").write_bytes(noise)
        assert build(tmp_path, trained).fingerprint == store.fingerprint
        assert "not a sound index" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"pieces": 1}, {"documents": 1}, {"pieces": "x"}, {"bytes": -1}])
def test_a_journal_that_does_not_fit_the_text_makes_no_store(
    change: dict[str, object], tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BATCH", 40)
    write(tmp_path)
    store = build(tmp_path, trained, shard_tokens=60)
    (store.folder / "index.json").unlink()
    journal = store.folder / "journal.jsonl"
    lines = journal.read_text().splitlines()
    record = json.loads(lines[2])
    record |= {name: record[name] + value if value == 1 else value for name, value in change.items()}
    journal.write_text("\n".join([*lines[:2], json.dumps(record), *lines[3:]]) + "\n")
    if "x" in change.values() or -1 in change.values():
        assert build(tmp_path, trained, shard_tokens=60).shards == store.shards
        return
    with pytest.raises(DataError, match="does not fit the text"):
        build(tmp_path, trained, shard_tokens=60)
    assert build(tmp_path, trained, shard_tokens=60).shards == store.shards


def test_memories_of_hashes_that_are_none_are_forgotten(tmp_path: Path, trained: Tokenizer) -> None:
    write(tmp_path)
    store = build(tmp_path, trained)
    for place in (store.folder / "verified.json", tmp_path / "cache/digests.json"):
        for noise in ("[]", '{"x": 3}', "nothing"):
            place.write_text(noise)
            assert build(tmp_path, trained).folder == store.folder
