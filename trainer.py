"""Train a GPT-2 on your own text: `python trainer.py my_texts/`, the same as `gpt2kit train my_texts/`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
