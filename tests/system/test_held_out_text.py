"""Training on a folder of text with nothing prepared, and testing on what the run held out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import Outcome

from gpt2kit.checkpoint import checkpoint, paths, saved_text
from gpt2kit.cli import parser, train
from gpt2kit.cli import test as evaluate
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import find_files
from gpt2kit.tokenization.options import TokenizerSpec

# Only the size of the model and of the run; nothing about the text.
TINY = [
    *("--data.block_size=16", "--data.batch_size=4", "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16"),
    *("--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
]
RUN = "lightning_logs/version_0"
Call = Callable[..., Outcome]


@pytest.fixture
def novels(inside: Path) -> list[str]:
    """Write twelve text files into `my`, one of them in GBK; return their texts."""
    (inside / "my").mkdir()
    texts = []
    for number in range(12):
        lines = [f"chapter {number} says {line} good mornings to the fox\n" for line in range(60)]
        if number == 7:
            lines = [f"第{line}回 白日依山盡 黃河入海流 欲窮千里目 更上一層樓\n" for line in range(60)]
        texts.append("".join(lines))
        (inside / "my" / f"{number:02}.txt").write_bytes(texts[-1].encode("gbk" if number == 7 else "utf-8"))
    return texts


def trained(call: Call, *options: str) -> str:
    """Train on the folder `my`; return what the command printed."""
    code, _, err = call(train.main, "--data.train_files=my", *TINY, *options)
    assert code == 0, err
    return err


def score_run(call: Call) -> dict[str, Any]:
    """Return the results of test.py on the run's own test text."""
    code, out, err = call(lambda args: parser.run(evaluate.test, args), "--ckpt_path", RUN, "--json_output", "-")
    assert code == 0, err
    return dict(json.loads(out))


def held_out() -> tuple[list[str], list[str]]:
    """Return the training and the test documents that the checkpoint records."""
    info = checkpoint.peek(RUN)
    [test_text] = saved_text.test_texts(info.path, info.metadata)
    [training_text] = saved_text.training_texts(info.path, info.metadata)
    paths, test, training = find_files(test_text.files), test_text.split, training_text.split
    return list(Reader().read(paths, split_range=training)), list(Reader().read(paths, split_range=test))


def test_a_folder_of_text_files_trains_and_tests_with_one_command_each(
    novels: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = trained(call)
    assert "text   12 documents (a file each; --data.reader.document line or paragraph changes it)" in err
    assert "held out of each document, at its end: 5 % for validation, 5 % for the test" in err
    assert "val_loss=" in paths.checkpoints(Path(RUN))[0].name
    training, test = held_out()
    for text, start, end in zip(novels, training, test, strict=True):
        assert text.startswith(start) and text.endswith(end) and len(start) + len(end) < len(text)
    figures = score_run(call)
    assert figures["text"]["documents"] == 12
    assert figures["text"]["bytes"] == sum(len(text.encode()) for text in test)
    assert score_run(call)["results"][0]["nll"] == figures["results"][0]["nll"]
    # The same command again has the same splits and the same tokenizer. A resume keeps them whatever the defaults are.
    trained(call)
    with monkeypatch.context() as patch:
        patch.setattr("gpt2kit.data.datamodule.default_spec", lambda size: TokenizerSpec(vocab_size=300))
        code, _, err = call(train.main, "--ckpt_path", RUN, "--trainer.max_steps=3")
    assert code == 0, err
    first, second = (checkpoint.peek(f"lightning_logs/version_{number}").metadata for number in (0, 1))
    assert first["step"] == 3 and first["data"] == second["data"] and first["tokenizer"] == second["tokenizer"]


def test_only_the_text_that_was_held_out_is_tested(inside: Path, call: Call) -> None:
    """Of a changed text, or with another reader, the same part would contain training text."""
    (inside / "my").mkdir()
    path = inside / "my/a.txt"
    path.write_text("".join(f"line {number} of a text\n" for number in range(400)))
    trained(call)
    run_test = partial(call, lambda args: parser.run(evaluate.test, args), "--ckpt_path", RUN)
    code, _, err = run_test("--reader.document", "line")
    assert code == 2 and f"--reader: {RUN} was trained on the rest of these documents" in err
    assert run_test("--reader.document", "file")[0] == 0
    path.write_text(path.read_text()[:-2000])
    code, _, err = run_test()
    assert code == 3 and f"error: {RUN}: my has changed since the run was trained, so its test split may contain" in err
    assert run_test("--files", "my")[0] == 0


def test_a_change_of_separate_test_files_is_reported(inside: Path, call: Call) -> None:
    (inside / "my").mkdir()
    for path in ("my/a.txt", "test.txt"):
        (inside / path).write_text("".join(f"line {number} of {path}\n" for number in range(100)))
    trained(call, "--data.test_files=test.txt")
    (inside / "test.txt").write_text("another text\n")
    code, _, err = call(lambda args: parser.run(evaluate.test, args), "--ckpt_path", RUN)
    assert code == 0 and "test.txt has changed since the run was trained, so its figures differ" in err


def test_records_of_json_lines_are_held_out_whole(inside: Path, call: Call) -> None:
    (inside / "my").mkdir()
    for name in "ab":
        records = [{"text": f"record {number} of {name}\nsays good morning"} for number in range(300)]
        (inside / "my" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    err = trained(call)
    assert "text   600 documents (a record each" in err
    assert "held out by a hash of each document: 5 % for validation, 5 % for the test" in err
    training, test = held_out()
    assert not {*training} & {*test} and all(text.endswith("morning") for text in test)
    assert score_run(call)["text"]["documents"] == len(test) > 10


def test_only_the_long_record_among_many_is_cut_and_a_resume_keeps_it(
    inside: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"text": f"poem {number} of the morning"} for number in range(600)]
    records.append({"text": "a line of a novel\n" * 300})
    (inside / "my").mkdir()
    (inside / "my" / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert "held out by a hash of each document, and at the end of those above" in trained(call)
    training, test = held_out()
    assert all(text.endswith("morning") for text in [*training[:-1], *test[:-1]])
    assert 2000 < len(training[-1]) < 5000 and 100 < len(test[-1]) < 1000
    assert score_run(call)["text"]["documents"] == len(test) > 10
    with monkeypatch.context() as patch:  # a later version may have another rule
        patch.setattr("gpt2kit.text.splits.longest_held_out_whole", lambda *_: 0)
        code, _, err = call(train.main, "--ckpt_path", RUN, "--trainer.max_steps=3")
    assert code == 0 and held_out() == (training, test), err


def test_a_fraction_of_few_documents_cuts_each_of_them(novels: list[str], call: Call) -> None:
    err = trained(call, "--data.valid_fraction=0.02")
    assert "held out of each document, at its end: 2 % for validation" in err
    assert checkpoint.peek(RUN).metadata["test_files"] == []


def test_a_fraction_of_zero_holds_nothing_out(novels: list[str], call: Call) -> None:
    err = trained(call, "--data.valid_fraction=0")
    assert "held out" not in err and "no validation (data.valid_fraction sets it)" in err
    assert checkpoint.peek(RUN).metadata["train_share"] is None


def test_a_run_of_an_earlier_version_keeps_its_split_by_hash(
    novels: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions split few documents by hash, too."""
    with monkeypatch.context() as patch:
        patch.setattr("gpt2kit.text.splits.longest_held_out_whole", lambda *_: None)
        err = trained(call, "--data.valid_fraction=0.3", "--data.test_fraction=0.3")
    assert "held out by a hash" in err
    training, test = held_out()
    assert {*training} < {*novels} and {*test} < {*novels}
    assert score_run(call)["text"]["documents"] == len(test)
    code, _, err = call(train.main, "--ckpt_path", RUN, "--trainer.max_steps=3")
    assert code == 0 and "held out by a hash" in err, err
    assert held_out() == (training, test)
    code, _, err = call(train.main, "--ckpt_path", RUN, "--data.valid_fraction=0.6", "--trainer.max_steps=4")
    assert code == 4 and "this checkpoint belongs to a different run: text was" in err


def test_a_small_text_is_refused_with_the_size_that_is_needed(inside: Path, call: Call) -> None:
    (inside / "my").mkdir()
    (inside / "my" / "a.txt").write_text("x" * 300)
    code, _, err = call(train.main, "--data.train_files=my/a.txt")
    assert code == 3 and err == (
        "error: my/a.txt: 300 bytes of text. About 23 kB are needed to train, validate and test with data.block_size "
        "256 and data.batch_size 16. Add text, or decrease them\n"
    )
    assert not (inside / "lightning_logs").exists()
