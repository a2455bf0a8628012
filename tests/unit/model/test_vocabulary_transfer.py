"""Each new piece begins as what the old vocabulary spells it with, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import train_tokenizer
from tokenizers import Tokenizer

from gpt2kit.model import vocabulary_transfer
from gpt2kit.tokenization import tokenizer
from gpt2kit.tokenization.tokenizer import token_bytes
from gpt2kit.tokenization.trainers import EOS

TEXT = "春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。the quick brown fox isn't here\n" * 30
KINDS = ["bpe", "char", "spm-bpe", "spm-unigram", "words", "wordpiece"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "english.txt").write_text("the quick brown fox is not here, is it?\n" * 30, encoding="utf-8")
    found = {}
    for kind in KINDS:
        train_tokenizer([str(folder / "text.txt")], folder / kind, kind=kind, vocab_size=330)  # type: ignore[arg-type]
        found[kind] = tokenizer.load(folder / kind)
    train_tokenizer([str(folder / "english.txt")], folder / "english", vocab_size=280)
    train_tokenizer([str(folder / "text.txt")], folder / "more", vocab_size=330, special_tokens=["<sep>"])
    return {**found, "english": tokenizer.load(folder / "english"), "more": tokenizer.load(folder / "more")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vocabulary_stays_as_it_is(kind: str, made: dict[str, Tokenizer]) -> None:
    how = vocabulary_transfer.map_vocabulary(made[kind], made[kind])
    assert how.is_identity
    rows = torch.randn(384, 8)
    size = tokenizer.size(made[kind])
    moved = vocabulary_transfer.remap_embedding(rows, how, 384)
    assert torch.equal(moved[:size], rows[:size]) and not moved[size:].any()


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", ["bpe", "char", "spm-bpe", "spm-unigram", "english", "words"])
def test_the_old_pieces_make_the_bytes_of_the_new_one(new: str, old: str, made: dict[str, Tokenizer]) -> None:
    """Of a vocabulary that has all bytes, every piece is spelled, to the byte; no special token is in any mean."""
    how = vocabulary_transfer.map_vocabulary(made[new], made[old])
    ours, theirs = token_bytes(made[new]), token_bytes(made[old])
    special = {tokenizer.eos_id(made[old])}
    for piece, ids in enumerate(how.old_ids):
        if piece == tokenizer.eos_id(made[new]):
            assert set(ids) == special
        elif made[new].id_to_token(piece) != "[UNK]":
            assert b"".join(theirs[i] for i in ids) == ours[piece] and not special & set(ids)


def test_a_new_row_is_the_mean_of_the_old_ones(made: dict[str, Tokenizer]) -> None:
    old, new = made["english"], made["char"]
    how = vocabulary_transfer.map_vocabulary(new, old)
    rows = torch.randn(tokenizer.size(old), 16)
    moved = vocabulary_transfer.remap_embedding(rows, how, 384)
    spring = new.token_to_id("春")
    spelled = old.encode("春").ids
    assert len(spelled) == 3 and how.old_ids[spring] == spelled
    torch.testing.assert_close(moved[spring], rows[spelled].mean(0))
    letter = new.token_to_id("q")
    assert torch.equal(moved[letter], rows[old.token_to_id("q")])
    assert torch.equal(moved[tokenizer.eos_id(new)], rows[tokenizer.eos_id(old)])
    counts = how.counts()
    assert counts["copied"] + counts["spelled"] + counts["unspelled"] == tokenizer.size(new)
    assert not moved[tokenizer.size(new) :].any()


def test_a_special_token_that_is_new_begins_as_the_mean_of_all_pieces(made: dict[str, Tokenizer]) -> None:
    how = vocabulary_transfer.map_vocabulary(made["more"], made["english"])
    rows = torch.randn(tokenizer.size(made["english"]), 4)
    separator = made["more"].token_to_id("<sep>")
    assert how.old_ids[separator] == [] and how.counts()["unspelled"] == 1
    others = [i for i in range(len(rows)) if i != tokenizer.eos_id(made["english"])]
    torch.testing.assert_close(vocabulary_transfer.remap_embedding(rows, how, 384)[separator], rows[others].mean(0))


def test_wordpiece_marks_and_special_tokens_are_in_no_mean(made: dict[str, Tokenizer]) -> None:
    """The reference project's fault: [CLS] and [SEP] in each mean, two thirds of a one-character piece's row."""
    raw = json.loads(made["wordpiece"].to_str())
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": EOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {EOS: {"id": EOS, "ids": [made["wordpiece"].token_to_id(EOS)], "tokens": [EOS]}},
    }
    old = Tokenizer.from_str(json.dumps(raw))
    assert old.encode("春").ids[0] == old.token_to_id(EOS)
    how = vocabulary_transfer.map_vocabulary(made["char"], old)
    assert how.old_ids[made["char"].token_to_id("春")] == [old.token_to_id("春")]
    marks = {old.token_to_id(EOS), old.token_to_id("[UNK]")}
    end = tokenizer.eos_id(made["char"])
    assert all(not marks & set(ids) for piece, ids in enumerate(how.old_ids) if piece != end)


def test_a_tokenizer_that_lowers_letters_still_gives_what_it_can(made: dict[str, Tokenizer], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc def the end\n" * 50)
    train_tokenizer([str(tmp_path / "a.txt")], tmp_path / "t", kind="wordpiece", vocab_size=60)
    (tmp_path / "vocab.txt").write_text("[UNK]\nt\n##h\n##e\nhe\n")
    train_tokenizer([], tmp_path / "lower", kind="wordpiece", vocab=str(tmp_path / "vocab.txt"))
    lower = tokenizer.load(tmp_path / "lower")
    (tmp_path / "b.txt").write_text("THE THE THE\n" * 50)
    train_tokenizer([str(tmp_path / "b.txt")], tmp_path / "upper", vocab_size=265)
    upper = tokenizer.load(tmp_path / "upper")
    piece = next(i for i, text in enumerate(token_bytes(upper)) if text == b"THE")
    assert vocabulary_transfer.map_vocabulary(upper, lower).old_ids[piece] == lower.encode("the").ids


def test_positions_are_cropped_or_stretched() -> None:
    rows = torch.randn(4, 3)
    assert torch.equal(vocabulary_transfer.resize_positions(rows, 4), rows) and torch.equal(
        vocabulary_transfer.resize_positions(rows, 2), rows[:2]
    )
    longer = vocabulary_transfer.resize_positions(rows, 10)
    torch.testing.assert_close(longer[::3], rows)
    torch.testing.assert_close(longer[1], rows[0] * 2 / 3 + rows[1] / 3)
