"""A page of documents with each token coloured by its nats: one file, no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from gpt2kit.evaluation.scoring import Scorer
from gpt2kit.evaluation.statistics import DocumentScores
from gpt2kit.generation.text_stream import TextStream
from gpt2kit.runs import pages

# Documents on the page: the first ones of the text, and the hardest ones.
FIRST, HARDEST = 3, 10
# Tokens of a document on the page, at most.
MAX_TOKENS = 1000
# A shorter document is hard by chance.
_MIN_BYTES = 32

# Some characters, and the nats of their tokens.
Box = tuple[str, list[float]]


@dataclass(frozen=True)
class Passage:
    """A document, or the beginning of a long one."""

    number: int  # of the document in the text, from 0
    why: str  # it is on the page
    bits_per_byte: float  # of the whole document
    boxes: list[Box]
    more: int  # tokens that are left out


def select_documents(scores: DocumentScores, checkpoint: str = "") -> list[tuple[int, str]]:
    """Return which documents the page has, and why: the first ones, and those with the most bits per byte.

    `checkpoint` is the one that finds them hard, if the page has several.
    """
    is_long = scores.bytes >= _MIN_BYTES
    bits = np.divide(scores.nll, scores.bytes * math.log(2), out=np.zeros(len(scores)), where=is_long)
    hardest = [int(number) for number in np.argsort(-bits, kind="stable")[:HARDEST] if bits[number] > 0]
    first = range(min(FIRST, len(scores)))
    why = f"among the hardest for {checkpoint}" if checkpoint else "among the hardest"
    return [(number, "at the beginning") for number in first] + [(n, why) for n in hardest if n not in first]


def make_passage(scorer: Scorer, tokenizer: Tokenizer, scores: DocumentScores, number: int, why: str) -> Passage:
    """Return a document's tokens, its end among them, with the nats that the test has counted for them."""
    start, end = scorer.boundaries[number : number + 2].tolist()
    stop = min(end, start + MAX_TOKENS)
    if stop <= start:  # a tokenizer that loses text may leave no token of a document
        return Passage(number, why, 0.0, [], 0)
    nats = scorer.token_nats(start, stop).tolist()
    bits = float(scores.nll[number] / math.log(2) / scores.bytes[number])
    return Passage(number, why, bits, make_boxes(tokenizer, scorer.store[start:stop].tolist(), nats), end - stop)


def make_boxes(tokenizer: Tokenizer, ids: Sequence[int], nats: Sequence[float]) -> list[Box]:
    """Return the text of tokens in whole characters, with the nats of each one's tokens."""
    stream = TextStream(tokenizer)
    boxes: list[Box] = []
    held: list[float] = []
    for token, value in zip(ids, nats, strict=True):
        held.append(value)
        if text := stream.push(token):
            boxes.append((text, held))
            held = []
    return [*boxes, (stream.flush(), held)] if held else boxes


def render_page(checkpoints: Iterable[tuple[str, str, list[Passage]]]) -> str:
    """Return the page: for each checkpoint its name, its figures and its passages."""
    sections = [
        (name, figures, [pages.passage(p.number, p.why, p.bits_per_byte, p.boxes, p.more) for p in passages])
        for name, figures, passages in checkpoints
    ]
    return pages.render("heatmap.html", title="Nats per token", checkpoints=sections)
