"""HTML pages from templates: one file without scripts or external resources; text is escaped and nothing is hidden."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
# Control characters and marks of direction, which may hide text, are shown by their code points.
_HIDDEN = (*range(32), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = {**{code: f"U+{code:04X}" for code in _HIDDEN}, ord("\n"): "↵\n", ord("\t"): "→\t"}


def render(template: str, folder: Path = TEMPLATES, **values: object) -> str:
    """Fill in a template. In HTML all values are escaped; a name without a value is an error."""
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
    environment.globals["key"] = [(nats, opacity(nats)) for nats in (0, 1, 2, 4, 6, 8, 10)]
    return environment.get_template(template).render(values)


def passage(
    number: int, why: str, bits_per_byte: float, boxes: Iterable[tuple[str, Sequence[float]]], more: int
) -> dict[str, Any]:
    """Return a passage for the template tokens.html; `boxes` are pieces of text with the nats of their tokens."""
    shown = []
    for text, nats in boxes:
        tokens = f", {len(nats)} tokens" if len(nats) > 1 else ""
        title = " + ".join(f"{token:.2f}" for token in nats) + f" nats{tokens}"
        shown.append({"text": visible(text) or "·", "opacity": opacity(sum(nats) / len(nats)), "title": title})
    return {"number": number + 1, "why": why, "bits_per_byte": bits_per_byte, "boxes": shown, "more": more}


def visible(text: str) -> str:
    """Mark line ends and tabs, and show characters that may hide text by their code points."""
    return text.translate(_VISIBLE)


def opacity(nats: float) -> str:
    """Return the opacity of a token's colour: 0 for a certain token, 0.85 from 10 nats on."""
    return f"{0.85 * min(max(nats, 0.0) / 10, 1.0):.2f}"
