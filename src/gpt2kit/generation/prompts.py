"""Where prompts come from: the command line, standard input, a file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2kit.errors import DataError, UserError


@dataclass(frozen=True)
class Prompt:
    """Where a text begins; `fields` are what else its record in a file says, and are handed on."""

    text: str
    fields: dict[str, Any] = field(default_factory=dict)


def gather(words: list[str], file: Path | None, name: str) -> list[Prompt]:
    """The prompts of a command line; with none, the start of a document. `-` is the whole of standard input."""
    if words.count("-") > 1:
        raise UserError("--prompt -: standard input can be read only once. Give it once")
    found = [Prompt(standard_input() if word == "-" else word) for word in words]
    found += read(file, name) if file else []
    return found or [Prompt("")]


def standard_input() -> str:
    """All of it; the line end that closes it is not part of the prompt."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 (byte {error.start}). Convert it") from None
    return text.replace("\r\n", "\n").removesuffix("\n")


def read(file: Path, name: str) -> list[Prompt]:
    """A prompt a line; of a `.jsonl` or `.ndjson` file, a JSON string a line, or an object whose field `name` is it.

    Blank lines are left out.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"--prompts_file {file}: no such file (looked from {Path.cwd()}). Check the path") from None
    except IsADirectoryError:
        raise DataError(f"--prompts_file {file}: a folder. Name a file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts_file {file}: not UTF-8 (byte {error.start}). Convert it") from None
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DataError(f"--prompts_file {file}: empty. Give one prompt a line")
    if file.suffix.lower() not in (".jsonl", ".ndjson"):
        return [Prompt(line) for _, line in numbered]
    return [_record(line, name, f"--prompts_file {file} line {i}") for i, line in numbered]


def _record(line: str, name: str, where: str) -> Prompt:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}). Give one JSON object a line") from None
    fields = found if isinstance(found, dict) else {name: found}
    if not isinstance(fields.get(name), str):
        raise DataError(f"{where}: has no text {name!r}. Name the field with --field")
    return Prompt(fields[name], {key: value for key, value in fields.items() if key != name})
