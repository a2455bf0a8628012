"""Texts in memory, saved to a file, so that a run reads, tests and resumes them like any other text."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt2kit import files as durable
from gpt2kit.errors import UserError

# Texts, or rows of a table; a `datasets.Dataset` yields such rows.
Texts = Iterable[str | Mapping[str, Any]]

FOLDER = Path(".cache/gpt2kit/texts")


def save(texts: Texts) -> Path:
    """Write texts to a file that is named by its content, and return its path."""
    if isinstance(texts, str | bytes | Mapping) or hasattr(texts, "columns"):
        raise UserError(f"texts: must be a list of texts, or one split of a dataset, not {type(texts).__name__}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        unnamed = Path(scratch) / "texts"
        with open(unnamed, "wb") as file:
            for number, item in enumerate(texts):
                try:
                    if not isinstance(item, str | Mapping):
                        raise TypeError(f"it is {type(item).__name__}")
                    row = item if isinstance(item, str) else dict(item)
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"texts: item {number} is neither a text nor a row of texts ({error}). Leave out other "
                        "columns, as dataset.select_columns does"
                    ) from None
        path = FOLDER / f"{durable.digest(unnamed)[:24]}.jsonl"
        os.replace(unnamed, path)
    return path
