"""Text in HTML, escaped, with nothing hidden in it; and tokens coloured by their nats."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_TOP = 10.0
"""Nats from which on the colour stays the deepest."""

_DIRECTIONS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

STYLE = """div.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
div.text span, .key span { background: rgba(var(--hue), var(--a)); border-radius: 2px; }
div.text span:hover { outline: 2px solid currentColor; }
.key span { padding: 0 .5rem; margin-right: .3rem; }
.mark { opacity: .6; }
"""
"""The rules that `coloured` and `key` need, beside a colour `--hue` such as 220, 60, 20."""


def key() -> str:
    """What the colours mean."""
    return "".join(f'<span style="--a:{_depth(nats):.2f}">{nats:g}</span>' for nats in (0, 1, 2, 4, 6, 8, 10))


def coloured(boxes: Iterable[tuple[str, Sequence[float]]], more: int) -> str:
    """A passage: pieces of text, each with the nats of its tokens; `more`: tokens that are not shown."""
    rest = f'<span class="mark">… {more:,} more tokens</span>' if more else ""
    return f'<div class="text" dir="auto">{"".join(_box(*box) for box in boxes)}{rest}</div>'


def section(number: int, why: str, bits: float, boxes: Iterable[tuple[str, Sequence[float]]], more: int) -> str:
    """A passage of a text with what it is: the document's number from 0, why it is shown, its bits per byte."""
    told = f"document {number + 1:,}, {safe(why)}, {bits:.3f} bits per byte"
    return f"<section><p>{told}</p>{coloured(boxes, more)}</section>"


def safe(text: str) -> str:
    """Escaped; line ends, controls and marks of direction are shown."""
    return html.escape("".join(map(_visible, text)))


def _box(text: str, nats: Sequence[float]) -> str:
    depth = _depth(sum(nats) / len(nats))
    told = (
        f"{nats[0]:.2f} nats"
        if len(nats) == 1
        else f"{' + '.join(f'{one:.2f}' for one in nats)} nats, {len(nats)} tokens"
    )
    shown = safe(text) or "·"
    return f'<span style="--a:{depth:.2f}" title="{told}">{shown}</span>'


def _visible(character: str) -> str:
    """Line ends and tabs with a sign before them; controls and marks of direction, which may hide text, as numbers."""
    if character in "\n\t":
        return {"\n": "↵\n", "\t": "→\t"}[character]
    hidden = ord(character) < 32 or 0x7F <= ord(character) < 0xA0 or character in _DIRECTIONS
    return f"U+{ord(character):04X}" if hidden else character


def _depth(nats: float) -> float:
    """The colour's opacity: 0 for what was certain, 0.85 from _TOP nats on."""
    return 0.85 * min(max(nats, 0.0) / _TOP, 1.0)
