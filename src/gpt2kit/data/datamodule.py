"""From text files to batches: files -> documents -> token store -> blocks -> `[batch_size, block_size + 1]` integers.

Joins text, tokenization, build, store, order and batches into a LightningDataModule.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from tokenizers import Tokenizer

from gpt2kit.data import build, near_duplicates, remote
from gpt2kit.data import order as blocks
from gpt2kit.data.batches import BlockDataset, EvalBatches, TrainBatches
from gpt2kit.data.build import Corpus
from gpt2kit.data.joined_store import JoinedStore, refuse_small_texts
from gpt2kit.data.leakage import leakage_note
from gpt2kit.data.mixed_order import MIX_VERSION, mixed_order
from gpt2kit.data.near_duplicates import LeftOut
from gpt2kit.data.remote import SCRATCH, StreamedStore
from gpt2kit.data.stages import Stage
from gpt2kit.data.store import TokenStore
from gpt2kit.data.texts import Text, TextFiles, Texts
from gpt2kit.data.window_order import WindowOrder, prefetching_batches, window_order
from gpt2kit.errors import DataError, UserError, problems_of
from gpt2kit.metrics import Score
from gpt2kit.text import splits
from gpt2kit.text.reader import Reader
from gpt2kit.text.splits import Split
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.cache import load_named, load_or_train
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.train import default_spec


class TextDataModule(pl.LightningDataModule):
    """Text files as blocks of tokens. Files are tokenized once, into a cache that is keyed by their content.

    Args:
        train_files: Text files, folders, patterns or URLs to train on. Several texts may have names, weights and
            readers, such as `{poems: {files: poems/, weight: 2}, songs: {files: songs/, reader: {document: line}}}`: a
            token of the poems then comes twice as often.
        valid_files: Text for validation during training. Its loss decides which checkpoint is the best. Several texts
            with names are also measured one by one.
        test_files: Text for the test: the default text of `gpt2kit test`.
        tokenizer: A tokenizer's folder, a tokenizer.json, a name on the Hugging Face hub, or options to train one.
            Options such as `{kind: char}` or `{vocab_size: 16000}` train it on the training text on first use. The size
            of a vocabulary that is trained by default fits the text. For weights of another program (model.init_from),
            their vocabulary. Default: that of model.init_from, else byte-level BPE, trained on the text.
        block_size: Context length in tokens.
        batch_size: Sequences in one forward pass on one device. An optimizer step takes this times the devices times
            `trainer.accumulate_grad_batches`.
        global_batch_size: Sequences in an optimizer step, over all devices. `trainer.accumulate_grad_batches` is
            computed from it, so a run can be resumed on another number of devices.
        reader: How files become documents, such as `{document: line}`.
        valid_fraction: Fraction of the training text to hold out for validation. 0: none. Not with valid_files. Whole
            documents are held out, by a hash of the text and the seed. Of long documents, and if there are few, the end
            of each is held out. Default: 0.05 (at most 5 MB), unless files or a fraction of validation or test text are
            given.
        test_fraction: Fraction of the training text to hold out for the test. 0: none. Not with test_files. Default: as
            for valid_fraction.
        stride: Tokens between the starts of two training blocks. With less than block_size, blocks overlap and epochs
            are longer. Default: block_size.
        mask_documents: Mask attention between documents. Positions count from the start of each document.
        append_eos: End each document with the end-of-document token. Without it nothing separates documents. A
            vocabulary without this token, such as nanoGPT's characters, acts like false.
        shuffle: Read the blocks in random order. Each epoch has another order.
        cache_dir: Folder for tokenized text; safe to delete. With streaming, the URL or folder that it was copied to.
        shard_tokens: Approximate number of tokens in one file of the cache. A killed build loses at most one file.
        num_workers: Threads that read training batches ahead, for a slow disk.
        streaming: Read tokenized text from a URL, which cache_dir names, such as `s3://bucket/stores`. Only the files
            that are needed now and next are on the local disk. Build it locally and copy it there: docs/distributed.md.
        window_shards: With streaming, number of cache files to shuffle together.
        seed: Random seed of the order; comes from `seed_everything`.
    """

    def __init__(
        self,
        train_files: TextFiles,
        valid_files: TextFiles | None = None,
        test_files: TextFiles | None = None,
        tokenizer: str | TokenizerSpec | None = None,
        block_size: int = 256,
        batch_size: int = 16,
        global_batch_size: int | None = None,
        reader: Reader = Reader(),
        valid_fraction: float | None = None,
        test_fraction: float | None = None,
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
        is_given = valid_files or test_files or (valid_fraction, test_fraction) != (None, None)
        fractions = (valid_fraction or 0.0, test_fraction or 0.0) if is_given else None
        self.cache_dir = SCRATCH if streaming else Path(cache_dir)
        self.streamed_from = cache_dir if streaming else None
        files: dict[Split, TextFiles | None] = {"train": train_files, "valid": valid_files, "test": test_files}
        self.texts = Texts(files, reader, fractions, block_size, seed, self.cache_dir)
        self._tokenizer = tokenizer
        self.block_size = block_size
        self.batch_size = batch_size
        self.requested_global_batch_size = global_batch_size
        self.reader = reader
        self.stride = stride or block_size
        self.mask_documents = mask_documents
        self._append_eos = append_eos
        self.shuffle = shuffle
        self.shard_tokens = shard_tokens
        self.num_workers = num_workers
        self.window_shards = window_shards if streaming else None
        self.seed = seed
        self.order_version = blocks.ORDER_VERSION  # a resumed run keeps its order of blocks
        self.start_step = 0  # the first optimizer step of the batches, counted in the stage; set on resume
        self.stages = [Stage()]  # a resumed run has those of its checkpoint
        self._stores: dict[Split, TokenStore] = {}

    @property
    def files(self) -> dict[Split, list[str]]:
        """The files of each split, as the user gave them."""
        return self.texts.files

    @property
    def splits(self) -> list[Split]:
        """The splits that have text."""
        return [split for split, files in self.files.items() if files]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. A TokenizerSpec is trained at the first access, which is in `prepare_data`."""
        if isinstance(self._tokenizer, str):
            return load_named(self._tokenizer, self.cache_dir)
        self._refuse_small_text()
        spec = self._tokenizer or default_spec(self.texts.survey.bytes)
        return load_or_train(
            spec, [self.texts.selection(text, "train") for text in self.texts.of("train")], self.cache_dir
        )

    def _refuse_small_text(self) -> None:
        """Raise if the training text is too short even for a tokenizer with one token per byte.

        `order` compares the number of tokens when it is known.
        """
        self.texts.find_files()
        held_out = any(any(self.texts.fractions_of(text)) for text in self.texts.of("train"))
        if self._tokenizer is not None and not held_out:  # then nothing else needs the size of the text
            return
        size, tokens = self.texts.survey.bytes, self.stride * (self.batch_size - 1) + self.block_size + 1
        if self.texts.bytes_to_train_on() < tokens:
            purpose = "train, validate and test" if held_out else "train"
            raise DataError(
                f"{self.files['train'][0]}: {size:,} bytes of text. About "
                f"{splits.smallest_text(tokens) / 1000:,.0f} kB are needed to {purpose} with data.block_size "
                f"{self.block_size} and data.batch_size {self.batch_size}. Add text, or decrease them"
            )

    def resolved(self) -> dict[str, Any]:
        """Return the options that are not set and depend on the text, with their values as plain data."""
        options: dict[str, Any] = {}
        if self._tokenizer is None:
            options["tokenizer"] = asdict(default_spec(self.texts.survey.bytes)) | {"special_tokens": []}
        if self.texts.is_automatic:
            options["valid_fraction"], options["test_fraction"] = self.texts.fractions
        return options

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return tokenizers.size(self.tokenizer)

    @property
    def document_start(self) -> int | None:
        """The token that begins a document, if attention is masked between documents."""
        if not self.mask_documents:
            return None
        if (end := tokenizers.find_eos(self.tokenizer)) is None:
            raise UserError(
                "data.mask_documents: needs a vocabulary with an end-of-text token, which marks where documents end. "
                "Omit it"
            )
        return end

    @property
    def append_eos(self) -> bool:
        """Whether documents end with the end-of-document token."""
        return self._append_eos and tokenizers.find_eos(self.tokenizer) is not None

    def prepare_data(self) -> None:
        """Train the tokenizer and build the token stores. Lightning runs this first in one process of each machine."""
        self.setup("fit")
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.order(self.global_batch(self.trainer))  # refuses a text that is too short before the run has a folder

    def setup(self, stage: str) -> None:
        """Open the stores. The test text is opened to report its documents that are also in the training text."""
        for split in self.splits:
            self.store(split)

    def store(self, split: Split) -> TokenStore:
        """Return the token store of a split; build it if it is not in the cache."""
        if split not in self._stores:
            self._refuse_small_text()
            stores = {text.name: self._open_store(text, split) for text in self.texts.of(split)}
            self._stores[split] = stores[""] if "" in stores else JoinedStore(stores)
        return self._stores[split]

    def _open_store(self, text: Text, split: Split) -> TokenStore:
        corpus, name = self.corpus(text, split), f"{split} text{text.label}"
        store: TokenStore
        if self.streamed_from is not None:
            store = remote.open_store(self.streamed_from, corpus, name, self.cache_dir)
        else:
            store = build.open_with_bar(corpus, self.cache_dir, name)
        if store.predicted[0] < 1:
            raise DataError(f"{text.files[0]}: the tokenizer encodes this text to no tokens. Use another tokenizer")
        return store

    def stores(self, split: Split) -> dict[str, TokenStore]:
        """Return the stores of a split's texts by their names; the name of the only one is empty."""
        store = self.store(split)
        return store.stores if isinstance(store, JoinedStore) else {"": store}

    def corpus(self, text: Text, split: Split) -> Corpus:
        """Return a split of a text, and how it is tokenized."""
        paths, reader, split_range = self.texts.selection(text, split)
        left_out = self.left_out.get(text.name) if split == "train" else None
        return Corpus(paths, self.tokenizer, reader, split_range, self.append_eos, self.shard_tokens, left_out=left_out)

    @functools.cached_property
    def left_out(self) -> dict[str, LeftOut]:
        """What is left out of each training text with reader.drop_near_duplicates; searched at the first access."""
        if not any(text.reader.drop_near_duplicates for text in self.texts.of("train")):
            return {}
        return near_duplicates.find(self.texts, self.cache_dir, self.streamed_from)

    def corpora(self) -> dict[str, Corpus]:
        """Return the corpora of all splits that have files, by the names of split and text."""
        return {
            f"{split} text{text.label}": self.corpus(text, split)
            for split in self.splits
            for text in self.texts.of(split)
        }

    def notes(self) -> list[str]:
        """Return notes on the text for the user, such as skipped records and documents in two splits."""
        splits_of: dict[str, list[str]] = {}
        for split in self.splits:
            for note in self.store(split).notes:
                splits_of.setdefault(note, []).append(split)
        notes = [f"{', '.join(names)} text: {note}" for note, names in splits_of.items()]
        for text in self.texts.of("train"):
            if loss_on := text.reader.loss_on:
                store = self.stores("train")[text.name]
                counted = f"{store.predicted[0]:,} of {store.tokens - 1:,} training tokens"
                notes.append(f"the loss counts only {', '.join(loss_on)}: {counted}{text.label and f' of{text.label}'}")
        if tokenizers.find_eos(self.tokenizer) is None:
            notes.append(
                "the vocabulary has no end-of-text token: documents follow each other without one, and characters that "
                "it lacks are left out"
            )
        for a, b in itertools.combinations(self.splits, 2):
            for name, store in self.stores(b).items():
                notes += leakage_note(self.store(a), a, store, f"{b} {name}".strip(), self.tokenizer)
        return notes

    def order(self, global_batch: int) -> blocks.BlockOrder:
        """Return the order of training blocks with `global_batch` sequences per optimizer step."""
        store = self.store("train")
        size, stride, seed, version = self.block_size, self.stride, self.seed, self.order_version
        order: blocks.BlockOrder
        if isinstance(store, JoinedStore):
            texts = self.texts.of("train")
            refuse_small_texts(texts, store, size)
            weights, fractions = [text.weight for text in texts], [text.fraction for text in texts]
            rules = (weights, fractions, size, stride, global_batch, seed, self.shuffle, version)
            order = mixed_order([part.tokens for part in store.stores.values()], *rules, stage=len(self.stages))
        elif self.window_shards is None:
            order = blocks.block_order(store.tokens, size, stride, global_batch, seed, self.shuffle, version)
        else:
            tokens, window = [shard.tokens for shard in store.shards], self.window_shards
            order = window_order(tokens, size, stride, window, global_batch, seed, self.shuffle, version)
        if order.blocks < global_batch:
            needed = (global_batch * self.block_size + 1) * (store.bytes / store.tokens)
            raise DataError(
                f"{self.files['train'][0]}: {store.tokens:,} tokens make {order.blocks} blocks of {self.block_size}, "
                f"fewer than the {global_batch} of one optimizer step. About {needed / 1000:,.1f} kB of training text "
                "are needed. Add text, or decrease data.block_size or data.batch_size"
            )
        return order

    @property
    def first_step(self) -> int:
        """The optimizer steps before the current stage."""
        return self.stages[-1].first_step

    def mix(self) -> dict[str, Any] | None:
        """Return what decides the order of several texts besides their tokens; None for one."""
        if not isinstance(self.store("train"), JoinedStore):
            return None
        return {"version": MIX_VERSION, **{text.name: text.part for text in self.texts.of("train")}}

    def text_problems(self, global_batch: int) -> list[str]:
        """Read each split, and list what is wrong with the text itself."""
        problems = [problem for split in self.splits for problem in problems_of(self.store, split)]
        # A problem of the text that is split is found for each split.
        return list(dict.fromkeys(problems)) or problems_of(self.order, global_batch)

    def global_batch(self, trainer: pl.Trainer) -> int:
        """Return the sequences in one optimizer step, over all ranks and accumulation."""
        return self.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def valid_texts(self) -> dict[str, Score]:
        """Return the size of each validation text, as a score without loss; each document's end counts as a byte."""
        return {name: Score(0.0, *store.predicted) for name, store in self.stores("valid").items()}

    def train_dataloader(self) -> TrainBatches:
        trainer = self._attached_trainer()
        order, store = self.order(self.global_batch(trainer)), self.store("train")
        position = (self.start_step, self.batch_size, trainer.global_rank, trainer.world_size)
        dataset = BlockDataset(store, self.block_size)
        if isinstance(order, WindowOrder) and isinstance(store, StreamedStore):
            return TrainBatches(dataset, prefetching_batches(order, store.prefetch, *position))
        return TrainBatches(dataset, order.micro_batches(*position), self.num_workers)

    def val_dataloader(self) -> list[EvalBatches]:
        """Return the batches of each validation text."""
        if not self.files["valid"]:
            return []
        trainer = self._attached_trainer()
        sizes = self.block_size, self.batch_size, trainer.global_rank, trainer.world_size
        return [EvalBatches(store, *sizes) for store in self.stores("valid").values()]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Pin the memory of a batch, so that it is copied to a GPU during the previous step."""
        return batch.pin_memory() if self._attached_trainer().strategy.root_device.type == "cuda" else batch

    def _attached_trainer(self) -> pl.Trainer:
        assert self.trainer is not None
        return self.trainer
