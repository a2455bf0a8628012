"""Adopt an existing tokenizer or vocabulary from a file, a folder or the Hugging Face hub. Its ids are kept."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models

from gpt2kit import files, hub
from gpt2kit.errors import DataError
from gpt2kit.tokenization import conversion, pretrained, token_list
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.pretrained import build_wordpiece, read_vocabulary
from gpt2kit.tokenization.tokenizer import (
    BYTE_TOKEN,
    EOS,
    MAX_JSON_BYTES,
    from_json,
    from_plain_json,
    read_utf8,
    refuse_shared_ids,
    to_json,
)
from gpt2kit.tokenization.trainers import as_special, build_char, build_words


def adopt(spec: TokenizerSpec) -> Tokenizer:
    """Return the tokenizer that `spec.vocab` names, or one with the vocabulary that it names."""
    assert spec.vocab is not None
    if spec.kind == "wordpiece":
        tokenizer = build_wordpiece(read_vocabulary(spec.vocab), spec)
        if spec.newline:  # it may be the token that would end a text
            tokenizer = pretrained.end_beside(tokenizer, Path(spec.vocab))
    elif spec.kind == "words":
        tokenizer = build_words(read_vocabulary(spec.vocab), spec)
    elif spec.kind == "char":
        tokenizer = build_char(token_list.read(spec.vocab), spec)
    else:
        tokenizer = _open(spec.vocab)
    tokenizer.add_special_tokens(as_special(spec.all_special_tokens))
    refuse_shared_ids(tokenizer, f"--vocab {spec.vocab}")
    return tokenizer


def open_closed(path: str, rows: int) -> Tokenizer:
    """Return a vocabulary as it is: no token is added, so it may have no end-of-text token.

    Characters that a list of characters lacks are left out of a text.

    Args:
        path: a list of characters, as `token_list.read` takes it, a vocab.txt, or what `_open` takes.
        rows: of the model that was trained with it. `<|endoftext|>` and bytes that `adopt` has added after the last
            row are removed.
    """
    suffix = Path(path).suffix
    if suffix in (".pkl", ".pickle") or (suffix == ".json" and not _is_tokenizer(path)) or _has_characters(path):
        ids = {token: number for number, token in enumerate(token_list.read(path))}
        tokenizer = Tokenizer(models.BPE(ids, []))
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens(as_special([EOS] if EOS in ids else []))
    elif suffix == ".txt":
        tokenizer = build_wordpiece(read_vocabulary(path), TokenizerSpec("wordpiece", vocab=path))
    else:
        tokenizer = _open(path)
    raw = json.loads(to_json(tokenizer))
    new = {token for token, number in tokenizer.get_vocab(with_added_tokens=True).items() if number >= rows}
    if new and all(token == EOS or BYTE_TOKEN.fullmatch(token) for token in new):
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in new]
        if isinstance(raw["model"]["vocab"], dict):
            raw["model"]["vocab"] = {t: number for t, number in raw["model"]["vocab"].items() if t not in new}
        if len(new) > 1:
            raw["model"]["byte_fallback"] = False
    return from_json(json.dumps(raw), f"--vocab {path}", is_tried=True, needs_end=False)


def _is_tokenizer(path: str) -> bool:
    """Return whether a JSON file is a tokenizer of the `tokenizers` library, not a list of characters."""
    with contextlib.suppress(OSError, ValueError):
        content = files.parse_json(files.read_limited(Path(path), MAX_JSON_BYTES))
        return isinstance(content, dict) and isinstance(content.get("model"), dict)
    return True  # `_open` reports what is wrong


def _has_characters(path: str) -> bool:
    """Return whether a text file is a list of characters; a vocab.txt has longer tokens, such as [UNK]."""
    return Path(path).suffix == ".txt" and all(len(line) <= 1 or line == EOS for line in read_vocabulary(path))


def _open(name: str) -> Tokenizer:
    """Return the tokenizer of a folder, a tokenizer.json, a SentencePiece .model or a hub name."""
    path, where = Path(name), f"--vocab {name}"
    if path.is_dir():
        return conversion.open_folder(path)
    if path.suffix == ".model" and path.is_file():
        return conversion.open_sentencepiece(path, where)
    if path.is_file():
        raw = json.loads(to_json(from_plain_json(read_utf8(path, where), where)))
        raw["post_processor"] = None  # it would add tokens such as [CLS]; GPT-2 reads only the ids of the text
        return from_plain_json(json.dumps(raw), where, is_tried=True)
    if not hub.is_repository(name.partition("@")[0]):
        raise hub.NotFoundError(f"{where}: no such folder or file. Check the path")
    try:
        folder = hub.download(name, pretrained.PATTERNS)
    except DataError as error:
        raise type(error)(f"--vocab {error}") from None
    return conversion.open_folder(folder)
