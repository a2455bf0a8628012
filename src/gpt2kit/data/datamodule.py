"""Text files to batches: files -> documents -> token store -> blocks -> `[batch_size, block_size + 1]` integers.

Each stage is a module of its own (text, tokenization, build, store, order, batches); here they are only joined.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from tokenizers import Tokenizer

from gpt2kit.data import build, remote
from gpt2kit.data import order as blocks
from gpt2kit.data.batches import BlockDataset, EvalBatches, TrainBatches
from gpt2kit.data.build import Corpus
from gpt2kit.data.remote import SCRATCH, StreamedStore
from gpt2kit.data.store import TokenStore, leakage_note
from gpt2kit.errors import DataError, problems_of
from gpt2kit.metrics import Score
from gpt2kit.text.reader import Reader, Split, shares, split_problems
from gpt2kit.text.sources import find_files
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.train import resolve
from gpt2kit.tokenization.trainers import TokenizerSpec

_SIZES = ("block_size", "batch_size", "shard_tokens", "window_shards")

TOKENIZER = "tokenizer"
"""The folder that the tokenizer is in, unless another is named."""


class TextDataModule(pl.LightningDataModule):
    """Text files as blocks of tokens. They are tokenized once, into a cache that is keyed by their content.

    Args:
        train_files: text files, folders, patterns or URLs to learn from.
        valid_files: text to watch the run by; also decides which checkpoint is the best.
        test_files: text for test.py, by default.
        tokenizer: a folder that train_tokenizer.py has written, a tokenizer.json, a name on the Hugging Face hub, or
            what to train from the training text on first use, such as `{kind: char}` or `{vocab_size: 16000}`.
            Default: that of model.init_from, else the folder `tokenizer`.
        block_size: tokens the model sees at once; the context it can use later.
        batch_size: sequences in one forward pass on one device. An optimizer step takes this times the devices times
            `trainer.accumulate_grad_batches`.
        global_batch: sequences in an optimizer step, over all devices; `trainer.accumulate_grad_batches` then follows
            from the devices, so that a run may go on with another number of them.
        reader: turns files into documents.
        valid_share: instead of valid_files, the share of the training documents, such as 0.01, that is kept out of
            training for it. A hash of the text and the seed decides; equal documents fall together.
        test_share: instead of test_files, the share of them that is kept out for test.py.
        stride: tokens between the beginnings of two training blocks. Default: block_size, so that each token is
            predicted once an epoch; less makes blocks overlap, and epochs longer.
        mask_documents: let no token see another document, and count positions from each document's start.
        append_eos: end each document with the end-of-document token; without, nothing parts them.
        shuffle: take the blocks in random order, another one in each epoch.
        cache_dir: where tokenized text is kept; safe to delete. With streaming, the URL or folder that it was
            copied to.
        shard_tokens: tokens in one file of the cache, about; also the work that a killed build can lose.
        num_workers: processes that read training batches ahead. 0 is the fastest unless the disk is slow: the files are
            mapped into memory, and sending a batch between processes takes longer than reading it.
        streaming: read tokenized text from cache_dir, such as `s3://bucket/stores`, and keep only the files that are
            needed now and next on the local disk. It is built locally and copied there: docs/scaling.md.
        window_shards: with streaming, how many files of the cache are mixed with one another.
        seed: decides the order; comes from `seed_everything`.
    """

    def __init__(
        self,
        train_files: list[str] | str,
        valid_files: list[str] | str | None = None,
        test_files: list[str] | str | None = None,
        tokenizer: str | TokenizerSpec | None = None,
        block_size: int = 256,
        batch_size: int = 16,
        global_batch: int | None = None,
        reader: Reader = Reader(),
        valid_share: float = 0.0,
        test_share: float = 0.0,
        stride: int | None = None,
        mask_documents: bool = False,
        append_eos: bool = True,
        shuffle: bool = True,
        cache_dir: str = ".cache/gpt2kit",
        shard_tokens: int = 1 << 26,
        num_workers: int = 0,
        streaming: bool = False,
        window_shards: int = 4,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.files: dict[Split, list[str]] = {
            "train": _as_list(train_files),
            "valid": _as_list(valid_files),
            "test": _as_list(test_files),
        }
        self.shares = shares(valid_share, test_share, seed)
        for split in self.shares:
            self.files[split] = self.files["train"]
        self.cache_dir = SCRATCH if streaming else Path(cache_dir)
        self.streamed_from = cache_dir if streaming else None
        self._tokenizer = tokenizer or TOKENIZER
        self.block_size = block_size
        self.batch_size = batch_size
        self.wanted_batch = global_batch
        self.reader = reader
        self.stride = stride or block_size
        self.mask_documents = mask_documents
        self.append_eos = append_eos
        self.shuffle = shuffle
        self.shard_tokens = shard_tokens
        self.num_workers = num_workers
        self.window_shards = window_shards if streaming else None
        self.seed = seed
        self.start_step = 0
        """The first optimizer step to give batches for; set on resume."""
        self._stores: dict[Split, TokenStore] = {}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. One that is trained on first use is trained when it is first asked for, in `prepare_data`."""
        is_trained = isinstance(self._tokenizer, TokenizerSpec)
        paths = find_files(self.files["train"]) if is_trained else []
        return resolve(self._tokenizer, paths, self.reader, self.shares.get("train"), self.cache_dir)

    @property
    def vocab_size(self) -> int:
        """Rows that the model's embedding needs."""
        return tokenizers.size(self.tokenizer)

    @property
    def document_start(self) -> int | None:
        """The token behind which another document begins, if none may see another."""
        return tokenizers.eos_id(self.tokenizer) if self.mask_documents else None

    def prepare_data(self) -> None:
        """Train the tokenizer and build the token stores. Lightning lets one process of each machine do it first."""
        self.setup("fit")
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.order(self.global_batch(self.trainer))  # refuses a text that is too short, before a run has a folder

    def setup(self, stage: str) -> None:
        """Open the stores."""
        self.store("train")
        for split in ("valid", "test"):  # test, too: to see now whether its documents stand in the training text
            if self.files[split]:
                self.store(split)

    def store(self, split: Split) -> TokenStore:
        """The token store of a split."""
        if split not in self._stores:
            store = self._open(self.corpus(split), f"{split} text")
            if store.tokens < 2:
                raise DataError(f"{self.files[split][0]}: the tokenizer makes no token of this text. Take another one")
            self._stores[split] = store
        return self._stores[split]

    def _open(self, corpus: Corpus, what: str) -> TokenStore:
        if self.streamed_from is not None:
            return remote.open_store(self.streamed_from, corpus, what, self.cache_dir)
        return build.open_with_bar(corpus, self.cache_dir, what)

    def corpus(self, split: Split) -> Corpus:
        """A split's text, and how it becomes tokens."""
        return Corpus(
            find_files(self.files[split]),
            self.tokenizer,
            self.reader,
            self.shares.get(split),
            self.append_eos,
            self.shard_tokens,
        )

    def corpora(self) -> dict[Split, Corpus]:
        """Those of all splits that have files."""
        return {split: self.corpus(split) for split in get_args(Split) if self.files[split]}

    def notes(self) -> list[str]:
        """What the user should know of the text before training: what was left out, and what stands in two splits."""
        splits = list(self.corpora())
        found = [f"{split} text: {note}" for split in splits for note in self.store(split).notes]
        for a, b in itertools.combinations(splits, 2):
            found += leakage_note(self.store(a), a, self.store(b), b, self.tokenizer)
        return found

    def order(self, global_batch: int) -> blocks.BlockOrder:
        """The order of training blocks for `global_batch` sequences an optimizer step."""
        store = self.store("train")
        if self.window_shards is None:
            count = blocks.count_train(store.tokens, self.block_size, self.stride)
            order = blocks.BlockOrder(count, global_batch, self.seed, self.shuffle)
        else:
            sizes = [shard.tokens for shard in store.shards]
            order = blocks.window_order(
                sizes, self.block_size, self.stride, self.window_shards, global_batch, self.seed, self.shuffle
            )
        if order.blocks < global_batch:
            raise DataError(
                f"{self.files['train'][0]}: {store.tokens:,} tokens make {order.blocks} blocks of {self.block_size}, "
                f"fewer than the {global_batch} of one optimizer step. Give more text, or a smaller data.block_size or "
                "data.batch_size"
            )
        return order

    def global_batch(self, trainer: pl.Trainer) -> int:
        """Sequences in one optimizer step, over all ranks and accumulation."""
        return self.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def valid_text(self) -> Score:
        """Size of the whole validation text: what it counts against, with nothing lost yet."""
        return text_size(self.store("valid"))

    def train_dataloader(self) -> TrainBatches:
        trainer = self._attached()
        order, store = self.order(self.global_batch(trainer)), self.store("train")
        share = (self.start_step, self.batch_size, trainer.global_rank, trainer.world_size)
        if isinstance(order, blocks.WindowOrder) and isinstance(store, StreamedStore):
            return TrainBatches(
                BlockDataset(store, self.block_size, 1), blocks.prefetching_batches(order, store.prefetch, *share)
            )
        return TrainBatches(
            BlockDataset(store, self.block_size, self.stride), order.micro_batches(*share), self.num_workers
        )

    def val_dataloader(self) -> EvalBatches | list[EvalBatches]:
        if not self.files["valid"]:
            return []
        trainer = self._attached()
        store = self.store("valid")
        return EvalBatches(store, self.block_size, self.batch_size, trainer.global_rank, trainer.world_size)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Memory that a GPU reads by itself: the copy then runs beside the step before."""
        return batch.pin_memory() if self._attached().strategy.root_device.type == "cuda" else batch

    def _attached(self) -> pl.Trainer:
        assert self.trainer is not None, "a trainer asks for its loaders"
        return self.trainer


def text_size(store: TokenStore) -> Score:
    """What a text's score is measured against: each token after the first, each byte and each document's end token."""
    return Score(0.0, store.tokens - 1, store.bytes + store.ends)


def data_problems(options: dict[str, Any]) -> list[str]:
    """What is wrong with the data module's options, in their words."""
    sizes = [f"data.{name} {options[name]}: must be at least 1" for name in _SIZES if options[name] < 1]
    stride, workers = options["stride"], options["num_workers"]
    rules = {
        "data.train_files: names no file": not options["train_files"],
        f"data.stride {stride}: must be from 1 to data.block_size {options['block_size']}": stride is not None
        and not 1 <= stride <= options["block_size"],
        f"data.global_batch {options['global_batch']}: must be at least 1": options["global_batch"] is not None
        and options["global_batch"] < 1,
        f"data.num_workers {workers}: must not be negative": workers < 0,
        "data.mask_documents: needs data.append_eos, which says where documents end": options["mask_documents"]
        and not options["append_eos"],
        f"data.cache_dir {options['cache_dir']}: a URL needs data.streaming true; or name a local folder": "://"
        in options["cache_dir"]
        and not options["streaming"],
        f"data.num_workers {workers}: not with data.streaming, which fetches in threads. Leave it out": workers > 0
        and options["streaming"],
    }
    return sizes + problems_of(rules) + split_problems(options)


def _as_list(files: list[str] | str | None) -> list[str]:
    return [files] if isinstance(files, str) else list(files or [])
