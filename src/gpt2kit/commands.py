"""The names of commands as the user types them: `gpt2kit test`, or `test.py` if a script of a clone is running."""

from __future__ import annotations

import sys
from pathlib import Path

_SCRIPTS = {"train": "trainer.py", "tokenize": "train_tokenizer.py", "demo": "web_demo.py"}


def is_script() -> bool:
    """Return whether this process runs a script, not `gpt2kit` or `python -m gpt2kit`."""
    program = Path(sys.argv[0])
    return program.suffix == ".py" and program.name != "__main__.py"


def command_name(verb: str) -> str:
    """Return how the user would call a command."""
    return _SCRIPTS.get(verb, f"{verb}.py") if is_script() else f"gpt2kit {verb}"
