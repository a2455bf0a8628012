"""A fuzzing case as plain data: the arguments of a command, and changes to the files that it finds in its folder.

A change is a list: a file, an operation of `apply`, and its operands. All of it is JSON, so a case that fails is kept
as a small file, and can be reduced by leaving changes and arguments out. Values that JSON lacks are dictionaries with
one key `$`, see `decode`.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

_DEEP = "@deep@"  # stands for JSON so deep that nested objects cannot be written as it


@dataclass(frozen=True)
class Case:
    """What a case of a target does."""

    target: str
    args: list[str]
    changes: list[list[Any]]


class Code:
    """An object whose pickle runs a command when it is loaded by a reader that is not careful."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ../decoy/executed",)


def decode(value: Any) -> Any:
    """Return a value with its `$` dictionaries replaced by what they stand for."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$" not in value:
        return {key: decode(item) for key, item in value.items()}
    kind, *operands = value["$"]
    if kind == "shared":  # a list of 2 ** depth items in a few bytes
        shared: Any = ["x"]
        for _ in range(operands[0]):
            shared = [shared, shared]
        return shared
    if kind == "tensor":
        shape, fill, dtype = operands
        return torch.full([1], fill, dtype=getattr(torch, dtype)).expand(shape)
    makers: dict[str, Any] = {
        "bytes": bytes.fromhex,
        "repeat": lambda text, count: text * count,
        "tuple": tuple,
        "set": set,
        "code": Code,
        "deep": lambda: _DEEP,
    }
    return makers[kind](*operands)


def apply(change: list[Any], folder: Path) -> None:
    """Change a file of a folder. A change that does not fit, such as one of a key that is missing, does nothing."""
    name, operation, *operands = change
    path = folder / name
    if operation != "become" and path.exists() and not path.is_file():
        return  # a pipe would be waited for
    try:
        _OPERATIONS[operation](path, *operands)
    except Exception as error:  # a mutation of a mutated file, or a kept case of an older format
        print(f"not applied: {change!s:.200}: {error!r:.200}")


def read(path: Path) -> Any:
    """Return the content of a structured file; of a safetensors file its header."""
    if path.suffix in (".ckpt", ".bin"):
        return torch.load(path, weights_only=True)
    if path.suffix == ".safetensors":
        raw = path.read_bytes()
        return json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)


def unpacked(value: Any) -> Any:
    """Return the content of a text that is JSON (a checkpoint's tokenizer); any other value unchanged."""
    return json.loads(value) if isinstance(value, str) and value[:1] == "{" else value


def _write(path: Path, content: Any) -> None:
    if path.suffix in (".ckpt", ".bin"):
        torch.save(content, path)
        return
    raw = (yaml.safe_dump(content) if path.suffix == ".yaml" else _json(content)).encode()
    if path.suffix == ".safetensors":
        old = path.read_bytes()
        raw = struct.pack("<Q", len(raw)) + raw + old[8 + struct.unpack("<Q", old[:8])[0] :]
    path.write_bytes(raw)


def _set(path: Path, keys: list[Any], value: Any) -> None:
    _write(path, _replaced(read(path), keys, decode(value)))


def _drop(path: Path, keys: list[Any]) -> None:
    _write(path, _replaced(read(path), keys, _drop))


def _replaced(content: Any, keys: list[Any], value: Any) -> Any:
    if not keys:
        return value
    inner = unpacked(content)
    if len(keys) == 1 and value is _drop:
        del inner[keys[0]]
    else:
        inner[keys[0]] = _replaced(inner[keys[0]] if len(keys) > 1 else None, keys[1:], value)
    return _json(inner) if isinstance(content, str) else inner


def _json(content: Any) -> str:
    return json.dumps(content).replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000)


def _splice(path: Path, start: int, length: int, new: str) -> None:
    """Replace bytes by those of a text in Latin-1."""
    raw = path.read_bytes()
    path.write_bytes(raw[:start] + new.encode("latin-1") + raw[start + length :])


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")


def _become(path: Path, kind: str, target: str = "") -> None:
    """Replace a file by something else."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    actions = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(target)}
    actions.get(kind, lambda: None)()


def _zip(path: Path, action: str, name: str, operand: str = "") -> None:
    """Write a zip file again with a record left out, renamed, twice, with other content, or compressed."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if action == "deflate" else zipfile.ZIP_STORED) as archive:
        for record, raw in records:
            chosen = record.endswith(name)
            if chosen and action == "omit":
                continue
            content = operand.encode("latin-1") * 1_000_000 if chosen and action == "content" else raw
            archive.writestr(operand if chosen and action == "rename" else record, content)
            if chosen and action == "twice":
                archive.writestr(f"{record}/../{operand}", raw)


_OPERATIONS = {
    "set": _set,
    "drop": _drop,
    "splice": _splice,
    "text": _text,
    "become": _become,
    "zip": _zip,
}
