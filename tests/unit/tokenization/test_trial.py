"""Tokenizers from files that are hostile: they are tried in a child process with limits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from gpt2kit.errors import DataError
from gpt2kit.tokenization import tokenizer, trial


def replace(text: str, content: str, times: int = 1) -> dict[str, Any]:
    part = {"type": "Replace", "pattern": {"String": text}, "content": content}
    return {"type": "Sequence", "normalizers": [part] * times}


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
HOSTILE: dict[str, dict[str, Any]] = {
    "grows at a common letter": {"normalizer": replace("a", "a" * 50, 12)},
    "grows at a rare letter": {"normalizer": replace("\u4e2d", "\u4e2d" * 50, 12)},
    "panics": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "has no unknown token": {"model": {"type": "WordLevel", "vocab": {"<|endoftext|>": 0}, "unk_token": "none"}},
    "backtracks": {"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "((((a+)+)+)+)+$"}}},
    "has a huge id": {
        "model": {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "a": (1 << 32) - 6}, "unk_token": "a"}
    },
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tokenizer_is_refused(case: str, corpus: Path, inside: Path) -> None:
    raw = json.loads((corpus / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    (inside / "tokenizer.json").write_text(json.dumps({**raw, **HOSTILE[case]}), encoding="utf-8")
    with pytest.raises(DataError, match=r"^tokenizer\.json: not a tokenizer \(.*Train it again") as raised:
        tokenizer.load("tokenizer.json")
    assert "\n" not in str(raised.value) and not (inside / ".cache").exists()


def test_a_tokenizer_is_tried_once(corpus: Path, inside: Path) -> None:
    text = (corpus / "tokenizer/tokenizer.json").read_text(encoding="utf-8") + "\n"
    assert tokenizer.from_json(text, "x").decode([5]) and len([*tokenizer.TRIED.iterdir()]) == 1


def test_one_that_was_trained_here_is_not_tried(corpus: Path, inside: Path) -> None:
    tokenizer.save(tokenizer.load(corpus / "tokenizer"), inside / "new")
    assert len([*tokenizer.TRIED.iterdir()]) == 1


def test_the_child_imports_nothing_but_tokenizers(corpus: Path) -> None:
    with (corpus / "tokenizer/tokenizer.json").open() as text:
        command = [sys.executable, "-P", "-X", "importtime", trial.__file__]
        child = subprocess.run(command, stdin=text, capture_output=True, encoding="utf-8", check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in child.stderr.splitlines()}
    assert "tokenizers" in imported and not imported & {"gpt2kit", "torch", "numpy", "transformers"}


def test_a_panic_of_the_library_is_an_error(corpus: Path) -> None:
    options = json.loads((corpus / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    options["normalizer"] = replace("", "x")
    with pytest.raises(DataError, match=r"the tokenizer cannot encode this text \(index out of bounds"):
        tokenizer.encode(Tokenizer.from_str(json.dumps(options)), "x")


@pytest.mark.parametrize("call", [lambda t: tokenizer.encode(t, "x"), lambda t: tokenizer.decode(t, [1])])
def test_a_panic_in_either_direction_is_an_error(call: Callable[[Any], object]) -> None:
    class PanicException(BaseException):
        """As pyo3's, which cannot be created here."""

    class Panicking:
        def encode_batch_fast(self, texts: list[str], **options: Any) -> None:
            raise PanicException("called `Option::unwrap()` on a `None` value")

        decode_batch = encode_batch_fast

    with pytest.raises(DataError, match=r"the tokenizer cannot .*unwrap"):
        call(Panicking())
