"""Generate text: `python generate.py last --prompt "Once"`, the same as `gpt2kit generate last --prompt "Once"`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from gpt2kit.__main__ import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
