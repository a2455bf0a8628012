"""Write a checkpoint as a Hugging Face folder: `python export.py --ckpt_path RUN --output_dir NEW`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.cli import export, parser

if __name__ == "__main__":
    parser.run(export.export)
