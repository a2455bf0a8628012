"""Move a model to another vocabulary: a new token starts as the mean of the old tokens that spell it.

Tokens that both vocabularies have are copied. Special tokens are not averaged: they mark ends of texts, not characters.
One matrix is both the input and the output embedding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from gpt2kit.tokenization.tokenizer import EOS, added_ids, encode, size, token_bytes


@dataclass(frozen=True)
class VocabularyMapping:
    """The old ids for each new id: one for the same token, several that spell it, or none."""

    old_ids: list[list[int]]  # for each new id
    text_ids: list[int]  # old ids that are text; a new token that they do not spell starts as the mean of all
    adds_end: bool = False  # each id stays, and an end-of-text token follows the last one

    def counts(self) -> dict[str, int]:
        """Count new tokens by how they start: copied, spelled (a mean) or unspelled; `of`: old tokens in all means."""
        sizes = Counter(min(len(ids), 2) for ids in self.old_ids)
        in_means = sum(len(ids) for ids in self.old_ids if len(ids) > 1)
        return {"copied": sizes[1], "spelled": sizes[2], "of": in_means, "unspelled": sizes[0]}

    @property
    def is_identity(self) -> bool:
        """Whether each id stays the same."""
        return all(ids == [i] for i, ids in enumerate(self.old_ids))


def map_line_break(new: Tokenizer, old: Tokenizer) -> VocabularyMapping | None:
    """Return the mapping if `new` is `old` with a token that became the line break; it keeps its row. Else None.

    If that token ended texts in `old`, `new` has another end-of-text token after the last id.
    """
    old_size, new_bytes = size(old), token_bytes(new)
    changed = [i for i in range(old_size) if old.id_to_token(i) != new.id_to_token(i)]
    if not changed or any(new_bytes[i : i + 1] != [b"\n"] for i in changed):
        return None
    added = [new.id_to_token(i) for i in range(old_size, len(new_bytes))]
    if added not in ([], [EOS]):
        return None
    old_ids = [[i] for i in range(old_size)] + [[] for _ in added]
    return VocabularyMapping(old_ids, _text_ids(old), adds_end=bool(added))


def map_vocabulary(new: Tokenizer, old: Tokenizer) -> VocabularyMapping:
    """Find the old ids for each new id.

    The first of these that exists: the old token with the same bytes; the old tokenizer's encoding of the token's text;
    the longest old tokens that make up its bytes, since a token may be part of a character or span two words.
    """
    old_bytes, old_added = token_bytes(old), added_ids(old)
    text_ids = _text_ids(old)
    by_bytes: dict[bytes, int] = {}
    for i in sorted(text_ids, key=lambda i: str(old.id_to_token(i)).startswith("<0x")):  # byte tokens last
        by_bytes.setdefault(old_bytes[i], i)
    unknown = getattr(old.model, "unk_token", None)
    not_text = old_added | ({old.token_to_id(unknown)} if unknown else set())
    new_bytes, new_added = token_bytes(new), added_ids(new)
    old_ids: list[list[int]] = [[] for _ in new_bytes]
    for i, piece in enumerate(new_bytes):
        if i in new_added:
            same = old.token_to_id(str(new.id_to_token(i)))
            old_ids[i] = [same] if same is not None else []
        elif i < len(old_bytes) and piece and i not in old_added and old_bytes[i] == piece:
            old_ids[i] = [i]
        elif piece in by_bytes:
            old_ids[i] = [by_bytes[piece]]
        elif piece:
            text = piece.decode("utf-8", errors="replace")
            ids = [j for j in encode(old, text) if j not in not_text]
            if b"".join(old_bytes[j] for j in ids) != piece:
                # The piece is part of a character, or the old tokenizer changes text, such as to lower case. Then its
                # ids are still better than none.
                ids = _longest_tokens(piece, by_bytes) or (ids if "\N{REPLACEMENT CHARACTER}" not in text else [])
            old_ids[i] = ids
    return VocabularyMapping(old_ids, text_ids)


def _text_ids(tokenizer: Tokenizer) -> list[int]:
    added = added_ids(tokenizer)
    return [i for i, text in enumerate(token_bytes(tokenizer)) if text and i not in added]


def _longest_tokens(text: bytes, by_bytes: dict[bytes, int]) -> list[int]:
    """Return the ids whose bytes make up `text`, the longest first at each point; none if a byte has no token."""
    ids, start = [], 0
    while start < len(text):
        end = next((end for end in range(len(text), start, -1) if text[start:end] in by_bytes), None)
        if end is None:
            return []
        ids.append(by_bytes[text[start:end]])
        start = end
    return ids


def remap_embedding(embedding: Tensor, mapping: VocabularyMapping, rows: int) -> Tensor:
    """Return the new embedding, `[rows, n_embd]`; a copied row keeps its bits, rows beyond the vocabulary are 0."""
    remapped = torch.zeros(rows, embedding.shape[1], dtype=embedding.dtype)
    sizes = torch.tensor([len(ids) for ids in mapping.old_ids])
    source = torch.tensor([i for ids in mapping.old_ids for i in ids], dtype=torch.long)
    target = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    remapped.index_add_(0, target, embedding[source])
    remapped[: len(sizes)] /= sizes.clamp(min=1)[:, None]
    if not sizes.all():
        remapped[: len(sizes)][sizes == 0] = embedding[mapping.text_ids].mean(0)
    return remapped


def resize_positions(positions: Tensor, count: int) -> Tensor:
    """Return position embeddings, `[count, n_embd]`: the first ones, or all of them interpolated to a longer context.

    An interpolated position is like one that the model knows, so it works from the first step on; repeated or new rows
    are no better than random ones (docs/experiments.md).
    """
    if count <= len(positions):
        return positions[:count].clone()
    return F.interpolate(positions.T[None], size=count, mode="linear", align_corners=True)[0].T.contiguous()
