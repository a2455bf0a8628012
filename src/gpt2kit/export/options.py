"""The options of the HTML export. No torch, because `--help` imports them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HtmlDtype = Literal["int8", "float16", "float32"]


@dataclass(frozen=True)
class HtmlOptions:
    """What a page contains, and where it is written."""

    html: Path | None = None
    """Write one HTML file that generates text in any browser, without a server or a network."""
    html_dtype: HtmlDtype = "int8"
    """Data type of the weights in the HTML file. int8: a quarter of the size of float32, with a scale for each row."""
    html_title: str | None = None
    """Title of the page. Default: the name of the file, without .html."""
    html_licence: str | None = None
    """Licence of the model, which the page shows."""
