"""Callbacks for `trainer.callbacks`: `gpt2kit.callbacks.TextSamples`, `gpt2kit.callbacks.EpochExports`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2kit.training.epoch_exports import EpochExports as EpochExports
    from gpt2kit.training.samples import TextSamples as TextSamples

_HOMES = {"EpochExports": "gpt2kit.training.epoch_exports", "TextSamples": "gpt2kit.training.samples"}


def __getattr__(name: str) -> object:
    """Import a public class when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
