"""Checkpoints in shares: a folder with a file of each rank, for models whose weights no rank holds whole.

    epoch=0-step=100.ckpt/
      rank-00000.pt ...   the rows that this rank holds: {name: {"first": row, "rows": tensor}}
      meta.pt             all else, as in a checkpoint file; a sharded tensor is {"sharded": name, "shape": [...]} there
      sha256.json         of each file above; written last, before the folder gets its name

Not torch's own distributed format: that one is read by unpickling, which runs what a stranger's file says; these files
are read with `weights_only=True`. Tensors are cut by rows, so any number of ranks reads what any other has written, and
all shares together are what a checkpoint file of the same run holds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from gpt2kit import files
from gpt2kit.errors import CheckpointError, first_line

META = "meta.pt"
SUMS = "sha256.json"
_FILE = re.compile(r"meta\.pt|rank-\d{5}\.pt")
_PLACE = {"sharded", "shape"}
Shares = dict[str, dict[str, Any]]
"""By name, the number of the first row and the rows of a rank."""


def is_sharded(path: Path) -> bool:
    """Whether it is a finished checkpoint in shares."""
    return (path / SUMS).is_file()


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.pt"


def size(folder: Path) -> int:
    """Bytes of all its files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def remove(folder: Path) -> None:
    """Delete it; killed in the middle, nothing is left under its name."""
    doomed = folder.rename(folder.with_name(f".{folder.name}.{os.getpid()}.tmp"))
    shutil.rmtree(doomed)


def cut(model: nn.Module, blocks: Iterable[nn.Module], methods: Iterable[str], mesh: DeviceMesh) -> None:
    """Cut a model's weights over the ranks (FSDP2), once.

    Args:
        model: the whole. What is not in a block stays together, so tied tensors stay one.
        blocks: parts that are gathered one after the other.
        methods: all that is called from outside; anything else would meet the weights cut.
        mesh: the ranks.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)


def parted(tree: dict[str, Any]) -> tuple[dict[str, Any], Shares]:
    """The tree with a note in the place of each sharded tensor, and this rank's rows of those; tied ones once."""
    shares: Shares = {}
    names: dict[object, str] = {}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, DTensor):
            rows = local(value).detach()
            known = names.setdefault((rows.data_ptr(), value.shape) if rows.numel() else name, name)
            shares[known] = {"first": own_rows(value)[0], "rows": rows}
            return {"sharded": known, "shape": list(value.shape)}
        if isinstance(value, dict):
            return {key: walk(part, f"{name}/{key}") for key, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(walk(part, f"{name}/{number}") for number, part in enumerate(value))
        return value

    return walk(tree, ""), shares


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be cut; all ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that may be cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """The first row that this rank holds, and the one behind the last."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    if any(not isinstance(place, Shard) or place.dim for place in tensor.placements):
        raise ValueError(f"not cut by rows: {tensor.placements}")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], offset[0] + shape[0]


def write(temporary: Path, name: str, value: object) -> dict[str, str]:
    """Write one of the files, synced; its checksum by its name."""
    temporary.mkdir(parents=True, exist_ok=True)
    torch.save(value, temporary / name)
    files.sync_file(temporary / name)
    return {name: files.digest(temporary / name)}


def finish(temporary: Path, target: Path, sums: dict[str, str]) -> None:
    """Give the folder its name, once all its files are there."""
    for name in sums:
        if not (temporary / name).is_file():
            raise OSError(
                f"{target / name}: written by another machine, and not to be seen here. Set trainer.default_root_dir "
                "to a folder that all machines share"
            )
    files.write_text(temporary / SUMS, json.dumps(sums, indent=1) + "\n")
    os.replace(temporary, target)
    files.sync_folder(target.parent)


@dataclass(frozen=True)
class Parts:
    """A tensor in the shares of all ranks, which are read from the disk when they are asked for.

    Args:
        shape: of the whole.
        shares: first row and rows, in order, without gaps.
    """

    shape: tuple[int, ...]
    shares: list[tuple[int, Tensor]]

    def rows(self, first: int, end: int) -> Tensor:
        """Some rows of it."""
        found = [
            part[max(first - at, 0) : max(end - at, 0)]
            for at, part in self.shares
            if at < end and first < at + len(part)
        ]
        return torch.cat(found) if found else self.shares[0][1][:0]


def read(folder: Path, joined: bool = True) -> dict[str, Any]:
    """What a checkpoint file of the same run would hold; tensors as `Parts` unless they are wanted whole."""
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        names = sorted(name for name in sums if _FILE.fullmatch(name))
        sound = isinstance(sums, dict) and len(names) == len(sums) and META in names
        bad = None if sound else SUMS
        bad = bad or next((name for name in names if files.digest(folder / name) != sums[name]), None)
    except (OSError, ValueError, TypeError) as error:
        bad = str(error)
    if bad:
        raise CheckpointError(f"{folder}: damaged ({bad} does not fit its checksum). Use another checkpoint")
    try:
        meta, *shares = (torch.load(folder / n, map_location="cpu", weights_only=True, mmap=files.POSIX) for n in names)
        found: dict[str, Any] = {}

        def walk(value: Any) -> Any:
            if isinstance(value, dict) and set(value) == _PLACE:
                name = value["sharded"]
                if name not in found:
                    parts = _parts(name, tuple(value["shape"]), shares)
                    found[name] = parts.rows(0, parts.shape[0]) if joined else parts
                return found[name]
            if isinstance(value, dict):
                return {key: walk(part) for key, part in value.items()}
            if type(value) in (list, tuple):
                return type(value)(walk(part) for part in value)
            return value

        return dict(walk(meta))
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        reason = first_line(error).split(". ")[0]
        raise CheckpointError(f"{folder}: not a readable checkpoint ({reason}). Use another one") from None


def _parts(name: str, shape: tuple[int, ...], shares: list[Shares]) -> Parts:
    """The shares of one tensor, which must fit together to its shape."""
    found = [(share[name]["first"], share[name]["rows"]) for share in shares if name in share]
    found = sorted(((at, rows) for at, rows in found if len(rows)), key=lambda part: part[0])
    end = 0
    for at, rows in found:
        if at != end or tuple(rows.shape[1:]) != shape[1:] or rows.dtype != found[0][1].dtype:
            raise ValueError(f"{name}: its shares do not fit together")
        end += len(rows)
    if not found or end != shape[0]:
        raise ValueError(f"{name}: {end} rows of {shape[0]}")
    return Parts(shape, found)
