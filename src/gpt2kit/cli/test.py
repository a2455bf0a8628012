"""Implements `test.py`: loss, perplexity and bits per byte of checkpoints on text."""

from __future__ import annotations

from gpt2kit.evaluation.options import EvaluationOptions
from gpt2kit.text.reader import Reader


def test(
    ckpt_path: list[str],
    files: list[str] | None = None,
    reader: Reader | None = None,
    options: EvaluationOptions = EvaluationOptions(),
    json: str | None = None,
    config: list[str] | None = None,
) -> None:
    """Print loss, perplexity and bits per byte of a checkpoint on text, or compare several.

    Args:
        ckpt_path: Run folders (their best checkpoint), .ckpt files, Hugging Face GPT-2 folders, or hf://OWNER/NAME.
            Several are compared on the same documents, even if their tokenizers differ.
        files: Text files, folders, patterns or URLs. Default: the run's own test files or test split.
        reader: How files become documents. Default: as in training.
        json: Write every figure with all digits to this file; -: to standard output, instead of the table.
        config: Accepted but not needed: a checkpoint holds its settings.
    """
    from gpt2kit.evaluation.evaluate import evaluate  # here, so that --help does not import torch

    evaluate(options, ckpt_path, files, reader, json, config)
