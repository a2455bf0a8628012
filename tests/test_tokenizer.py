from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SENTENCE

from gpt2kit import tokenizer
from gpt2kit.errors import DataError, UserError


def test_any_text_comes_back(corpus: Path) -> None:
    trained = tokenizer.load(corpus / "tokenizer")
    for text in ("the quick", "  runs  of \n\n spaces\t", "日本語 ßø 🙂\u200d", "\x00\x07", tokenizer.EOS + "x", ""):
        assert trained.decode(trained.encode(text).ids, skip_special_tokens=False) == text


def test_a_special_tokens_text_is_text(corpus: Path) -> None:
    trained = tokenizer.load(corpus / "tokenizer")
    assert tokenizer.eos_id(trained) not in trained.encode(f"a {tokenizer.EOS} b").ids


def test_transformers_loads_the_same_tokenizer(corpus: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    text = SENTENCE.format("七") + "  x"
    assert theirs(text)["input_ids"] == tokenizer.load(corpus / "tokenizer").encode(text).ids
    assert theirs.eos_token == tokenizer.EOS
    assert theirs.decode(theirs(text)["input_ids"]) == text


def test_the_same_text_gives_the_same_tokenizer(corpus: Path, tmp_path: Path) -> None:
    tokenizer.train([str(corpus / "train.txt")], tmp_path / "again", vocab_size=320)
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (corpus / "tokenizer/tokenizer.json").read_bytes()


def test_a_text_that_yields_fewer_tokens_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("aa aa")
    tokenizer.train([str(tmp_path / "t.txt")], tmp_path / "out", vocab_size=999)
    assert "asked for 999" in capsys.readouterr().out


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="at least 257"):
        tokenizer.train(["x"], tmp_path, vocab_size=100)
    with pytest.raises(DataError, match="no text"):
        tokenizer.train([str(tmp_path / "empty.txt")], tmp_path / "out")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="no such tokenizer"):
        tokenizer.load(tmp_path / "none")
    assert not (tmp_path / "out").exists()
