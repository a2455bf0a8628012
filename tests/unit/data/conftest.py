from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gpt2kit.tokenization import tokenizer


@pytest.fixture(scope="session")
def trained(corpus: Path) -> Tokenizer:
    """The tokenizer of the tiny corpus."""
    return tokenizer.load(corpus / "tokenizer")
