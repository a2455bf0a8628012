from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import SMALL_SHAPE, train_tokenizer

from gpt2kit.export.gguf import gguf_problems
from gpt2kit.tokenization import tokenizer


@pytest.mark.parametrize(("kind", "options"), [("char", {}), ("bpe", {"normalizer": "nfkc"}), ("wordpiece", {})])
def test_tokenizers_that_llama_cpp_does_not_implement_are_refused(
    kind: str, options: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    train_tokenizer([str(corpus / "train.txt")], tmp_path, kind=kind, vocab_size=300, **options)
    (problem,) = gguf_problems(SMALL_SHAPE, tokenizer.load(tmp_path))
    assert problem.startswith("--gguf: llama.cpp splits text only as byte-level BPE does")


def test_other_activations_are_refused(corpus: Path) -> None:
    byte_level = tokenizer.load(corpus / "tokenizer")
    assert not gguf_problems(SMALL_SHAPE, byte_level)
    assert "not relu" in gguf_problems({**SMALL_SHAPE, "activation_function": "relu"}, byte_level)[0]
