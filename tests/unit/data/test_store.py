"""A store returns the tokens, sizes and hashes of documents, wherever they are cut into pieces and shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpt2kit.data import build, leakage, store
from gpt2kit.data.build import Corpus
from gpt2kit.data.index import ENDS_DOCUMENT, PIECE, Damaged, Index
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError
from gpt2kit.text import reader
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import split_ranges
from gpt2kit.tokenization import tokenizer

BuildStore = Callable[..., TokenStore]


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def all_hashes(tokens: TokenStore) -> list[int]:
    return [int(number) for hashes in tokens.hashes() for number in hashes]


@pytest.mark.parametrize("append_eos", [True, False])
def test_a_store_has_a_leading_token_and_each_document_with_its_end(
    append_eos: bool, tmp_path: Path, trained: Tokenizer, build_store: BuildStore
) -> None:
    documents = [f"{name} line {number} 日本" for name in "ab" for number in range(3)]
    for name, lines in (("a", documents[:3]), ("b", documents[3:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    tokens = build_store(append_eos=append_eos)
    expected = [tokenizer.eos_id(trained)]
    for document in documents:
        expected += [*trained.encode(document).ids, *[expected[0]] * append_eos]
    assert tokens[0 : len(tokens)].tolist() == expected
    assert (tokens.documents, tokens.ends) == (6, 6 * append_eos)
    assert tokens.lengths()[:, 0].tolist() == [len(trained.encode(document).ids) for document in documents]
    assert tokens.bytes == sum(len(document.encode()) for document in documents)
    assert sum(shard.characters for shard in tokens.shards) == sum(map(len, documents))
    assert tokens.dtype == np.uint16


def test_many_ids_take_four_bytes(two_files: None, build_store: BuildStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "size", lambda _: 1 << 17)
    assert build_store().dtype == np.uint32


def test_any_span_is_read_across_shards(two_files: None, small_batches: None, build_store: BuildStore) -> None:
    one_shard, shards = build_store(shard_tokens=1 << 20), build_store()
    assert len(one_shard.shards) == 1 and len(shards.shards) > 5
    tokens = one_shard[0 : len(one_shard)]
    assert len(shards) == len(tokens)
    for start in range(0, len(tokens), 17):
        for length in (0, 1, 59, 200):
            assert np.array_equal(shards[start : start + length], tokens[start : start + length])


def test_lengths_and_hashes_match_the_documents(
    tmp_path: Path, trained: Tokenizer, small_batches: None, build_store: BuildStore
) -> None:
    lines = ["one", "the quick brown fox " * 40, "日本 " * 100, "two", "x" * 200]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    tokens = build_store(shard_tokens=25)
    assert len(tokens.shards) > 5 and any(shard.documents == 0 for shard in tokens.shards)
    lengths = tokens.lengths()
    assert lengths[:, 1].tolist() == [len(line.encode()) for line in lines]
    assert lengths[:, 2].tolist() == [len(line) for line in lines]
    start = 1
    for line, count in zip(lines, lengths[:, 0].tolist(), strict=True):
        assert trained.decode(tokens[start : start + count].tolist()) == line
        start += count + 1
    assert start == len(tokens)
    assert all_hashes(tokens) == [hash_of(line) for line in lines]


@pytest.mark.parametrize("append_eos", [True, False])
def test_a_document_of_many_pieces_is_one_document(
    append_eos: bool, tmp_path: Path, trained: Tokenizer, small_batches: None, build_store: BuildStore
) -> None:
    documents = ["one", "日本 fox jumps\n" * 40, "two"]
    for name, content in zip("abc", documents, strict=True):
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")
    tokens = build_store(reader=Reader("file"), append_eos=append_eos)
    pieces = [np.frombuffer(tokens.read_doc(shard), PIECE) for shard in tokens.shards]
    assert len(pieces) > 5 and [len(own) for own in pieces] == [shard.pieces for shard in tokens.shards]
    assert (np.concatenate(pieces)["flags"] & ENDS_DOCUMENT).sum() == 3
    lengths = tokens.lengths()
    assert lengths[:, 1:].tolist() == [[len(document.encode()), len(document)] for document in documents]
    first, count = 1 + int(lengths[0, 0]) + append_eos, int(lengths[1, 0])
    assert trained.decode(tokens[first : first + count].tolist()) == documents[1]
    assert all_hashes(tokens) == [hash_of(document) for document in documents]


def test_a_long_document_is_recognized_wherever_its_pieces_are_cut(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces of a document depend on the text before it; its hash and sizes must not."""
    monkeypatch.setattr(reader, "PIECE_LENGTH", 300)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", 300)
    long = [f"{number} " + "fox " * (60 + 7 * number) for number in range(30)]
    (tmp_path / "a.txt").write_text("\n".join(long))
    (tmp_path / "b.txt").write_text("\n".join(f"{'x' * 130}\n{document}" for document in long))
    a, b = (build.open_or_build(Corpus([tmp_path / f"{n}.txt"], trained, Reader("line")), tmp_path / "c") for n in "ab")
    assert a.documents == 30 and b.documents == 60
    assert all_hashes(a) == all_hashes(b)[1::2]
    assert np.array_equal(a.lengths()[:, 1:], b.lengths()[1::2, 1:])
    assert a.shards[0].pieces != b.shards[0].pieces - 30
    assert leakage.count_shared(a, b) == (30, 1)


def test_documents_in_two_texts_are_counted_and_the_first_is_shown(tmp_path: Path, trained: Tokenizer) -> None:
    lines = [f"document {number}" for number in range(2000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text("\n".join(["new", "newer", lines[70], lines[3], "newest", lines[70]]))
    a, b = (build.open_or_build(Corpus([tmp_path / f"{n}.txt"], trained, Reader("line")), tmp_path / "c") for n in "ab")
    assert leakage.count_shared(a, b) == (3, 2)
    assert leakage.leakage_note(a, "train", b, "valid", trained) == [
        "3 valid documents (50.0%) are also in the train text, such as 'document 70'"
    ]
    assert [trained.decode(leakage.document_tokens(a, n, 32)) for n in (0, 1999)] == [lines[0], lines[1999]]


def test_splits_of_one_text_share_no_documents(tmp_path: Path, trained: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"document {number}" for number in range(2000)))
    stores = {
        name: build.open_or_build(
            Corpus([tmp_path / "a.txt"], trained, Reader("line"), split_range), tmp_path / "cache"
        )
        for name, split_range in {"all": None, **split_ranges(0.1, 0.2, 1)}.items()
    }
    assert len({tokens.folder for tokens in stores.values()}) == 4
    assert stores["all"].documents == sum(stores[name].documents for name in ("train", "valid", "test"))
    assert leakage.count_shared(stores["train"], stores["valid"]) == (0, 0)
    assert leakage.count_shared(stores["all"], stores["valid"])[0] == stores["valid"].documents


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
    """Commit ebe9223 (format 3) computed these. With `file`, documents have many pieces, in several shards."""
    monkeypatch.setattr(build, "BATCH", 400)
    monkeypatch.setattr(reader, "PIECE_LENGTH", 100)
    old = ROOT / "tests/data/run_547bc70"
    paths, saved = [old / "train.txt", old / "valid.txt"], tokenizer.load(old / "tokenizer")
    text = Corpus(paths, saved, Reader(document), append_eos=append_eos, shard_tokens=300)
    tokens = build.open_or_build(text, tmp_path)
    assert len(tokens.shards) == 6
    assert tokens.fingerprint.startswith(fingerprint) and tokens.files_digest.startswith(files_digest)


@given(st.lists(st.integers(0, 1 << 60)))
def test_packed_numbers_can_be_unpacked(numbers: list[int]) -> None:
    """The highest bit of a digit says that more digits follow."""
    unpacked, shift = [0], 0
    for digit in store.pack(np.array(numbers, np.int64)):
        unpacked[-1] |= (digit & 127) << shift
        shift = shift + 7 if digit > 127 else 0
        unpacked += [] if shift else [0]
    assert unpacked == [*numbers, 0]


@pytest.mark.parametrize("text", ["\ufffd", "[]", "{}", '{"format": 4}'])
def test_an_index_of_other_content_is_refused(text: str) -> None:
    with pytest.raises(Damaged, match="not a valid index"):
        Index.from_json(text, "index.json")


INVALID_VALUES = [
    {"dtype": "|O"},
    {"name": "../x.bin"},
    {"tokens": -1},
    {"tokens": "9"},
    {"tokens": 1 << 60},
    {"more": 1},
    {"loss_mask": 1},
]


@pytest.mark.parametrize("change", INVALID_VALUES)
def test_an_invalid_index_is_refused(change: dict[str, object], two_files: None, build_store: BuildStore) -> None:
    folder = build_store().folder
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    (index["shards"][0] if change.keys() & {"name", "tokens"} else index).update(change)
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(Damaged, match="not a valid index"):
        TokenStore(folder)


def test_a_token_file_that_is_truncated_while_it_is_open_is_reported(two_files: None, build_store: BuildStore) -> None:
    tokens = build_store()
    expected = tokens[:10].tolist()
    path = tokens.folder / tokens.shards[0].name
    path.write_bytes(path.read_bytes()[:20])
    assert tokens[:10].tolist() == expected, "the file is read when it is needed"
    for reopened in (tokens, TokenStore(tokens.folder, verify=False)):
        with pytest.raises(DataError, match=r"000000\.bin: truncated by another program while it was in use"):
            reopened[8:14]
