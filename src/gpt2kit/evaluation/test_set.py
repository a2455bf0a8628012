"""The checkpoints of one test, and the text that all of them are tested on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from gpt2kit.checkpoint import checkpoint
from gpt2kit.data.build import Corpus, open_with_bar
from gpt2kit.data.store import TokenStore
from gpt2kit.errors import CheckpointError, DataError, UserError
from gpt2kit.evaluation.scoring import boundaries
from gpt2kit.model.gpt2 import GPT2
from gpt2kit.text.reader import HashRange, Reader, reader_from
from gpt2kit.text.sources import PathOrURL, find_files


@dataclass
class Subject:
    """A checkpoint, without its weights unless it is the only one.

    Args:
        name: as the user gave it.
        file: that it is in.
        tokenizer: its own.
        context: tokens that it sees at most.
        reader: that its text was read by; None if it does not say.
        append_eos: whether its documents were ended by a token.
        test_text: the files and the share of them that it names for tests.
        train_share: the share of its training files that it was trained on; None: all of them.
        fingerprint: of the text that it was trained on, if it says.
        loaded: the whole of it, if it is the only one.
    """

    name: str
    file: Path
    tokenizer: Tokenizer
    context: int
    reader: Reader | None
    append_eos: bool
    test_text: tuple[list[str], HashRange | None]
    train_share: HashRange | None
    fingerprint: object
    loaded: checkpoint.Opened | None = None

    def model(self) -> GPT2:
        """Its model, opened again if several are tested, so that one lies in memory at a time."""
        return (self.loaded or checkpoint.open(self.name)).model


@dataclass(frozen=True)
class Text:
    """What is tested on.

    Args:
        files: as the user or the checkpoint gave them.
        share: of their documents.
        paths: of the files.
        corpora: the same text as each subject reads it.
        stores: the tokens of it, each subject's.
        hash: of its documents, whatever the tokenizer.
    """

    files: list[str]
    share: HashRange | None
    paths: Sequence[PathOrURL]
    corpora: list[Corpus]
    stores: list[TokenStore]
    hash: str


def open_all(names: list[str], with_reader: bool) -> list[Subject]:
    """All checkpoints, each looked at now, so that a bad one is found before an hour of testing.

    Args:
        names: paths of checkpoints.
        with_reader: take the readers that they were trained with; not wanted if the user gives another.
    """
    found = []
    for name in names:
        opened = checkpoint.open(name)
        facts = opened.facts
        append_eos, reader, identity = facts.get("append_eos", True), facts.get("reader"), facts.get("data")
        if type(append_eos) is not bool or not isinstance(reader, dict | None):
            raise CheckpointError(f"{opened.path}: what it says of its text cannot be. The file is damaged")
        found.append(
            Subject(
                name,
                opened.path,
                opened.tokenizer,
                int(opened.shape["n_positions"]),
                _reader(opened, reader) if reader is not None and with_reader else None,
                append_eos,
                checkpoint.test_text(opened),
                checkpoint.share_of(opened, "train_share"),
                identity.get("text") if isinstance(identity, dict) else None,
                opened if len(names) == 1 else None,
            )
        )
    return found


def _reader(opened: checkpoint.Opened, identity: dict[str, object]) -> Reader:
    try:
        return reader_from(identity)
    except UserError as error:
        why = str(error).split(". ")[0]
        raise CheckpointError(
            f"{opened.path}: {why}. Name how to read the text, such as --reader.document line"
        ) from None


def text_of(subjects: list[Subject], files: list[str] | None, reader: Reader | None, cache_dir: Path) -> Text:
    """The text to test on, tokenized for each subject; refused if they do not see the same documents in it.

    Args:
        subjects: the checkpoints.
        files: the user's; else those that the first checkpoint names which names any.
        reader: the user's; else each checkpoint's own. One that has none takes the first one's that has.
        cache_dir: where tokenized text is kept.
    """
    names, share = (files, None) if files else _own_text(subjects)
    paths = find_files(names)
    known = reader or next((one.reader for one in subjects if one.reader), None) or Reader()
    corpora = [corpus_of(one, paths, one.reader or known, share) for one in subjects]
    stores = [open_with_bar(corpus, cache_dir, "test text") for corpus in corpora]
    hashes = [_hash(store) for store in stores]
    for one, other, store in zip(subjects, hashes, stores, strict=True):
        if other != hashes[0]:
            raise DataError(
                f"{subjects[0].name} and {one.name}: they do not see the same documents in this text, "
                f"{stores[0].documents:,} and {store.documents:,}, so they cannot be compared. Name one reader for "
                "all, such as --reader.document line, or test them one by one"
            )
    return Text(names, share, paths, corpora, stores, hashes[0])


def corpus_of(subject: Subject, paths: Sequence[PathOrURL], reader: Reader, share: HashRange | None) -> Corpus:
    """Text as a checkpoint reads it."""
    return Corpus(paths, subject.tokenizer, reader, share, subject.append_eos)


def limited(stores: list[TokenStore], max_tokens: int | None) -> tuple[int, list[int], str]:
    """The documents to test on, the tokens that each store has of them (with its first one), and what is left out.

    Whole documents, the same ones for each store, that have at most so many tokens; if the first one has more, its
    beginning, unless there are several stores: their beginnings would not be the same text.
    """
    whole = stores[0].documents
    if max_tokens is None:
        return whole, [len(store) for store in stores], ""
    ends = [boundaries(store)[1:] for store in stores]
    count = min(int(np.searchsorted(end - 1, max_tokens, side="right")) for end in ends)
    if count:
        left_out = f"the first {count:,} of {whole:,} documents" if count < whole else ""
        return count, [int(end[count - 1]) for end in ends], left_out
    if len(stores) > 1:
        raise UserError(f"--max_tokens {max_tokens}: the first document has more, and only whole ones can be compared")
    told = f"the first {max_tokens:,} tokens of the first of {whole:,} documents, its bytes and the like in proportion"
    return 1, [max_tokens + 1], told


def _own_text(subjects: list[Subject]) -> tuple[list[str], HashRange | None]:
    """The test text of the first checkpoint that names any; a word on each other one that names another."""
    first = next((one for one in subjects if one.test_text[0]), None)
    if first is None:
        raise UserError(
            f"{subjects[0].name}: the run names no test_files and no test_share. Give some text with --files"
        )
    if any("://" in name for name in first.test_text[0]):
        raise UserError(
            f"{first.name}: its test text is {first.test_text[0]}. If you trust that address, give it as --files"
        )
    for one in subjects:
        if one.test_text != first.test_text:
            print(
                f"note   {one.name}: tested on the text of {first.name}, which is not its own test text. If it was "
                "trained on it, its figures say nothing",
                file=sys.stderr,
            )
    return first.test_text


def _hash(store: TokenStore) -> str:
    found = hashlib.sha256()
    for hashes in store.hashes():
        found.update(hashes.tobytes())
    return found.hexdigest()
