"""Train a tokenizer: `python train_tokenizer.py my_texts/ --output_dir NEW`, the same as `gpt2kit tokenize`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.__main__ import main

if __name__ == "__main__":
    main(["tokenize", *sys.argv[1:]])
