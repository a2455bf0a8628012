"""Callbacks for `trainer.callbacks`: `gpt2kit.callbacks.TextSamples`, `gpt2kit.callbacks.EpochExports`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2kit.training.callbacks import EpochExports as EpochExports
    from gpt2kit.training.callbacks import TextSamples as TextSamples


def __getattr__(name: str) -> object:
    """Import a public class on first use."""
    if name not in ("EpochExports", "TextSamples"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("gpt2kit.training.callbacks"), name)
