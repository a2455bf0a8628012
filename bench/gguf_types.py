"""Bits per byte with the weights of each type of GGUF file, and the size of the file.

    python bench/gguf_types.py --ckpt_path lightning_logs/version_0 --files text.txt --reader.document line

The weights are rounded as `export --gguf_type` does, and test.py computes the figures with them. Other arguments are
those of test.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from machine import ROOT

from gpt2kit.checkpoint import checkpoint
from gpt2kit.export import gguf as gguf_file
from gpt2kit.export import huggingface
from gpt2kit.model.config import GGUFType


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, help="a run folder, a .ckpt file or a Hugging Face folder")
    args, arguments = parser.parse_known_args()
    opened = checkpoint.open(args.ckpt_path)
    state = huggingface.round_weights(opened, "float32")
    with tempfile.TemporaryDirectory(prefix="gpt2kit-bench-") as scratch:
        folders = []
        for gguf_type in get_args(GGUFType):
            folder = Path(scratch, gguf_type)
            folder.mkdir()
            rounded = dataclasses.replace(opened, state=gguf_file.round_weights(opened.state, gguf_type))
            huggingface.write(rounded, folder, gguf_type, "float32")
            file = Path(scratch, "model.gguf")
            gguf_file.write(file, opened.shape, state, opened.tokenizer, gguf_type, gguf_type)
            print(f"{gguf_type}: {file.stat().st_size / 1e6:,.1f} MB", flush=True)
            folders.append(folder)
        sys.exit(subprocess.run([sys.executable, ROOT / "test.py", *folders, *arguments]).returncode)


if __name__ == "__main__":
    main()
