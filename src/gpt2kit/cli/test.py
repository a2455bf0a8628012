"""Implements `test.py`: loss, perplexity and bits per byte of checkpoints on text."""

from __future__ import annotations

from pathlib import Path

from gpt2kit.evaluation.options import Options, Precision
from gpt2kit.text.reader import Reader


def test(
    ckpt_path: list[str],
    files: list[str] | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    precision: Precision = "32-true",
    batch_size: int = 16,
    json: str | None = None,
    html: Path | None = None,
    copies: bool = False,
    train_files: list[str] | None = None,
    reader: Reader | None = None,
    seed: int = 1,
    config: list[str] | None = None,
    cache_dir: Path = Path(".cache/gpt2kit"),
) -> None:
    """Print loss, perplexity and bits per byte of a checkpoint on text, or compare several.

    Args:
        ckpt_path: a run folder (its best checkpoint), a .ckpt file, a Hugging Face GPT-2 folder, or hf://OWNER/NAME;
            nothing else is needed. Several are compared on the same documents, also when their tokenizers differ.
        files: text files, folders, patterns or URLs; default: the run's own test files or share.
        stride: tokens from one window of text to the next. Default: the context, so that windows do not overlap and a
            token may have little before it; less gives each token more context, and takes as much longer.
        max_tokens: a quick look: only the first documents that have so many tokens together.
        precision: 32-true computes in float32; bf16-mixed and others are faster and less exact.
        batch_size: windows in one forward pass; changes the speed, not the figures.
        json: write every figure with every digit to this file; - for stdout, instead of the table.
        html: write a page with the first and the hardest documents, each token coloured by its nats.
        copies: let the model write, and tell how much of it stands word for word in the train_files.
        train_files: the text that the model was trained on, for `copies`.
        reader: how to read the text; default: as the run did.
        seed: of the intervals' and the copies' draws.
        config: not needed any more, since a checkpoint holds its settings; accepted and not read.
        cache_dir: where tokenized text is kept; safe to delete.
    """
    from gpt2kit.evaluation.evaluate import evaluate  # here, so that --help need not wait for torch

    options = Options(stride, max_tokens, precision, batch_size, seed, html, train_files or [], copies, cache_dir)
    evaluate(options, ckpt_path, files, reader, json, config)
