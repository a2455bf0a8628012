from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_tokenizer import KINDS, MEAN, TEXT, make
from tokenizers import Tokenizer

from gpt2kit.data import encoding, gigatoken
from gpt2kit.data.encoding import encoded
from gpt2kit.errors import DataError
from gpt2kit.text.reader import Part
from gpt2kit.tokenization import tokenizer

WORDS = np.dtype("<u2")
BATCHES = [TEXT, MEAN, [], [Part("a piece"), " of a document"], *([text] for text in MEAN), TEXT[::-1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kinds")
    make(made)
    return made


@pytest.fixture
def trained(folder: Path) -> Tokenizer:
    return tokenizer.load(folder / "bytebpe")


@pytest.fixture(autouse=True)
def without_gigatoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)


def one_by_one(trained: Tokenizer, batches: list[list[str]]) -> list[list[list[int]]]:
    return [[trained.encode(text, add_special_tokens=False).ids for text in batch] for batch in batches]


def told(found: Iterator[tuple[list[str], list[encoding.Ids]]], batches: list[list[str]]) -> list[list[list[int]]]:
    """The ids, of the expected type and beside the expected texts."""
    ids = []
    for (texts, arrays), batch in zip(found, batches, strict=True):
        assert texts is batch and len(arrays) == len(texts)
        assert all(array.dtype == WORDS for array in arrays)
        ids.append([array.tolist() for array in arrays])
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_the_tokenizers_own(kind: str, folder: Path) -> None:
    loaded = tokenizer.load(folder / kind)
    assert told(encoded(BATCHES, loaded, WORDS), BATCHES) == one_by_one(loaded, BATCHES)


def test_a_long_batch_and_none_at_all(trained: Tokenizer) -> None:
    batches = [[text * 400 for text in TEXT] for _ in range(2)]
    assert told(encoded(batches, trained, WORDS), batches) == one_by_one(trained, batches)
    assert not list(encoded([], trained, WORDS))


def test_it_never_reads_far_ahead(trained: Tokenizer) -> None:
    read = 0

    def counted() -> Iterator[list[str]]:
        nonlocal read
        for _ in range(60):
            read += 1
            yield TEXT

    for done, _ in enumerate(encoded(counted(), trained, WORDS), 1):
        assert read <= done + encoding.AHEAD
    assert read == done == 60


@pytest.mark.parametrize("how", ["close", "interrupt", "reader", "ids"])
def test_an_early_end_leaves_no_thread(trained: Tokenizer, how: str) -> None:
    def endless() -> Iterator[list[str]]:
        for number in range(1000):
            if how == "reader" and number == 10:
                raise DataError("bad line")
            yield TEXT

    found = encoded(endless(), trained, np.dtype("u1") if how == "ids" else WORDS)
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


class StandIn:
    """gigatoken, as far as it is used; what it gives is turned wrong after so many batches."""

    right = 1000
    problem: BaseException | None = None
    batches = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def from_json(cls, told: str) -> StandIn:
        if cls.problem:
            raise cls.problem
        return cls(Tokenizer.from_str(told))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        type(self).batches += 1
        ids = [self.tokenizer.encode(text).ids for text in texts]
        return ids if self.batches <= self.right else [[*own, 0] for own in ids]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    class Own(StandIn):
        pass

    awkward = types.ModuleType("awkward")
    awkward.flatten = lambda rows: [one for row in rows for one in row]  # type: ignore[attr-defined]
    awkward.num = lambda rows: np.array([len(row) for row in rows], np.int64)  # type: ignore[attr-defined]
    fake = types.ModuleType("gigatoken")
    fake.Tokenizer = Own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "awkward", awkward)
    monkeypatch.setitem(sys.modules, "gigatoken", fake)
    return Own


@pytest.mark.parametrize("kind", KINDS)
def test_gigatoken_is_used_where_it_is_right(kind: str, folder: Path, stand_in: type[StandIn]) -> None:
    loaded = tokenizer.load(folder / kind)
    notes: list[str] = []
    assert told(encoded(BATCHES, loaded, WORDS, note=notes.append), BATCHES) == one_by_one(loaded, BATCHES)
    assert not notes
    assert stand_in.batches == 1 + len(BATCHES)


def test_gigatoken_wrong_on_the_sample_is_not_used(trained: Tokenizer, stand_in: type[StandIn]) -> None:
    stand_in.right = 0
    notes: list[str] = []
    assert told(encoded(BATCHES, trained, WORDS, note=notes.append), BATCHES) == one_by_one(trained, BATCHES)
    assert len(notes) == 1 and "gigatoken" in notes[0] and repr(TEXT[0][:40]) in notes[0]
    assert stand_in.batches == 1


class TakesSpecialTokens(StandIn):
    """One that takes a special token's text for the token."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [
            [0] if text == tokenizer.EOS else ids for text, ids in zip(texts, super().encode_batch(texts), strict=True)
        ]


def test_gigatoken_that_takes_special_tokens_for_tokens_is_not_used(
    trained: Tokenizer, stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["gigatoken"], "Tokenizer", TakesSpecialTokens)
    notes: list[str] = []
    batches = [["no such token in this corpus"]]
    assert told(encoded(batches, trained, WORDS, note=notes.append), batches) == one_by_one(trained, batches)
    assert len(notes) == 1 and tokenizer.EOS in notes[0]


def test_gigatoken_that_turns_wrong_later_stops(trained: Tokenizer, stand_in: type[StandIn]) -> None:
    stand_in.right = 3
    with pytest.raises(gigatoken.WrongIds, match=r"pip uninstall gigatoken") as caught:
        list(encoded([TEXT] * 20, trained, WORDS))
    assert isinstance(caught.value, DataError)
    assert stand_in.batches < 3 + 2 + gigatoken.CHECKED // len(TEXT) + 1


@pytest.mark.parametrize("problem", [RuntimeError("no Split\n\nhere"), BaseException("a panic in Rust")])
def test_gigatoken_that_does_not_take_the_tokenizer_is_not_used(
    trained: Tokenizer, stand_in: type[StandIn], problem: BaseException
) -> None:
    stand_in.problem = problem
    notes: list[str] = []
    assert told(encoded([TEXT], trained, WORDS, note=notes.append), [TEXT]) == one_by_one(trained, [TEXT])
    assert len(notes) == 1 and str(problem).splitlines()[0] in notes[0] and "\n" not in notes[0]


@pytest.mark.parametrize("kind", ["bytebpe", "char", "wordpiece"])
def test_the_real_gigatoken(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gigatoken")
    pytest.importorskip("gigatoken")
    loaded = tokenizer.load(folder / kind)
    notes: list[str] = []
    assert told(encoded(BATCHES, loaded, WORDS, note=notes.append), BATCHES) == one_by_one(loaded, BATCHES)
    assert len(notes) == (kind == "wordpiece")
