"""Token ids, a store of them on disk, and the batches that are read from it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2kit.data.datamodule import TextDataModule as TextDataModule

_HOMES = {"TextDataModule": "gpt2kit.data.datamodule"}


def __getattr__(name: str) -> object:
    """Import a public class when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
