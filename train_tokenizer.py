"""Train a tokenizer: `python train_tokenizer.py --files data/train/*.txt --output_dir tokenizers/mine`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.cli import parser, train_tokenizer

if __name__ == "__main__":
    parser.run(train_tokenizer.train_tokenizer)
