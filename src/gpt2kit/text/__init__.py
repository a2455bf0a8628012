"""Files and URLs to documents."""

from gpt2kit.text.reader import Reader

__all__ = ["Reader"]
