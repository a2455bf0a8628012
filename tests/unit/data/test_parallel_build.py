"""A store that is merged from parts holds the tokens and documents of a single build, in files of other sizes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, Outcome, logged_rows, train_run
from tokenizers import Tokenizer

from gpt2kit.cli import train
from gpt2kit.data import build, parallel_build, remote
from gpt2kit.data.build import Corpus
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.order import prefetching_batches, window_order
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError, UserError
from gpt2kit.text import reader
from gpt2kit.text.reader import HashRange, Reader
from gpt2kit.tokenization import tokenizer
from gpt2kit.training import run_state


@pytest.fixture
def trained(corpus: Path) -> Tokenizer:
    return tokenizer.load(corpus / "tokenizer")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and pieces so small that all borders are met."""
    monkeypatch.setattr(build, "BATCH", 60)
    monkeypatch.setattr(reader, "PIECE_LENGTH", 25)


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


def same_text(merged: TokenStore, single: TokenStore) -> None:
    """They differ in the sizes of their files, and in nothing else."""
    assert merged[0 : len(merged)].tolist() == single[0 : len(single)].tolist()
    for name in ("documents", "bytes", "characters", "ends", "tokens", "notes", "fingerprint"):
        assert getattr(merged, name) == getattr(single, name), name
    assert np.array_equal(merged.lengths(), single.lengths())
    assert np.array_equal(np.concatenate([*merged.hashes()]), np.concatenate([*single.hashes()]))
    assert merged.folder.name == single.folder.name
    assert replace(merged.index, shards=[]) == replace(single.index, shards=[])


def build_parts(corpus: Corpus, count: int, cache_dir: Path) -> None:
    for _, part in sorted(parallel_build.parts_of(corpus, count).items(), reverse=True):
        build.open_or_build(part, cache_dir)


def in_parts(corpus: Corpus, count: int, cache_dir: Path) -> TokenStore:
    build_parts(corpus, count, cache_dir)
    return parallel_build.merge(corpus, count, cache_dir)


@pytest.mark.parametrize("append_eos", [True, False])
@pytest.mark.parametrize("share", [None, HashRange(0.2, 0.7, 1)])
def test_a_merged_store_has_the_tokens_and_documents_of_a_single_build(
    append_eos: bool, share: HashRange | None, tmp_path: Path, trained: Tokenizer
) -> None:
    for seed in range(2):
        paths = write(tmp_path / f"text{seed}", seed)
        corpus = Corpus(paths, trained, Reader(), share, append_eos, shard_tokens=90)
        single = build.open_or_build(corpus, tmp_path / f"single{seed}")
        for count in (3, 20):
            cache_dir = tmp_path / f"parts{seed}-{count}"
            merged = in_parts(corpus, count, cache_dir)
            same_text(merged, single)
            assert len(merged.shards) > 5 and merged.files_digest != single.files_digest
            assert [path.name for path in cache_dir.glob("*/")] == [single.folder.name], "the parts are deleted"
            assert len(list(merged.folder.glob("0*"))) == 2 * len(merged.shards)


def test_each_part_holds_whole_files_and_only_the_first_has_the_leading_token(
    tmp_path: Path, trained: Tokenizer
) -> None:
    for number in range(4):  # the first part has no documents at all
        (tmp_path / f"{number}.txt").write_text("\n" * 40 if number == 0 else "the quick brown fox\n" * 2)
    corpus = Corpus(sorted(tmp_path.glob("*.txt")), trained, Reader())
    parts = parallel_build.parts_of(corpus, 4)
    stores = [build.open_or_build(part, tmp_path / "cache") for part in parts.values()]
    assert [store.documents for store in stores] == [0, 2, 2, 2]
    eos = tokenizer.eos_id(trained)
    assert stores[0][0:9].tolist() == [eos] and all(store[0:1].tolist() != [eos] for store in stores[1:])
    assert all(store[len(store) - 1 : len(store)].tolist() == [eos] for store in stores)
    merged = parallel_build.merge(corpus, 4, tmp_path / "cache")
    same_text(merged, build.open_or_build(corpus, tmp_path / "single"))


def test_a_part_that_died_is_made_again_alone(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(write(tmp_path / "text", 2), trained, Reader(), shard_tokens=90)
    cache_dir = tmp_path / "cache"
    one, two, three = parallel_build.parts_of(corpus, 3).values()
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
    files = [path for part in (one, three) for path in (cache_dir / part.key(cache_dir)).glob("0*")]
    before = {path: path.stat().st_mtime_ns for path in files}
    build.open_or_build(two, cache_dir)
    assert before == {path: path.stat().st_mtime_ns for path in files}
    same_text(parallel_build.merge(corpus, 3, cache_dir), build.open_or_build(corpus, tmp_path / "single"))


def test_parts_of_another_number_or_text_are_not_merged(tmp_path: Path, trained: Tokenizer) -> None:
    """They would overlap, or leave something out."""
    corpus = Corpus(write(tmp_path / "text", 2), trained, Reader(), shard_tokens=90)
    cache_dir = tmp_path / "cache"
    build_parts(corpus, 3, cache_dir)
    build.open_or_build(parallel_build.parts_of(corpus, 2)[1], cache_dir)
    with pytest.raises(DataError, match=r"--merge 2: not finished in .*: part 2 .*--part 2/2 again"):
        parallel_build.merge(corpus, 2, cache_dir)
    for other in (replace(corpus, append_eos=False), replace(corpus, paths=corpus.paths[1:])):
        with pytest.raises(DataError, match=r"--merge 3: not finished in .*: part 1.*made of another text"):
            parallel_build.merge(other, 3, cache_dir)
    same_text(parallel_build.merge(corpus, 3, cache_dir), build.open_or_build(corpus, tmp_path / "single"))


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from gpt2kit.data import parallel_build
from gpt2kit.data.build import Corpus
from gpt2kit.text import Reader
from gpt2kit.tokenization import tokenizer
from gpt2kit.training import run_state

text, trained, parts, work = map(Path, sys.argv[1:])
corpus = Corpus(sorted(text.glob("*.txt")), tokenizer.load(trained), Reader(), shard_tokens=90)
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
at, status = 0, 1
while status:
    cache = work / str(at)
    shutil.copytree(parts, cache)
    if not (child := os.fork()):
        left = [at]

        def kill(event, args):
            if event in CHANGES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        parallel_build.merge(corpus, 3, cache)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or not status, status
    parallel_build.merge(corpus, 3, cache)
    at += 1
print(at)
"""


def test_a_merge_that_is_killed_before_any_change_to_the_disk_is_finished_by_the_next(
    tmp_path: Path, corpus: Path, trained: Tokenizer
) -> None:
    paths = write(tmp_path / "text", 4, 3)
    text = Corpus(paths, trained, Reader(), shard_tokens=90)
    build_parts(text, 3, tmp_path / "parts")
    single = build.open_or_build(text, tmp_path / "single")
    words = [tmp_path / "text", corpus / "tokenizer", tmp_path / "parts", tmp_path / "work"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.split()[-1])
    assert kills > 20
    for at in range(kills):
        (folder,) = (tmp_path / "work" / str(at)).glob("*/")
        same_text(TokenStore(folder), single)


def test_what_a_killed_single_build_has_left_is_replaced(tmp_path: Path, trained: Tokenizer) -> None:
    corpus = Corpus(write(tmp_path / "text", 1), trained, Reader(), shard_tokens=90)
    single = build.open_or_build(corpus, tmp_path / "single")
    folder = tmp_path / "cache" / single.folder.name
    shutil.copytree(single.folder, folder)
    (folder / "index.json").unlink()
    (folder / "000999.bin").write_bytes(b"of a build with more files")
    merged = in_parts(corpus, 3, tmp_path / "cache")
    same_text(merged, single)
    assert len(list(folder.glob("0*"))) == 2 * len(merged.shards)


@pytest.mark.parametrize("name", ["000001.bin", "000001.doc"])
def test_a_damaged_file_of_a_part_is_named_and_the_part_made_again(
    name: str, tmp_path: Path, trained: Tokenizer
) -> None:
    corpus = Corpus(write(tmp_path / "text", 1), trained, Reader(), shard_tokens=90)
    build_parts(corpus, 3, tmp_path / "cache")
    second = parallel_build.parts_of(corpus, 3)[2]
    path = tmp_path / "cache" / second.key(tmp_path / "cache") / name
    path.write_bytes(path.read_bytes()[:-2])
    for _ in range(2):
        with pytest.raises(DataError, match=r"--merge 3: missing or damaged files of part 2 in .*Run --part 2/3 again"):
            parallel_build.merge(corpus, 3, tmp_path / "cache")
    build.open_or_build(second, tmp_path / "cache")
    same_text(parallel_build.merge(corpus, 3, tmp_path / "cache"), build.open_or_build(corpus, tmp_path / "single"))


def test_a_damaged_file_of_a_merged_store_is_made_again_from_the_text(tmp_path: Path, trained: Tokenizer) -> None:
    corpus = Corpus(write(tmp_path / "text", 1), trained, Reader(), shard_tokens=90)
    merged = in_parts(corpus, 3, tmp_path / "cache")
    content = {path.name: path.read_bytes() for path in merged.folder.glob("0*")}
    for shard in (merged.shards[0], merged.shards[3], merged.shards[-1]):
        (merged.folder / shard.name).unlink()
        again = build.open_or_build(corpus, tmp_path / "cache")
        assert {path.name: path.read_bytes() for path in again.folder.glob("0*")} == content


def test_files_are_copied_where_they_cannot_be_renamed(
    tmp_path: Path, trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(write(tmp_path / "text", 1), trained, Reader(), shard_tokens=90)
    build_parts(corpus, 3, tmp_path / "cache")
    real = os.replace

    def across(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(os, "replace", across)
    merged = parallel_build.merge(corpus, 3, tmp_path / "cache")
    same_text(merged, build.open_or_build(corpus, tmp_path / "single"))
    assert len(list((tmp_path / "cache").glob("*/"))) == 1


def test_a_merged_store_is_streamed_in_blocks_of_its_own_files(tmp_path: Path, trained: Tokenizer) -> None:
    corpus = Corpus(write(tmp_path / "text", 1), trained, Reader(), shard_tokens=90)
    merged = in_parts(corpus, 5, tmp_path / "cache")
    sizes = [shard.tokens for shard in merged.shards]
    assert len({*sizes}) > 3
    store = remote.open_store(str(tmp_path / "cache"), corpus, "text", tmp_path / "scratch")
    assert (store.fingerprint, store.files_digest) == (merged.fingerprint, merged.files_digest)
    order = window_order(sizes, 8, 8, 2, 4, seed=1, shuffle=True)
    assert order.blocks == sum((size - 1) // 8 for size in sizes)
    batches = prefetching_batches(order, store.prefetch, 0, 4, 0, 1)
    for step in range(order.steps_per_epoch):
        for first in next(batches).tolist():
            number = int(np.searchsorted(merged.starts, first, side="right")) - 1
            assert first + 9 <= merged.starts[number + 1], "no block crosses the end of its file"
            assert store[first : first + 9].tolist() == merged[first : first + 9].tolist()
        assert len({*order.files_at(step)}) <= 4


def test_bad_records_are_judged_and_counted_as_one_text(tmp_path: Path, trained: Tokenizer) -> None:
    paths = []
    for name, bad in {"a": 3, "b": 0, "c": 0}.items():
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text('{"text": "the fox"}\n' * 10 + "{broken\n" * bad)
    corpus = Corpus(paths, trained, Reader(max_bad_fraction=0.1), shard_tokens=20)
    single = build.open_or_build(corpus, tmp_path / "single")  # 3 of 33; of the first file alone, 3 of 13
    assert single.notes
    same_text(in_parts(corpus, 3, tmp_path / "parts"), single)
    strict = replace(corpus, reader=Reader(max_bad_fraction=0.08))
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
    words += [f"--data.cache_dir={tmp_path / 'cache'}", "--data.valid_fraction=0.2", "--trainer.max_steps=2"]
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


def test_training_is_the_same_and_may_continue_on_either_store(
    options: list[str], corpus: Path, call: Callable[..., Outcome], tmp_path: Path
) -> None:
    lines = (corpus / "train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for number in range(3):
        (tmp_path / f"train{number}.txt").write_text(
            "".join(lines[100 * number : 100 * number + 100]), encoding="utf-8"
        )
    words = [word for word in options if "cache_dir" not in word and "train_files" not in word]
    words += [f"--data.train_files={tmp_path}/train*.txt", "--data.shard_tokens=500", "--save_every=5"]
    words += ["--trainer.log_every_n_steps=1"]
    for name in ("single", "merged"):
        for word in ("--part=1/1",) if name == "single" else ("--part=1/2", "--part=2/2", "--merge=2"):
            code, _, err = call(train.main, *words, f"--data.cache_dir={tmp_path / name}", word)
            assert code == 0, err
    folder = tmp_path / "runs"
    losses: dict[str, list[float]] = {}
    for name, other in (("single", "merged"), ("merged", "single")):
        run = train_run(folder / name, words, f"--data.cache_dir={tmp_path / name}", "--trainer.max_steps=10")
        more = ("--ckpt_path=last", "--trainer.max_steps=20")
        train_run(folder / name, words, f"--data.cache_dir={tmp_path / other}", *more)
        losses[name] = [row["train_loss"] for row in logged_rows(run) if "train_loss" in row]
    assert losses["single"] == losses["merged"] and len(losses["single"]) == 20


def test_a_checkpoint_that_names_the_token_files_is_known_again(tmp_path: Path, trained: Tokenizer) -> None:
    """As checkpoints did before stores could be merged."""
    (tmp_path / "a.txt").write_text("the quick brown fox\n" * 99)
    tokenizer.save(trained, tmp_path / "tokenizer")
    for streaming in (False, True):
        cache_dir = tmp_path / "cache"
        text = TextDataModule(
            str(tmp_path / "a.txt"),
            tokenizer=str(tmp_path / "tokenizer"),
            cache_dir=str(cache_dir),
            streaming=streaming,
        )
        build.open_or_build(text.corpus("train"), cache_dir)
        present = run_state.identity(text, 8)
        assert run_state.saved_identity(present, text) == present
        old = {name: value for name, value in present.items() if name != "token_files"}
        old["text"] = text.store("train").files_digest
        assert run_state.saved_identity(old, text) == present
        assert text.store("train").has_fingerprint(old["text"]) and text.store("train").has_fingerprint(present["text"])
        other = {**old, "text": "another"}
        assert run_state.saved_identity(other, text) == other
