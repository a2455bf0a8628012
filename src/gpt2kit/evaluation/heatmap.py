"""A page that shows some documents with each token coloured by its nats: one file, no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from gpt2kit.data.store import TokenStore
from gpt2kit.evaluation.options import Precision
from gpt2kit.evaluation.scoring import Windows, boundaries, token_nats
from gpt2kit.evaluation.statistics import Sums
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.runs import pages

FIRST, HARDEST = 3, 10
"""Documents that are shown: those at the text's beginning, and the hardest."""

MOST = 1000
"""Tokens of a document that are shown at most."""

_LEAST = 32
"""Bytes of a document that may be called hard; a shorter one is hard by chance."""

_HELD = 16
"""Tokens that one character may have at most."""


@dataclass(frozen=True)
class Passage:
    """A document, or the beginning of a long one.

    Args:
        number: of the document in the text, from 0.
        why: it is shown.
        bits_per_byte: of the whole document.
        boxes: pieces of its text, each with the nats of its tokens.
        more: tokens of it that are not shown.
    """

    number: int
    why: str
    bits_per_byte: float
    boxes: list[tuple[str, list[float]]]
    more: int


def chosen(sums: Sums, of: str = "") -> list[tuple[int, str]]:
    """The documents to show, and why: the first ones, and those with the most bits per byte, hardest first.

    `of` names the checkpoint that finds them hard, if others are shown beside it.
    """
    bits = np.divide(sums.nll, sums.bytes * np.log(2), out=np.zeros(len(sums.nll)), where=sums.bytes >= _LEAST)
    hardest = [int(n) for n in np.argsort(-bits, kind="stable")[:HARDEST] if bits[n] > 0]
    first = range(min(FIRST, len(bits)))
    return [(n, "at the beginning") for n in first] + [
        (n, f"among the hardest{of and f' for {of}'}") for n in hardest if n not in first
    ]


def boxes(tokenizer: Tokenizer, ids: list[int], nats: list[float]) -> list[tuple[str, list[float]]]:
    """The text of tokens in whole characters, each piece with the nats of its tokens."""
    found: list[tuple[str, list[float]]] = []
    before: list[int] = []
    held: list[int] = []
    known = ""
    for at, token in enumerate(ids):
        held.append(token)
        text = tokenizer.decode(before + held, skip_special_tokens=False)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") or len(held) >= _HELD or at == len(ids) - 1:
            found.append((text[len(known) :], nats[at + 1 - len(held) : at + 1]))
            before, held = held, []
            known = tokenizer.decode(before, skip_special_tokens=False)
    return found


def passage(
    gpt2: GPT2,
    tokenizer: Tokenizer,
    store: TokenStore,
    windows: Windows,
    sums: Sums,
    precision: Precision,
    number: int,
    why: str,
) -> Passage:
    """A document's tokens, its end among them, with the nats that the test has counted for them."""
    start, end = boundaries(store)[number : number + 2].tolist()
    stop = min(end, start + MOST)
    if stop <= start:  # a tokenizer that loses text may leave nothing of a document
        return Passage(number, why, 0.0, [], 0)
    nats = token_nats(gpt2, store, windows, start, stop, precision)
    bits = float(sums.nll[number] / math.log(2) / sums.bytes[number])
    return Passage(number, why, bits, boxes(tokenizer, store[start:stop].tolist(), nats.tolist()), end - stop)


def page(checkpoints: Iterable[tuple[str, str, list[Passage]]]) -> str:
    """The whole page: for each checkpoint its name, its figures, and its passages."""
    shown = [
        (name, figures, [pages.passage(p.number, p.why, p.bits_per_byte, p.boxes, p.more) for p in passages])
        for name, figures, passages in checkpoints
    ]
    return pages.render("heatmap.html", title="Nats per token", checkpoints=shown)
