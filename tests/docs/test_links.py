"""Relative links of the documentation lead to existing files and headings; index.md lists every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import ROOT

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), ROOT / "data/README.md"]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_index_lists_every_page_of_the_site() -> None:
    """Its lists become the navigation of the site."""
    pages = re.findall(r"^\* \[.*?\]\((.*?)\): ", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(pages) == sorted(
        path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.stem != "index"
    )
