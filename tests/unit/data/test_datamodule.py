from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import train_tokenizer

from gpt2kit.data import build, datamodule
from gpt2kit.data.batches import BlockDataset, EvalBatches, TrainBatches
from gpt2kit.data.build import Corpus
from gpt2kit.data.datamodule import TextDataModule
from gpt2kit.data.order import IGNORE, BlockOrder
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import DataError, MachineError, UserError
from gpt2kit.text.reader import Reader
from gpt2kit.tokenization import tokenizer
from gpt2kit.tokenization.trainers import TokenizerSpec


@pytest.fixture(scope="module")
def store(corpus: Path) -> TokenStore:
    trained = tokenizer.load(corpus / "tokenizer")
    return build.open_or_build(Corpus([corpus / "valid.txt"], trained, Reader()), corpus / "cache")


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


def test_training_rows_are_the_ordered_blocks(store: TokenStore) -> None:
    order = BlockOrder(blocks=20, global_batch=4, seed=1)
    batches = iter(TrainBatches(BlockDataset(store, 16, 16), order.micro_batches(0, 4, 0, 1)))
    for step in range(12):
        rows = next(batches)
        assert rows.shape == (4, 17) and rows.dtype == torch.int64
        for row, block in zip(rows, order.step(step).tolist(), strict=True):
            assert np.array_equal(row.numpy(), store[block * 16 : block * 16 + 17])


def test_the_size_of_a_text_counts_each_documents_end(store: TokenStore) -> None:
    size = datamodule.text_size(store)
    assert (size.tokens, size.bytes) == (len(store) - 1, store.bytes + 40)


def test_too_little_text_for_a_step_is_refused(corpus: Path) -> None:
    module = TextDataModule(
        train_files=str(corpus / "valid.txt"),
        tokenizer=str(corpus / "tokenizer"),
        cache_dir=str(corpus / "cache"),
        block_size=64,
    )
    with pytest.raises(DataError, match=r"fewer than the 1000 of one optimizer step"):
        module.order(1000)


def module(corpus: Path, **options: object) -> TextDataModule:
    defaults = {
        "train_files": str(corpus / "train.txt"),
        "tokenizer": str(corpus / "tokenizer"),
        "cache_dir": str(corpus / "cache"),
        "block_size": 16,
        "batch_size": 4,
    }
    return TextDataModule(**{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_read_the_same_batches_in_the_same_order(store: TokenStore, num_workers: int) -> None:
    order = BlockOrder(blocks=40, global_batch=8, seed=1)
    plain = iter(TrainBatches(BlockDataset(store, 16, 16), order.micro_batches(3, 2, 1, 2)))
    worked = iter(TrainBatches(BlockDataset(store, 16, 16), order.micro_batches(3, 2, 1, 2), num_workers))
    for _ in range(30):  # over the ends of six epochs
        assert torch.equal(next(plain), next(worked))


def test_a_store_sent_to_another_process_takes_only_its_name_along(store: TokenStore) -> None:
    sent = pickle.dumps(BlockDataset(store, 16, 16))
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)[np.array([3])], BlockDataset(store, 16, 16)[np.array([3])])


def test_strided_blocks_overlap(corpus: Path) -> None:
    text = module(corpus, stride=5)
    store = text.store("train")
    assert text.order(4).blocks == (len(store) - 17) // 5 + 1
    rows = BlockDataset(store, 16, 5)[np.array([0, 1, 7])]
    for row, start in zip(rows.numpy(), (0, 5, 35), strict=True):
        assert np.array_equal(row, store[start : start + 17])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stride": 0}, "data.stride 0: must be from 1 to data.block_size 16"),
        ({"stride": 17}, "data.stride 17: must be from 1 to data.block_size 16"),
        ({"num_workers": -1}, "data.num_workers -1: must not be negative"),
        ({"shard_tokens": 0}, "data.shard_tokens 0: must be at least 1"),
        ({"mask_documents": True, "append_eos": False}, "data.mask_documents: needs data.append_eos"),
        ({"cache_dir": "s3://bucket/stores"}, "data.cache_dir s3://bucket/stores: a URL needs data.streaming true"),
        ({"streaming": True, "num_workers": 1}, "data.num_workers 1: not with data.streaming"),
        ({"streaming": True, "window_shards": 0}, "data.window_shards 0: must be at least 1"),
        ({"train_files": []}, "data.train_files: names no file"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], said: str) -> None:
    sound = {
        "block_size": 16,
        "batch_size": 4,
        "shard_tokens": 9,
        "stride": None,
        "num_workers": 0,
        "global_batch_size": None,
    }
    sound |= {
        "train_files": "a.txt",
        "mask_documents": False,
        "append_eos": True,
        "valid_fraction": 0.0,
        "test_fraction": 0.0,
    }
    sound |= {"valid_files": None, "test_files": None, "cache_dir": ".cache", "streaming": False, "window_shards": 4}
    assert not datamodule.data_problems(sound)
    (problem,) = datamodule.data_problems({**sound, **options})
    assert problem.startswith(said)


def test_a_tokenizer_is_made_on_first_use_and_kept(corpus: Path, tmp_path: Path) -> None:
    spec = TokenizerSpec(kind="char")
    first = module(corpus, tokenizer=spec, cache_dir=str(tmp_path))
    assert not (tmp_path / "tokenizers").exists(), "a constructor trains nothing"
    first.prepare_data()
    (folder,) = (path for path in (tmp_path / "tokenizers").iterdir() if path.is_dir())
    made = (folder / "tokenizer.json").stat()
    again = module(corpus, tokenizer=spec, cache_dir=str(tmp_path))
    again.prepare_data()
    assert tokenizer.to_json(first.tokenizer) == tokenizer.to_json(again.tokenizer)
    assert (folder / "tokenizer.json").stat().st_mtime_ns == made.st_mtime_ns
    text = "the quick brown fox"
    assert len(first.tokenizer.encode(text).ids) == len(text)
    other = module(corpus, tokenizer=spec, cache_dir=str(tmp_path), train_files=str(corpus / "valid.txt"))
    assert tokenizer.to_json(other.tokenizer) != "" and len(list((tmp_path / "tokenizers").glob("*/"))) == 2


def test_a_tokenizer_learns_nothing_from_the_share_that_is_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {n} {chr(0x4E00 + n)}" for n in range(500)), encoding="utf-8")
    text = module(
        tmp_path,
        tokenizer=TokenizerSpec(kind="char"),
        cache_dir=str(tmp_path),
        train_files=str(path),
        valid_fraction=0.2,
    )
    train, whole = text.store("train").documents, 500
    known = sum(len(text.tokenizer.encode(chr(0x4E00 + n)).ids) == 1 for n in range(500))
    assert train < whole and known == train


def test_a_tokenizer_spec_says_what_is_wrong_with_it(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer: --vocab_size 3: bpe needs"):
        module(corpus, tokenizer=TokenizerSpec(vocab_size=3), cache_dir=str(tmp_path)).prepare_data()
    with pytest.raises(DataError, match=r"owner/name: no such tokenizer \(no such folder here, and HF_HUB_OFFLINE"):
        module(corpus, tokenizer="owner/name", cache_dir=str(tmp_path)).prepare_data()


def test_signals_that_reach_all_processes_do_not_take_the_readers(store: TokenStore) -> None:
    order = BlockOrder(blocks=40, global_batch=8, seed=1)
    plain = iter(TrainBatches(BlockDataset(store, 16, 16), order.micro_batches(0, 8, 0, 1)))
    worked = iter(TrainBatches(BlockDataset(store, 16, 16), order.micro_batches(0, 8, 0, 1), num_workers=1))
    next(plain), next(worked)
    readers = _readers()
    assert readers
    for reader in readers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(reader, number)
    for _ in range(10):  # more than lie ready
        assert torch.equal(next(plain), next(worked))


def test_a_reader_that_dies_is_one_line(store: TokenStore) -> None:
    order = BlockOrder(blocks=40, global_batch=8, seed=1)
    worked = iter(TrainBatches(BlockDataset(store, 16, 16), order.micro_batches(0, 8, 0, 1), num_workers=1))
    next(worked)
    for reader in _readers():
        os.kill(reader, signal.SIGKILL)
    with pytest.raises(MachineError, match=r"data\.num_workers 1: one of these processes died or failed"):
        for _ in range(10):
            next(worked)


def _readers() -> list[int]:
    """Processes that the loaders of this one have started."""
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def test_a_local_vocabulary_that_changes_is_another_tokenizer(corpus: Path, tmp_path: Path) -> None:
    local = tmp_path / "tokenizer"
    spec = TokenizerSpec(kind="existing", vocab=str(local))
    sizes = []
    for vocab_size in (300, 310):
        train_tokenizer([str(corpus / "train.txt")], local, vocab_size=vocab_size)
        sizes.append(module(corpus, tokenizer=spec, cache_dir=str(tmp_path / "cache")).vocab_size)
    assert sizes == [300, 310]


def test_text_without_any_token_is_refused(corpus: Path, tmp_path: Path) -> None:

    (tmp_path / "a.txt").write_text("\u4e00\n")
    made = module(corpus, train_files=str(tmp_path / "a.txt"), append_eos=False, cache_dir=str(tmp_path))
    made.tokenizer = tokenizer.from_json(LETTERS, "letters")
    with pytest.raises(DataError, match="the tokenizer makes no token of this text"):
        made.store("train")


LETTERS = """{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 0, "content":
"<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
"normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {"type": "BPE",
"dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
"byte_fallback": false, "ignore_merges": false, "vocab": {"<|endoftext|>": 0, "a": 1}, "merges": []}}"""
