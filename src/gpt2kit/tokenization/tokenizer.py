"""Save, load and identify tokenizers. A tokenizer travels as one JSON string, also inside a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from tokenizers import Tokenizer

from gpt2kit import files as durable
from gpt2kit.errors import DataError
from gpt2kit.tokenization.trainers import EOS

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the small file beside it that `transformers` wants."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "unk_token": getattr(tokenizer.model, "unk_token", None) or EOS,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
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
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a tokenizer (not UTF-8). Name a tokenizer's folder") from None
    return from_json(text, str(path))


def to_json(tokenizer: Tokenizer) -> str:
    """The whole tokenizer as a string; equal strings encode equally."""
    return str(tokenizer.to_str(pretty=True))


def from_json(text: str, where: str) -> Tokenizer:
    """The tokenizer that `to_json` wrote; `where` names its source in the error.

    Special tokens inside a text are encoded as the text they are, never as the token: what a corpus or a prompt
    says cannot end a document. (`parse_special` makes tokens that are not special, so that they are found.)
    """
    tokenizer = from_plain_json(text, where)
    if tokenizer.token_to_id(EOS) is None:
        raise DataError(
            f"{where}: has no {EOS} token. Add it: train_tokenizer.py --kind existing --vocab {where} --output_dir NEW"
        )
    if any(added.content == EOS and not added.special for added in tokenizer.get_added_tokens_decoder().values()):
        parts = json.loads(to_json(tokenizer))
        for added in parts["added_tokens"]:
            added["special"] |= added["content"] == EOS
        tokenizer = from_plain_json(json.dumps(parts), where)
    tokenizer.encode_special_tokens = True
    return tokenizer


def from_plain_json(text: str, where: str) -> Tokenizer:
    """Any tokenizer of the `tokenizers` library, without what would make ids depend on neighbours, length or chance."""
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{where}: not a tokenizer ({error}). Train it again with train_tokenizer.py") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    return tokenizer


def eos_id(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document."""
    found = tokenizer.token_to_id(EOS)
    assert found is not None, "load and from_json see to it"
    return int(found)


def size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: the rows that a model needs (ids may have holes)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of the tokenizer's JSON."""
    return hashlib.sha256(to_json(tokenizer).encode()).hexdigest()


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """What each id adds to a text, as UTF-8 bytes, maybe a part of a character; empty for ids that are no token.

    For every kind but wordpiece a text's bytes are those of its tokens, one after another. Wordpiece puts spaces
    between some tokens, which are not told here.
    """
    raw = json.loads(tokenizer.to_str())
    decoder = json.dumps(raw["decoder"])
    byte_level, fallback = '"ByteLevel"' in decoder, '"ByteFallback"' in decoder
    space = '"Metaspace"' in decoder or '"\u2581"' in json.dumps(raw["decoder"], ensure_ascii=False)
    letters = _byte_level_letters()
    added = {token["id"] for token in raw["added_tokens"]}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    found = [b""] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        if i in added:
            found[i] = token.encode()
        elif byte_level and all(letter in letters for letter in token):
            found[i] = bytes(letters[letter] for letter in token)
        elif fallback and (byte := _BYTE.fullmatch(token)):
            found[i] = bytes([int(byte[1], 16)])
        else:
            token = token.removeprefix("##") if '"WordPiece"' in decoder else token
            found[i] = (token.replace("\u2581", " ") if space else token).encode()
    return found


def added_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids of special tokens, and of those that `parse_special` finds in a text."""
    return set(tokenizer.get_added_tokens_decoder())


def _byte_level_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the others for 256, 257, ..."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
