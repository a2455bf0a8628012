"""Generate text with a trained model: `python generate.py --ckpt_path lightning_logs/version_0 --prompt "Once"`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.cli import generate, parser

if __name__ == "__main__":
    parser.run(generate.generate)
