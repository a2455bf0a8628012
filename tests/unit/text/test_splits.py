"""One text shared out: every document in one split, whatever its neighbours; what stands in two is told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import SENTENCE, Outcome

from gpt2kit.checkpoint.checkpoint import checkpoints
from gpt2kit.cli import parser, train
from gpt2kit.cli import test as evaluate
from gpt2kit.data import build, store
from gpt2kit.data.build import Corpus
from gpt2kit.data.store import TokenStore
from gpt2kit.text import reader
from gpt2kit.text.reader import HEAD_LENGTH, HashRange, Reader, UnfinishedPiece, split_ranges
from gpt2kit.text.sources import ReadReport
from gpt2kit.tokenization import tokenizer

LINES = [f"document {number}" for number in range(2000)]


def split(path: Path, lines: list[str], seed: int = 1, valid: float = 0.1, test: float = 0.2) -> dict[str, list[str]]:
    path.write_text("\n".join(lines), encoding="utf-8")
    return {
        name: list(Reader().read([path], hash_range=share)) for name, share in split_ranges(valid, test, seed).items()
    }


def test_every_document_is_in_one_split_whatever_the_order(tmp_path: Path) -> None:
    first = split(tmp_path / "a.txt", LINES)
    assert sorted(document for documents in first.values() for document in documents) == sorted(LINES)
    assert 150 < len(first["valid"]) < 250 and 330 < len(first["test"]) < 470
    shuffled = random.Random(1).sample(LINES, len(LINES))
    again = split(tmp_path / "a.txt", [*shuffled, *LINES[:500]])
    assert {name: set(documents) for name, documents in again.items()} == {n: set(d) for n, d in first.items()}
    assert set(split(tmp_path / "a.txt", LINES, seed=2)["test"]) != set(first["test"])


def test_a_split_does_not_change_with_the_other(tmp_path: Path) -> None:
    first = split(tmp_path / "a.txt", LINES)
    other = split(tmp_path / "a.txt", LINES, valid=0.3)
    assert other["test"] == first["test"] and set(first["valid"]) < set(other["valid"])


def test_long_documents_fall_together_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of a document depend on what stands before it; its split must not."""
    monkeypatch.setattr("gpt2kit.text.reader.HEAD_LENGTH", 100)
    monkeypatch.setattr(reader, "PIECE_LENGTH", 300)
    monkeypatch.setattr("gpt2kit.text.sources.CHUNK", 300)
    long = [f"{number} " + "word " * random.Random(number).randrange(50, 400) for number in range(60)]
    kept = {name: set(documents) for name, documents in split(tmp_path / "a.txt", long[:0] + long).items()}
    assert any(len(d) > 300 for d in long) and HEAD_LENGTH < 1 << 17
    for before in (7, 150):
        path = tmp_path / "b.txt"
        path.write_text("\n".join("x" * before + "\n" + document for document in long))
        for name, share in split_ranges(0.1, 0.2, 1).items():
            joined, document = [], ""
            for piece in Reader().read([path], hash_range=share):
                document += piece
                if not isinstance(piece, UnfinishedPiece):
                    joined.append(document)
                    document = ""
            whole = {d for d in long if any(d.startswith(k) or k.startswith(d) for k in kept[name])}
            assert {d for d in joined if not d.startswith("x")} == whole


def test_a_share_is_part_of_the_key_and_of_the_documents_hashes(tmp_path: Path, corpus: Path) -> None:
    trained = tokenizer.load(corpus / "tokenizer")
    path = tmp_path / "a.txt"
    path.write_text("\n".join(LINES))
    stores = {
        name: build.open_or_build(Corpus([path], trained, Reader(), share), tmp_path / "cache")
        for name, share in {"all": None, **split_ranges(0.1, 0.2, 1)}.items()
    }
    assert len({store.folder for store in stores.values()}) == 4
    assert stores["all"].documents == sum(stores[name].documents for name in ("train", "valid", "test"))
    assert store.count_shared(stores["train"], stores["valid"]) == (0, 0)
    assert store.count_shared(stores["all"], stores["valid"])[0] == stores["valid"].documents


@pytest.fixture
def two(tmp_path: Path, corpus: Path) -> tuple[TokenStore, TokenStore]:
    """A text, and another with three of its documents, one of them twice."""
    trained = tokenizer.load(corpus / "tokenizer")
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    (tmp_path / "b.txt").write_text("\n".join(["new", "newer", LINES[70], LINES[3], "newest", LINES[70]]))
    a, b = (build.open_or_build(Corpus([tmp_path / f"{n}.txt"], trained, Reader()), tmp_path / "cache") for n in "ab")
    return a, b


def test_documents_in_two_splits_are_counted_and_shown(two: tuple[TokenStore, TokenStore], corpus: Path) -> None:
    a, b = two
    trained = tokenizer.load(corpus / "tokenizer")
    assert store.count_shared(a, b) == (3, 2)
    assert store.leakage_note(a, "train", b, "valid", trained) == [
        "3 valid documents (50.0%) are also in the train text, such as 'document 70'"
    ]
    assert [trained.decode(store.document_tokens(a, n, 32)) for n in (0, 1999)] == [LINES[0], LINES[1999]]


def test_training_tells_of_the_same_text_in_two_splits(
    options: list[str], corpus: Path, call: Callable[..., Outcome], inside: Path
) -> None:
    same = f"--data.valid_files={corpus / 'train.txt'}"
    code, _, err = call(train.main, *options, same, "--trainer.max_steps=1", f"--trainer.default_root_dir={inside}")
    assert code == 0 and "note: 300 valid documents (100.0%) are also in the train text, such as 'the quick" in err


def test_a_run_tests_the_share_that_it_did_not_train_on(
    options: list[str], call: Callable[..., Outcome], inside: Path
) -> None:
    (inside / "all.txt").write_text("".join(SENTENCE.format(n) for n in range(400)))
    kept = [word for word in options if not word.startswith(("--data.valid_", "--data.test_", "--data.train_"))]
    shares = ["--data.valid_fraction=0.1", "--data.test_fraction=0.2"]
    words = ["--data.train_files=all.txt", *shares, "--seed_everything=7"]
    code, _, err = call(train.main, *kept, *words, "--trainer.max_steps=2", f"--trainer.default_root_dir={inside}")
    assert code == 0 and "stand in" not in err, err
    run = inside / "lightning_logs" / "version_0"

    def test(*more: str) -> dict[str, object]:
        code, out, err = call(
            lambda args: parser.run(evaluate.test, args), "--ckpt_path", run, "--json_output", "-", *more
        )
        assert code == 0, err
        return dict(json.loads(out)["text"])

    expected = list(Reader().read([inside / "all.txt"], hash_range=HashRange(0.0, 0.2, 7)))
    assert test()["documents"] == len(expected) > 50
    assert test()["bytes"] == sum(len(document.encode()) for document in expected)
    assert test("--files", "all.txt")["documents"] == 400
    assert checkpoints(run)
    code, _, err = call(train.main, "--ckpt_path", run, "--data.test_fraction=0.3", "--trainer.max_steps=3")
    assert code == 4 and "another run: text was" in err


@pytest.mark.parametrize(
    "share", [{"low": 0.0}, {"low": "0", "high": 1.0, "seed": 1}, {"low": 0.0, "high": 9.0, "seed": 1}, [], 3]
)
def test_a_share_out_of_a_file_is_not_believed(share: object) -> None:
    from types import SimpleNamespace

    from gpt2kit.checkpoint import checkpoint
    from gpt2kit.errors import CheckpointError

    opened = SimpleNamespace(path="x.ckpt", metadata={"test_files": ["a"], "test_share": share})
    with pytest.raises(CheckpointError, match=r"x\.ckpt: its test_share is invalid"):
        checkpoint.read_test_text(opened)  # type: ignore[arg-type]


def test_shares_that_cannot_be(options: list[str], call: Callable[..., Outcome], inside: Path) -> None:
    code, _, err = call(train.main, *options, "--data.valid_fraction=0.1", "--data.test_fraction=1")
    assert code == 2 and "data.valid_fraction 0.1: data.valid_files are set, too" in err
    assert "data.test_fraction 1" in err
    assert ReadReport().lines() == []
