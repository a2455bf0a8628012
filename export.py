"""Write a checkpoint as a Hugging Face folder: `python export.py last --output_dir NEW`, as `gpt2kit export` does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.__main__ import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
