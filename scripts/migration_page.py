"""Write the tables of docs/migration.md from src/gpt2kit/cli/other_tools.yaml. `make cli_page` runs it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from gpt2kit import files
from gpt2kit.cli.other_names import read_tables

PAGE = Path(__file__).resolve().parent.parent / "docs" / "migration.md"


def fill(page: str) -> str:
    """Return the page with the rows of each table between its two comments."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        lines = [f"| {name} | gpt2kit |", "|---|---|"]
        lines += [f"| {old} | {new} |" for old, new in map(escape, read_tables()[name].items())]
        return f"<!-- table: {name} -->\n" + "\n".join(lines) + "\n<!-- end -->"

    return re.sub(r"<!-- table: ([^\n]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def escape(cells: tuple[str, str]) -> list[str]:
    """Return the cells of a row as Markdown."""
    return [cell.replace("|", "\\|") for cell in cells]


if __name__ == "__main__":
    files.write_text(PAGE, fill(PAGE.read_text(encoding="utf-8")))
