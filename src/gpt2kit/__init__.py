"""gpt2kit: train GPT-2 from scratch, or fine-tune it, on your own text in any language.

`gpt2kit.train` trains a model, `gpt2kit.load` opens one. Both import torch when they are called, not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2kit.api import Model as Model
    from gpt2kit.api import load as load
    from gpt2kit.api import train as train

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load", "train"]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in ("Model", "load", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("gpt2kit.api"), name)
