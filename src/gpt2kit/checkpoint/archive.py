"""Open the files that `torch.save` writes without believing the sizes in them. Knows nothing about models.

A file of a few kilobytes can describe 2^40 objects, because containers may be shared, or name a record that is unpacked
to gigabytes. So its pickle is measured, but not executed, before `torch.load` reads it; then its content is measured.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from gpt2kit import files
from gpt2kit.errors import CheckpointError, first_line

# Maximum size of the pickle, without the tensors' elements. The largest tokenizers have about 2^25 bytes.
_MAX_PICKLE_BYTES = 1 << 28
# Maximum number of objects, shared ones counted each time, and of operations of a pickle. A model of 1024 layers with
# its optimizer has about 2^20.
_MAX_OBJECTS = 1 << 21
_MAX_DEPTH = 64
# A model has no larger integers, and repr() refuses those of 4300 digits.
_INTEGERS = range(-(1 << 64), 1 << 64)
_ZIP = b"PK\3\4"
# The records at the end of a zip archive: the end of its directory in the large format, where that one is, and the end.
_LARGE_END, _LOCATOR, _END = map(struct.Struct, ("<4sQ2H2L4Q", "<4sLQL", "<4s4H2LH"))
# The pickles of a file from before torch 1.6: a magic number, the format, the machine, the content, the storages.
_LEGACY_PICKLES = 5
# What a state dict needs. Others that torch allows allocate as much as the file says, such as bytearray(2**40).
_GLOBALS = re.compile(
    r"collections (OrderedDict|Counter)|(builtins|__builtin__) set|torch (Size|device|[a-z]+\d*(_\w+)?|\w+Storage)|"
    r"torch\._utils _rebuild_(tensor_v[23]|parameter(_with_state)?|sparse_tensor)|torch\.nn\.parameter Parameter|"
    r"torch\.storage (Untyped|Typed)Storage|torch\.serialization _get_layout"
)
_MARK = pickletools.markobject


def load(file: Path, allow_legacy: bool = False) -> dict[Any, Any]:
    """Return the dictionary in a file; its tensors are mapped from the file where the system can.

    Args:
        file: the path. Anything but a regular file is refused.
        allow_legacy: also read the format from before torch 1.6, into memory.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: not a regular file. Name a file of a model")
    try:
        is_zip = _measure(file)
        raw = torch.load(file, map_location="cpu", weights_only=True, mmap=files.POSIX and (is_zip or not allow_legacy))
        if not isinstance(raw, dict):
            raise ValueError("not a dictionary of tensors")
        _measure_content(raw, file.stat().st_size)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # torch raises many kinds for truncated files and other formats
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{file}: not a readable file of tensors ({reason:.200}). Use another one") from None
    return raw


def _measure(file: Path) -> bool:
    """Raise if loading a file would allocate much more than its size; return whether it is a zip archive."""
    with open(file, "rb") as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(_LEGACY_PICKLES):
                    _measure_pickle(content)
            return False
    _check_end(file)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("a zip archive that another program has packed again, with compression")
        if sum(record.file_size for record in records) > file.stat().st_size:
            raise ValueError("its records are larger than the file")
        if len({record.filename for record in records}) < len(records):
            raise ValueError("two of its records have the same name")
        for record in records:
            # torch compares names without regard to case, and knows no other names than those in the directory.
            if record.orig_filename.lower().endswith("data.pkl"):
                if record.file_size > _MAX_PICKLE_BYTES:
                    raise ValueError(f"{record.file_size / 1e6:,.0f} MB besides its tensors")
                _measure_pickle(io.BytesIO(archive.read(record)))
    return True


def _check_end(file: Path) -> None:
    """Raise unless a zip archive ends with its directory, as torch writes it.

    Else it could have two: Python's reader takes the one before the end, torch's the one whose position is stored.
    """
    with open(file, "rb") as stream:
        stream.seek(-_LARGE_END.size - _LOCATOR.size - _END.size, io.SEEK_END)
        large, locator, end = (record.unpack(stream.read(record.size)) for record in (_LARGE_END, _LOCATOR, _END))
        position = stream.tell() - _END.size  # where the directory should end
    mark, *_, directory_size, directory, comment = end
    is_end = mark == b"PK\5\6" and not comment
    if locator[0] == b"PK\6\7":
        position -= _LARGE_END.size + _LOCATOR.size
        is_end = is_end and large[0] == b"PK\6\6" and locator[2] == position
        directory_size, directory = large[-2:]
    if not is_end or directory + directory_size != position:
        raise ValueError("a zip archive with something after its directory")


def _measure_pickle(stream: Any) -> None:
    """Raise if a pickle builds too many objects, or one of a class that a state dict does not need.

    The pickle machine is simulated with the size of each object in place of the object, in a list of one number because
    containers grow after they are memoized. Only tuples need exact sizes: as keys, they are hashed while loading.
    """
    stack: list[list[int]] = []
    marks: list[int] = []
    memo: dict[int, list[int]] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if count > _MAX_OBJECTS:
            raise ValueError("too many objects")
        if isinstance(argument, int) and argument not in _INTEGERS and argument != torch.serialization.MAGIC_NUMBER:
            raise ValueError("an integer of more than 64 bits")
        if name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
            raise ValueError(f"contains {argument}, which is not part of a model's weights")
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("PUT"):
            memo[int(str(argument))] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[int(str(argument))])
        else:
            before, parts = list(opcode.stack_before), []
            if _MARK in before:
                start = marks.pop()
                parts, stack[start:] = stack[start:], []
                del before[before.index(_MARK) :]
            for _ in before:
                parts.append(stack.pop())
            if name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
                result = parts.pop()
                result[0] += sum(part[0] for part in parts)
            else:
                result = [1 + sum(part[0] for part in parts)]
            if result[0] > _MAX_OBJECTS:
                raise ValueError("too many objects in nested containers")
            stack += [result for _ in opcode.stack_after]


def _measure_content(raw: object, size: int) -> None:
    """Raise if the content is nested too deeply, has too many objects, or its tensors are larger than the file."""
    todo: list[tuple[object, int]] = [(raw, 0)]
    count = elements = 0
    while todo:
        value, depth = todo.pop()
        if isinstance(value, torch.Tensor):
            elements += value.numel() * value.element_size()
        if not isinstance(value, (dict, list, tuple, set)) or isinstance(value, torch.Size):
            continue
        count += len(value)
        if count > _MAX_OBJECTS or depth > _MAX_DEPTH:
            raise ValueError("too many objects in nested containers")
        todo += ((part, depth + 1) for part in value)
        if isinstance(value, dict):
            todo += ((part, depth + 1) for part in value.values())
    # Tied embeddings are one storage and two tensors.
    if elements > 2 * size:
        raise ValueError("its tensors are larger than the file")
