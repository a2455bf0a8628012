"""Options of an evaluation. No torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `test` that its parts need."""

    stride: int | None
    max_tokens: int | None
    precision: Precision
    batch_size: int
    seed: int
    html: Path | None
    train_files: list[str]
    copies: bool
    cache_dir: Path
