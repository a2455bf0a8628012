from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, Outcome, train_tokenizer
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
    monkeypatch.setattr(text, "PIECE_LENGTH", 50)
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
    monkeypatch.setattr(text, "PIECE_LENGTH", 30)
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


@pytest.mark.parametrize("append_eos", [True, False])
def test_a_document_of_several_pieces_across_shards_is_one_document(
    append_eos: bool, tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BATCH", 40)
    monkeypatch.setattr(text, "PIECE_LENGTH", 30)
    long = "日本 fox jumps\n" * 40
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, content in zip(paths, ("one", long, "two"), strict=True):
        path.write_text(content, encoding="utf-8")
    corpus = Corpus(paths, trained, Reader("file"), append_eos=append_eos, shard_tokens=50)
    store = shards.open_or_build(corpus, tmp_path / "cache")
    pieces = [np.frombuffer(store.read_doc(shard), store_module.PIECE) for shard in store.shards]
    assert len(store.shards) > 5 and all(
        shard.pieces == len(own) for shard, own in zip(store.shards, pieces, strict=True)
    )
    assert [bool(flag) for own in pieces for flag in own["ends_document"]].count(True) == 3
    assert store.lengths()[:, 1:].tolist() == [[len(t.encode()), len(t)] for t in ("one", long, "two")]
    first, count = 1 + int(store.lengths()[0, 0]) + append_eos, int(store.lengths()[1, 0])
    assert trained.decode(store[first : first + count].tolist()) == long
    digest = hashlib.blake2b(long.encode(), digest_size=8).digest()
    assert int(np.concatenate([*store.hashes()])[1]) == int.from_bytes(digest, "little")


def test_a_long_document_is_recognized_wherever_its_pieces_are_cut(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces of a document depend on the text before it; its hash and sizes must not."""
    monkeypatch.setattr(text, "PIECE_LENGTH", 300)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", 300)
    long = [f"{number} " + "fox " * (60 + 7 * number) for number in range(30)]
    (tmp_path / "a.txt").write_text("\n".join(long))
    (tmp_path / "b.txt").write_text("\n".join(f"{'x' * 130}\n{document}" for document in long))
    a, b = (shards.open_or_build(Corpus([tmp_path / f"{n}.txt"], trained, Reader()), tmp_path / "c") for n in "ab")
    assert a.documents == 30 and b.documents == 60
    assert np.array_equal(np.concatenate([*a.hashes()]), np.concatenate([*b.hashes()])[1::2])
    assert np.array_equal(a.lengths()[:, 1:], b.lengths()[1::2, 1:])
    assert a.shards[0].pieces != b.shards[0].pieces - 30
    assert store_module.count_shared(a, b) == (30, 1)


@pytest.mark.parametrize("document", ["line", "file"])
def test_each_source_has_its_pieces_documents_and_tokens(
    document: str, tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "BATCH", 40)
    monkeypatch.setattr(text, "PIECE_LENGTH", 30)
    contents = ["", "one fox\ntwo\n", "\n" * 3, "the quick brown fox " * 20, "last"]
    paths = [tmp_path / f"{number}.txt" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    reader = Reader(document)
    store = shards.open_or_build(Corpus(paths, trained, reader, shard_tokens=30), tmp_path / "cache")
    assert len(store.shards) > 3
    sources = store.index.sources
    assert [source.name for source in sources] == [str(path) for path in paths]
    assert sum(source.pieces for source in sources) == sum(shard.pieces for shard in store.shards)
    assert sum(source.documents for source in sources) == store.documents
    assert 1 + sum(source.tokens for source in sources) == store.tokens
    end = 1
    for path, source in zip(paths, sources, strict=True):
        start, end = end, end + source.tokens
        pieces = list(reader.read([path]))
        expected = [trained.encode(piece).ids for piece in pieces]
        assert source.pieces == len(pieces)
        assert source.documents == sum(not isinstance(piece, text.UnfinishedPiece) for piece in pieces)
        tokens = store[start:end]
        assert tokens[tokens != store.index.eos_id].tolist() == [token for ids in expected for token in ids]
    (store.folder / "index.json").unlink()
    (store.folder / "000002.bin").unlink()
    again = shards.open_or_build(Corpus(paths, trained, reader, shard_tokens=30), tmp_path / "cache")
    assert again.index == store.index, "the counts do not depend on what had to be encoded"


def test_files_that_are_not_reached_count_nothing(tmp_path: Path, trained: Tokenizer) -> None:
    write(tmp_path, 3)
    sources = build(tmp_path, trained, Reader(max_documents=2)).index.sources
    assert [(source.pieces, source.documents) for source in sources] == [(2, 2), (0, 0)]


def test_a_store_with_a_loss_mask_is_refused_and_kept(
    tmp_path: Path, trained: Tokenizer, call: Callable[..., Outcome]
) -> None:
    write(tmp_path)
    path = build(tmp_path, trained).folder / "index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    assert index["loss_mask"] is False
    path.write_text(json.dumps({**index, "loss_mask": True}))
    code, _, err = call(lambda _: build(tmp_path, trained))
    assert code == 3 and "index.json: the store has a loss mask, which this version cannot read. Update gpt2kit" in err
    assert json.loads(path.read_text())["loss_mask"] is True, "it is not built again without its mask"
    path.write_text(json.dumps({**index, "loss_mask": 1}))
    with pytest.raises(Damaged, match="not a sound index"):
        TokenStore(path.parent)


def test_a_store_of_an_old_format_is_built_again(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    store = build(tmp_path, trained)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "FORMAT", 3)
        key = Corpus(sorted(tmp_path.glob("*.txt")), trained, Reader(), shard_tokens=1 << 20).key(tmp_path / "cache")
    assert key != store.folder.name, "it has another folder"
    # Even in the new format's folder nothing of it is used.
    content = {path.name: path.read_bytes() for path in store.folder.iterdir() if path.name != "verified.json"}
    old = {"name": "000000.bin", "tokens": 9, "pieces": 2, "documents": 2, "bytes": 9, "characters": 9}
    old |= {"open_tokens": 0, "sha256": "0", "documents_sha256": "0"}
    (store.folder / "journal.jsonl").write_text(json.dumps(old) + "\n")
    index = {"format": 3, "dtype": "<u2", "eos_id": 0, "append_eos": True, "tokenizer": "", "sources": ["a.txt"]}
    (store.folder / "index.json").write_text(json.dumps({**index, "notes": [], "shards": [old]}))
    again = build(tmp_path, trained)
    assert "not a sound index (of another format); it is built again from the text" in capsys.readouterr().err
    assert {name: (again.folder / name).read_bytes() for name in content} == content


@pytest.mark.parametrize(
    ("document", "append_eos", "fingerprint", "files_digest"),
    [
        ("line", True, "4fe0b13854baccd7", "859d8ec1f190594b"),
        ("line", False, "de50ad08cd50df3e", "4e92de9a6ba2480b"),
        ("file", True, "63e4dc74c160adc4", "08a07def3c272844"),
        ("file", False, "d2958a4ef00f112a", "366a2e744faa5e42"),
    ],
)
def test_a_text_has_the_fingerprint_that_older_checkpoints_recorded(
    document: str,
    append_eos: bool,
    fingerprint: str,
    files_digest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What commit ebe9223 (format 3) computed. With `file`, documents have many pieces, in several shards."""
    monkeypatch.setattr(shards, "BATCH", 400)
    monkeypatch.setattr(text, "PIECE_LENGTH", 100)
    old = ROOT / "tests/data/run_547bc70"
    paths, saved = [old / "train.txt", old / "valid.txt"], tokenizer.load(old / "tokenizer")
    corpus = Corpus(paths, saved, Reader(document), append_eos=append_eos, shard_tokens=300)
    store = shards.open_or_build(corpus, tmp_path)
    assert len(store.shards) == 6
    assert store.fingerprint.startswith(fingerprint) and store.files_digest.startswith(files_digest)


def test_text_that_is_not_unicode_names_the_piece(tmp_path: Path, trained: Tokenizer) -> None:
    class Broken(Reader):
        def documents(self, path: object) -> Iterator[str]:
            yield from ("sound", "half \ud83d")

    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"piece 1 of the text: surrogates not allowed \('\\ud83d'\)\. Fix the reader"):
        build(tmp_path, trained, Broken())


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
    """A digit's highest bit says that more digits follow."""
    read, shift = [0], 0
    for digit in store_module.pack(np.array(numbers, np.int64)):
        read[-1] |= (digit & 127) << shift
        shift = shift + 7 if digit > 127 else 0
        read += [] if shift else [0]
    assert read == [*numbers, 0]


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
    with pytest.raises(DataError, match=r"b\.txt: (was changed while|not found)"):
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


def unfinished_store(folder: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> tuple[TokenStore, Path]:
    """A store of several shards without its index, and its journal."""
    monkeypatch.setattr(shards, "BATCH", 40)
    write(folder)
    store = build(folder, trained, shard_tokens=60)
    (store.folder / "index.json").unlink()
    return store, store.folder / "journal.jsonl"


@pytest.mark.parametrize("change", [{"pieces": 1}, {"documents": 1}, {"pieces": "x"}, {"bytes": -1}])
def test_a_journal_that_does_not_fit_the_text_makes_no_store(
    change: dict[str, object], tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, journal = unfinished_store(tmp_path, trained, monkeypatch)
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


def test_a_shard_that_cannot_be_made_as_it_was_is_reported_and_the_next_build_starts_anew(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, journal = unfinished_store(tmp_path, trained, monkeypatch)
    journal.write_text(journal.read_text().replace(store.shards[2].sha256, "0" * 64))
    with pytest.raises(DataError, match="does not fit the text, and was deleted"):
        build(tmp_path, trained, shard_tokens=60)
    assert build(tmp_path, trained, shard_tokens=60).index == store.index


def test_memories_of_hashes_that_are_none_are_forgotten(tmp_path: Path, trained: Tokenizer) -> None:
    write(tmp_path)
    store = build(tmp_path, trained)
    for place in (store.folder / "verified.json", tmp_path / "cache/digests.json"):
        for noise in ("[]", '{"x": 3}', "nothing"):
            place.write_text(noise)
            assert build(tmp_path, trained).folder == store.folder
