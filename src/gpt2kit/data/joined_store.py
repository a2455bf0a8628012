"""The token stores of several texts, read as one."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.index import Index
from gpt2kit.data.store import TokenStore
from gpt2kit.data.texts import Text
from gpt2kit.errors import DataError


class JoinedStore(TokenStore):
    """The stores of several texts. Their tokens are numbered one text after another.

    What is read at once, such as a block, must be of one text: it ends where the text ends.

    Args:
        stores: the store of each text, by its name.
    """

    def __init__(self, stores: Mapping[str, TokenStore]) -> None:
        self.stores = dict(stores)
        parts = list(self.stores.values())
        self.folder = parts[0].folder
        dtypes = [part.dtype for part in parts]
        self._use(
            Index(
                np.result_type(*dtypes).newbyteorder("<").str,
                parts[0].index.eos_id,
                parts[0].index.append_eos,
                parts[0].index.tokenizer,
                [file for part in parts for file in part.index.sources],
                [f"{name}: {note}" for name, part in self.stores.items() for note in part.notes],
                [shard for part in parts for shard in part.shards],
                any(part.index.loss_mask for part in parts),
            )
        )
        # The number of each text's first token.
        self.firsts = np.cumsum([0, *(part.tokens for part in parts)])[:-1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of the documents and their tokens, text by text."""
        identity = [part.fingerprint for part in self.stores.values()]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def __getitem__(self, span: slice) -> NDArray[np.unsignedinteger]:
        part, own = self._locate(span)
        return part[own]

    def marked(self, span: slice) -> NDArray[np.integer]:
        """Return tokens of one text as in a batch."""
        part, own = self._locate(span)
        return part.marked(own)

    def _locate(self, span: slice) -> tuple[TokenStore, slice]:
        """Return the text of a span's first token, and the span in it."""
        start, stop, _ = span.indices(self.tokens)
        number = int(np.searchsorted(self.firsts, start, side="right")) - 1
        first = int(self.firsts[number])
        return list(self.stores.values())[number], slice(start - first, stop - first)

    @functools.cached_property
    def predicted(self) -> tuple[int, int]:
        """The tokens that the loss counts, and their bytes. No token is predicted from another text."""
        tokens, size = np.sum([part.predicted for part in self.stores.values()], axis=0).tolist()
        return tokens, size

    def documents_by_shard(self, counted: bool = False) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """Yield hashes and sizes of the documents that end in each shard, text by text."""
        for part in self.stores.values():
            yield from part.documents_by_shard(counted)


def refuse_small_texts(texts: Sequence[Text], store: JoinedStore, block_size: int) -> None:
    """Raise DataError if one of several training texts has no block to train on."""
    for text, part in zip(texts, store.stores.values(), strict=True):
        if part.tokens <= block_size and text.fraction != 0:
            raise DataError(
                f"data.train_files.{text.name}: {part.tokens:,} tokens, fewer than a block of {block_size}. Add text "
                "to it, or decrease data.block_size"
            )
