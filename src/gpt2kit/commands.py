"""The names of commands as the user types them: `gpt2kit test`, or `test.py` if a script of a clone is running."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_SCRIPTS = {"train": "trainer.py", "tokenize": "train_tokenizer.py", "demo": "web_demo.py"}
_SCRIPTS |= {verb: f"{verb}.py" for verb in ("test", "generate", "export", "plot", "cache")}


def is_script() -> bool:
    """Return whether this process runs a script of gpt2kit, not `gpt2kit`, `python -m gpt2kit` or another program."""
    return Path(sys.argv[0]).name in _SCRIPTS.values()


def reader_option(name: str) -> str:
    """Return an option of the reader as it is typed: `--data.reader.encoding` in training, else `--reader.encoding`.

    In another program, it is the name in a config.
    """
    verbs = {script: verb for verb, script in _SCRIPTS.items()}
    verb = verbs.get(Path(sys.argv[0]).name) or "".join(sys.argv[1:2])
    prefix = {"train": "--data.", "test": "--", "tokenize": "--"}.get(verb, "data.")
    return f"{prefix}reader.{name}"


def command_name(verb: str) -> str:
    """Return how the user would call a command."""
    return _SCRIPTS[verb] if is_script() and verb in _SCRIPTS else f"gpt2kit {verb}"


def with_command_names(text: str) -> str:
    """Replace the names of scripts in a text by what the user would type."""
    for verb, script in _SCRIPTS.items():
        text = re.sub(rf"(?<![\w./]){re.escape(script)}\b", command_name(verb), text)
    return text
