"""A store that is merged from parts has the tokens and documents of a single build, in files of other sizes."""

from __future__ import annotations

import errno
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from gpt2kit.data import build, parallel_build, remote
from gpt2kit.data.build import Corpus
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.store import TokenStore
from gpt2kit.data.window_order import prefetching_batches, window_order
from gpt2kit.errors import DataError, UserError
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import CutRange, HashRange, MixedRange, SplitRange
from gpt2kit.tokenization import tokenizer
from gpt2kit.training import run_state

pytestmark = pytest.mark.usefixtures("small_batches")


def write_files(folder: Path, seed: int) -> list[Path]:
    """Write files of many sizes: with long documents, short ones, and none at all."""
    random_numbers = random.Random(seed)
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.txt" for number in range(8)]
    for path in paths:
        lengths = [random_numbers.choice([0, 1, 2, 3, 40]) for _ in range(random_numbers.choice([0, 1, 9, 30]))]
        path.write_text("\n".join("日本 fox " * length for length in lengths), encoding="utf-8")
    paths[-1].write_text("the quick brown fox\n" * 9)
    return paths


@pytest.fixture
def text(tmp_path: Path, trained: Tokenizer) -> Corpus:
    return Corpus(write_files(tmp_path / "text", 1), trained, Reader("line"), shard_tokens=90)


@pytest.fixture
def single(text: Corpus, tmp_path: Path) -> TokenStore:
    """The store of the text, built at once."""
    return build.open_or_build(text, tmp_path / "single")


def assert_same_text(merged: TokenStore, single: TokenStore) -> None:
    """Check that the stores differ only in the sizes of their files."""
    assert merged[0 : len(merged)].tolist() == single[0 : len(single)].tolist()
    for name in ("documents", "bytes", "ends", "tokens", "notes", "fingerprint"):
        assert getattr(merged, name) == getattr(single, name), name
    assert sum(shard.characters for shard in merged.shards) == sum(shard.characters for shard in single.shards)
    assert np.array_equal(merged.lengths(), single.lengths())
    assert np.array_equal(np.concatenate([*merged.hashes()]), np.concatenate([*single.hashes()]))
    assert merged.folder.name == single.folder.name
    assert replace(merged.index, shards=[]) == replace(single.index, shards=[])


def build_parts(corpus: Corpus, count: int, cache_dir: Path) -> None:
    for _, part in sorted(parallel_build.split_corpus(corpus, count).items(), reverse=True):
        build.open_or_build(part, cache_dir)


def build_in_parts(corpus: Corpus, count: int, cache_dir: Path) -> TokenStore:
    build_parts(corpus, count, cache_dir)
    return parallel_build.merge(corpus, count, cache_dir)


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize(
    ("append_eos", "split_range"),
    [
        (True, None),
        (False, HashRange(0.2, 0.7, 1)),
        (True, CutRange(0.2, 0.7)),
        (True, MixedRange(HashRange(0.2, 0.7, 1), CutRange(0.2, 0.7), 40)),
    ],
)
def test_a_merged_store_has_the_tokens_and_documents_of_a_single_build(
    append_eos: bool, split_range: SplitRange | None, count: int, text: Corpus, tmp_path: Path
) -> None:
    text = replace(text, append_eos=append_eos, split_range=split_range)
    single = build.open_or_build(text, tmp_path / "single")
    merged = build_in_parts(text, count, tmp_path / "parts")
    assert_same_text(merged, single)
    assert len(merged.shards) > 5 and merged.files_digest != single.files_digest
    assert [path.name for path in (tmp_path / "parts").glob("*/")] == [single.folder.name], "the parts are deleted"
    assert len(list(merged.folder.glob("0*"))) == 2 * len(merged.shards)


def test_each_part_holds_whole_files_and_only_the_first_has_the_leading_token(
    tmp_path: Path, trained: Tokenizer
) -> None:
    for number in range(4):  # the first part has no documents
        (tmp_path / f"{number}.txt").write_text("\n" * 40 if number == 0 else "the quick brown fox\n" * 2)
    corpus = Corpus(sorted(tmp_path.glob("*.txt")), trained, Reader("line"))
    stores = [build.open_or_build(part, tmp_path / "cache") for part in parallel_build.split_corpus(corpus, 4).values()]
    assert [store.documents for store in stores] == [0, 2, 2, 2]
    eos = tokenizer.eos_id(trained)
    assert stores[0][0:9].tolist() == [eos] and all(store[0:1].tolist() != [eos] for store in stores[1:])
    assert all(store[len(store) - 1 : len(store)].tolist() == [eos] for store in stores)
    merged = parallel_build.merge(corpus, 4, tmp_path / "cache")
    assert_same_text(merged, build.open_or_build(corpus, tmp_path / "single"))


def test_an_interrupted_part_alone_is_completed(text: Corpus, single: TokenStore, tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    first, second, third = parallel_build.split_corpus(text, 3).values()
    build.open_or_build(first, cache_dir)
    build.open_or_build(third, cache_dir)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.open_or_build(second, cache_dir, interrupt)
    with pytest.raises(DataError, match=r"part 2 .*--part 2/3 again"):
        parallel_build.merge(text, 3, cache_dir)
    files = [path for part in (first, third) for path in (cache_dir / part.key(part.digests(cache_dir))).glob("0*")]
    before = {path: path.stat().st_mtime_ns for path in files}
    build.open_or_build(second, cache_dir)
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert_same_text(parallel_build.merge(text, 3, cache_dir), single)


def test_parts_of_another_number_or_text_are_not_merged(text: Corpus, single: TokenStore, tmp_path: Path) -> None:
    """They would overlap or be incomplete."""
    cache_dir = tmp_path / "cache"
    build_parts(text, 3, cache_dir)
    build.open_or_build(parallel_build.split_corpus(text, 2)[1], cache_dir)
    with pytest.raises(DataError, match=r"--merge 2: incomplete in .*: part 2 .*--part 2/2 again"):
        parallel_build.merge(text, 2, cache_dir)
    for other in (replace(text, append_eos=False), replace(text, paths=text.paths[1:])):
        with pytest.raises(DataError, match=r"--merge 3: incomplete in .*: part 1.*built from another text"):
            parallel_build.merge(other, 3, cache_dir)
    assert_same_text(parallel_build.merge(text, 3, cache_dir), single)


def test_the_files_of_a_killed_single_build_are_replaced(text: Corpus, single: TokenStore, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / single.folder.name
    shutil.copytree(single.folder, folder)
    (folder / "index.json").unlink()
    (folder / "000999.bin").write_bytes(b"of a build with more files")
    merged = build_in_parts(text, 3, tmp_path / "cache")
    assert_same_text(merged, single)
    assert len(list(folder.glob("0*"))) == 2 * len(merged.shards)


@pytest.mark.parametrize("name", ["000001.bin", "000001.doc"])
def test_a_damaged_part_is_named_and_can_be_rebuilt(
    name: str, text: Corpus, single: TokenStore, tmp_path: Path
) -> None:
    cache_dir = tmp_path / "cache"
    build_parts(text, 3, cache_dir)
    second = parallel_build.split_corpus(text, 3)[2]
    path = cache_dir / second.key(second.digests(cache_dir)) / name
    path.write_bytes(path.read_bytes()[:-2])
    for _ in range(2):
        with pytest.raises(DataError, match=r"--merge 3: missing or damaged files of part 2 in .*Run --part 2/3 again"):
            parallel_build.merge(text, 3, cache_dir)
    build.open_or_build(second, cache_dir)
    assert_same_text(parallel_build.merge(text, 3, cache_dir), single)


def test_a_damaged_shard_of_a_merged_store_is_rebuilt_from_the_text(text: Corpus, tmp_path: Path) -> None:
    merged = build_in_parts(text, 3, tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in merged.folder.glob("0*")}
    for shard in (merged.shards[0], merged.shards[3], merged.shards[-1]):
        (merged.folder / shard.name).unlink()
        again = build.open_or_build(text, tmp_path / "cache")
        assert {path.name: path.read_bytes() for path in again.folder.glob("0*")} == before


def test_files_are_copied_between_disks(
    text: Corpus, single: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_parts(text, 3, tmp_path / "cache")
    replace_file = os.replace

    def replace_on_one_disk(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", replace_on_one_disk)
    assert_same_text(parallel_build.merge(text, 3, tmp_path / "cache"), single)
    assert len(list((tmp_path / "cache").glob("*/"))) == 1


def test_a_merged_store_is_streamed_in_blocks_of_its_own_shards(text: Corpus, tmp_path: Path) -> None:
    merged = build_in_parts(text, 5, tmp_path / "cache")
    sizes = [shard.tokens for shard in merged.shards]
    assert len({*sizes}) > 3
    store = remote.open_store(str(tmp_path / "cache"), text, "text", tmp_path / "scratch")
    assert (store.fingerprint, store.files_digest) == (merged.fingerprint, merged.files_digest)
    order = window_order(sizes, 8, 8, 2, 4, seed=1, shuffle=True)
    assert order.blocks == sum(max((size - 8) // 8, min((size - 1) // 8, 1)) for size in sizes)
    batches = prefetching_batches(order, store.prefetch, 0, 4, 0, 1)
    for _ in range(order.steps_per_epoch):
        for first in next(batches).tolist():
            number = int(np.searchsorted(merged.starts, first, side="right")) - 1
            assert first + 9 <= merged.starts[number + 1], "no block spans two shards"
            assert store[first : first + 9].tolist() == merged[first : first + 9].tolist()


def test_bad_records_of_all_parts_are_counted_together(tmp_path: Path, trained: Tokenizer) -> None:
    paths = []
    for name, bad in {"a": 3, "b": 0, "c": 0}.items():
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text('{"text": "the fox"}\n' * 10 + "{broken\n" * bad)
    corpus = Corpus(paths, trained, Reader(max_bad_fraction=0.1), shard_tokens=20)
    single = build.open_or_build(corpus, tmp_path / "single")  # 3 of 33; of the first file alone, 3 of 13
    assert single.notes
    assert_same_text(build_in_parts(corpus, 3, tmp_path / "parts"), single)
    strict = replace(corpus, reader=Reader(max_bad_fraction=0.08))
    with pytest.raises(DataError, match="3 of 33 records"):
        build_in_parts(strict, 3, tmp_path / "strict")


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, (1, 4)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (4, 4)),
    ],
)
def test_auto_takes_the_part_from_the_launcher(
    environment: dict[str, str], part: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parallel_build.parse_part("auto") == part


@pytest.mark.parametrize("value", ["0/3", "4/3", "3", "a/b", "1/2/3", "auto", "-1/3"])
def test_an_invalid_part_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="--part"):
        parallel_build.parse_part(value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_checkpoint_that_names_the_token_files_still_identifies_the_text(
    streaming: bool, tmp_path: Path, trained: Tokenizer
) -> None:
    """Checkpoints did so before stores could be merged."""
    (tmp_path / "a.txt").write_text("the quick brown fox\n" * 99)
    tokenizer.save(trained, tmp_path / "tokenizer")
    data = TextDataModule(
        str(tmp_path / "a.txt"),
        tokenizer=str(tmp_path / "tokenizer"),
        cache_dir=str(tmp_path / "cache"),
        streaming=streaming,
        valid_fraction=0.0,
    )
    store = build.open_or_build(data.corpora()["train text"], tmp_path / "cache")
    current = run_state.identity(data, 8)
    assert run_state.saved_identity(current, data) == current
    old = {name: value for name, value in current.items() if name != "token_files"} | {"text": store.files_digest}
    assert run_state.saved_identity(old, data) == current
    assert store.has_fingerprint(store.files_digest) and store.has_fingerprint(current["text"])
    other = {**old, "text": "another"}
    assert run_state.saved_identity(other, data) == other
