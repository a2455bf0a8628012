"""The texts of a run that a checkpoint records: how it was trained on them, and on which ones it is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit.checkpoint.validation import lookup
from gpt2kit.data.stages import Stage, parse_stages
from gpt2kit.errors import CheckpointError
from gpt2kit.text.splits import SplitRange, parse_range

_MAX_FILES = 1 << 16
_MAX_TEXTS = 1000


@dataclass(frozen=True)
class SavedText:
    """A text that a checkpoint records."""

    name: str  # empty if it is the only one
    files: list[str]
    reader: dict[str, Any] | None  # the identity of its reader
    split: SplitRange | None  # the part of the files; None: all of them
    fingerprint: str | None  # of its documents and their tokens


def test_texts(file: Path, metadata: Mapping[str, Any]) -> list[SavedText]:
    """Return the texts on which a checkpoint is tested; raise CheckpointError if they are invalid."""
    if texts := _several(file, metadata, "test_texts"):
        return texts
    only: dict[str, Any] = {name: metadata.get(f"test_{name}") for name in ("files", "share", "text")}
    only |= {"name": "", "reader": metadata.get("reader")}
    text = _parse(only, f"{file}: its test text is invalid. Give the text with --files")
    return [text] if text.files else []


def training_texts(file: Path, metadata: Mapping[str, Any]) -> list[SavedText]:
    """Return the texts on which a checkpoint was trained, without their files."""
    if texts := _several(file, metadata, "train_texts"):
        return texts
    only: dict[str, Any] = {
        "name": "",
        "files": [],
        "reader": metadata.get("reader"),
        "share": metadata.get("train_share"),
    }
    return [_parse(only, f"{file}: its train_share is invalid. Give the text with --files")]


def sizes(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Return the tokens of each training text times its weight, as far as the checkpoint records them."""
    texts = metadata.get("train_texts") or []
    entries = [text for text in texts if isinstance(text, dict)] if isinstance(texts, list) else []
    return {
        text["name"]: text["tokens"] * text["weight"]
        for text in entries
        if isinstance(text.get("name"), str)
        and all(type(text.get(key)) in (int, float) and 0 < text[key] < 1 << 62 for key in ("tokens", "weight"))
    }


def stages(file: Path, metadata: Mapping[str, Any]) -> list[Stage]:
    """Return the stages of the run; raise CheckpointError if they are invalid."""
    try:
        return parse_stages(metadata)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}: the file is damaged. Use another checkpoint") from None


def training_files(metadata: Mapping[str, Any]) -> list[str]:
    """Return the files of the training text, as the user gave them."""
    value = lookup(metadata, "settings", "data", "train_files")
    texts = list(value.values()) if isinstance(value, dict) else [value]
    files = [text.get("files") if isinstance(text, dict) else text for text in texts]
    names = [name for part in files for name in (part if isinstance(part, list) else [part])]
    return [name for name in names if isinstance(name, str)]


def _several(file: Path, metadata: Mapping[str, Any], key: str) -> list[SavedText]:
    raw = metadata.get(key) or []
    problem = f"{file}: its {key} are invalid. Give the text with --files"
    if not isinstance(raw, list) or len(raw) > _MAX_TEXTS:
        raise CheckpointError(problem)
    return [_parse(text, problem) for text in raw]


def _parse(raw: object, problem: str) -> SavedText:
    """Check the types of a text; nothing that it names is opened."""
    if not isinstance(raw, dict):
        raise CheckpointError(problem)
    files, share, text, reader = raw.get("files", []), raw.get("share"), raw.get("text"), raw.get("reader")
    has_files = isinstance(files, list) and len(files) <= _MAX_FILES and all(isinstance(name, str) for name in files)
    is_valid = isinstance(raw.get("name"), str) and isinstance(text, str | None) and isinstance(reader, dict | None)
    split = parse_range(share)
    if not has_files or not is_valid or (share is not None and split is None):
        raise CheckpointError(problem)
    return SavedText(raw["name"], files, reader, split, text)
