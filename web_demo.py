"""Write with trained models in the browser: `python web_demo.py --ckpt_path lightning_logs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.cli import parser, web_demo

if __name__ == "__main__":
    parser.run(web_demo.serve)
