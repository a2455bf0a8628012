"""Check whether the page of `export --html` gives the same ids as a tokenizer.

`html/tokenizer.mjs` implements the parts of the `tokenizers` library that are listed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from gpt2kit.errors import Problems
from gpt2kit.tokenization import tokenizer as tokenizers

_PARTS = {
    "normalizer": {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace", "Precompiled"},
    "pre_tokenizer": {"Sequence", "Split", "Digits", "ByteLevel", "Metaspace"},
    "decoder": {"Sequence", "ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace"},
    "model": {"BPE", "Unigram"},
}
# What tokenizer.mjs does not translate to JavaScript's expressions: escapes other than these, classes of characters
# other than general categories, possessive quantifiers, groups of other kinds, classes in classes, and the dot.
_UNTRANSLATED = re.compile(
    r"\\(?![sSdDnrtpP]|x\{[0-9a-f]+\}|u[0-9a-f]{4})[A-Za-z0-9]|\\[pP](?!\{[LMNPSZC][a-z]?\})|[+*?]\+|\d\}\+|\(\?(?!:|=|!|<=|<!|i:[^()]*\))"
    r"|&&|\[[^\]]*\[|(?<!\\)\."
)
# An expression of `tokenization.charsmap`, which inserts a character. Its dot stands for any character.
_INSERTION = re.compile(r"\(\?m:(.*)\\K(?:\(\?=\[[^\]]*\]\))?\)", re.DOTALL)


def html_problems(tokenizer: Tokenizer) -> list[str]:
    """List why the page's tokenizer would not give the same ids."""
    raw, problems = json.loads(tokenizers.to_json(tokenizer)), Problems()
    kind = raw["model"]["type"]
    if kind == "WordPiece":
        return ["a WordPiece tokenizer does not encode every text without loss. Use another kind of tokenizer"]
    steps = {
        "normalizer": list(_steps(raw["normalizer"], "normalizers")),
        "pre_tokenizer": list(_steps(raw["pre_tokenizer"], "pretokenizers")),
        "decoder": list(_steps(raw["decoder"], "decoders")) or [{"type": "none"}],
        "model": [raw["model"]],
    }
    for part, known in _PARTS.items():
        for step in steps[part]:
            name = part.replace("_", "-")
            problems.check(
                step["type"] in known,
                f"the page does not implement the tokenizer's {name} {step['type']}. Use another tokenizer",
            )
            pattern = (step.get("pattern") or {}).get("Regex", "")
            if insertion := _INSERTION.fullmatch(pattern):
                pattern = insertion[1].replace("|.)", ")").replace("(?=.[", "(?=[")
            problems.check(
                not _UNTRANSLATED.search(pattern),
                f"browsers do not have all of the tokenizer's expression {pattern!r:.60}. Use another tokenizer",
            )
    problems.check(
        _is_start_certain(steps["normalizer"], steps["pre_tokenizer"]),
        "the page does not implement the tokenizer's prepend_scheme 'first' beside its other steps. "
        "Use another tokenizer",
    )
    has_affixes = raw["model"].get("continuing_subword_prefix") or raw["model"].get("end_of_word_suffix")
    problems.check(not has_affixes, "the page does not implement the tokenizer's affixes. Use another tokenizer")
    for token in raw["added_tokens"]:
        is_plain = not (token["single_word"] or token["lstrip"] or token["rstrip"])
        is_plain &= not (token["normalized"] and raw["normalizer"])
        problems.check(
            token["special"] or is_plain,
            f"the page does not recognize the token {token['content']!r:.40} in a text as the tokenizer does. "
            "Use another tokenizer",
        )
    return problems.messages


def _is_start_certain(normalizer: list[dict[str, Any]], pre_tokenizer: list[dict[str, Any]]) -> bool:
    """Return whether the page knows which word Metaspace takes for the first one of a text.

    The library takes any word whose original position is 0; after another step, none or several may have it.
    """
    splits = [step for step in pre_tokenizer if step["type"] != "Sequence"]
    spaces = [
        step["replacement"] for step in splits if step["type"] == "Metaspace" and step["prepend_scheme"] == "first"
    ]
    contents = [
        str(step.get("content", step.get("prepend"))) for step in normalizer if step["type"] in ("Replace", "Prepend")
    ]
    # A text that begins with a space gets no other one.
    is_harmless = all(content.startswith((" ", space)) for content in contents for space in spaces)
    return not spaces or (len(spaces) == 1 and splits[0].get("replacement") == spaces[0] and is_harmless)


def _steps(settings: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    """Yield a part of a tokenizer and those that it consists of."""
    if settings:
        yield settings
        for step in settings.get(name, ()):
            yield from _steps(step, name)
