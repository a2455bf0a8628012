"""Near duplicates are left out of training texts, and of nothing else."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.data import build, parallel_build
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.leakage import document_tokens
from gpt2kit.data.store import TokenStore
from gpt2kit.data.texts import TextOptions
from gpt2kit.errors import DataError, UserError
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import PathOrURL
from gpt2kit.text.splits import Split

WORDS = ["bay", "corner", "dust", "east", "fire", "green", "hill", "island", "jar", "king", "lake", "moon", "night"]
DROPPING: dict[str, Any] = {"document": "line", "drop_near_duplicates": 0.8}


class CountingReader(Reader):
    """Counts how often a file is read."""

    reads = 0

    def documents(self, path: PathOrURL) -> Iterator[str]:
        CountingReader.reads += 1
        return super().documents(path)


def make_lines(seed: int, count: int = 60) -> list[str]:
    """Return lines that are not similar to each other."""
    chance = random.Random(seed)
    return [" ".join(f"{chance.choice(WORDS)}{chance.randrange(100)}" for _ in range(12)) for _ in range(count)]


def near(line: str) -> str:
    """Return a near copy of a line."""
    return f"{line[:30]}X{line[30:]}".replace(" ", ", ")


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def data_module(corpus: Path, tmp_path: Path, **options: Any) -> TextDataModule:
    defaults = {
        "tokenizer": str(corpus / "tokenizer"),
        "reader": Reader(**DROPPING),
        "cache_dir": str(tmp_path / "cache"),
        "valid_fraction": 0.0,
        "block_size": 8,
        "batch_size": 2,
    }
    return TextDataModule(**{**defaults, **options})


def documents(data: TextDataModule, split: Split, name: str = "") -> list[str]:
    """Return the documents in the store of a split."""
    store = data.stores(split)[name]
    texts = (document_tokens(store, number, 1000) for number in range(store.documents))
    return [data.tokenizer.decode(ids) for ids in texts]


def test_the_first_of_several_near_copies_stays(corpus: Path, tmp_path: Path) -> None:
    lines = make_lines(1)
    a = write(tmp_path / "a.txt", [*lines[:30], near(lines[3])])
    b = write(tmp_path / "b.txt", [near(lines[3]), lines[30], lines[4], *lines[31:]])
    data = data_module(corpus, tmp_path, train_files=[a, b])
    assert documents(data, "train") == lines
    assert data.notes() == ["train text: 3 near duplicates left out (4.8%)"]
    assert [(file.documents, Path(file.name).name) for file in data.store("train").index.sources] == [
        (30, "a.txt"),
        (30, "b.txt"),
    ]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_copy_of_a_held_out_document_is_left_out_of_training(split: Split, corpus: Path, tmp_path: Path) -> None:
    lines, held_out = make_lines(1), make_lines(2, 10)
    files = {
        "train_files": write(tmp_path / "a.txt", [near(held_out[4]), *lines, near(lines[0])]),
        f"{split}_files": write(tmp_path / "b.txt", [*held_out, near(held_out[4]), held_out[4]]),
    }
    data = data_module(corpus, tmp_path, valid_fraction=None, **files)
    assert documents(data, "train") == lines
    assert documents(data, split) == [*held_out, near(held_out[4]), held_out[4]], "held-out copies stay"
    assert data.notes()[0] == "train text: 2 near duplicates left out (3.2%); copies of held-out documents: 1"


def test_text_that_is_held_out_by_hash_stays_and_its_copies_are_not_trained_on(corpus: Path, tmp_path: Path) -> None:
    lines = make_lines(1, 400)
    path = write(tmp_path / "a.txt", [*lines, *map(near, lines)])
    data = data_module(corpus, tmp_path, train_files=path, valid_fraction=0.1, test_fraction=0.1)
    plain = data_module(
        corpus, tmp_path, train_files=path, reader=Reader("line"), valid_fraction=0.1, test_fraction=0.1
    )
    splits: dict[Split, list[str]] = {split: documents(data, split) for split in ("train", "valid", "test")}
    for split in ("valid", "test"):
        assert splits[split] == documents(plain, split), "the option does not change what is held out"
    index = {text: number % 400 for number, text in enumerate([*lines, *map(near, lines)])}
    of_line = {split: [index[text] for text in texts] for split, texts in splits.items()}
    assert len(set(of_line["train"])) == len(of_line["train"])
    assert not set(of_line["train"]) & {*of_line["valid"], *of_line["test"]}
    assert set(of_line["train"]) | {*of_line["valid"], *of_line["test"]} == set(range(400))


def test_parts_of_long_documents_are_compared(corpus: Path, tmp_path: Path) -> None:
    """The ends of both novels are held out. The beginning of the second is left out as a copy of the first's."""
    novels = ["\n".join(make_lines(seed, 200)) for seed in (1, 2)]
    for name, text in zip("abc", [novels[0], novels[1], novels[0].replace("moon", "sun")], strict=True):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    reader = Reader(drop_near_duplicates=0.7)
    data = data_module(corpus, tmp_path, train_files=str(tmp_path / "*.txt"), reader=reader, valid_fraction=0.1)
    assert [data.store(split).documents for split in ("train", "valid")] == [2, 3]


def test_a_copy_of_an_earlier_text_is_left_out_of_the_later_one(corpus: Path, tmp_path: Path) -> None:
    a, b, valid = make_lines(1), make_lines(2), make_lines(3, 10)
    texts = {
        "a": TextOptions(write(tmp_path / "a.txt", [*a, near(valid[0])])),
        "b": TextOptions(write(tmp_path / "b.txt", [near(a[1]), *b, a[2], near(valid[1])]), weight=2),
    }
    held_out = {"b": write(tmp_path / "valid.txt", valid)}
    data = data_module(corpus, tmp_path, train_files=texts, valid_files=held_out, valid_fraction=None)
    assert documents(data, "train", "a") == a, "validation texts of other names count, too"
    assert documents(data, "train", "b") == b
    assert data.notes()[:2] == [
        "train text: a: 1 near duplicates left out (1.6%); copies of held-out documents: 1",
        "train text: b: 3 near duplicates left out (4.8%); copies of held-out documents: 1",
    ]


def test_only_texts_with_the_option_lose_documents(corpus: Path, tmp_path: Path) -> None:
    a, b = make_lines(1), make_lines(2)
    texts = {
        "a": TextOptions(write(tmp_path / "a.txt", [*a, near(a[0])])),
        "b": TextOptions(write(tmp_path / "b.txt", [*b, near(a[0]), near(b[0])]), reader=Reader(**DROPPING)),
    }
    data = data_module(corpus, tmp_path, train_files=texts, reader=Reader("line"))
    assert documents(data, "train", "a") == [*a, near(a[0])]
    assert documents(data, "train", "b") == b


def test_a_text_is_searched_once(corpus: Path, tmp_path: Path) -> None:
    lines = make_lines(1)
    path = Path(write(tmp_path / "a.txt", [*lines, near(lines[5])]))

    def left_out(path: Path, threshold: float = 0.8) -> tuple[int, int]:
        before = CountingReader.reads
        reader = CountingReader("line", drop_near_duplicates=threshold)
        found = data_module(corpus, tmp_path, train_files=str(path), reader=reader).left_out[""]
        return found.count, CountingReader.reads - before

    assert left_out(path) == (1, 1)
    assert left_out(path) == (1, 0)
    assert left_out(path.rename(tmp_path / "b.txt")) == (1, 0)
    (saved,) = (tmp_path / "cache/near_duplicates").glob("*.json")
    for damage in (
        "{",
        "[]",
        '{"": {}}',
        '{"": {"numbers": [["x"]], "documents": 61, "of_held_out": 0, "threshold": 1}}',
    ):
        saved.write_text(damage)
        assert left_out(tmp_path / "b.txt") == (1, 1)
    assert left_out(tmp_path / "b.txt", 1.0) == (0, 1), "another threshold"
    write(tmp_path / "b.txt", lines)
    assert left_out(tmp_path / "b.txt") == (0, 1), "another text"


def test_another_threshold_builds_another_store(corpus: Path, tmp_path: Path) -> None:
    lines = make_lines(1)
    path = write(tmp_path / "a.txt", [*lines, near(lines[5])])
    readers = [Reader("line"), *(Reader("line", drop_near_duplicates=value) for value in (0.8, 0.7, 1.0))]
    stores = [data_module(corpus, tmp_path, train_files=path, reader=reader).store("train") for reader in readers]
    assert len({store.folder for store in stores}) == 4
    assert [store.documents for store in stores] == [61, 60, 60, 61]
    assert stores[1].fingerprint == stores[2].fingerprint != stores[0].fingerprint
    assert [store.notes for store in stores[:1] + stores[3:]] == [[], ["no near duplicates found"]]


def test_the_tokenizer_and_held_out_text_do_not_depend_on_the_option(corpus: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", make_lines(1, 300) * 2)
    modules = [
        data_module(corpus, tmp_path, train_files=path, reader=reader, tokenizer=None, valid_fraction=0.1)
        for reader in (Reader("line"), Reader(**DROPPING))
    ]
    assert modules[0].tokenizer.to_str() == modules[1].tokenizer.to_str()
    assert len([*(tmp_path / "cache/tokenizers").glob("*/")]) == 1
    assert modules[0].store("valid").folder == modules[1].store("valid").folder


def test_parts_have_the_documents_of_a_single_build(corpus: Path, tmp_path: Path) -> None:
    lines = make_lines(1, 90)
    (tmp_path / "text").mkdir()
    for number in range(3):
        own = lines[number * 30 : number * 30 + 30]
        write(tmp_path / f"text/{number}.txt", [*own, near(own[3]), *map(near, lines[: number * 10])])

    def store(cache: str, parts: int) -> TokenStore:
        data = data_module(corpus, tmp_path, train_files=str(tmp_path / "text"), cache_dir=str(tmp_path / cache))
        text = data.corpus(data.texts.of("train")[0], "train")
        if parts == 1:
            return build.open_or_build(text, tmp_path / cache)
        for number in range(1, parts + 1):
            parallel_build.build_each({"train": text}, number, parts, tmp_path / cache)
        return parallel_build.merge(text, parts, tmp_path / cache)

    single, merged = store("single", 1), store("parts", 3)
    assert single.documents == 90 and single.notes == ["33 near duplicates left out (26.8%)"]
    assert merged[0 : len(merged)].tolist() == single[0 : len(single)].tolist()
    assert (merged.fingerprint, merged.notes) == (single.fingerprint, single.notes)
    assert merged.folder.name == single.folder.name
    assert [source.documents for source in merged.index.sources] == [30, 30, 30]


def test_a_streamed_store_needs_the_list_that_was_built_with_it(corpus: Path, tmp_path: Path) -> None:
    lines = make_lines(1)
    path = write(tmp_path / "a.txt", [*lines, near(lines[5])])
    local = data_module(corpus, tmp_path, train_files=path).store("train")
    shutil.copytree(tmp_path / "cache", tmp_path / "remote")
    streamed = data_module(corpus, tmp_path, train_files=path, streaming=True, cache_dir=str(tmp_path / "remote"))
    streamed.cache_dir = tmp_path / "scratch"
    assert streamed.store("train").fingerprint == local.fingerprint
    shutil.rmtree(tmp_path / "remote/near_duplicates")
    streamed = data_module(corpus, tmp_path, train_files=path, streaming=True, cache_dir=str(tmp_path / "remote"))
    streamed.cache_dir = tmp_path / "scratch"
    with pytest.raises(DataError, match=r"near_duplicates/.*not found.*copy all of"):
        streamed.store("train")


def test_a_training_text_that_is_held_out_text_is_refused(corpus: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", make_lines(1))
    data = data_module(corpus, tmp_path, train_files=path, valid_files=path, valid_fraction=None)
    with pytest.raises(DataError, match="nothing is left to train on"):
        data.store("train")


@pytest.mark.parametrize("value", [0, -0.5, 1.1, True, float("nan"), "0.8"])
def test_a_threshold_must_be_a_similarity(value: Any) -> None:
    with pytest.raises(UserError, match=r"drop_near_duplicates .*: must be a similarity above 0, and at most 1"):
        Reader(drop_near_duplicates=value)


def test_the_identity_of_a_reader_changes_only_if_the_option_is_set() -> None:
    assert "drop_near_duplicates" not in Reader("line").identity()
    assert Reader(**DROPPING).identity()["drop_near_duplicates"] == 0.8
