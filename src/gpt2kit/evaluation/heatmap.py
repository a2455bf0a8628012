"""A page that shows some documents with each token coloured by its nats: one file, no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from gpt2kit.data.store import TokenStore
from gpt2kit.evaluation.scoring import Precision, Windows, boundaries, token_nats
from gpt2kit.evaluation.statistics import Sums
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.runs import token_html

FIRST, HARDEST = 3, 10
"""Documents that are shown: those at the text's beginning, and the hardest."""

MOST = 1000
"""Tokens of a document that are shown at most."""

_LEAST = 32
"""Bytes of a document that may be called hard; a shorter one is hard by chance."""

_HELD = 16
"""Tokens that one character may have at most."""

_PAGE = """<!doctype html>
<html lang="und"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Nats per token</title><style>
:root {{ color-scheme: light dark; --hue: 220, 60, 20; --line: #8886; }}
body {{ font: 16px/1.7 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.5rem; }}
pre {{ white-space: pre-wrap; font-size: .8rem; }}
section {{ border-top: 1px solid var(--line); padding-top: .5rem; margin-top: 1.5rem; }}
section > p {{ margin: .2rem 0; font-size: .85rem; opacity: .75; }}
{style}@media (prefers-color-scheme: dark) {{ :root {{ --hue: 205, 75, 35; }} }}
</style></head><body><h1>Nats per token</h1>
<p>The deeper the colour, the less the model expected it; hold the pointer over a token for its nats. 0.69 nats are one
bit. A character that is several tokens is one box, coloured by their mean.</p>
<p class="key">{key}</p>
{body}
</body></html>
"""


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
    end = min(end, windows.tokens)
    stop = min(end, start + MOST)
    if stop <= start:  # a tokenizer that loses text may leave nothing of a document
        return Passage(number, why, 0.0, [], 0)
    nats = token_nats(gpt2, store, windows, start, stop, precision)
    bits = float(sums.nll[number] / math.log(2) / sums.bytes[number])
    return Passage(number, why, bits, boxes(tokenizer, store[start:stop].tolist(), nats.tolist()), end - stop)


def page(checkpoints: Iterable[tuple[str, str, list[Passage]]]) -> str:
    """The whole page: for each checkpoint its name, its figures, and its passages."""
    body = "\n".join(part for one in checkpoints for part in _section(*one))
    return _PAGE.format(key=token_html.key(), style=token_html.STYLE, body=body)


def _section(name: str, figures: str, passages: list[Passage]) -> Iterator[str]:
    yield f"<h2>{token_html.safe(name)}</h2>"
    yield "<pre>" + "\n".join(map(token_html.safe, figures.splitlines())) + "</pre>"
    for passage in passages:
        yield token_html.section(passage.number, passage.why, passage.bits_per_byte, passage.boxes, passage.more)
