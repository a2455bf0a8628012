"""Train a GPT-2 on your own text: `python trainer.py --config configs/recipe/python.yaml`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a rank that has gone is reported in one line, without stacks

from gpt2kit.cli import parser, train

if __name__ == "__main__":
    parser.guarded(train.main)
