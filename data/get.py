"""Fetch the public text of a recipe: python data/get.py poems (--help tells more, data/README.md what there is)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from gpt2kit.cli import parser
from gpt2kit.data import corpora

if __name__ == "__main__":
    parser.run(corpora.get)
