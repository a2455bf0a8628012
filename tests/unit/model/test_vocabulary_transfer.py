"""A new token starts as the mean of the old tokens that spell it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import TOKENIZER_KINDS, train_tokenizer
from tokenizers import Tokenizer

from gpt2kit.model import vocabulary_transfer
from gpt2kit.tokenization import tokenizer
from gpt2kit.tokenization.tokenizer import EOS, token_bytes

TEXT = "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。the quick brown fox isn't here\n" * 30


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "english.txt").write_text("the quick brown fox is not here, is it?\n" * 30, encoding="utf-8")
    for kind in TOKENIZER_KINDS:
        train_tokenizer([str(folder / "text.txt")], folder / kind, kind=kind, vocab_size=330)
    train_tokenizer([str(folder / "english.txt")], folder / "english", vocab_size=280)
    train_tokenizer([str(folder / "text.txt")], folder / "more", vocab_size=330, special_tokens=["<sep>"])
    return {kind: tokenizer.load(folder / kind) for kind in (*TOKENIZER_KINDS, "english", "more")}


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_the_same_vocabulary_is_not_changed(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    mapping = vocabulary_transfer.map_vocabulary(tokenizers[kind], tokenizers[kind])
    assert mapping.is_identity
    rows = torch.randn(384, 8)
    size = tokenizer.size(tokenizers[kind])
    remapped = vocabulary_transfer.remap_embedding(rows, mapping, 384)
    assert torch.equal(remapped[:size], rows[:size]) and not remapped[size:].any()


@pytest.mark.parametrize("new", TOKENIZER_KINDS)
@pytest.mark.parametrize("old", ["bpe", "char", "spm-bpe", "spm-unigram", "english", "words"])
def test_the_old_tokens_spell_the_new_one(new: str, old: str, tokenizers: dict[str, Tokenizer]) -> None:
    """A vocabulary with all bytes spells every token, to the byte, without special tokens."""
    mapping = vocabulary_transfer.map_vocabulary(tokenizers[new], tokenizers[old])
    new_bytes, old_bytes = token_bytes(tokenizers[new]), token_bytes(tokenizers[old])
    special = {tokenizer.eos_id(tokenizers[old])}
    for token, ids in enumerate(mapping.old_ids):
        if token == tokenizer.eos_id(tokenizers[new]):
            assert set(ids) == special
        elif tokenizers[new].id_to_token(token) != "[UNK]":
            assert b"".join(old_bytes[i] for i in ids) == new_bytes[token] and not special & set(ids)


def test_a_new_row_is_the_mean_of_the_old_ones(tokenizers: dict[str, Tokenizer]) -> None:
    old, new = tokenizers["english"], tokenizers["char"]
    mapping = vocabulary_transfer.map_vocabulary(new, old)
    rows = torch.randn(tokenizer.size(old), 16)
    remapped = vocabulary_transfer.remap_embedding(rows, mapping, 384)
    spring = new.token_to_id("春")
    spelled = old.encode("春").ids
    assert len(spelled) == 3 and mapping.old_ids[spring] == spelled
    torch.testing.assert_close(remapped[spring], rows[spelled].mean(0))
    letter = new.token_to_id("q")
    assert torch.equal(remapped[letter], rows[old.token_to_id("q")])
    assert torch.equal(remapped[tokenizer.eos_id(new)], rows[tokenizer.eos_id(old)])
    counts = mapping.counts()
    assert counts["copied"] + counts["spelled"] + counts["unspelled"] == tokenizer.size(new)
    assert not remapped[tokenizer.size(new) :].any()


def test_a_new_special_token_starts_as_the_mean_of_all_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    mapping = vocabulary_transfer.map_vocabulary(tokenizers["more"], tokenizers["english"])
    rows = torch.randn(tokenizer.size(tokenizers["english"]), 4)
    separator = tokenizers["more"].token_to_id("<sep>")
    assert mapping.old_ids[separator] == [] and mapping.counts()["unspelled"] == 1
    others = [i for i in range(len(rows)) if i != tokenizer.eos_id(tokenizers["english"])]
    torch.testing.assert_close(vocabulary_transfer.remap_embedding(rows, mapping, 384)[separator], rows[others].mean(0))


def test_wordpiece_marks_and_special_tokens_are_not_averaged(tokenizers: dict[str, Tokenizer]) -> None:
    """A tokenizer may put special tokens around each text that it encodes."""
    raw = json.loads(tokenizers["wordpiece"].to_str())
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": EOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {EOS: {"id": EOS, "ids": [tokenizers["wordpiece"].token_to_id(EOS)], "tokens": [EOS]}},
    }
    old = Tokenizer.from_str(json.dumps(raw))
    assert old.encode("春").ids[0] == old.token_to_id(EOS)
    mapping = vocabulary_transfer.map_vocabulary(tokenizers["char"], old)
    assert mapping.old_ids[tokenizers["char"].token_to_id("春")] == [old.token_to_id("春")]
    marks = {old.token_to_id(EOS), old.token_to_id("[UNK]")}
    end = tokenizer.eos_id(tokenizers["char"])
    assert all(not marks & set(ids) for token, ids in enumerate(mapping.old_ids) if token != end)


def test_a_tokenizer_that_lowercases_text_spells_upper_case_tokens(
    tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("abc def the end\n" * 50)
    train_tokenizer([str(tmp_path / "a.txt")], tmp_path / "t", kind="wordpiece", vocab_size=60)
    (tmp_path / "vocab.txt").write_text("[UNK]\nt\n##h\n##e\nhe\n")
    train_tokenizer([], tmp_path / "lower", kind="wordpiece", vocab=str(tmp_path / "vocab.txt"))
    lower = tokenizer.load(tmp_path / "lower")
    (tmp_path / "b.txt").write_text("THE THE THE\n" * 50)
    train_tokenizer([str(tmp_path / "b.txt")], tmp_path / "upper", vocab_size=265)
    upper = tokenizer.load(tmp_path / "upper")
    token = next(i for i, text in enumerate(token_bytes(upper)) if text == b"THE")
    assert vocabulary_transfer.map_vocabulary(upper, lower).old_ids[token] == lower.encode("the").ids


def test_positions_are_cut_off_or_interpolated() -> None:
    rows = torch.randn(4, 3)
    assert torch.equal(vocabulary_transfer.resize_positions(rows, 4), rows)
    assert torch.equal(vocabulary_transfer.resize_positions(rows, 2), rows[:2])
    longer = vocabulary_transfer.resize_positions(rows, 10)
    torch.testing.assert_close(longer[::3], rows)
    torch.testing.assert_close(longer[1], rows[0] * 2 / 3 + rows[1] / 3)
