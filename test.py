"""Test a checkpoint on text: `python test.py last`, the same as `gpt2kit test last`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.__main__ import main

if __name__ == "__main__":
    main(["test", *sys.argv[1:]])
