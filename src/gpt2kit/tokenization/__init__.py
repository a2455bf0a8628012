"""Encode documents as token ids, and decode them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.tokenization.options import TokenizerSpec as TokenizerSpec


def __getattr__(name: str) -> Any:
    if name == "TokenizerSpec":
        from gpt2kit.tokenization.options import TokenizerSpec

        return TokenizerSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
