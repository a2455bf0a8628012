"""Options of an export: its model card, and its HTML page. No torch, because `--help` imports them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt2kit.errors import Problems
from gpt2kit.hub import is_repository

HtmlDtype = Literal["int8", "float16", "float32"]

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")


@dataclass(frozen=True)
class CardOptions:
    """What the model card says besides what the run recorded."""

    license: str | None = None
    """License of the model for its card and page, by the hub's identifier: apache-2.0, mit, cc-by-sa-4.0, other.
    Default: not stated."""
    language: Sequence[str] = ()
    """Languages of the text for the card, as ISO 639 codes: en, zh, de; code and multilingual are valid, too. Default:
    not stated."""
    datasets: Sequence[str] = ()
    """Training text for the card, as names of datasets on the hub: OWNER/NAME. Default: the hub datasets that the run
    was trained on."""


@dataclass(frozen=True)
class HtmlOptions:
    """What a page contains, and where it is written."""

    html: Path | None = None
    """Write one HTML file that generates text in any browser, without a server or a network."""
    html_dtype: HtmlDtype = "int8"
    """Data type of the weights in the HTML file. int8: a quarter of the size of float32, with a scale for each row."""
    html_title: str | None = None
    """Title of the page. Default: the name of the file, without .html."""


def card_problems(options: CardOptions) -> list[str]:
    """List the values that the hub would refuse or misread."""
    problems = Problems()
    problems.check(
        options.license is None or _LICENSE.fullmatch(options.license),
        f"--license {options.license!r:.60}: not an identifier. Use one of the hub's, such as apache-2.0, mit or other",
    )
    for language in options.language:
        is_code = _LANGUAGE.fullmatch(language)
        problems.check(is_code, f"--language {language!r:.60}: not a code. Use ISO 639 codes, such as en or zh")
    for dataset in options.datasets:
        problems.check(is_repository(dataset), f"--datasets {dataset!r:.60}: not a name on the hub. Use OWNER/NAME")
    return problems.messages


def repository_problems(push_to_hub: str | None, space: str | None) -> list[str]:
    """List names of repositories that the hub would refuse."""
    problems = Problems()
    is_name = push_to_hub is None or is_repository(push_to_hub)
    problems.check(is_name, f"--push_to_hub {push_to_hub!r:.60}: not a name on the hub. Use OWNER/NAME")
    is_full_name = space is None or ("/" in space and is_repository(space))
    problems.check(is_full_name, f"--space {space!r:.60}: not a name on the hub. Use OWNER/NAME")
    return problems.messages
