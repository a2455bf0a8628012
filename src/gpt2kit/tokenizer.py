"""Train, save, load and identify tokenizers. A tokenizer travels as one JSON string, also inside a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from gpt2kit import files as durable
from gpt2kit.errors import DataError, UserError
from gpt2kit.text import Reader, find_files

EOS = "<|endoftext|>"
"""Ends each document; also where a text begins, as in GPT-2."""

_BYTES = 256


def train(
    files: list[str],
    output_dir: Path,
    kind: Literal["bytebpe"] = "bytebpe",
    vocab_size: int = 8192,
    reader: Reader | None = None,
) -> None:
    """Train a tokenizer on text files and write it as a folder that `transformers.AutoTokenizer` loads, too.

    Args:
        files: text files, folders or patterns.
        output_dir: the folder to write; an older tokenizer in it is replaced.
        kind: bytebpe: byte-level byte-pair encoding as in GPT-2; holds any text in any language, losing nothing.
        vocab_size: the number of tokens at most; the 256 bytes and the end-of-document token are among them.
        reader: how the files become documents, such as `--reader.document file`.
    """
    if vocab_size < _BYTES + 1:
        raise UserError(f"--vocab_size {vocab_size}: {kind} needs at least {_BYTES + 1} (256 bytes and {EOS})")
    paths = find_files(files)
    documents = (document for path in paths for document in (reader or Reader()).documents(path))
    first = next(documents, None)
    if first is None:
        raise DataError(f"{paths[0]}{' and the others' if paths[1:] else ''}: no text in it. Name files that hold text")
    tokenizer = _train_bytebpe(_chain(first, documents), vocab_size)
    save(tokenizer, output_dir)
    size = tokenizer.get_vocab_size()
    fewer = f" (the text yields no more than that; asked for {vocab_size:,})" if size < vocab_size else ""
    print(f"{output_dir}: {size:,} tokens{fewer}")


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the small file beside it that `transformers` wants."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    durable.write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    durable.write_text(folder / "tokenizer.json", to_json(tokenizer))


def load(folder: str | Path) -> Tokenizer:
    """Open a tokenizer folder or a tokenizer.json."""
    path = Path(folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer. Train one with train_tokenizer.py --output_dir {folder}")
    return from_json(path.read_text(encoding="utf-8"), str(path))


def to_json(tokenizer: Tokenizer) -> str:
    """The whole tokenizer as a string; equal strings encode equally."""
    return str(tokenizer.to_str(pretty=True))


def from_json(text: str, where: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote; `where` names its source in the error.

    Special tokens inside a text are encoded as the text they are, never as the token: what a corpus or a prompt
    says cannot end a document.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{where}: not a tokenizer ({error}). Train it again with train_tokenizer.py") from None
    if tokenizer.token_to_id(EOS) is None:
        raise DataError(f"{where}: has no {EOS} token. Train one with train_tokenizer.py")
    tokenizer.encode_special_tokens = True
    return tokenizer


def eos_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document."""
    found = tokenizer.token_to_id(EOS)
    assert found is not None, "load and from_json see to it"
    return found


def size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: the rows that a model needs (ids may have holes)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokenizer's JSON."""
    return hashlib.sha256(to_json(tokenizer).encode()).hexdigest()


def _train_bytebpe(documents: Iterator[str], vocab_size: int) -> Tokenizer:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,  # longer ones are rules of dashes and the like
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
