"""Load the tokenizer that `data.tokenizer` names or describes. One that is trained, converted or fetched is cached."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokenizers import Tokenizer

from gpt2kit import hub
from gpt2kit.commands import command_name
from gpt2kit.errors import DataError, UserError
from gpt2kit.text import sources
from gpt2kit.text.reader import Selection, document_identity
from gpt2kit.tokenization.existing import adopt
from gpt2kit.tokenization.options import TokenizerSpec, check
from gpt2kit.tokenization.pretrained import NAMING
from gpt2kit.tokenization.tokenizer import load, save
from gpt2kit.tokenization.train import read_documents, train, with_special_tokens

logger = logging.getLogger(__name__)

# Part of the cache key. Raise it when the same options would give another tokenizer.
_FORMAT = 2


def load_named(name: str, cache_dir: Path) -> Tokenizer:
    """Return the tokenizer of a folder, a file or a name on the hub; one that is converted or fetched is cached."""
    path = Path(name)
    is_converted = path.suffix == ".model" or (path.is_dir() and not (path / "tokenizer.json").is_file())
    if path.exists() and not is_converted:
        return load(name)
    try:
        return load_or_train(TokenizerSpec("existing", vocab=name), [], cache_dir)
    except DataError as error:
        problem = str(error).removeprefix("data.tokenizer: --vocab ").removeprefix("data.tokenizer: ")
        if not isinstance(error, hub.NotFoundError):
            raise DataError(f"data.tokenizer: {problem}") from None
        reason = problem.removeprefix(f"{name}: ").rpartition(". ")[0]
        raise DataError(
            f"{name}: no such tokenizer ({reason}). Train one with {command_name('tokenize')} --output_dir {name}"
        ) from None


def load_or_train(spec: TokenizerSpec, texts: Sequence[Selection], cache_dir: Path) -> Tokenizer:
    """Load a tokenizer from the cache; else train it, or adopt the one in `spec`, while other processes wait."""
    files = _vocabulary_files(spec) if spec.vocab is not None else [path for text in texts for path in text.paths]
    digests = sources.digests(files, cache_dir)
    folder = cache_dir / "tokenizers" / _cache_key(spec, texts, digests)
    if not (folder / "tokenizer.json").is_file():
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "tokenizer.json").is_file():
                tokenizer = with_special_tokens(_create(spec, texts), spec)
                sources.refuse_changes(files, digests, cache_dir)
                save(tokenizer, folder)
                logger.info(f"saved the tokenizer in {folder}")
    return load(folder)


def _create(spec: TokenizerSpec, texts: Sequence[Selection]) -> Tokenizer:
    try:
        check(spec)
        if spec.vocab is not None:
            return adopt(spec)
        return train(spec, itertools.chain.from_iterable(map(read_documents, texts)))[0]
    except UserError as error:
        raise type(error)(f"data.tokenizer: {error}") from None


def _vocabulary_files(spec: TokenizerSpec) -> Sequence[Path]:
    """Return the files of a local vocabulary; no files for a name on the hub."""
    path = Path(spec.vocab or "")
    if path.is_file() and spec.newline:  # the end of a text depends on the files next to it
        return [path, *(path.with_name(name) for name in NAMING if path.with_name(name).is_file())]
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.is_file())
    return [path] if path.is_file() else []


def _cache_key(spec: TokenizerSpec, texts: Sequence[Selection], digests: list[str]) -> str:
    """Return a name that depends on the options, on files with these digests and, in training, on how they are read."""
    content = {"format": _FORMAT, "spec": asdict(spec), "files": digests}
    if spec.vocab is None and len(texts) == 1:
        content |= _how_read(texts[0])
    elif spec.vocab is None:
        content["texts"] = [_how_read(text) for text in texts]
    else:
        content |= {"formats": [], "reader": None, "share": None}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _how_read(text: Selection) -> dict[str, object]:
    """Return what decides the documents of a text besides the content of its files."""
    return {
        "formats": [sources.suffixes(path) for path in text.paths],
        "reader": document_identity(text.reader.identity()),  # a tokenizer sees near duplicates
        "share": asdict(text.split_range) if text.split_range else None,
    }
