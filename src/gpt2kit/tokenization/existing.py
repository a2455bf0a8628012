"""Adopt an existing tokenizer or vocabulary from a file, a folder or the Hugging Face hub. Its ids are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer

from gpt2kit import hub
from gpt2kit.errors import DataError
from gpt2kit.tokenization import pretrained, sentencepiece_model, token_list
from gpt2kit.tokenization.options import TokenizerSpec
from gpt2kit.tokenization.pretrained import build_wordpiece, read_vocabulary
from gpt2kit.tokenization.tokenizer import from_plain_json, read_utf8, refuse_shared_ids, to_json
from gpt2kit.tokenization.trainers import as_special, build_char, build_words


def adopt(spec: TokenizerSpec) -> Tokenizer:
    """Return the tokenizer that `spec.vocab` names, or one with the vocabulary that it names."""
    assert spec.vocab is not None
    if spec.kind == "wordpiece":
        tokenizer = build_wordpiece(read_vocabulary(spec.vocab), spec)
    elif spec.kind == "words":
        tokenizer = build_words(read_vocabulary(spec.vocab), spec)
    elif spec.kind == "char":
        tokenizer = build_char(token_list.read(spec.vocab), spec)
    else:
        tokenizer = _open(spec.vocab)
    tokenizer.add_special_tokens(as_special(spec.all_special_tokens))
    refuse_shared_ids(tokenizer, f"--vocab {spec.vocab}")
    return tokenizer


def _open(name: str) -> Tokenizer:
    """Return the tokenizer of a folder, a tokenizer.json, a SentencePiece .model or a hub name."""
    path, where = Path(name), f"--vocab {name}"
    if path.is_dir():
        return pretrained.open_folder(path, {})
    if path.suffix == ".model" and path.is_file():
        converted = sentencepiece_model.convert(pretrained.read_file(path), where)
        return from_plain_json(to_json(converted), where)
    if path.is_file():
        raw = json.loads(to_json(from_plain_json(read_utf8(path, where), where)))
        raw["post_processor"] = None  # it would add tokens such as [CLS]; GPT-2 reads only the ids of the text
        return from_plain_json(json.dumps(raw), where, is_tried=True)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(@[\w.-]+)?", name):
        raise DataError(f"{where}: no such folder or file. Check the path")
    try:
        folder = hub.download(name, pretrained.PATTERNS)
    except DataError as error:
        raise DataError(f"--vocab {error}") from None
    return pretrained.open_folder(folder, {})
