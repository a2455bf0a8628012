from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gpt2kit.generation.text_stream import StopStrings, TextStream
from gpt2kit.tokenization import tokenizer


@pytest.fixture(scope="module")
def byte_level(corpus: Path) -> Tokenizer:
    return tokenizer.load(corpus / "tokenizer")


def stream_chunks(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*map(stream.push, ids), stream.flush()]


def test_chunks_are_whole_characters(byte_level: Tokenizer) -> None:
    text = "é日本🙂 abc"
    ids = byte_level.encode(text).ids
    chunks = stream_chunks(byte_level, ids)
    assert "".join(chunks) == text and "🙂" in chunks
    assert "".join(stream_chunks(byte_level, ids[:-5])).endswith("\N{REPLACEMENT CHARACTER}")


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["END", "\n\n"])
    chunks = [stops.push(chunk) for chunk in ["a E", "N", "x\n", "b\n", "\nmore", "never"]]
    assert chunks == ["a ", "", "ENx", "\nb", "", ""]
    assert stops.is_reached and not stops.flush()


def test_a_stop_string_that_is_not_completed_is_text() -> None:
    stops = StopStrings(["END"])
    assert stops.push("aEN") + stops.flush() == "aEN" and not stops.is_reached
    assert StopStrings([]).push("x") == "x"


def test_the_first_of_overlapping_stop_strings_ends_the_text() -> None:
    stops = StopStrings(["cd", "bcde"])
    assert stops.push("abcde") == "a" and stops.is_reached
