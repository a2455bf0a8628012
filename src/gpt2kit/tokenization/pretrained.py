"""Open the tokenizer of a Hugging Face folder, whatever files it has, and keep every id.

A folder may come from anyone. No code that it contains or names is run.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from gpt2kit import files
from gpt2kit.errors import DataError, first_line
from gpt2kit.tokenization import sentencepiece_model
from gpt2kit.tokenization.options import UNKNOWN, TokenizerSpec
from gpt2kit.tokenization.tokenizer import (
    EOS,
    LINE_BREAK,
    MAX_JSON_BYTES,
    SETTINGS,
    from_plain_json,
    read_utf8,
    refuse_failures,
)
from gpt2kit.tokenization.trainers import as_special, build_bert

logger = logging.getLogger(__name__)

CONFIG = "config.json"  # of the model
TOKENIZER, SPECIAL_TOKENS = "tokenizer.json", "special_tokens_map.json"
VOCABULARY, MERGES, WORDPIECE, SENTENCEPIECE = "vocab.json", "merges.txt", "vocab.txt", "*.model"
# All files of a tokenizer, as patterns of names. added_tokens.json has the ids of tokens besides the vocabulary, and
# config.json may name the end-of-text token.
PATTERNS = [TOKENIZER, SETTINGS, SPECIAL_TOKENS, VOCABULARY, MERGES, WORDPIECE, SENTENCEPIECE, "added_tokens.json"]
PATTERNS += [CONFIG]
# The files that name special tokens.
NAMING = [SETTINGS, SPECIAL_TOKENS, CONFIG]
# The names that transformers gives a SentencePiece model.
_SENTENCEPIECE_NAMES = {"spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "spm.model"}
_MAX_ID = 1 << 22  # memory grows with the largest id
# The token that ends a text in models that have BERT's vocabulary and do not name one.
_BERT_END = "[SEP]"


def open_folder(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder, without the tokens that it adds around a text.

    The end-of-text token that its model was trained with is renamed to gpt2kit's: the one that the tokenizer's settings
    name, or else config.json. If none is known, the tokenizer has no such token. tokenizer.json is read if it exists;
    other forms are converted, which commands do only in a child process (`conversion`).
    """
    settings = _read_settings(folder)
    tokenizer = _open_files(folder, settings)
    raw = {**json.loads(tokenizer.to_str()), "post_processor": None}
    if tokenizer.token_to_id(EOS) is None:
        end = _find_end(tokenizer, folder, settings)
        raw = _rename_token(raw, end, EOS) if end is not None else raw
    return from_plain_json(json.dumps(raw), str(folder), is_tried=True)


def _open_files(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer in a folder's files."""
    if (folder / TOKENIZER).is_file():
        return from_plain_json(read_utf8(folder / TOKENIZER, str(folder / TOKENIZER)), str(folder / TOKENIZER))
    if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        tokenizer = _build_bpe(folder, bool(settings.get("add_prefix_space")))
    elif file := _find_sentencepiece(folder):
        tokenizer = sentencepiece_model.convert(read_file(file), str(file), _named_end(settings))
    elif (folder / WORDPIECE).is_file():
        file, lower = folder / WORDPIECE, settings.get("do_lower_case")
        spec = TokenizerSpec("wordpiece", vocab=str(file), lower=lower if isinstance(lower, bool) else "auto")
        tokenizer = build_wordpiece(read_vocabulary(str(file)), spec, settings)
    else:
        raise DataError(
            f"{folder}: contains no tokenizer: neither {TOKENIZER}, {VOCABULARY} and {MERGES}, {WORDPIECE}, nor a "
            "SentencePiece .model. Copy the files of the model's tokenizer there"
        )
    if difference := _unsupported(settings):
        logger.warning(
            f"{folder}: the model's own tokenizer, {settings['tokenizer_class']:.60}, {difference}; gpt2kit does not. "
            "The ids of a text differ from those that the model was trained with, unless the text is prepared likewise"
        )
    _add_tokens(tokenizer, folder, settings)
    return from_plain_json(tokenizer.to_str(), str(folder), is_tried=True)


def _find_sentencepiece(folder: Path) -> Path | None:
    """Return the SentencePiece model of a folder. Beside a vocab.txt, one of another name does not count."""
    models_ = sorted(file for file in folder.glob(SENTENCEPIECE) if file.is_file())
    named = [file for file in models_ if file.name in _SENTENCEPIECE_NAMES]
    if (folder / WORDPIECE).is_file():
        models_ = named
    chosen = named or models_
    if len(chosen) > 1:
        names = ", ".join(file.name for file in chosen)
        raise DataError(f"{folder}: contains several SentencePiece models ({names:.200}). Keep the tokenizer's own")
    return chosen[0] if chosen else None


def _unsupported(settings: dict[str, Any]) -> str:
    """Return what a tokenizer of transformers does to a text before its vocabulary is used, and gpt2kit does not."""
    match settings.get("tokenizer_class"):
        case "BertJapaneseTokenizer":
            words, parts = settings.get("word_tokenizer_type", "basic"), settings.get("subword_tokenizer_type")
            if words != "basic" and settings.get("do_word_tokenize", True):
                return f"splits it into words with {words!s:.20}"
            return f"splits words by {parts!s:.20}" if parts not in (None, "wordpiece") else ""
        case "CpmTokenizer" | "CpmTokenizerFast":
            return "splits it into words with jieba"
        case "PhobertTokenizer" | "HerbertTokenizer" | "BertweetTokenizer" | "FlaubertTokenizer" | "XLMTokenizer":
            return "splits it into words by rules of its own"
    return ""


def _build_bpe(folder: Path, add_prefix_space: bool) -> Tokenizer:
    """Build GPT-2's byte-level BPE from vocab.json and merges.txt."""
    lines = read_utf8(folder / MERGES, str(folder / MERGES)).split("\n")
    pairs = [line.partition(" ") for line in lines if line and not line.startswith("#version")]
    merges = [(left, right) for left, _, right in pairs]
    ids = read_json(folder / VOCABULARY)
    if not all(type(i) is int and 0 <= i < _MAX_ID for i in ids.values()) or len(set(ids.values())) < len(ids):
        raise DataError(
            f"{folder / VOCABULARY}: an id is not a whole number below {_MAX_ID:,}, or appears twice. Check it"
        )
    with refuse_failures(f"{folder}: {VOCABULARY} and {MERGES} are not a tokenizer", "Check the files"):
        tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    """Add the special tokens that a folder's settings name, with the ids of added_tokens.json."""
    added = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
    if not all(type(number) is int for number in added.values()):
        raise DataError(f"{folder}: added_tokens.json has an id that is not a whole number. Check it")
    # Together: each call takes a time that grows with the number of added tokens.
    tokenizer.add_special_tokens(as_special(sorted(added, key=lambda token: added[token])))
    for token, number in added.items():
        if tokenizer.token_to_id(token) != number:
            raise DataError(f"{folder}: added_tokens.json gives {token!r:.60} the id {number!r:.20}, which is not free")
    names = [settings.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")]
    names = [name.get("content") if isinstance(name, dict) else name for name in names]
    known = [name for name in names if isinstance(name, str) and tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens(as_special(known))


def _named_end(settings: dict[str, Any]) -> str | None:
    """Return the end-of-text token that a tokenizer's settings name."""
    end = settings.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    return end if isinstance(end, str) else None


def _find_end(tokenizer: Tokenizer, folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the end-of-text token: the one that the settings name, the model's id, or that of BERT's vocabularies."""
    number = read_json(folder / CONFIG).get("eos_token_id") if (folder / CONFIG).is_file() else None
    number = number[0] if isinstance(number, list) and number else number
    by_id = tokenizer.id_to_token(number) if type(number) is int and 0 <= number < 1 << 32 else None
    unknown = _unknown_token(tokenizer)
    for token in (_named_end(settings), by_id, _BERT_END):
        if token is None or tokenizer.token_to_id(token) is None or token == LINE_BREAK:
            continue
        if token != unknown:
            return token
        logger.warning(
            f"{folder}: its end-of-text token is {token!r:.40}, which also stands for unknown "
            "characters, so it does not end a text here"
        )
    return None


def _unknown_token(tokenizer: Tokenizer) -> str | None:
    """Return the token that a text with an unknown character is encoded to."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("byte_fallback") or (model["type"] == "BPE" and not model.get("fuse_unk")):
        return None  # bytes stand for unknown characters
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    unknown = model.get("unk_token")
    return unknown if isinstance(unknown, str) else None


def _rename_token(raw: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return a tokenizer's JSON with a token renamed; the new name is special."""
    vocabulary: Any = raw["model"]["vocab"]
    if isinstance(vocabulary, dict):
        ids = {new if token == old else token: number for token, number in vocabulary.items()}
        renamed: Any = ids
    else:
        renamed = [[new if token == old else token, score] for token, score in vocabulary]
        ids = {token: number for number, (token, _) in enumerate(renamed)}
    added = [
        {**token, "content": new, "special": True} if token["content"] == old else token
        for token in raw["added_tokens"]
    ]
    if not any(token["content"] == new for token in added):
        token = {"id": ids[new], "content": new, "special": True, "normalized": False}
        added.append({**token, "single_word": False, "lstrip": False, "rstrip": False})
    return {**raw, "model": {**raw["model"], "vocab": renamed}, "added_tokens": added}


def build_wordpiece(vocabulary: list[str], spec: TokenizerSpec, settings: dict[str, Any] | None = None) -> Tokenizer:
    """Build BERT's tokenizer from the tokens of a vocab.txt, whose positions are the ids.

    Unless `spec.lower` decides, a vocabulary without a word in capital letters is for lowercase text. `settings` are
    those of a tokenizer_config.json: whether accents are removed, and Han characters are words.
    """
    special = [token for token in vocabulary if re.fullmatch(r"\[[A-Za-z0-9_]+\]", token)]
    if UNKNOWN not in special:
        raise DataError(
            f"--vocab {spec.vocab}: contains no {UNKNOWN}, so it is not a WordPiece vocabulary. Name a file with one "
            "token per line"
        )
    words = [token.removeprefix("##") for token in vocabulary]
    is_lower = not any(word.isalpha() and word != word.lower() for word in words)  # not names such as <S>
    ids = {token: i for i, token in enumerate(vocabulary)}
    if spec.newline:
        if spec.newline not in ids:
            raise DataError(f"--newline {spec.newline}: no token of {spec.vocab}. Name one of its tokens")
        if spec.newline == UNKNOWN:
            raise DataError(f"--newline {UNKNOWN}: stands for unknown words. Name another token, such as {_BERT_END}")
        special = [token for token in special if token != spec.newline]
        ids[LINE_BREAK] = ids.pop(spec.newline)
    is_lower = is_lower if spec.lower == "auto" else spec.lower
    options = {name: value for name, value in (settings or {}).items() if isinstance(value, bool)}
    tokenizer = build_bert(
        models.WordPiece(ids, unk_token=UNKNOWN),
        spec,
        is_lower,
        strip_accents=options.get("strip_accents", is_lower),
        han_words=options.get("tokenize_chinese_chars", True),
    )
    tokenizer.add_special_tokens(as_special(special))
    return tokenizer


def end_beside(tokenizer: Tokenizer, vocabulary: Path) -> Tokenizer:
    """Return a tokenizer whose end-of-text token is the one that files in the folder of its vocab.txt name, if any."""
    if tokenizer.token_to_id(EOS) is not None:
        return tokenizer
    end = _find_end(tokenizer, vocabulary.parent, _read_settings(vocabulary.parent))
    raw = json.loads(tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(_rename_token(raw, end, EOS))) if end is not None else tokenizer


def read_vocabulary(path: str) -> list[str]:
    """Return the tokens of a vocab.txt, one per line."""
    if not Path(path).is_file():
        raise DataError(f"--vocab {path}: no such file. Name a text file with one token per line")
    lines = read_utf8(Path(path), f"--vocab {path}").split("\n")
    if lines[-1] == "":
        del lines[-1]
    if not lines:
        raise DataError(f"--vocab {path}: empty. Name a text file with one token per line")
    return [line.rstrip("\r") for line in lines]


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS, SETTINGS):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    return settings


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        content = files.parse_json(read_file(file).decode("utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except ValueError as error:
        raise DataError(f"{file}: not a readable JSON file ({first_line(error)}). Use another one") from None
    return content


def read_file(file: Path) -> bytes:
    """Return the content of a file of a tokenizer."""
    try:
        return files.read_limited(file, MAX_JSON_BYTES)
    except ValueError as error:
        raise DataError(f"{file}: {error} for a tokenizer. Use another one") from None
