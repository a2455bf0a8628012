"""Store token ids on disk, and read batches from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.data.datamodule import TextDataModule as TextDataModule


def __getattr__(name: str) -> Any:
    if name == "TextDataModule":
        from gpt2kit.data.datamodule import TextDataModule

        return TextDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
