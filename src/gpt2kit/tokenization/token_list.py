"""Read a list of characters: JSON, a text file with one per line, or the pickle of a nanoGPT fork.

A pickle may come from anyone: only containers, numbers and strings are built. Nothing is imported, and nothing is
called but this module's own stand-ins for the integers of numpy.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

from gpt2kit import files
from gpt2kit.errors import DataError, first_line
from gpt2kit.tokenization.tokenizer import MAX_JSON_BYTES

_MAX_TOKENS = 1 << 21


def read(path: str) -> list[str]:
    """Return the tokens of a file in the order of their ids."""
    where, file = f"--vocab {path}", Path(path)
    if not file.is_file():
        raise DataError(f"{where}: no such file. Name a JSON list of characters, or nanoGPT's meta.pkl")
    try:
        content = _parse(file.suffix, files.read_limited(file, MAX_JSON_BYTES))
        tokens = order_by_id(content)
        "".join(tokens).encode()  # half a surrogate pair is not text
    except Exception as error:  # pickle raises many kinds for damaged files
        raise DataError(f"{where}: not a list of characters ({first_line(error):.200}). Name another file") from None
    return tokens


def _parse(suffix: str, raw: bytes) -> Any:
    if suffix in (".pkl", ".pickle"):
        return PlainUnpickler(io.BytesIO(raw)).load()
    text = raw.decode("utf-8-sig")
    if suffix == ".json":
        return files.parse_json(text)
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return [line or "\n" for line in lines]  # an empty line stands for the line break


def order_by_id(content: Any) -> list[str]:
    """Return the tokens of a list, of a dictionary of ids or of tokens, or of nanoGPT's meta.pkl, by their ids."""
    if isinstance(content, dict) and "itos" in content:
        content = content["itos"]
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        content = {number: token for token, number in content.items()}
    if isinstance(content, dict):
        if sorted(content) != list(range(len(content))):
            raise ValueError("the ids are not 0, 1, 2, ...")
        content = [content[number] for number in range(len(content))]
    if not isinstance(content, (list, tuple)) or not 0 < len(content) <= _MAX_TOKENS:
        raise ValueError("neither a list nor a dictionary of tokens")
    if not all(isinstance(token, str) and token for token in content) or len(set(content)) < len(content):
        raise ValueError("a token is empty, no text, or appears twice")
    return list(content)


class _NumpyType:
    """Stands for `numpy.dtype` in a pickle: its name, such as `i8`, and its byte order, which is set as its state."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.byte_order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]


def _numpy_integer(kind: _NumpyType, raw: bytes) -> int:
    """Stand for numpy's function that builds a number from its bytes; return a Python integer."""
    if not re.fullmatch("[iu][1248]", kind.name) or len(raw) != int(kind.name[1]):
        raise pickle.UnpicklingError("it has a number of numpy that is not an integer")
    return int.from_bytes(raw, "big" if kind.byte_order == ">" else "little", signed=kind.name[0] == "i")


_STAND_INS = {
    ("numpy", "dtype"): _NumpyType,
    ("numpy.core.multiarray", "scalar"): _numpy_integer,  # numpy 1
    ("numpy._core.multiarray", "scalar"): _numpy_integer,
}


class PlainUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers and strings; integers of numpy become Python's, without numpy."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the stand-in for a part of numpy's integers; refuse every other class and function."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}"[:80])
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any, /) -> NoReturn:
        """Refuse objects that are stored elsewhere."""
        raise pickle.UnpicklingError("it refers to another file")
