"""Pages from templates: one file, no script, nothing fetched. All text is escaped, and hidden characters are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
# Nats from which on the colour stays the deepest.
_DEEPEST = 10.0
# Controls but the line end and the tab, other line ends, and direction marks, which make text look like other text.
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")


def render(template: str, folder: Path = TEMPLATES, **values: object) -> str:
    """Fill a template; in one for HTML everything is escaped and marked. A missing value is an error."""
    import jinja2  # here, so that --help need not wait for it

    is_html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=is_html,
        finalize=lambda value: mark_hidden(value) if is_html and type(value) is str else value,  # not what is markup
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
    """Return a passage of a text as the template needs it.

    Args:
        number: of the document, from 0.
        why: it is on the page.
        bits: per byte, of the whole document.
        boxes: pieces of the text, each with the nats of its tokens.
        more: tokens that are left out.
    """
    return {"number": number + 1, "why": why, "bits": bits, "boxes": [_box(*box) for box in boxes], "more": more}


def _box(text: str, nats: Sequence[float]) -> dict[str, str]:
    figures = " + ".join(f"{value:.2f}" for value in nats)
    tokens = f", {len(nats)} tokens" if len(nats) > 1 else ""
    return {"text": visible(text) or "·", "depth": depth(sum(nats) / len(nats)), "title": f"{figures} nats{tokens}"}


def visible(text: str) -> str:
    """Show line ends and tabs by signs, and hidden characters by their numbers."""
    return mark_hidden(text).replace("\n", "↵\n").replace("\t", "→\t")


def mark_hidden(text: str) -> str:
    """Show characters that are invisible, or that hide others, by their numbers, such as <U+202E>."""
    return _HIDDEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def depth(nats: float) -> str:
    """Return the colour's opacity: 0 for a token that was certain, 0.85 from _DEEPEST nats on."""
    return f"{0.85 * min(max(nats, 0.0) / _DEEPEST, 1.0):.2f}"
