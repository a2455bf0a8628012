"""Training on text that is split, built in parts on several machines, or streamed from a URL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers import SENTENCE, Outcome, final_weights, logged_rows, same_weights, train_run

from gpt2kit.cli import parser, train
from gpt2kit.cli import test as evaluate
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import HashRange
from gpt2kit.training.module import GPT2Module


def without(options: list[str], *names: str) -> list[str]:
    """Return the options except those that begin with one of these names."""
    return [option for option in options if not option.startswith(tuple(f"--data.{name}" for name in names))]


def test_training_reports_documents_in_two_splits(
    options: list[str], corpus: Path, call: Callable[..., Outcome], inside: Path
) -> None:
    same = f"--data.valid_files={corpus / 'train.txt'}"
    code, _, err = call(train.main, *options, same, "--trainer.max_steps=1", f"--trainer.default_root_dir={inside}")
    assert code == 0 and "300 valid documents (100.0%) are also in the train text, such as 'the quick" in err


def test_a_run_is_tested_on_the_documents_that_it_held_out(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "all.txt").write_text("".join(SENTENCE.format(n) for n in range(400)))
    arguments = [*without(options, "train", "valid", "test"), "--data.train_files=all.txt", "--seed_everything=7"]
    arguments += ["--data.valid_fraction=0.1", "--data.test_fraction=0.2", f"--trainer.default_root_dir={inside}"]
    code, _, err = call(train.main, *arguments, "--trainer.max_steps=2")
    assert code == 0 and "also in" not in err, err
    run = inside / "lightning_logs" / "version_0"

    def test(*more: str) -> dict[str, object]:
        arguments = ["--ckpt_path", str(run), "--json_output", "-", *more]
        code, out, err = call(lambda args: parser.run(evaluate.test, args), *arguments)
        assert code == 0, err
        return dict(json.loads(out)["text"])

    expected = list(Reader("line").read([inside / "all.txt"], split_range=HashRange(0.0, 0.2, 7)))
    figures = test()
    assert figures["documents"] == len(expected) > 50
    assert figures["bytes"] == sum(len(document.encode()) for document in expected)
    assert test("--files", "all.txt")["documents"] == 400
    code, _, err = call(train.main, "--ckpt_path", run, "--data.test_fraction=0.3", "--trainer.max_steps=3")
    assert code == 4 and "a different run: text was" in err


def test_a_store_is_built_in_parts_and_merged_by_the_training_command(
    options: list[str], call: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Add `--part` and `--merge` to the training command; the run then uses the store and builds nothing."""
    arguments = [*without(options, "cache_dir", "valid_files"), "--data.valid_fraction=0.2", "--trainer.max_steps=2"]
    arguments += [f"--data.cache_dir={tmp_path / 'cache'}", f"--trainer.default_root_dir={tmp_path}"]
    for part in ("1/2", "2/2"):
        code, out, err = call(train.main, *arguments, "--part", part)
        assert code == 0 and f"part {part[0]} of 2" in out, err
    code, _, err = call(train.main, *arguments, "--merge", "3")
    assert code == 3 and err.startswith("error: --merge 3: incomplete"), err
    code, out, err = call(train.main, *arguments, "--merge", "2")
    assert code == 0 and "train text: " in out, err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*.bin")}
    code, _, err = call(train.main, *arguments)
    assert code == 0, err
    assert before and before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*.bin")}


def test_training_is_the_same_and_resumes_on_a_single_or_a_merged_store(
    options: list[str], corpus: Path, call: Callable[..., Outcome], tmp_path: Path
) -> None:
    lines = (corpus / "train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for number in range(3):
        (tmp_path / f"train{number}.txt").write_text("".join(lines[100 * number : 100 * number + 100]))
    arguments = [*without(options, "cache_dir", "train_files"), f"--data.train_files={tmp_path}/train*.txt"]
    arguments += ["--data.shard_tokens=500", "--save_every=5", "--trainer.log_every_n_steps=1"]
    for store, builds in {"single": ["--part=1/1"], "merged": ["--part=1/2", "--part=2/2", "--merge=2"]}.items():
        for build in builds:
            code, _, err = call(train.main, *arguments, f"--data.cache_dir={tmp_path / store}", build)
            assert code == 0, err
    losses: dict[str, list[float]] = {}
    for first, second in (("single", "merged"), ("merged", "single")):
        work = tmp_path / "runs" / first
        run = train_run(work, arguments, f"--data.cache_dir={tmp_path / first}", "--trainer.max_steps=10")
        more = ("--ckpt_path=last", "--trainer.max_steps=20")
        train_run(work, arguments, f"--data.cache_dir={tmp_path / second}", *more)
        losses[first] = [row["train_loss"] for row in logged_rows(run) if "train_loss" in row]
    assert losses["single"] == losses["merged"] and len(losses["single"]) == 20


@pytest.fixture
def streamed_options(options: list[str], tmp_path: Path) -> Iterator[list[str]]:
    """The command that trains on stores at a URL, where they were copied after they had been built."""
    arguments = [*without(options, "cache_dir"), "--data.shard_tokens=300"]
    built = tmp_path / "built"
    train.main([*arguments, f"--data.cache_dir={built}", "--part=1/1"])
    memory = fsspec.filesystem("memory")
    for path in built.glob("*/*"):
        memory.pipe_file(f"/stores/{path.parent.name}/{path.name}", path.read_bytes())
    more = ["--data.streaming=true", "--data.window_shards=2", "--save_every=3", "--trainer.log_every_n_steps=1"]
    yield [*arguments, "--data.cache_dir=memory://stores", *more]
    memory.rm("/stores", recursive=True)


def test_a_streamed_run_resumes_in_mid_epoch(
    streamed_options: list[str], inside: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*streamed_options, "--trainer.val_check_interval=7", "--trainer.max_steps=45"]
    uninterrupted = train_run(inside / "uninterrupted", arguments)
    training_step = GPT2Module.training_step
    for stop in (25, 43):  # an epoch has 40 steps
        steps = iter(range(stop))

        def fail_later(self: GPT2Module, *args: Any, steps: Iterator[int] = steps) -> Any:
            if next(steps, None) is None:
                raise RuntimeError("killed")
            return training_step(self, *args)

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            patch.setattr(GPT2Module, "training_step", fail_later)
            train_run(inside / f"{stop}", arguments)
        resumed = train_run(inside / f"{stop}", arguments, "--ckpt_path=last")
        assert resumed.name == "version_0"
        assert same_weights(final_weights(uninterrupted), final_weights(resumed)), stop
    assert not (inside / "stores").exists()
    for changes, window in (
        (["--data.window_shards=3"], "3"),
        (["--data.streaming=false", "--data.cache_dir=c"], "None"),
    ):
        code, _, err = call(train.main, *streamed_options, *changes, "--ckpt_path", uninterrupted)
        assert code == 4 and f"window_shards was 2, now {window}" in err


def test_a_url_without_streaming_is_refused(options: list[str], call: Callable[..., Outcome]) -> None:
    code, _, err = call(train.main, *options, "--data.cache_dir=memory://stores")
    assert code == 2 and "data.cache_dir memory://stores: a URL needs data.streaming true" in err


@pytest.mark.parametrize("argument", ["--part=1/1", "--merge=2"])
def test_a_store_is_not_built_at_a_url(argument: str, options: list[str], call: Callable[..., Outcome]) -> None:
    streaming = ["--data.streaming=true", "--data.cache_dir=memory://stores"]
    code, _, err = call(train.main, *options, *streaming, argument)
    assert code == 2 and "--part and --merge build a store on a local disk" in err and "--data.streaming false" in err


def test_a_missing_file_of_any_split_is_reported_before_a_tokenizer_is_trained(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    args = [
        *without(options, "valid_files", "tokenizer"),
        "--data.valid_files=missing.txt",
        "--data.tokenizer={kind: char}",
        f"--data.cache_dir={inside}/cache",
    ]
    code, _, err = call(train.main, *args)
    assert code == 3 and err.startswith("error: missing.txt: no such file") and not list(inside.rglob("*"))
