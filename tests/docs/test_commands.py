"""The options in the documentation's commands exist."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import cli_page

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "data/README.md"]
PAGES.remove(ROOT / "docs/experiments.md")  # its commands belong to the commits that it names
# Options of trainer.py besides those with a value: sections, and what jsonargparse adds.
ADDED = {"help", "print_config", "debug", "data", "model", "trainer"}
option_names = cache(cli_page.option_names)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return the script and the options of each command in a page's code blocks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ *(?:python|torchrun [^#\n]*?) ?(\S+\.py)\b([^#\n]*)", text, re.MULTILINE)
    verbs = re.findall(rf"^ *gpt2kit ({'|'.join(cli_page.COMMANDS)})\b([^#\n]*)", text, re.MULTILINE)
    lines += [(cli_page.script_of(verb), arguments) for verb, arguments in verbs]
    return [(script, re.findall(r" --([\w.]+)", arguments)) for script, arguments in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_commands_exist(page: Path) -> None:
    for script, options in commands(page):
        if script in {*cli_page.SCRIPTS, *cli_page.VERBS, "trainer.py"}:
            unknown = set(options) - option_names(script) - ADDED
            assert not unknown, f"{script}: {unknown}"
        else:
            assert (ROOT / script).is_file(), script


def test_commands_are_found() -> None:
    assert ("trainer.py", ["config", "part"]) in commands(ROOT / "docs/distributed.md")
    assert ("test.py", ["ckpt_path"]) in commands(ROOT / "docs/evaluation.md"), "behind torchrun, too"
    assert ("generate.py", ["prompt", "num_samples"]) in commands(ROOT / "docs/generation.md")
    assert ("gpt2kit runs", []) in commands(ROOT / "docs/monitoring.md")
