"""Save, load and identify tokenizers. A tokenizer is stored as one JSON string, also inside a checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, processors

from gpt2kit import files as durable
from gpt2kit.commands import command_name
from gpt2kit.errors import DataError, first_line
from gpt2kit.tokenization import trial

# Ends each document, and begins each text, as in GPT-2.
EOS = "<|endoftext|>"

# The file of a tokenizer's folder that `transformers` reads first.
SETTINGS = "tokenizer_config.json"

# The digests of tokenizers that were tried (`trial`), or made here. Under the current folder, as data.cache_dir is.
TRIED = Path(".cache/gpt2kit/tokenizers/tried")
_tried_by_this_process: set[str] = set()

# Maximum size of a tokenizer; the largest ones have about 2^25 bytes.
MAX_JSON_BYTES = 1 << 26

# Stands for a line break in a vocabulary of BERT: a character that becomes a word of its own.
LINE_BREAK = "\u2424"

# A token that stands for a byte.
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json`, and `tokenizer_config.json`, which `transformers` needs."""
    end = EOS if find_eos(tokenizer) is not None else None  # transformers would add a token that it lacks
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "unk_token": getattr(tokenizer.model, "unk_token", None) or end,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    durable.write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    durable.write_text(folder / "tokenizer.json", to_json(tokenizer))
    _remember(_digest(to_json(tokenizer)))


def begin_texts(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that puts the end-of-text token before a text, unless `add_special_tokens` is false.

    Exported folders have it, because programs that load them add special tokens. `from_json` removes it. A tokenizer
    without an end-of-text token stays as it is.
    """
    copy, end = Tokenizer.from_str(to_json(tokenizer)), find_eos(tokenizer)
    if end is not None:
        copy.post_processor = _beginning(end)
    return copy


def _beginning(end: int) -> processors.TemplateProcessing:
    template = f"{EOS} $A"
    return processors.TemplateProcessing(template, f"{template} {EOS} $B", [(EOS, end)])


def load(folder: str | Path) -> Tokenizer:
    """Open a tokenizer folder or a tokenizer.json."""
    path = Path(folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer. Train one with {command_name('tokenize')} --output_dir {folder}")
    return from_json(read_utf8(path, str(path)), str(path), needs_end=not _is_saved_without_end(path.parent))


def _is_saved_without_end(folder: Path) -> bool:
    """Return whether `save` has written a tokenizer without an end-of-text token, that of an opened checkpoint."""
    settings: object = None
    with contextlib.suppress(OSError, ValueError):
        settings = durable.parse_json(durable.read_limited(folder / SETTINGS, MAX_JSON_BYTES))
    return isinstance(settings, dict) and settings.get("eos_token", EOS) is None and "split_special_tokens" in settings


def to_json(tokenizer: Tokenizer) -> str:
    """Return the tokenizer as a string; tokenizers with equal strings encode equally."""
    return str(tokenizer.to_str(pretty=True))


def from_json(text: str, where: str, is_tried: bool = False, needs_end: bool = True) -> Tokenizer:
    """Return the tokenizer that `to_json` wrote; `where` names its source in errors. See `from_plain_json`.

    With `needs_end`, one without an end-of-text token is refused.

    Special tokens in a text are encoded as ordinary text, so a corpus or a prompt cannot end a document. Tokens that
    `parse_special` recognizes in a text are not stored as special.
    """
    tokenizer = from_plain_json(text, where, is_tried)
    end = find_eos(tokenizer)
    if needs_end and end is None:
        raise DataError(
            f"{where}: has no {EOS} token. Add it: {command_name('tokenize')} --kind existing --vocab {where} "
            "--output_dir NEW"
        )
    if any(token.content == EOS and not token.special for token in tokenizer.get_added_tokens_decoder().values()):
        raw = json.loads(to_json(tokenizer))
        for token in raw["added_tokens"]:
            token["special"] |= token["content"] == EOS
        tokenizer = from_plain_json(json.dumps(raw), where, is_tried=True)
    refuse_shared_ids(tokenizer, where)
    added = tokenizer.post_processor
    if added and end is not None and added.__getstate__() == _beginning(end).__getstate__():
        tokenizer.post_processor = None
    tokenizer.encode_special_tokens = True
    return tokenizer


def from_plain_json(text: str, where: str, is_tried: bool = False) -> Tokenizer:
    """Return any tokenizer of the `tokenizers` library, without padding, truncation and dropout.

    Unless `is_tried`, it was tried in a process of its own before, because the file may be hostile.
    """
    advice = f"Train it again with {command_name('tokenize')}"
    if len(text) > MAX_JSON_BYTES:
        raise DataError(f"{where}: {len(text) / 1e6:,.0f} MB, too large for a tokenizer. {advice}")
    if problem := "" if is_tried else _problem_of(text):
        raise DataError(f"{where}: not a tokenizer ({problem}). {advice}")
    with refuse_failures(f"{where}: not a tokenizer", advice):
        tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    return tokenizer


def _problem_of(text: str) -> str:
    """Return why a tokenizer's JSON cannot be used; empty if it can. Each is tried once."""
    digest = _digest(text)
    if digest in _tried_by_this_process or (TRIED / digest).is_file():
        return ""
    problem = trial.problem_of(text)
    if not problem:
        _remember(digest)
    return problem


def _remember(digest: str) -> None:
    _tried_by_this_process.add(digest)
    with contextlib.suppress(OSError):  # the folder may be read-only
        TRIED.mkdir(parents=True, exist_ok=True)
        (TRIED / digest).touch()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def refuse_shared_ids(tokenizer: Tokenizer, where: str) -> None:
    """Raise if a special token has the id of another token, which ordinary text is encoded to.

    The library gives a new token the number of tokens as its id, even if an id below that has no token.
    """
    tokens: dict[int, list[str]] = {i: [] for i in added_ids(tokenizer)}
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        tokens.get(i, []).append(token)
    for i, names in tokens.items():
        if len(names) > 1:
            raise DataError(
                f"{where}: {' and '.join(f'{name!r:.40}' for name in sorted(names))} have the same id, {i}, because an "
                "id before it has no token or a token appears twice. Give each id a token of its own"
            )


@contextlib.contextmanager
def refuse_failures(what: str, advice: str) -> Iterator[None]:
    """Turn an error of the `tokenizers` library into a DataError: its panics are not an `Exception`."""
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if isinstance(error, MemoryError) or not (isinstance(error, Exception) or is_panic):
            raise
        raise DataError(f"{what} ({first_line(error):.200}). {advice}") from None


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a text."""
    text.encode()  # half a surrogate pair is an error of the text
    # The library's call for one text holds the GIL, so a text that takes long would stop all threads of the web demo.
    return encode_batch(tokenizer, [text])[0]


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts, which are encoded on all cores; no special tokens are added."""
    with refuse_unencodable():
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def refuse_unencodable() -> contextlib.AbstractContextManager[None]:
    """Turn a failure to encode a text into a DataError."""
    return refuse_failures("the tokenizer cannot encode this text", "Use another tokenizer, or other text")


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of ids, including special tokens."""
    with refuse_failures("the tokenizer cannot decode its ids", "Use another tokenizer"):
        return str(tokenizer.decode_batch([list(ids)], skip_special_tokens=False)[0])  # without the GIL, like `encode`


def eos_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token that ends a document, of a tokenizer that has one."""
    token_id = find_eos(tokenizer)
    assert token_id is not None, "the callers refuse a tokenizer without it"
    return token_id


def find_eos(tokenizer: Tokenizer) -> int | None:
    """Return the id of the token that ends a document; None if the vocabulary has none, as nanoGPT's of characters."""
    token_id = tokenizer.token_to_id(EOS)
    return None if token_id is None else int(token_id)


def size(tokenizer: Tokenizer) -> int:
    """Return the largest id + 1: the number of rows that a model needs. Some ids may have no token."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of the tokenizer's JSON."""
    return _digest(to_json(tokenizer))


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the UTF-8 bytes that each id adds to a text; empty for ids without a token.

    A token may be part of a character. A text is the concatenation of its tokens' bytes, except that wordpiece puts
    spaces between some of them.
    """
    raw = json.loads(tokenizer.to_str())
    decoder = json.dumps(raw["decoder"], ensure_ascii=False)
    letters = _byte_level_letters() if '"ByteLevel"' in decoder else {}
    has_byte_fallback, is_wordpiece = '"ByteFallback"' in decoder, '"WordPiece"' in decoder
    has_line_breaks = LINE_BREAK in decoder
    space = "\u2581" if '"Metaspace"' in decoder or '"\u2581"' in decoder else " "
    added = added_ids(tokenizer)
    result = [b""] * size(tokenizer)
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        if i in added:
            result[i] = token.encode()
        elif letters and all(letter in letters for letter in token):
            result[i] = bytes(letters[letter] for letter in token)
        elif has_byte_fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            result[i] = bytes([int(byte[1], 16)])
        elif is_wordpiece:
            result[i] = b"\n" if token == LINE_BREAK and has_line_breaks else token.removeprefix("##").encode()
        else:
            result[i] = token.replace(space, " ").encode()
    return result


def added_ids(tokenizer: Tokenizer) -> set[int]:
    """Return the ids of special tokens, and of those that `parse_special` recognizes in a text."""
    return set(tokenizer.get_added_tokens_decoder())


def _byte_level_letters() -> dict[str, int]:
    """Map GPT-2's letters to bytes: printable Latin-1 stands for itself, characters from 256 on for the other bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def read_utf8(path: Path, where: str) -> str:
    """Return the text of a file of a tokenizer; `where` names it in the error."""
    try:
        return durable.read_limited(path, MAX_JSON_BYTES).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}). Save it as UTF-8, or name another file") from None
    except ValueError as error:
        raise DataError(f"{where}: {error} for a tokenizer. Name another file") from None
