from __future__ import annotations

import argparse
import itertools
import threading
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from helpers import train_tokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.data import build
from gpt2kit.data.batches import BlockDataset, EvalBatches, TrainBatches
from gpt2kit.data.build import Corpus
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.order import IGNORE, BlockOrder
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError, UserError
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import CutRange, HashRange, Split
from gpt2kit.tokenization import tokenizer
from gpt2kit.tokenization.options import TokenizerSpec


@pytest.fixture(scope="module")
def store(corpus: Path, trained: Tokenizer) -> TokenStore:
    return build.open_or_build(Corpus([corpus / "valid.txt"], trained, Reader("line")), corpus / "cache")


def data_module(corpus: Path, **options: object) -> TextDataModule:
    defaults = {
        "train_files": str(corpus / "train.txt"),
        "tokenizer": str(corpus / "tokenizer"),
        "reader": Reader("line"),
        "valid_fraction": 0.0,
        "cache_dir": str(corpus / "cache"),
        "block_size": 16,
        "batch_size": 4,
    }
    return TextDataModule(**{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_evaluation_predicts_every_token_but_the_first_exactly_once(
    store: TokenStore, batch_size: int, world_size: int
) -> None:
    ranks = [EvalBatches(store, 16, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    rounds = zip(*ranks, strict=True)
    predicted = torch.cat([batch[:, 1:].flatten() for batches in rounds for batch in batches])
    assert predicted[predicted != IGNORE].tolist() == store[1 : len(store)].tolist()


def test_training_batches_are_the_ordered_blocks(store: TokenStore) -> None:
    order = BlockOrder(blocks=20, global_batch=4, seed=1, stride=16)
    batches = iter(TrainBatches(BlockDataset(store, 16), order.micro_batches(0, 4, 0, 1)))
    for step in range(12):
        rows = next(batches)
        assert rows.shape == (4, 17) and rows.dtype == torch.int64
        for row, first in zip(rows, order.step(step).tolist(), strict=True):
            assert np.array_equal(row.numpy(), store[first : first + 17])


def test_the_size_of_a_text_counts_each_documents_end(corpus: Path, store: TokenStore) -> None:
    size = data_module(corpus, valid_files=str(corpus / "valid.txt")).valid_texts()[""]
    assert (size.tokens, size.bytes) == (len(store) - 1, store.bytes + 40)


def test_a_text_that_is_too_short_for_one_step_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"fewer than the 1000 of one optimizer step"):
        data_module(corpus, train_files=str(corpus / "valid.txt"), block_size=64).order(1000)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_the_same_batches(store: TokenStore, workers: int) -> None:
    order = BlockOrder(blocks=40, global_batch=8, seed=1, stride=16)
    expected = iter(TrainBatches(BlockDataset(store, 16), order.micro_batches(3, 2, 1, 2)))
    batches = iter(TrainBatches(BlockDataset(store, 16), order.micro_batches(3, 2, 1, 2), workers))
    for _ in range(30):  # six epochs
        assert torch.equal(next(expected), next(batches))


def test_workers_read_a_limited_order_to_its_end(store: TokenStore) -> None:
    numbers = list(itertools.islice(BlockOrder(40, 8, 1, 16).micro_batches(0, 8, 0, 1), 7))
    batches = list(TrainBatches(BlockDataset(store, 16), numbers, num_workers=2))
    assert len(batches) == 7 and all(map(torch.equal, TrainBatches(BlockDataset(store, 16), numbers), batches))


def test_workers_report_what_they_cannot_read_and_end(store: TokenStore) -> None:
    class Unreadable(TokenStore):
        def marked(self, span: slice) -> NDArray[np.integer]:
            if span.start < 16 * 40:
                return super().marked(span)
            raise DataError("a.bin: truncated")

    batches = TrainBatches(BlockDataset(Unreadable(store.folder), 16), itertools.repeat(np.array([16 * 40])), 2)
    with pytest.raises(DataError, match=r"a\.bin: truncated"):
        next(iter(batches))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_blocks_with_a_stride_overlap(corpus: Path) -> None:
    data = data_module(corpus, stride=5)
    store = data.store("train")
    order = data.order(4)
    assert order.blocks == (len(store) - 17 - 4) // 5 + 1
    firsts = order.step(0)
    assert len({first % 5 for first in firsts.tolist()}) == 1, "one offset per epoch"
    for row, first in zip(BlockDataset(store, 16)[firsts].numpy(), firsts.tolist(), strict=True):
        assert np.array_equal(row, store[first : first + 17])


def test_a_tokenizer_is_trained_on_first_use_and_cached(corpus: Path, tmp_path: Path) -> None:
    spec = TokenizerSpec(kind="char")
    first = data_module(corpus, tokenizer=spec, cache_dir=str(tmp_path))
    assert not (tmp_path / "tokenizers").exists(), "a constructor trains nothing"
    first.prepare_data()
    (folder,) = (path for path in (tmp_path / "tokenizers").iterdir() if path.is_dir())
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    again = data_module(corpus, tokenizer=spec, cache_dir=str(tmp_path))
    again.prepare_data()
    assert tokenizer.to_json(first.tokenizer) == tokenizer.to_json(again.tokenizer)
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before
    text = "the quick brown fox"
    assert len(first.tokenizer.encode(text).ids) == len(text)
    other = data_module(corpus, tokenizer=spec, cache_dir=str(tmp_path), train_files=str(corpus / "valid.txt"))
    assert tokenizer.to_json(other.tokenizer) != "" and len(list((tmp_path / "tokenizers").glob("*/"))) == 2


def test_a_tokenizer_is_not_trained_on_held_out_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {n} {chr(0x4E00 + n)}" for n in range(500)), encoding="utf-8")
    data = data_module(
        tmp_path,
        tokenizer=TokenizerSpec(kind="char"),
        cache_dir=str(tmp_path),
        train_files=str(path),
        valid_fraction=0.2,
    )
    known = sum(len(data.tokenizer.encode(chr(0x4E00 + n)).ids) == 1 for n in range(500))
    assert known == data.store("train").documents < 500


def automatic(folder: Path, **options: object) -> TextDataModule:
    """Return a data module of which only the text and small sizes are given."""
    sizes = {"block_size": 16, "batch_size": 4, "cache_dir": str(folder / "cache")}
    return TextDataModule(str(folder / "text"), **{**sizes, **options})  # type: ignore[arg-type]


def write_texts(folder: Path, count: int, lines: int) -> None:
    (folder / "text").mkdir()
    for number in range(count):
        text = "".join(f"text {number} says {line} good mornings\n" for line in range(lines))
        (folder / "text" / f"{number:03}.txt").write_text(text)


def decoded(data: TextDataModule, split: Split) -> str:
    store = data.store(split)
    return str(data.tokenizer.decode(store[0 : len(store)].tolist()))


@pytest.mark.parametrize(("count", "lines", "kind"), [(12, 100, CutRange), (500, 5, HashRange)])
def test_text_is_held_out_and_a_tokenizer_trained_if_only_the_text_is_given(
    count: int, lines: int, kind: type, tmp_path: Path
) -> None:
    write_texts(tmp_path, count, lines)
    data = automatic(tmp_path)
    data.prepare_data()
    assert all(isinstance(part, kind) for part in data.texts.split_ranges(data.texts.of("train")[0]).values())
    texts = {split: decoded(data, split).split("\n") for split in get_args(Split)}
    assert sum(map(len, texts.values())) == count * lines + 3
    for split in ("valid", "test"):
        assert 0.02 < len(texts[split]) / (count * lines) < 0.08
        assert not {*texts[split]} & {*texts["train"]} - {""}
    assert not data.notes()
    # A config with the resolved values gives the same splits and the same tokenizer.
    resolved = data.resolved()
    assert resolved["valid_fraction"] == resolved["test_fraction"] == 0.05
    again = automatic(tmp_path, **{**resolved, "tokenizer": TokenizerSpec(**resolved["tokenizer"])})
    for split in get_args(Split):
        assert again.store(split).fingerprint == data.store(split).fingerprint
    assert not again.resolved()


def test_only_the_given_splits_are_held_out(tmp_path: Path) -> None:
    write_texts(tmp_path, 12, 100)
    assert not automatic(tmp_path, valid_fraction=0.0).files["valid"]
    data = automatic(tmp_path, test_files=str(tmp_path / "text" / "000.txt"))
    assert not data.texts.split_ranges(data.texts.of("train")[0])
    data = automatic(tmp_path, valid_fraction=0.01)
    assert data.texts.split_ranges(data.texts.of("train")[0]) == {
        "train": CutRange(0.0, 0.99),
        "valid": CutRange(0.99, 1.0),
    }
    assert not data.files["test"]
    assert data.resolved().keys() == {"tokenizer"}


def test_a_text_too_small_to_train_on_is_refused_before_a_tokenizer_is_trained(tmp_path: Path) -> None:
    write_texts(tmp_path, 1, 10)
    message = r"text: 280 bytes of text\. About 23 kB are needed to train, validate and test with data\.block_size 256"
    with pytest.raises(DataError, match=message):
        automatic(tmp_path, block_size=256, batch_size=16).prepare_data()
    assert not (tmp_path / "cache/tokenizers").exists()
    message = r"fewer than the 10 of one optimizer step\. About 0\.\d kB of training text are needed"
    with pytest.raises(DataError, match=message):
        automatic(tmp_path).order(10)


def test_a_text_of_the_size_that_the_error_names_is_large_enough(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    source = Path(argparse.__file__).read_text(encoding="utf-8")
    (tmp_path / "text" / "a.txt").write_text(source[:23_000], encoding="utf-8")
    data = automatic(tmp_path, block_size=256, batch_size=16)
    data.prepare_data()
    assert data.order(16).blocks >= 16


def test_invalid_tokenizers_are_reported(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer: --vocab_size 3: bpe needs"):
        data_module(corpus, tokenizer=TokenizerSpec(vocab_size=3), cache_dir=str(tmp_path)).prepare_data()
    with pytest.raises(DataError, match=r"owner/name: no such tokenizer \(no such folder, and not available from"):
        data_module(corpus, tokenizer="owner/name", cache_dir=str(tmp_path)).prepare_data()


def test_a_changed_local_vocabulary_is_another_tokenizer(corpus: Path, tmp_path: Path) -> None:
    local = tmp_path / "tokenizer"
    spec = TokenizerSpec(kind="existing", vocab=str(local))
    sizes = []
    for vocab_size in (300, 310):
        train_tokenizer([str(corpus / "train.txt")], local, vocab_size=vocab_size)
        sizes.append(data_module(corpus, tokenizer=spec, cache_dir=str(tmp_path / "cache")).vocab_size)
    assert sizes == [300, 310]


def test_text_that_is_encoded_to_no_tokens_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\u4e00\n")
    data = data_module(corpus, train_files=str(tmp_path / "a.txt"), append_eos=False, cache_dir=str(tmp_path))
    data.tokenizer = tokenizer.from_json(LETTERS, "letters")
    with pytest.raises(DataError, match="the tokenizer encodes this text to no tokens"):
        data.store("train")


LETTERS = """{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 0, "content":
"<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
"normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": "BPE",
"dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
"byte_fallback": false, "ignore_merges": false, "vocab": {"<|endoftext|>": 0, "a": 1}, "merges": []}}"""
