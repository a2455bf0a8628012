"""Options of test.py. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2kit.errors import Problems

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "32", "bf16", "16", "64"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How checkpoints are tested. test.json stores these settings in this order."""

    stride: int | None = None
    """Tokens from one window of text to the next. Default: the context, so that windows do not overlap. A smaller
    stride gives each token more context and takes proportionally longer."""
    max_tokens: int | None = None
    """Test only the first documents: as many as fit completely into this number of tokens."""
    precision: Precision = "32-true"
    """Precision of weights and arithmetic: 32, bf16, 16 or 64; bf16-mixed and 16-mixed keep the weights in float32. All
    but 32 and 64 are faster and less exact."""
    batch_size: int = 16
    """Windows per forward pass. Changes the speed, not the figures."""
    seed: int = 1
    """Random seed of the confidence intervals and of the text generated for --memorization."""
    html: Path | None = None
    """Write a page with the first and the hardest documents, each token coloured by its loss."""
    surprisal: Path | None = None
    """Write a tab-separated table with the nats, bits, rank and entropy of each token."""
    train_files: Sequence[str] = ()
    """The text that the model was trained on, for --memorization."""
    memorization: bool = False
    """Generate text and measure how much of it is memorized: appears word for word in --train_files."""
    cache_dir: Path = Path(".cache/gpt2kit")
    """Folder of tokenized text. Safe to delete."""


def evaluation_problems(options: EvaluationOptions) -> list[str]:
    """List what is invalid, in terms of test.py's options."""
    problems = Problems()
    for name in ("batch_size", "stride", "max_tokens"):
        value = getattr(options, name)
        problems.check(value is None or value >= 1, f"--{name} {value}: must be at least 1")
    problems.check(0 <= options.seed < 1 << 63, f"--seed {options.seed}: must be from 0 to 2^63 - 1")
    problems.check(
        not options.memorization or options.train_files,
        "--memorization: needs the text that the model was trained on. Give it as --train_files",
    )
    problems.check(
        options.memorization or not options.train_files,
        "--train_files: has no effect without --memorization. Add --memorization, or remove --train_files",
    )
    return problems.messages
