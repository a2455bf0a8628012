"""Test a checkpoint on text: `python test.py --ckpt_path lightning_logs/version_0`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.cli import parser, test

if __name__ == "__main__":
    parser.run(test.test)
