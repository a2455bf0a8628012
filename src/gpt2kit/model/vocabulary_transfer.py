"""A model moved to another vocabulary: each new piece begins as the mean of the old pieces that spell it.

What two vocabularies have in common is copied. Special tokens are in no mean: they stand for ends of texts, not for
letters. Rows are of the one matrix that is both input and output embedding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from gpt2kit.tokenization.tokenizer import added_ids, token_bytes


@dataclass(frozen=True)
class Spelling:
    """The old ids that each new id is made of: one that is the same piece, several that spell it, or none.

    Args:
        old: for each new id.
        ordinary: the old ids that are neither special nor holes; what none spells begins as the mean of all these.
    """

    old: list[list[int]]
    ordinary: list[int]

    def counts(self) -> dict[str, int]:
        """New pieces that are copied, that are means, that no old pieces spell; and the old pieces in all means."""
        sizes = Counter(min(len(ids), 2) for ids in self.old)
        spelling = sum(len(ids) for ids in self.old if len(ids) > 1)
        return {"copied": sizes[1], "spelled": sizes[2], "of": spelling, "unspelled": sizes[0]}

    @property
    def is_identity(self) -> bool:
        """Whether each new id is the old id of the same number."""
        return all(ids == [i] for i, ids in enumerate(self.old))


def spelling(new: Tokenizer, old: Tokenizer) -> Spelling:
    """How the old vocabulary spells each piece of the new one.

    In this order: the old piece of the same bytes; the old tokenizer's own encoding of the piece's text; the longest
    old pieces that make its bytes (a piece may be part of a character, or stand where the tokenizer would not cut).
    """
    old_bytes, old_added = token_bytes(old), added_ids(old)
    ordinary = [i for i, text in enumerate(old_bytes) if text and i not in old_added]
    by_bytes: dict[bytes, int] = {}
    for i in sorted(ordinary, key=lambda i: str(old.id_to_token(i)).startswith("<0x")):  # a letter before its byte
        by_bytes.setdefault(old_bytes[i], i)
    new_bytes, new_added = token_bytes(new), added_ids(new)
    found: list[list[int]] = [[] for _ in new_bytes]
    asked: dict[int, str] = {}
    for i, text in enumerate(new_bytes):
        if i in new_added:
            same = old.token_to_id(str(new.id_to_token(i)))
            found[i] = [same] if same is not None else []
        elif i < len(old_bytes) and text and i not in old_added and old_bytes[i] == text:
            found[i] = [i]
        elif text in by_bytes:
            found[i] = [by_bytes[text]]
        elif text:
            asked[i] = text.decode("utf-8", errors="replace")
    encoded = old.encode_batch(list(asked.values()), add_special_tokens=False) if asked else []
    unknown = getattr(old.model, "unk_token", None)
    bare = old_added | ({old.token_to_id(unknown)} if unknown else set())
    for i, one in zip(asked, encoded, strict=True):
        ids = [piece for piece in one.ids if piece not in bare]
        if b"".join(old_bytes[piece] for piece in ids) == new_bytes[i]:
            found[i] = ids
        else:  # half a character, or a tokenizer that changes the text (lower case): what it gives is better than none
            found[i] = _longest(new_bytes[i], by_bytes) or (ids if "\N{REPLACEMENT CHARACTER}" not in asked[i] else [])
    return Spelling(found, ordinary)


def moved(rows: Tensor, how: Spelling, count: int) -> Tensor:
    """The new embedding, `[count, n_embd]`, of the old one's `rows`; rows beyond the new vocabulary are 0.

    A row that is copied keeps its bits.
    """
    found = torch.zeros(count, rows.shape[1], dtype=rows.dtype)
    sizes = torch.tensor([len(ids) for ids in how.old])
    source = torch.tensor([piece for ids in how.old for piece in ids], dtype=torch.long)
    target = torch.repeat_interleave(torch.arange(len(how.old)), sizes)
    found.index_add_(0, target, rows[source])
    found[: len(sizes)] /= sizes.clamp(min=1)[:, None]
    if not sizes.all():
        found[: len(sizes)][sizes == 0] = rows[how.ordinary].mean(0)
    return found


def positions(rows: Tensor, count: int) -> Tensor:
    """Position embeddings for a context of `count`: the first ones of a longer context, or a shorter one's stretched.

    Stretched (a straight line between neighbours), every new position is like one that the model knows: it works from
    the first step on, where rows that are repeated or new do no better than random ones (docs/huggingface.md).
    """
    if count <= len(rows):
        return rows[:count].clone()
    return F.interpolate(rows.T[None], size=count, mode="linear", align_corners=True)[0].T.contiguous()


def _longest(text: bytes, by_bytes: dict[bytes, int]) -> list[int]:
    """The ids whose bytes make `text`, the longest first at each place; none if some place has no piece."""
    found, at = [], 0
    while at < len(text):
        end = next((end for end in range(len(text), at, -1) if text[at:end] in by_bytes), None)
        if end is None:
            return []
        found.append(by_bytes[text[at:end]])
        at = end
    return found
