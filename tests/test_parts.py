"""A store made of parts is that of a single build, byte for byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Outcome
from tokenizers import Tokenizer

from gpt2kit.cli import train
from gpt2kit.data import build, parallel_build
from gpt2kit.data.build import Corpus
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError, UserError
from gpt2kit.text import reader
from gpt2kit.text.reader import Reader, Share
from gpt2kit.tokenization import tokenizer


@pytest.fixture
def trained(corpus: Path) -> Tokenizer:
    return tokenizer.load(corpus / "tokenizer")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and pieces so small that all borders are met."""
    monkeypatch.setattr(build, "BATCH", 60)
    monkeypatch.setattr(reader, "PIECE", 25)


def write(folder: Path, seed: int, count: int = 7) -> list[Path]:
    """Files of many sizes: long documents, short ones, none at all."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    paths = []
    for number in range(count):
        lines = ["日本 fox " * draw.choice([0, 1, 2, 3, 40]) for _ in range(draw.choice([0, 1, 9, 30]))]
        paths.append(folder / f"{number}.txt")
        paths[-1].write_text("\n".join(lines), encoding="utf-8")
    (folder / "7.txt").write_text("the quick brown fox\n" * 9)
    return [*paths, folder / "7.txt"]


def content(store: TokenStore) -> dict[str, bytes]:
    """All that the store's folder holds, but when its checksums were compared."""
    return {path.name: path.read_bytes() for path in store.folder.iterdir() if path.name != "verified.json"}


def in_parts(corpus: Corpus, count: int, cache_dir: Path) -> TokenStore:
    for number in range(count, 0, -1):
        if part := parallel_build.corpus_of(corpus, number, count):
            build.open_or_build(part, cache_dir)
    return parallel_build.merge(corpus, count, cache_dir)


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("share", [None, Share(0.2, 0.7, 1)])
def test_the_files_are_those_of_a_single_build(
    append_eos: bool, share: Share | None, tmp_path: Path, trained: Tokenizer
) -> None:
    borders = 0
    for seed in range(2):
        paths = write(tmp_path / f"text{seed}", seed)
        corpus = Corpus(paths, trained, Reader(), share, append_eos, shard_tokens=90)
        single = build.open_or_build(corpus, tmp_path / f"single{seed}")
        borders += len(single.shards)
        for count in (3, 20):
            cache_dir = tmp_path / f"parts{seed}-{count}"
            assert content(in_parts(corpus, count, cache_dir)) == content(single)
            assert [path.name for path in cache_dir.glob("*/")] == [single.folder.name], "the parts are deleted"
    assert borders > 10


def test_a_part_that_died_is_made_again_alone(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(write(tmp_path / "text", 2), trained, Reader(), shard_tokens=90)
    cache_dir = tmp_path / "cache"
    built = [parallel_build.corpus_of(corpus, number, 3) for number in (1, 2, 3)]
    one, two, three = (part for part in built if part)
    build.open_or_build(one, cache_dir)
    build.open_or_build(three, cache_dir)
    real, left = build._write_shard, [2]

    def dying(*args: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "_write_shard", dying)
        build.open_or_build(two, cache_dir)
    with pytest.raises(DataError, match=r"part 2 .*--part 2/3 again"):
        parallel_build.merge(corpus, 3, cache_dir)
    others = [(cache_dir / part.key(cache_dir) / "index.json").stat().st_mtime_ns for part in (one, three)]
    build.open_or_build(two, cache_dir)
    assert others == [(cache_dir / part.key(cache_dir) / "index.json").stat().st_mtime_ns for part in (one, three)]
    single = build.open_or_build(corpus, tmp_path / "single")
    killed = [3]
    really_write = parallel_build._write

    def killed_merge(*args: object) -> object:
        killed[0] -= 1
        if killed[0] < 0:
            raise KeyboardInterrupt
        return really_write(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parallel_build, "_write", killed_merge)
        parallel_build.merge(corpus, 3, cache_dir)
    assert content(parallel_build.merge(corpus, 3, cache_dir)) == content(single)


def test_bad_records_are_judged_and_counted_as_one_text(tmp_path: Path, trained: Tokenizer) -> None:
    paths = []
    for name, bad in {"a": 3, "b": 0, "c": 0}.items():
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text('{"text": "the fox"}\n' * 10 + "{broken\n" * bad)
    corpus = Corpus(paths, trained, Reader(bad_share=0.1), shard_tokens=20)
    single = build.open_or_build(corpus, tmp_path / "single")  # 3 of 33; of the first file alone, 3 of 13
    assert single.notes
    assert content(in_parts(corpus, 3, tmp_path / "parts")) == content(single)
    strict = replace(corpus, reader=Reader(bad_share=0.08))
    with pytest.raises(DataError, match="3 of 33 records"):
        in_parts(strict, 3, tmp_path / "strict")


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, (1, 4)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (4, 4)),
    ],
)
def test_auto_takes_the_part_from_the_launcher(
    environment: dict[str, str], wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parallel_build.numbers("auto") == wanted


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "3", "a/b", "1/2/3", "auto", "-1/3"])
def test_what_is_no_part_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match="--part"):
        parallel_build.numbers(wrong)


def test_by_the_trainers_command_line(options: list[str], call: Callable[..., Outcome], tmp_path: Path) -> None:
    """The command that will train, and `--part`; the run then finds its store and builds nothing."""
    words = [word for word in options if "cache_dir" not in word]
    words += [f"--data.cache_dir={tmp_path / 'cache'}", "--data.valid_share=0.2", "--trainer.max_steps=2"]
    words = [word for word in words if "valid_files" not in word]
    for part in ("1/2", "2/2"):
        code, out, err = call(train.main, *words, "--part", part)
        assert code == 0 and f"part {part[0]} of 2" in out, err
    code, out, err = call(train.main, *words, "--merge", "3")
    assert code == 3 and err.startswith("error: --merge 3: not finished"), err
    code, out, err = call(train.main, *words, "--merge", "2")
    assert code == 0 and "train text: " in out, err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*.bin")}
    code, out, err = call(train.main, *words, f"--trainer.default_root_dir={tmp_path}")
    assert code == 0, err
    assert before and before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*.bin")}
