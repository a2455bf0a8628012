"""Which documents of one text are for training, which for validation and which for testing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "valid", "test"]

HEAD = 1 << 16
"""Characters of a document that decide its split: less than half a PIECE, so that they are always in hand."""


@dataclass(frozen=True)
class Share:
    """The documents of a text whose hash lies in [low, high) of 0 to 1: one split of it.

    The hash is of the seed and of the document's first HEAD characters. So it does not depend on the order, equal
    documents fall together, and a test share stays the same when the validation share changes.
    """

    low: float
    high: float
    seed: int

    def has(self, head: str) -> bool:
        """Whether a document that begins with `head` (all of it, or HEAD characters at least) is among them."""
        text = f"{self.seed}\n{head[:HEAD]}".encode("utf-8", "surrogatepass")
        place = int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / (1 << 48)
        return self.low <= place < self.high


def shares(valid_share: float, test_share: float, seed: int) -> dict[Split, Share]:
    """The shares of the training text that each split takes, if any is shared out.

    Test documents hash to the lower end and validation documents to the upper: changing one leaves the other alone.
    """
    if not valid_share and not test_share:
        return {}
    found: dict[Split, Share] = {"train": Share(test_share, 1.0 - valid_share, seed)}
    if valid_share:
        found["valid"] = Share(1.0 - valid_share, 1.0, seed)
    if test_share:
        found["test"] = Share(0.0, test_share, seed)
    return found


def split_problems(options: dict[str, Any]) -> list[str]:
    """What is wrong with the data module's shares, in the words of its options."""
    found = []
    for split in ("valid", "test"):
        share = options[f"{split}_share"]
        if not 0 <= share < 1:
            found.append(f"data.{split}_share {share}: must be from 0 to below 1")
        if share and options[f"{split}_files"]:
            found.append(f"data.{split}_share {share}: data.{split}_files are given, too. Leave one out")
    both = options["valid_share"] + options["test_share"]
    return found or (
        [f"data.valid_share and data.test_share: {both} leaves nothing to learn from"] if both >= 1 else []
    )
