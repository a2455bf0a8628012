"""Configuration of the documentation site, which `make docs` builds with Sphinx.

The pages are plain Markdown, so that GitHub shows them as well: index.md has links instead of a table of contents, and
files outside docs/ are linked by relative paths. `adapt_to_sphinx` turns both into what Sphinx needs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from sphinx.application import Sphinx

from gpt2kit import __version__

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

project = "gpt2kit"
author = copyright = "The gpt2kit authors"
release = version = __version__
html_title = f"gpt2kit {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # links to missing headings are warnings, so `make docs` checks them
highlight_language = "none"  # most code blocks are commands

html_theme = "furo"
html_theme_options = {
    "source_repository": URLS["Repository"],
    "source_branch": "main",
    "source_directory": "docs/",
}

autodoc_typehints = "description"  # not in signatures, which are long enough
autodoc_member_order = "bysource"
napoleon_use_ivar = True  # an attribute may also be documented where it is defined
default_role = "code"  # docstrings write `name`, as Markdown does


def adapt_to_sphinx(app: Sphinx, page: str, source: list[str]) -> None:
    """Point links to files outside docs/ at the repository, and make the sections of index.md the navigation."""
    folder = (DOCS / page).parent

    def target(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        if path.is_relative_to(DOCS):
            return match[0]
        return f"]({URLS['Repository']}/blob/main/{path.relative_to(ROOT).as_posix()}"

    source[0] = re.sub(r"\]\((\.\./[^)#\s]+)", target, source[0])
    if page == "index":
        for section in source[0].split("\n## ")[1:]:
            pages = re.findall(r"^\* \[(.*?)\]\(([\w/]+)\.md\)", section, re.MULTILINE)
            entries = "\n".join(f"{title} <{name}>" for title, name in pages)
            if entries:
                caption = section.partition("\n")[0]
                source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def setup(app: Sphinx) -> None:
    app.connect("source-read", adapt_to_sphinx)
