"""`data.tokenizer`: a folder, a name on the hub, or what to train from the training text on first use."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from gpt2kit.errors import DataError, UserError
from gpt2kit.text import sources
from gpt2kit.text.reader import Reader, Share
from gpt2kit.text.sources import Place
from gpt2kit.tokenization import trainers as kinds
from gpt2kit.tokenization.tokenizer import load, save
from gpt2kit.tokenization.train import Kind, adopted, finished, read_documents, trained

_FORMAT = 1
"""Another one when the same words would make another tokenizer."""


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer that is made from the training text when it is first needed; the words are train_tokenizer.py's.

    Args:
        kind: bytebpe, char, bytefallback, unigram, wordpiece, words, or existing.
        vocab_size: the number of tokens at most. Default: 8192; for char and words as many as the text has.
        vocab: a vocabulary that exists, instead of training; for existing: a folder or a name on the hub.
        special_tokens: more tokens besides `<|endoftext|>`.
        parse_special: a special token's name in a text means the token.
        min_count: what occurs less often gets no token.
        max_token_length: the longest token.
        normalizer: change text before it is encoded.
        sample: bytes of text to learn from.
        seed: decides the draw of the sample.
    """

    kind: Kind = "bytebpe"
    vocab_size: int | None = None
    vocab: str | None = None
    special_tokens: tuple[str, ...] = ()
    parse_special: bool = False
    min_count: int | None = None
    max_token_length: int = 24
    normalizer: Literal["none", "nfc", "nfkc", "lowercase"] = "none"
    sample: int | None = None
    seed: int = 0


def resolve(
    wanted: str | TokenizerSpec, paths: Sequence[Place], reader: Reader, share: Share | None, cache_dir: Path
) -> Tokenizer:
    """The tokenizer that is meant; made now, from the documents of `paths`, and kept in `cache_dir`, if need be."""
    if isinstance(wanted, TokenizerSpec):
        return _on_first_use(wanted, paths, reader, share, cache_dir)
    if Path(wanted).exists():
        return load(wanted)
    try:
        return _on_first_use(TokenizerSpec("existing", vocab=wanted), [], reader, None, cache_dir)
    except DataError as error:
        why = str(error).removeprefix(f"data.tokenizer: --vocab {wanted}: ").split(". ")[0]
        raise DataError(
            f"{wanted}: no such tokenizer ({why}). Train one with train_tokenizer.py --output_dir {wanted}"
        ) from None


def _on_first_use(
    spec: TokenizerSpec, paths: Sequence[Place], reader: Reader, share: Share | None, cache_dir: Path
) -> Tokenizer:
    """From the cache, or made by one process while the others wait."""
    folder = cache_dir / "tokenizers" / _key(spec, paths, reader, share, cache_dir)
    if not (folder / "tokenizer.json").is_file():
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "tokenizer.json").is_file():
                tokenizer = _made(spec, paths, reader, share)
                save(finished(tokenizer, spec.parse_special, list(spec.special_tokens)), folder)
                print(f"tokenizer: made on first use, kept in {folder}", file=sys.stderr)
    return load(folder)


def _made(spec: TokenizerSpec, paths: Sequence[Place], reader: Reader, share: Share | None) -> Tokenizer:
    options = kinds.Options(
        spec.vocab_size, spec.special_tokens, spec.min_count, spec.max_token_length, spec.normalizer
    )
    try:
        kinds.check(spec.kind, options)
        if spec.vocab is not None:
            return adopted(spec.kind, spec.vocab, options)
        if spec.kind == "existing":
            raise UserError("--vocab: missing. Name the tokenizer that exists")
        with contextlib.redirect_stdout(io.StringIO()) as told:
            tokenizer, _ = trained(spec.kind, options, read_documents(paths, reader, share), spec.sample, spec.seed)
        print(told.getvalue(), end="", file=sys.stderr)
    except UserError as error:
        raise type(error)(f"data.tokenizer: {error}") from None
    return tokenizer


def _vocabulary(spec: TokenizerSpec) -> list[Path]:
    """The files of a vocabulary that lies here; none for a name on the hub."""
    place = Path(spec.vocab or "")
    return sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place] * place.is_file()


def _key(spec: TokenizerSpec, paths: Sequence[Place], reader: Reader, share: Share | None, cache_dir: Path) -> str:
    """A name that changes with the wish and, where it learns from text, with that text."""
    learns = spec.vocab is None
    made_of = {
        "format": _FORMAT,
        "spec": asdict(spec),
        "files": sources.digests(paths if learns else _vocabulary(spec), cache_dir),
        "formats": [sources.suffixes(path) for path in paths] if learns else [],
        "reader": reader.identity() if learns else None,
        "share": asdict(share) if share and learns else None,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
