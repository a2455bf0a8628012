from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome, train_tokenizer

from gpt2kit.cli import parser
from gpt2kit.cli import train_tokenizer as command
from gpt2kit.tokenization import report as tokenizer_report
from gpt2kit.tokenization import trainers
from gpt2kit.tokenization.trainers import TokenizerSpec


def test_the_figures_are_those_of_the_text() -> None:
    found = trainers.train_char(["abc é"], TokenizerSpec())
    report = tokenizer_report.measure(found, ["abc", "é日", "a\N{REPLACEMENT CHARACTER}b cab"])
    assert (report.documents, report.bytes, report.characters) == (3, 17, 12)
    assert report.tokens == 3 + 1 + 3 + 1 + 3 + 5 and report.partial == 6  # 日 and U+FFFD are three bytes each
    assert report.size == 1 + 256 + 5 and report.used == 5 + 3 + 3 - 0
    assert (report.failures, report.unknown) == (0, 0)
    rows = -(-262 // 64) * 64 * 768
    assert report.embedding == pytest.approx(rows / (rows + 85_056_000 + 786_432))


def test_the_size_of_small_is_gpt2s() -> None:
    assert tokenizer_report._SMALL + 50257 * 768 == 124_439_808


def test_what_does_not_come_back_is_shown() -> None:
    found = trainers.train_wordpiece(["the quick fox"] * 3, TokenizerSpec(vocab_size=60))
    report = tokenizer_report.measure(found, ["the  fox", "the fox", "Z"])
    assert (report.failures, report.unknown) == (2, 1)
    told = tokenizer_report.describe(report, "x")
    assert (
        "2 of 3 documents change when encoded and decoded, such as 'the  fox' as 'the fox'" in told
        and "unknown" in told
    )


def test_a_text_is_shown_cut_into_its_tokens() -> None:
    found = trainers.train_bpe(["the the the"], TokenizerSpec(vocab_size=260))
    pieces = tokenizer_report.split_into_tokens(found, "the 白 the")
    assert "".join(pieces) == "the 白 the" and "白" in pieces
    assert "|白|" in tokenizer_report.describe(tokenizer_report.measure(found, ["the 白 the"]), "x")


def run(call: Callable[..., Outcome], *words: object) -> Outcome:
    return call(lambda argv: parser.run(command.train_tokenizer, argv), *words)


def test_report_and_compare_from_the_command_line(corpus: Path, inside: Path, call: Callable[..., Outcome]) -> None:
    code, out, err = run(call, "--report", corpus / "tokenizer", "--files", corpus / "test.txt")
    assert (code, err) == (0, "") and "bytes per token" in out and "40 documents" in out
    code, out, err = run(
        call, "--files", corpus / "train.txt", "--compare", 300, 340, "char", "wordpiece:150", corpus / "tokenizer"
    )
    assert (code, err) == (0, "")
    names = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert names[0] == "tokenizer" and names[2:] == [
        "bpe:300",
        "bpe:340",
        "char",
        "wordpiece:150",
        str(corpus / "tokenizer"),
    ]
    assert "of held-out text" in out and f"suggestion: {corpus / 'tokenizer'}," in out
    assert not list(inside.iterdir())


def test_the_suggestion_is_small_lossless_and_near_the_best() -> None:
    def report(size: int, tokens: int, failures: int = 0) -> tokenizer_report.TokenizerReport:
        return tokenizer_report.TokenizerReport(size, 9, 1000, 1000, tokens, failures=failures)

    found = {"big": report(9000, 100), "near": report(4000, 109), "far": report(2000, 130), "lossy": report(100, 90, 1)}
    found["unsafe"] = tokenizer_report.TokenizerReport(90, 9, 1000, 1000, 100, is_lossless=False)
    assert "suggestion: near" in tokenizer_report.suggest(found)
    assert "suggestion: none" in tokenizer_report.suggest({"lossy": found["lossy"]})


def test_a_sample_is_announced(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 0, 1):
        train_tokenizer(
            [str(corpus / "train.txt")], tmp_path / f"{seed}", vocab_size=300, max_train_bytes=2000, seed=seed
        )
    assert "training on a sample of 2.0 kB of" in capsys.readouterr().out
