"""Read documents from files and URLs."""

from gpt2kit.text.reader import Reader

__all__ = ["Reader"]
