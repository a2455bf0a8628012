"""Describe a tokenizer to llama.cpp, if that splits every text into the same ids.

Two of llama.cpp's tokenizers fit: `gpt2`, byte-level BPE, and `llama`, SentencePiece's BPE with bytes for characters
that the vocabulary lacks. A tokenizer of characters is the latter without merges. `llama` reads U+2581 as a space, so
only texts with that character have other ids.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenizers import Tokenizer

from gpt2kit.errors import UserError
from gpt2kit.tokenization import tokenizer as tokenizers
from gpt2kit.tokenization.trainers import CROSSES_SPLIT, SPLIT, join_pieces

_SPACE = "\u2581"  # stands for a space in the tokens of `llama`
_SUPPORTED = "llama.cpp runs models with --kind bpe, char or spm-bpe, without a normalizer"
# Why other models are refused.
_UNSUPPORTED = {
    "WordPiece": "does not split text as this WordPiece does",
    "Unigram": "has no bytes for characters, such as line breaks, that a unigram vocabulary lacks",
}
_DECODER = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp needs it. The keys of the dictionaries are the tokens' ids or texts in the file."""

    model: Literal["gpt2", "llama"]
    tokens: dict[int, str]
    byte_ids: set[int] = field(default_factory=set)  # tokens that stand for one byte
    merges: list[str] = field(default_factory=list)  # of gpt2
    scores: dict[str, float] = field(default_factory=dict)  # of llama: the token with the highest is merged first


def describe(tokenizer: Tokenizer) -> Vocabulary:
    """Return what llama.cpp needs; raise UserError if it would give some text other ids."""
    raw = json.loads(tokenizers.to_json(tokenizer))
    model = raw["model"]
    if model["type"] != "BPE":
        raise _refusal(_UNSUPPORTED.get(model["type"], f"has no tokenizer of the type {model['type']}"))
    if model.get("ignore_merges"):
        raise _refusal("has no tokenizer of whole words")
    if raw["normalizer"] is not None:
        raise _refusal("does not normalize text")
    if any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix")):
        raise _refusal("has no prefixes or suffixes of tokens")
    tokens = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    merges = [tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        return _describe_pieces(raw, tokens, merges, tokenizers.added_ids(tokenizer))
    splitter = raw["pre_tokenizer"] or {}
    is_byte_level = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    if not is_byte_level or splitter.get("add_prefix_space"):
        raise _refusal("splits text before byte-level BPE as GPT-2 does")
    return Vocabulary("gpt2", tokens, merges=[" ".join(pair) for pair in merges])


def _refusal(reason: str) -> UserError:
    return UserError(f"--gguf: llama.cpp {reason}. {_SUPPORTED}")


def _describe_pieces(
    raw: dict[str, Any], tokens: dict[int, str], merges: list[tuple[str, str]], added: set[int]
) -> Vocabulary:
    """Describe BPE on characters. llama.cpp has no list of merges: it joins any two symbols to any token."""
    byte_ids = {i for i, token in tokens.items() if tokenizers.BYTE_TOKEN.fullmatch(token) and i not in added}
    plain = [token for i, token in tokens.items() if i not in added and i not in byte_ids]
    order = list(dict.fromkeys(first + second for first, second in merges))
    rest = sorted(set(plain).difference(order))
    splitter, is_split = raw["pre_tokenizer"], raw["pre_tokenizer"] is not None
    if is_split and (splitter.get("pattern") != {"Regex": SPLIT} or splitter.get("behavior") != "Isolated"):
        raise _refusal("does not split text before it merges characters")
    if is_split and any(re.search(CROSSES_SPLIT, piece) for piece in plain):
        raise _refusal("merges characters across spaces, unlike this tokenizer")
    if raw["decoder"] != _DECODER or len(byte_ids) < 256:
        raise _refusal("decodes tokens in another way")
    if any(_SPACE in piece for piece in plain):
        raise _refusal(f"reads {_SPACE} (U+2581) as a space, but it is a token of this vocabulary")
    names = {i: token if i in added else token.replace(" ", _SPACE) for i, token in tokens.items()}
    if " " not in plain:  # then a space is the byte 20, which llama.cpp must find under the name of a space
        space = next(i for i in byte_ids if tokens[i] == "<0x20>")
        names[space] = _SPACE
        byte_ids.remove(space)
    joined = {(first.replace(" ", _SPACE), second.replace(" ", _SPACE)) for first, second in merges}
    if len(set(names.values())) < len(names) or joined != _joins(set(names.values())):
        raise _refusal("would merge characters to tokens that this tokenizer does not merge them to")
    if join_pieces([*order, *rest]) != merges:
        raise _refusal("merges the pairs of one token at once, unlike this tokenizer")
    scores = {piece.replace(" ", _SPACE): -float(rank) for rank, piece in enumerate([*order, *rest])}
    return Vocabulary("llama", names, byte_ids, scores=scores)


def _joins(names: set[str]) -> set[tuple[str, str]]:
    """Return the pairs of symbols that llama.cpp joins: a symbol is a token or any single character."""
    return {
        (name[:at], name[at:])
        for name in names
        for at in range(1, len(name))
        if all(len(part) == 1 or part in names for part in (name[:at], name[at:]))
    }
