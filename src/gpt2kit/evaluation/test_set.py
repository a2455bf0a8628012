"""The candidates (checkpoints) that test.py compares, and the documents on which all of them are tested."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gpt2kit.checkpoint import checkpoint, saved_text
from gpt2kit.checkpoint.checkpoint import CheckpointInfo
from gpt2kit.checkpoint.options import ForeignOptions
from gpt2kit.checkpoint.paths import LOGS
from gpt2kit.checkpoint.saved_text import SavedText
from gpt2kit.data.build import Corpus, open_with_bar
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import CheckpointError, DataError, Problems, UserError, refuse
from gpt2kit.evaluation.blocks import Sampling, choose_sampling
from gpt2kit.evaluation.options import EvaluationOptions
from gpt2kit.evaluation.scoring import boundaries
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.reader import Reader, document_identity, reader_from
from gpt2kit.text.sources import PathOrURL, find_files
from gpt2kit.text.splits import SplitRange
from gpt2kit.tokenization.tokenizer import find_eos

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to test, without its weights."""

    name: str  # as the user gave it
    info: CheckpointInfo
    reader: Reader | None  # of its training text; None if it is not recorded, or if the user sets one
    append_eos: bool  # whether it was trained to predict the ends of documents
    test_texts: list[SavedText]  # its own ones
    training_texts: list[SavedText]
    foreign: ForeignOptions  # what its file does not contain

    @property
    def has_end(self) -> bool:
        """Whether its vocabulary has an end-of-text token, from which the first token of a document is predicted."""
        return find_eos(self.info.tokenizer) is not None

    @property
    def context(self) -> int:
        """Maximum number of tokens that the model sees."""
        return int(self.info.shape["n_positions"])

    @property
    def text_fingerprint(self) -> object:
        """Fingerprint of the training text, if it is recorded."""
        data = self.info.metadata.get("data")
        return data.get("text") if isinstance(data, dict) else None

    def load_model(self) -> GPT2:
        """Load the weights. They are not kept here, so that one model is in memory at a time."""
        return checkpoint.open(self.info.path, False, self.foreign).model

    def corpus(self, paths: Sequence[PathOrURL], reader: Reader, split: SplitRange | None) -> Corpus:
        """Return a text as this checkpoint reads it, or as `reader` does if it has no reader."""
        return Corpus(paths, self.info.tokenizer, self.reader or reader, split, self.append_eos)


@dataclass(frozen=True)
class TestSet:
    """The documents on which all candidates are tested."""

    name: str  # empty if it is the only one
    files: list[str]  # as the user or a checkpoint gave them
    split: SplitRange | None  # of their documents; None: all
    corpora: list[Corpus]  # the text as each candidate reads it
    stores: list[TokenStore]  # its tokens, for each candidate
    hash: str  # of the documents; does not depend on the tokenizer
    documents: int  # number of documents that are tested, from the first one on

    @property
    def partial(self) -> str:
        """The part that is tested; empty if it is the whole text."""
        total = self.stores[0].documents
        return f"the first {self.documents:,} of {total:,} documents" if self.documents < total else ""

    @functools.cached_property
    def sampling(self) -> Sampling:
        """What the intervals are computed from."""
        is_whole = all(find_eos(corpus.tokenizer) is not None for corpus in self.corpora)
        can_be_cut = is_whole and not self.corpora[0].reader.loss_on
        return choose_sampling(self.stores[0].counted()[: self.documents, 1], can_be_cut)


def open_candidates(
    paths: Sequence[str], has_reader: bool, stride: int | None, foreign: ForeignOptions = ForeignOptions()
) -> list[Candidate]:
    """Verify all checkpoints, and return them without their weights.

    If the user sets a reader, those of the checkpoints are ignored. The stride must not be larger than a context.
    """
    infos = checkpoint.peek_all(paths, foreign)
    candidates = [
        _make_candidate(path, info, has_reader, info.applicable(foreign))
        for path, info in zip(paths, infos, strict=True)
    ]
    problems = Problems()
    for candidate in candidates:
        problems.check(
            stride is None or stride <= candidate.context,
            f"--stride {stride}: more than the context of {candidate.name}, {candidate.context}",
        )
    refuse(problems.messages)
    return candidates


def _make_candidate(path: str, info: checkpoint.CheckpointInfo, has_reader: bool, foreign: ForeignOptions) -> Candidate:
    append_eos, identity = info.metadata.get("append_eos", True), info.metadata.get("reader")
    if type(append_eos) is not bool or not isinstance(identity, dict | None):
        raise CheckpointError(f"{info.path}: append_eos or reader is invalid. The file is damaged")
    reader = None
    if identity is not None and not has_reader:
        try:
            reader = reader_from(identity)
        except UserError as error:
            reason = str(error).split(". ")[0]
            advice = "Give a reader, such as --reader.document line"
            raise CheckpointError(f"{info.path}: {reason}. {advice}") from None
    texts = saved_text.test_texts(info.path, info.metadata), saved_text.training_texts(info.path, info.metadata)
    append_eos = append_eos and find_eos(info.tokenizer) is not None
    return Candidate(path, info, reader, append_eos, *texts, foreign)


def open_test_sets(
    candidates: Sequence[Candidate], files: list[str] | None, reader: Reader | None, options: EvaluationOptions
) -> list[TestSet]:
    """Tokenize the text for each candidate; raise unless all of them read the same documents.

    Default files: those of the first checkpoint that records any, which may be several texts. Default reader: that of
    the checkpoint, or else of the first one that records any.
    """
    if files:
        text = SavedText("", files, None, None, None)
        return [_open_test_set(candidates, text, find_files(files), reader, options)]
    owner = _find_owner(candidates)
    sets = []
    for text, paths in zip(owner.test_texts, _find_test_files(owner), strict=True):
        if text.split and reader and document_identity(reader.identity()) != document_identity(text.reader or {}):
            raise UserError(
                f"--reader: {owner.name} was trained on the rest of these documents, so another reader would read text "
                "that it was trained on. Leave out --reader, or give other text as --files"
            )
        test_set = _open_test_set(candidates, text, paths, reader or _reader_of(owner, text), options)
        if not reader:
            _check_test_text(owner, text, test_set.stores[candidates.index(owner)])
        sets.append(test_set)
    return sets


def _reader_of(owner: Candidate, text: SavedText) -> Reader | None:
    """Return the reader of one of several texts; None for the only one, which each candidate reads as its own."""
    if not text.name or text.reader is None:
        return None
    try:
        return reader_from(text.reader)
    except UserError as error:
        raise CheckpointError(f"{owner.info.path}: {error}") from None


def _open_test_set(
    candidates: Sequence[Candidate],
    text: SavedText,
    paths: Sequence[PathOrURL],
    reader: Reader | None,
    options: EvaluationOptions,
) -> TestSet:
    default = reader or next((candidate.reader for candidate in candidates if candidate.reader), None) or Reader()
    corpora = [candidate.corpus(paths, default, text.split) for candidate in candidates]
    if text.name:  # one of several texts, whose reader may be another one
        corpora = [replace(corpus, reader=default) for corpus in corpora]
    stores = [open_with_bar(corpus, options.cache_dir, f"test text {text.name}".rstrip()) for corpus in corpora]
    hashes = [hashlib.sha256(b"".join(part.tobytes() for part in store.hashes())).hexdigest() for store in stores]
    for candidate, own, store in zip(candidates, hashes, stores, strict=True):
        if own != hashes[0]:
            raise DataError(
                f"{candidates[0].name} and {candidate.name}: cannot be compared, since their readers split this text "
                f"into different documents ({stores[0].documents:,} and {store.documents:,}). Give one reader for all, "
                "such as --reader.document line, or test them one by one"
            )
    documents = _count_documents(stores, options.max_tokens)
    return TestSet(text.name, text.files, text.split, corpora, stores, hashes[0], documents)


def _find_owner(candidates: Sequence[Candidate]) -> Candidate:
    """Return the first candidate that records its test text."""
    first = next((candidate for candidate in candidates if candidate.test_texts), None)
    if first is None:
        raise UserError(f"{candidates[0].name}: records no test text. Give text files as --files")

    def places(candidate: Candidate) -> list[tuple[list[str], SplitRange | None]]:
        return [(text.files, text.split) for text in candidate.test_texts]

    for candidate in candidates:
        if places(candidate) != places(first):
            logger.info(
                f"{candidate.name}: tested on the test text of {first.name}, not on its own. If it was trained "
                "on this text, its figures are meaningless"
            )
    return first


def _find_test_files(owner: Candidate) -> list[list[PathOrURL]]:
    """Return the files of each test text that a checkpoint records."""
    names = [name for text in owner.test_texts for name in text.files]
    trusted = [_find_trusted(owner, text.files) for text in owner.test_texts]
    if any(paths is None for paths in trusted):
        listed = ", ".join(names[:3]) + (", ..." if names[3:] else "")
        raise UserError(
            f"{owner.name}: its test text is {listed:.200}, and only a run in {LOGS} may name text outside of the "
            f"current folder. If you trust it, give the text as --files, or run the command in the folder of its {LOGS}"
        )
    return [paths for paths in trusted if paths is not None]


def _find_trusted(candidate: Candidate, names: list[str]) -> list[PathOrURL] | None:
    """Return the test files that a checkpoint names; None if it may not name them, because anyone may have made it."""
    folder = Path.cwd()
    is_own = candidate.info.path.resolve().is_relative_to(Path(LOGS).resolve())
    is_below = all(Path(os.path.abspath(name)).is_relative_to(folder) for name in names)
    if any("://" in name for name in names) or not (is_own or is_below):
        return None
    paths = find_files(names)
    is_inside = all(path.resolve().is_relative_to(folder) for path in paths if isinstance(path, Path))
    return paths if is_own or is_inside else None


def _check_test_text(owner: Candidate, text: SavedText, store: TokenStore) -> None:
    """Raise if a test split is not the text that the run held out; report if test files have changed."""
    if text.fingerprint is None or store.fingerprint == text.fingerprint:  # older checkpoints have none
        return
    what = f"{owner.name}: {text.files[0]} has changed since the run was trained"
    if text.split is None:
        logger.info(f"{what}, so its figures differ from earlier ones")
        return
    raise DataError(
        f"{what}, so its test split may contain text that the run was trained on. Restore the text, or give other text "
        "as --files"
    )


def _count_documents(stores: Sequence[TokenStore], max_tokens: int | None) -> int:
    """Return how many of the first documents fit into `max_tokens` tokens in every store."""
    if max_tokens is None:
        return stores[0].documents
    ends = [boundaries(store)[1:] - 1 for store in stores]  # tokens up to the end of each document
    count = min(int(np.searchsorted(end, max_tokens, side="right")) for end in ends)
    if not count:
        size = max(int(end[0]) for end in ends)
        raise UserError(
            f"--max_tokens {max_tokens}: the first document has {size:,} tokens, and only whole documents are tested. "
            f"Use --max_tokens {size}, or shorter documents such as --reader.document line"
        )
    return count
