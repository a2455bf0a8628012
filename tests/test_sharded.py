"""Checkpoints in shares from strangers: nothing in them is believed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit import dtensor
from gpt2kit.errors import CheckpointError


def write(folder: Path, meta: Any, *shares: Any) -> Path:
    folder.mkdir()
    torch.save(meta, folder / dtensor.META)
    for rank, share in enumerate(shares):
        torch.save(share, folder / dtensor.rank_file(rank))
    return sign(folder)


def sign(folder: Path) -> Path:
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.pt")}
    (folder / dtensor.SUMS).write_text(json.dumps(sums))
    return folder


def note(name: str, *shape: int) -> dict[str, Any]:
    return {"sharded": name, "shape": list(shape)}


WHOLE = torch.arange(10.0).reshape(5, 2)
SHARES = [{"w": {"first": 0, "rows": WHOLE[:3]}}, {"w": {"first": 3, "rows": WHOLE[3:]}}]


def test_shares_become_the_tensor_and_tied_ones_stay_one(tmp_path: Path) -> None:
    meta = {"state_dict": {"a": note("w", 5, 2), "b": note("w", 5, 2)}, "n": [1, (2.5, None)]}
    read = dtensor.read(write(tmp_path / "c", meta, *SHARES, {"w": {"first": 5, "rows": WHOLE[:0]}}))
    assert torch.equal(read["state_dict"]["a"], WHOLE) and read["n"] == [1, (2.5, None)]
    assert read["state_dict"]["a"] is read["state_dict"]["b"]
    parts = dtensor.read(tmp_path / "c", joined=False)["state_dict"]["a"]
    for first, end in ((0, 5), (2, 4), (3, 3), (0, 1), (4, 5), (5, 5)):
        assert torch.equal(parts.rows(first, end), WHOLE[first:end])


@pytest.mark.parametrize(
    ("meta", "shares"),
    [
        ({"w": note("w", 6, 2)}, SHARES),  # rows that nobody has
        ({"w": note("w", 1 << 40, 2)}, SHARES),
        ({"w": note("w", 5, 3)}, SHARES),
        ({"w": note("other", 5, 2)}, SHARES),
        ({"w": note("w", 5, 2)}, [SHARES[0], {"w": {"first": 2, "rows": WHOLE[2:]}}]),  # rows that two have
        ({"w": note("w", 5, 2)}, [SHARES[0], {"w": {"first": 3, "rows": WHOLE[3:].half()}}]),
        ({"w": note("w", 5, 2)}, [SHARES[0], {"w": {"first": "3", "rows": WHOLE[3:]}}]),
        ({"w": {"sharded": ["w"], "shape": 5}}, SHARES),
        (["not a mapping"], SHARES),
    ],
)
def test_shares_that_do_not_fit_are_refused(meta: Any, shares: list[Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        dtensor.read(write(tmp_path / "c", meta, *shares))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", [dtensor.META, "rank-00001.pt"])
def test_nothing_is_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "c", {"w": note("w", 5, 2)}, *SHARES)
    torch.save({"w": Bomb()}, folder / name)
    sign(folder)
    with pytest.raises(CheckpointError):
        dtensor.read(folder)
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    sign(folder)
    with pytest.raises(CheckpointError):
        dtensor.read(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("sums", ["", "[]", "{}", '{"../secret.pt": "0"}', '{"meta.pt": "0"}', "null", "\u0000"])
def test_sums_that_cannot_be_are_refused(sums: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "c", {"w": note("w", 5, 2)}, *SHARES)
    (folder / dtensor.SUMS).write_text(sums)
    with pytest.raises(CheckpointError, match="damaged"):
        dtensor.read(folder)


def test_a_folder_without_its_name_is_no_checkpoint(tmp_path: Path) -> None:
    temporary = tmp_path / ".c.tmp"
    sums = dtensor.write(temporary, dtensor.META, {})
    assert not dtensor.is_sharded(temporary)
    with pytest.raises(OSError, match=r"another machine.*default_root_dir"):
        dtensor.finish(temporary, tmp_path / "c", {**sums, "rank-00001.pt": "0"})
    dtensor.finish(temporary, tmp_path / "c", sums)
    assert dtensor.is_sharded(tmp_path / "c") and not temporary.exists()
    dtensor.remove(tmp_path / "c")
    assert not list(tmp_path.iterdir())
