"""List, verify and prune the stores of tokenized text: `python cache.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.cli import cache, parser

if __name__ == "__main__":
    parser.run(cache.manage)
