"""Train a tokenizer on text, or load the one that `data.tokenizer` names; cache trained tokenizers."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from gpt2kit.commands import command_name
from gpt2kit.errors import DataError, UserError
from gpt2kit.text import sources
from gpt2kit.text.read_report import ReadReport
from gpt2kit.text.reader import Reader
from gpt2kit.text.sources import PathOrURL
from gpt2kit.text.splits import SplitRange
from gpt2kit.tokenization import report as reports
from gpt2kit.tokenization import trainers
from gpt2kit.tokenization.existing import adopt
from gpt2kit.tokenization.options import TokenizerSpec, check
from gpt2kit.tokenization.sampling import Sample
from gpt2kit.tokenization.tokenizer import EOS, encode, load, save, to_json

logger = logging.getLogger(__name__)

TRAINERS: dict[str, Callable[[Iterable[str], TokenizerSpec], Tokenizer]] = {
    "bpe": trainers.train_bpe,
    "char": trainers.train_char,
    "spm-bpe": partial(trainers.train_sentencepiece, "bpe"),
    "spm-unigram": partial(trainers.train_sentencepiece, "unigram"),
    "wordpiece": trainers.train_wordpiece,
    "words": trainers.train_words,
}
_MB = 1_000_000
REPORT_BYTES = 2 * _MB
LARGEST_SAMPLE = 200 * _MB
# Part of the cache key. Raise it when the same options would give another tokenizer.
_FORMAT = 1


def train(spec: TokenizerSpec, documents: Iterator[str]) -> tuple[Tokenizer, Sample]:
    """Train a tokenizer; return it and a sample of the text to measure it on."""
    if spec.kind == "char" and spec.max_train_bytes is None:
        texts = Sample(REPORT_BYTES, spec.seed)
        return TRAINERS[spec.kind](texts.watch(documents), spec), texts
    texts = Sample(spec.max_train_bytes or LARGEST_SAMPLE, spec.seed).fill(documents)
    if spec.max_train_bytes is None:
        texts.shrink(sample_size(spec.kind, texts.spaceless_fraction))
    if len(texts) < texts.seen:
        logger.info(
            f"training on a sample of {reports.format_bytes(len(texts))} of {reports.format_bytes(texts.seen)} "
            "of text; --max_train_bytes BYTES sets its size"
        )
    return TRAINERS[spec.kind](texts, spec), texts


def sample_size(kind: str, spaceless: float) -> int:
    """Return how many bytes can be trained on with about 2 GB of memory and in about a minute.

    `spaceless` is `Sample.spaceless_fraction`. Without spaces, nearly every run of text between two punctuation marks
    is a different word. So bpe takes 100 MB of memory for 1 MB of Chinese, but 3.5 MB for 1 MB of English or Python.
    """
    if kind in ("bpe", "spm-bpe"):
        return int(1700 * _MB / (100 * spaceless + 3.5 * (1 - spaceless)))
    return 20 * _MB if kind == "spm-unigram" else LARGEST_SAMPLE


def default_spec(size: int) -> TokenizerSpec:
    """Return the tokenizer to train on a text of `size` bytes, unless the user chooses one.

    Byte-level BPE loses no text in any language. The vocabulary grows with the square root of the text, rounded to a
    power of two, so that each token occurs often enough to be learned.
    """
    exponent = round(math.log2(4096 * math.sqrt(max(size, 1) / (3 * _MB))))
    return TokenizerSpec(kind="bpe", vocab_size=min(max(1 << max(exponent, 0), 512), 32768))


def with_special_tokens(tokenizer: Tokenizer, spec: TokenizerSpec) -> Tokenizer:
    """Return the tokenizer with `parse_special` applied; raise if a special token does not differ from text."""
    tokenizer.encode_special_tokens = True
    for token in spec.all_special_tokens:
        token_id = tokenizer.token_to_id(token) or 0
        if tokenizer.decode([token_id], skip_special_tokens=False).strip() != token.strip():
            raise UserError(f"--special_tokens {token}: would not decode to itself. Use ASCII characters, as in <user>")
        if token_id in encode(tokenizer, token):
            raise UserError(f"--special_tokens {token}: text is encoded to this token, too. Use a name such as <user>")
    raw = json.loads(to_json(tokenizer))
    for added in raw["added_tokens"]:
        added["special"] = added["content"] == EOS or (added["special"] and not spec.parse_special)
    return Tokenizer.from_str(json.dumps(raw))


def read_documents(paths: Sequence[PathOrURL], reader: Reader, split_range: SplitRange | None = None) -> Iterator[str]:
    """Yield the documents of all files; raise if the files have none."""
    report, is_empty = ReadReport(), True
    for document in reader.read(paths, report, split_range):
        is_empty = False
        yield document
    if is_empty:
        raise report.no_text(paths)
    for line in report.lines():
        logger.info(line)


def load_named(name: str, cache_dir: Path) -> Tokenizer:
    """Return the tokenizer of a folder, a file or a name on the hub; one that is converted or fetched is cached."""
    path = Path(name)
    is_converted = path.suffix == ".model" or (path.is_dir() and not (path / "tokenizer.json").is_file())
    if path.exists() and not is_converted:
        return load(name)
    try:
        return load_or_train(TokenizerSpec("existing", vocab=name), [], Reader(), None, cache_dir)
    except DataError as error:
        reason = str(error).removeprefix(f"data.tokenizer: --vocab {name}: ").rpartition(". ")[0]
        raise DataError(
            f"{name}: no such tokenizer ({reason}). Train one with {command_name('tokenize')} --output_dir {name}"
        ) from None


def load_or_train(
    spec: TokenizerSpec, paths: Sequence[PathOrURL], reader: Reader, split_range: SplitRange | None, cache_dir: Path
) -> Tokenizer:
    """Load a tokenizer from the cache; else train it, or adopt the one in `spec`, while other processes wait."""
    files = paths if spec.vocab is None else _vocabulary_files(spec)
    digests = sources.digests(files, cache_dir)
    folder = cache_dir / "tokenizers" / _cache_key(spec, paths, reader, split_range, digests)
    if not (folder / "tokenizer.json").is_file():
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "tokenizer.json").is_file():
                tokenizer = with_special_tokens(_create(spec, paths, reader, split_range), spec)
                sources.refuse_changes(files, digests, cache_dir)
                save(tokenizer, folder)
                logger.info(f"saved the tokenizer in {folder}")
    return load(folder)


def _create(
    spec: TokenizerSpec, paths: Sequence[PathOrURL], reader: Reader, split_range: SplitRange | None
) -> Tokenizer:
    try:
        check(spec)
        if spec.vocab is not None:
            return adopt(spec)
        return train(spec, read_documents(paths, reader, split_range))[0]
    except UserError as error:
        raise type(error)(f"data.tokenizer: {error}") from None


def _vocabulary_files(spec: TokenizerSpec) -> Sequence[Path]:
    """Return the files of a local vocabulary; no files for a name on the hub."""
    path = Path(spec.vocab or "")
    if path.is_dir():
        return sorted(entry for entry in path.iterdir() if entry.is_file())
    return [path] if path.is_file() else []


def _cache_key(
    spec: TokenizerSpec, paths: Sequence[PathOrURL], reader: Reader, split_range: SplitRange | None, digests: list[str]
) -> str:
    """Return a name that depends on the options, on files with these digests and, in training, on how they are read."""
    is_trained = spec.vocab is None
    content = {
        "format": _FORMAT,
        "spec": asdict(spec),
        "files": digests,
        "formats": [sources.suffixes(path) for path in paths] if is_trained else [],
        "reader": reader.identity() if is_trained else None,
        "share": asdict(split_range) if split_range and is_trained else None,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
