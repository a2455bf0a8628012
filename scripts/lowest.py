"""Print the lowest versions that pyproject.toml allows, except torch's, as constraints for pip: for `make lowest`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for requirement in sorted({*project["dependencies"], *(package for extra in extras for package in extra)}):
        bound = re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", requirement)
        if bound and bound[1] != "torch":
            print(f"{bound[1]}=={bound[2]}")


if __name__ == "__main__":
    main()
