"""gpt2kit: train GPT-2 from scratch, or fine-tune it, on your own text in any language.

`gpt2kit.train` trains a model, `gpt2kit.load` opens one. Public names are imported on first use, because some need
torch or Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2kit.api import Model as Model
    from gpt2kit.api import load as load
    from gpt2kit.api import train as train
    from gpt2kit.data.datamodule import TextDataModule as TextDataModule
    from gpt2kit.training.module import GPT2Module as GPT2Module

__version__ = "0.1.0"
__all__ = ["GPT2Module", "Model", "TextDataModule", "__version__", "load", "train"]

_MODULES = {
    **dict.fromkeys(["Model", "load", "train"], "gpt2kit.api"),
    "GPT2Module": "gpt2kit.training.module",
    "TextDataModule": "gpt2kit.data.datamodule",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
