"""Pages from templates: one file, no script, nothing fetched; text is escaped, and nothing in it is hidden."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
_DEEPEST = 10.0
"""Nats from which on the colour stays the deepest."""
_DIRECTIONS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def render(template: str, folder: Path = TEMPLATES, **values: object) -> str:
    """Fill a template; in one for HTML everything is escaped. A name that it lacks is an error."""
    import jinja2  # here, so that --help need not wait for it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = visible
    environment.globals["key"] = [(nats, depth(nats)) for nats in (0, 1, 2, 4, 6, 8, 10)]
    return environment.get_template(template).render(values)


def passage(
    number: int, why: str, bits: float, boxes: Iterable[tuple[str, Sequence[float]]], more: int
) -> dict[str, Any]:
    """A passage of a text as the template shows it.

    Args:
        number: of the document, from 0.
        why: it is shown.
        bits: per byte, of the whole document.
        boxes: pieces of the text, each with the nats of its tokens.
        more: tokens that are not shown.
    """
    return {"number": number + 1, "why": why, "bits": bits, "boxes": [_box(*box) for box in boxes], "more": more}


def _box(text: str, nats: Sequence[float]) -> dict[str, str]:
    figures = " + ".join(f"{one:.2f}" for one in nats)
    tokens = f", {len(nats)} tokens" if len(nats) > 1 else ""
    return {"text": visible(text) or "·", "depth": depth(sum(nats) / len(nats)), "title": f"{figures} nats{tokens}"}


def visible(text: str) -> str:
    """Show line ends and tabs by a sign; controls and marks of direction, which may hide text, as numbers."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t":
        return {"\n": "↵\n", "\t": "→\t"}[character]
    hidden = ord(character) < 32 or 0x7F <= ord(character) < 0xA0 or character in _DIRECTIONS
    return f"U+{ord(character):04X}" if hidden else character


def depth(nats: float) -> str:
    """The colour's opacity: 0 for what was certain, 0.85 from _DEEPEST nats on."""
    return f"{0.85 * min(max(nats, 0.0) / _DEEPEST, 1.0):.2f}"
