from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Outcome, train_tokenizer

from gpt2kit.cli import parser
from gpt2kit.cli import train_tokenizer as command
from gpt2kit.tokenization import report, trainers
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.report import TokenizerReport
from gpt2kit.tokenization.train import default_spec


def test_the_report_counts_bytes_characters_and_tokens() -> None:
    tokenizer = trainers.train_char(["abc é"], TokenizerSpec())
    figures = report.measure(tokenizer, ["abc", "é日", "a\N{REPLACEMENT CHARACTER}b cab"])
    assert (figures.texts, figures.bytes, figures.characters) == (3, 17, 12)
    assert figures.tokens == 3 + 1 + 3 + 1 + 3 + 5 and figures.partial == 6  # 日 and U+FFFD are three bytes each
    assert figures.size == 1 + 256 + 5 and figures.used == 5 + 3 + 3 - 0
    assert (figures.failures, figures.unknown) == (0, 0)
    rows = -(-262 // 64) * 64 * 768
    assert figures.embedding == pytest.approx(rows / (rows + 85_056_000 + 786_432))


def test_small_has_as_many_parameters_as_gpt2() -> None:
    assert report.SMALL_PARAMETERS + 50257 * 768 == 124_439_808


def test_a_lossy_tokenizer_is_reported_with_an_example() -> None:
    tokenizer = trainers.train_wordpiece(["the quick fox"] * 3, TokenizerSpec(vocab_size=60))
    figures = report.measure(tokenizer, ["the  fox", "the fox", "Z"])
    assert (figures.failures, figures.unknown) == (2, 1)
    lines = report.describe(figures, "x")
    assert "2 of 3 texts change when encoded and decoded, such as 'the  fox' as 'the fox'" in lines
    assert "unknown" in lines


def test_examples_are_split_into_tokens() -> None:
    tokenizer = trainers.train_bpe(["the the the"], TokenizerSpec(vocab_size=260))
    pieces = report.split_into_tokens(tokenizer, "the 白 the")
    assert "".join(pieces) == "the 白 the" and "白" in pieces
    assert "|白|" in report.describe(report.measure(tokenizer, ["the 白 the"]), "x")


def test_the_parts_of_a_record_are_texts(corpus: Path, inside: Path, call: Callable[..., Outcome]) -> None:
    (inside / "records.jsonl").write_text('{"title": "the fox", "text": "the quick fox"}\n' * 2)
    reader = ["--reader.template", "{title}{text}", "--reader.loss_on", "text"]
    arguments = ["--report", corpus / "tokenizer", "--files", "records.jsonl", *reader]
    code, out, _ = call(lambda argv: parser.run(command.train_tokenizer, argv), *arguments)
    assert code == 0 and "over 4 texts, 0.0 kB" in out and "0 of 4 texts change" in out and "document" not in out


def test_report_and_compare_from_the_command_line(corpus: Path, inside: Path, call: Callable[..., Outcome]) -> None:
    def run(*arguments: object) -> str:
        code, out, err = call(lambda argv: parser.run(command.train_tokenizer, argv), *arguments)
        assert (code, err) == (0, "")
        return out

    out = run("--report", corpus / "tokenizer", "--files", corpus / "test.txt", "--reader.document", "line")
    assert "bytes per token" in out and "40 texts" in out
    assert out.endswith("default of trainer.py for 3.0 kB of text: bpe, vocab_size 512\n")
    candidates = ["300", "340", "char", "wordpiece:150", str(corpus / "tokenizer")]
    out = run("--files", corpus / "train.txt", "--compare", *candidates)
    names = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert names[0] == "tokenizer" and names[2:] == ["bpe:300", "bpe:340", *candidates[2:]]
    assert "of held-out text" in out and f"suggestion: {corpus / 'tokenizer'}," in out
    assert not list(inside.iterdir())


def test_the_suggestion_is_small_lossless_and_near_the_best() -> None:
    def figures(size: int, tokens: int, failures: int = 0, is_lossless: bool = True) -> TokenizerReport:
        return TokenizerReport(size, 9, 1000, 1000, tokens, failures=failures, is_lossless=is_lossless)

    reports = {"big": figures(9000, 100), "near": figures(4000, 109), "far": figures(2000, 130)}
    reports |= {"lossy": figures(100, 90, failures=1), "unsafe": figures(90, 100, is_lossless=False)}
    assert "suggestion: near" in report.suggest(reports)
    assert "suggestion: none" in report.suggest({"lossy": reports["lossy"]})


def test_training_on_a_sample_is_reported(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer([str(corpus / "train.txt")], tmp_path, vocab_size=300, max_train_bytes=2000)
    assert "note: training on a sample of 2.0 kB of 22.7 kB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "vocab_size"), [(100, 512), (1_100_000, 2048), (3_000_000, 4096), (10**7, 8192), (10**9, 32768)]
)
def test_the_default_vocabulary_grows_with_the_text(size: int, vocab_size: int) -> None:
    assert default_spec(size) == TokenizerSpec(kind="bpe", vocab_size=vocab_size)
