from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import Outcome
from tokenizers import Tokenizer

from gpt2kit.cli import cache as cli_cache
from gpt2kit.cli import parser
from gpt2kit.data import build, cache
from gpt2kit.data.build import Corpus
from gpt2kit.data.store import TokenStore
from gpt2kit.text.reader import Reader


@pytest.fixture
def stores(corpus: Path, trained: Tokenizer, tmp_path: Path) -> list[TokenStore]:
    """Three stores: a new one, one last used ten days ago, and an incomplete one."""
    stores = [
        build.open_or_build(Corpus([corpus / f"{name}.txt"], trained, Reader("line")), tmp_path / "cache")
        for name in ("train", "valid", "test")
    ]
    for path in stores[1].folder.iterdir():
        os.utime(path, (time.time() - 10 * 86400,) * 2)
    (stores[2].folder / "index.json").unlink()
    return stores


@pytest.fixture
def manage(call: Callable[..., Outcome], stores: list[TokenStore]) -> Callable[..., Outcome]:
    """Run cache.py."""
    return lambda *arguments: call(
        lambda args: parser.run(cli_cache.manage, args), "--cache_dir", stores[0].folder.parent, *arguments
    )


def test_stores_are_listed(manage: Callable[..., Outcome], stores: list[TokenStore]) -> None:
    code, out, _ = manage()
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and lines.keys() == {store.folder.name for store in stores}
    first = lines[stores[0].folder.name]
    assert f"{len(stores[0]):,} tokens, 300 documents of " in first and first.endswith("train.txt")
    assert "10.0 days" in lines[stores[1].folder.name]
    assert "incomplete" in lines[stores[2].folder.name]


def test_unused_stores_are_pruned(manage: Callable[..., Outcome], stores: list[TokenStore]) -> None:
    assert "1 stores deleted" in manage("--unused_for", 9.5)[1]
    assert [store.folder.exists() for store in stores] == [True, False, True]


def test_stores_are_pruned_by_name_and_all(manage: Callable[..., Outcome], stores: list[TokenStore]) -> None:
    code, _, err = manage("--prune", "nothing")
    assert code == 2 and "--prune nothing: must be the beginning of the name of one store" in err
    assert manage("--prune", stores[0].folder.name[:8])[0] == 0
    assert [store.folder.exists() for store in stores] == [False, True, True]
    assert "no stores" in manage("--prune", "all")[1]
    assert not any(store.folder.exists() for store in stores)


def test_a_store_that_is_being_built_is_kept(manage: Callable[..., Outcome], stores: list[TokenStore]) -> None:
    with FileLock(stores[2].folder.with_suffix(".lock")):
        assert "another process is building it" in manage("--prune", "all")[2]
    assert [store.folder.exists() for store in stores] == [False, False, True]


def test_a_file_that_a_build_renames_meanwhile_is_skipped(
    stores: list[TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = stores[0].folder / ".000001.bin.1.tmp"
    temporary.touch()
    is_file = Path.is_file

    def is_file_then_renamed(path: Path) -> bool:
        exists = is_file(path)
        if path == temporary:
            temporary.unlink()
        return exists

    monkeypatch.setattr(Path, "is_file", is_file_then_renamed)
    assert len(list(cache.entries(stores[0].folder.parent))) == 3


def test_damaged_stores_are_reported(manage: Callable[..., Outcome], stores: list[TokenStore]) -> None:
    assert manage("--verify")[1].count("; valid") == 2
    shard = stores[0].folder / "000000.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "DAMAGED: 000000.bin" in manage("--verify")[1]


def test_opening_a_store_marks_it_as_used(stores: list[TokenStore], corpus: Path, trained: Tokenizer) -> None:
    build.open_or_build(Corpus([corpus / "valid.txt"], trained, Reader("line")), stores[1].folder.parent)
    assert max(entry.days for entry in cache.entries(stores[1].folder.parent)) < 1


def test_a_text_of_many_files_is_listed_by_its_first(trained: Tokenizer, tmp_path: Path) -> None:
    for number in range(120):
        (tmp_path / f"{number:03d}.txt").write_text(f"text {number}\n")
    build.open_or_build(Corpus(sorted(tmp_path.glob("*.txt")), trained, Reader("line")), tmp_path / "cache")
    assert cache.table([*cache.entries(tmp_path / "cache")], verify=False).endswith("000.txt and 119 more")
