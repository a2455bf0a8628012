"""HTML pages from templates: one file without scripts or external resources; text is escaped and nothing is hidden."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
# Control characters except newline and tab, other line separators, direction marks, which can disguise text, and halves
# of surrogate pairs, which no file can hold.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def render(template: str, folder: Path = TEMPLATES, **values: object) -> str:
    """Fill in a template; a name without a value is an error. HTML is escaped, and shows hidden characters."""
    import jinja2  # here, so that --help does not wait for it

    is_html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=is_html,
        finalize=lambda value: mark_hidden(value) if is_html and type(value) is str else value,  # but not Markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = visible
    environment.globals["key"] = [(nats, opacity(nats)) for nats in (0, 1, 2, 4, 6, 8, 10)]
    return valid_unicode(environment.get_template(template).render(values))


def valid_unicode(text: str) -> str:
    """Return a text with ? for half surrogate pairs, which names of files and texts in a checkpoint may have.

    With one of them, a page can be neither written nor sent.
    """
    return text.encode(errors="replace").decode()


def passage(
    number: int, why: str, bits_per_byte: float, boxes: Iterable[tuple[str, Sequence[float]]], more: int
) -> dict[str, Any]:
    """Return a passage for the template tokens.html; `boxes` are pieces of text with the nats of their tokens."""
    spans = []
    for text, nats in boxes:
        tokens = f", {len(nats)} tokens" if len(nats) > 1 else ""
        title = " + ".join(f"{token:.2f}" for token in nats) + f" nats{tokens}" if nats else "not predicted"
        mean = sum(nats) / max(len(nats), 1)
        spans.append({"text": visible(text) or "·", "opacity": opacity(mean), "title": title})
    title = f"document {number + 1:,}, {visible(why)}, {bits_per_byte:.3f} bits per byte"
    return {"title": title, "boxes": spans, "more": f"{more:,}" if more else ""}


def visible(text: str) -> str:
    """Put a sign before each newline and tab, and show hidden characters by their code points."""
    return mark_hidden(text).replace("\n", "↵\n").replace("\t", "→\t")


def mark_hidden(text: str) -> str:
    """Show characters that are invisible, or that hide others, by their code points, such as <U+202E>."""
    return _HIDDEN.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def opacity(nats: float) -> str:
    """Return the opacity of a token's colour: 0 for a certain token, 0.85 from 10 nats on."""
    return f"{0.85 * min(max(nats, 0.0) / 10, 1.0):.2f}"
