"""Adopt an existing tokenizer or vocabulary from a file, a folder or the Hugging Face hub. Its ids are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, models

from gpt2kit.errors import DataError, first_line
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.options import UNKNOWN, TokenizerSpec
from gpt2kit.tokenization.trainers import as_special, build_bert, build_words


def adopt(spec: TokenizerSpec) -> Tokenizer:
    """Return the tokenizer that `spec.vocab` names, or one with the vocabulary that it names."""
    assert spec.vocab is not None
    if spec.kind == "wordpiece":
        tokenizer = build_wordpiece(read_vocabulary(spec.vocab), spec)
    elif spec.kind == "words":
        tokenizer = build_words(read_vocabulary(spec.vocab), spec)
    else:
        raw = json.loads(tokenizers.to_json(tokenizers.from_plain_json(read_tokenizer_json(spec.vocab), spec.vocab)))
        raw["post_processor"] = None  # it would add tokens such as [CLS]; GPT-2 reads only the ids of the text
        tokenizer = tokenizers.from_plain_json(json.dumps(raw), spec.vocab, is_tried=True)
        tokenizer.add_special_tokens(as_special(spec.all_special_tokens))
    tokenizers.refuse_shared_ids(tokenizer, f"--vocab {spec.vocab}")
    return tokenizer


def build_wordpiece(vocabulary: list[str], spec: TokenizerSpec) -> Tokenizer:
    """Build BERT's tokenizer from the tokens of a vocab.txt, whose positions are the ids.

    A vocabulary without a capital letter is for lowercase text, like those of BERT's uncased models.
    """
    special = [token for token in vocabulary if re.fullmatch(r"\[[A-Za-z0-9_]+\]", token)]
    if UNKNOWN not in special:
        raise DataError(
            f"--vocab {spec.vocab}: contains no {UNKNOWN}, so it is not a WordPiece vocabulary. Name a file with one "
            "token per line"
        )
    is_lower = all(token == token.lower() for token in vocabulary if token not in special)
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = build_bert(models.WordPiece(ids, unk_token=UNKNOWN), spec, is_lower)
    tokenizer.add_special_tokens(as_special([*special, *spec.all_special_tokens]))
    return tokenizer


def read_vocabulary(path: str) -> list[str]:
    """Return the tokens of a vocab.txt, one per line."""
    if not Path(path).is_file():
        raise DataError(f"--vocab {path}: no such file. Name a text file with one token per line")
    lines = tokenizers.read_utf8(Path(path), f"--vocab {path}").split("\n")
    if lines[-1] == "":
        del lines[-1]
    if not lines:
        raise DataError(f"--vocab {path}: empty. Name a text file with one token per line")
    return lines


def read_tokenizer_json(name: str) -> str:
    """Return the tokenizer.json of a folder, a file or a hub name; transformers converts older formats."""
    path = Path(name)
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        return _convert_folder(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if path.is_file():
        return tokenizers.read_utf8(path, f"--vocab {name}")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise DataError(f"--vocab {name}: no such folder or file. Check the path")
    return _download(name)


def _convert_folder(folder: Path) -> str:
    from transformers import AutoTokenizer

    for path in sorted(folder.iterdir()):
        is_read = path.suffix in (".json", ".model", ".txt")
        if is_read and not (path.is_file() and path.stat().st_size <= tokenizers.MAX_JSON_BYTES):
            raise DataError(
                f"--vocab {folder}: {path.name} is not a regular file, or too large for a tokenizer. Check the folder"
            )
    with tokenizers.refuse_failures(f"--vocab {folder}: has no tokenizer", "Name a folder with tokenizer.json"):
        backend = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False).backend_tokenizer
    return str(backend.to_str())


def _download(name: str) -> str:
    """Return the tokenizer.json of a name on the hub, from the hub's local cache if it is unchanged."""
    # Not hf_hub_download: on an offline machine it retries for 24 seconds.
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(name, allow_patterns=["tokenizer.json"])) / "tokenizer.json"
    except Exception as error:  # the network and the hub raise many classes
        raise DataError(
            f"--vocab {name}: no such folder, and not available from the hub ({type(error).__name__}: "
            f"{first_line(error)}). Check the name, or download the tokenizer and give its folder"
        ) from None
    if not path.is_file():
        raise DataError(f"--vocab {name}: has no tokenizer.json on the hub. Use another tokenizer")
    return tokenizers.read_utf8(path, f"--vocab {name}")
