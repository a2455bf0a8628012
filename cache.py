"""List, verify and prune the stores of tokenized text: `python cache.py`, the same as `gpt2kit cache`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.__main__ import main

if __name__ == "__main__":
    main(["cache", *sys.argv[1:]])
