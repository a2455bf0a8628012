from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import ODD_TEXTS, SAMPLE_TEXTS, TOKENIZER_KINDS, train_each_kind
from tokenizers import Tokenizer

from gpt2kit.data import build
from gpt2kit.data.build import encode_batches
from gpt2kit.errors import DataError
from gpt2kit.text.reader import UnfinishedPiece
from gpt2kit.tokenization import tokenizer

WORDS = np.dtype("<u2")
BATCHES = [
    SAMPLE_TEXTS,
    ODD_TEXTS,
    [],
    [UnfinishedPiece("a piece"), " of a document"],
    *([text] for text in ODD_TEXTS),
    SAMPLE_TEXTS[::-1],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kinds")
    train_each_kind(made)
    return made


@pytest.fixture
def trained(folder: Path) -> Tokenizer:
    return tokenizer.load(folder / "bpe")


def one_by_one(trained: Tokenizer, batches: list[list[str]]) -> list[list[list[int]]]:
    return [[trained.encode(text, add_special_tokens=False).ids for text in batch] for batch in batches]


def told(found: Iterator[tuple[list[str], list[build.Ids]]], batches: list[list[str]]) -> list[list[list[int]]]:
    """The ids, of the expected type and beside the expected texts."""
    ids = []
    for (texts, arrays), batch in zip(found, batches, strict=True):
        assert texts is batch and len(arrays) == len(texts)
        assert all(array.dtype == WORDS for array in arrays)
        ids.append([array.tolist() for array in arrays])
    return ids


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_the_ids_are_the_tokenizers_own(kind: str, folder: Path) -> None:
    loaded = tokenizer.load(folder / kind)
    assert told(encode_batches(BATCHES, loaded, WORDS), BATCHES) == one_by_one(loaded, BATCHES)


def test_a_long_batch_and_none_at_all(trained: Tokenizer) -> None:
    batches = [[text * 400 for text in SAMPLE_TEXTS] for _ in range(2)]
    assert told(encode_batches(batches, trained, WORDS), batches) == one_by_one(trained, batches)
    assert not list(encode_batches([], trained, WORDS))


def test_it_never_reads_far_ahead(trained: Tokenizer) -> None:
    read = 0

    def counted() -> Iterator[list[str]]:
        nonlocal read
        for _ in range(60):
            read += 1
            yield SAMPLE_TEXTS

    for done, _ in enumerate(encode_batches(counted(), trained, WORDS), 1):
        assert read <= done + build.AHEAD
    assert read == done == 60


@pytest.mark.parametrize("how", ["close", "interrupt", "reader", "ids"])
def test_an_early_end_leaves_no_thread(trained: Tokenizer, how: str) -> None:
    def endless() -> Iterator[list[str]]:
        for number in range(1000):
            if how == "reader" and number == 10:
                raise DataError("bad line")
            yield SAMPLE_TEXTS

    found = encode_batches(endless(), trained, np.dtype("u1") if how == "ids" else WORDS)
    if how == "ids":
        with pytest.raises(OverflowError):  # ids above 255
            list(found)
    else:
        next(found)
    if how == "close":
        found.close()  # type: ignore[attr-defined]
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            found.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    elif how == "reader":
        with pytest.raises(DataError, match="bad line"):
            list(found)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoding")]
