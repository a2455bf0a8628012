"""Convert the normalization rules of a SentencePiece model (its charsmap) to normalizers of the `tokenizers` library.

SentencePiece replaces the longest rule that begins at each character. The library's `Precompiled` looks at grapheme
clusters instead: it takes the shortest rule of a cluster below 6 bytes, and single characters of a longer one. So here
it gets single characters alone, and the library's NFC composes what rules of several characters replace.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Regex, normalizers

# Unassigned control characters. They divide a text into clusters of one character; the first also divides it into
# what rules replace, because nothing composes across it. A text that contains them loses them.
_DIVIDER, _INNER_DIVIDER = "\U000e0ffe", "\U000e0fff"
# Characters that join a cluster or compose with a character before them: marks, joiners, Hangul's letters, half-width
# voice marks, letters of flags, skin tones. The library's expressions know the category M.
_JOINING = (
    r"\p{M}\u200c\u200d\u1100-\u11ff\ua960-\ua97c\ud7b0-\ud7fb\uff9e\uff9f"
    r"\x{16d63}-\x{16d6a}\x{1f1e6}-\x{1f1ff}\x{1f3fb}-\x{1f3ff}\x{e0020}-\x{e007f}"
)
# Characters that a character after them joins.
_PREFIXES = (
    r"\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\x{110bd}\x{110cd}\x{111c2}\x{111c3}\x{1193f}\x{11941}"
    r"\x{11a3a}\x{11a84}-\x{11a89}\x{11d46}\x{11f02}"
)
_MAX_RULES = 1 << 19  # SentencePiece's own tables have up to 226,684
_MAX_EXCEPTIONS = 100  # each is a pass over the text; SentencePiece's own tables have up to 58
_MAX_LENGTH = 256  # bytes of a rule, and of its replacement; SentencePiece's own have up to 33
_LEAF, _LABEL = 1 << 31, 0xFF


@dataclass(frozen=True)
class _Patterns:
    """Regular expressions for the rules of several characters."""

    rules: str
    followers: str  # the characters of a rule after its first, for a character class
    joining: str  # the same, and all that join the character before them
    exceptions: tuple[tuple[str, str], ...]  # rules that composition does not explain, and their replacements


def normalizer_steps(charsmap: bytes) -> list[Any]:
    """Return normalizers that change a text as SentencePiece does with this table."""
    patterns = _patterns(charsmap)
    steps: list[Any] = [normalizers.Replace(Regex(rule), content) for rule, content in patterns.exceptions]
    divide = rf"(?m:(?=.[{patterns.joining}]|[{_PREFIXES}]|\r\n)(?:{patterns.rules}|.)\K)"
    steps.append(normalizers.Replace(Regex(divide), _DIVIDER))
    if patterns.followers:
        inner = rf"(?m:[^{_DIVIDER}]\K(?=[{patterns.followers}]))"
        steps.append(normalizers.Replace(Regex(inner), _INNER_DIVIDER))
    steps.append(normalizers.Precompiled(charsmap))
    if patterns.followers:
        steps += [normalizers.Replace(_INNER_DIVIDER, ""), normalizers.NFC()]
    return [*steps, normalizers.Replace(_DIVIDER, "")]


def read_rules(charsmap: bytes) -> dict[str, str]:
    """Return the rules in a table: a double-array trie of UTF-8 bytes, then the replacements, which end in 0."""
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4)
    replacements = charsmap[4 + size :]
    nodes = (np.arange(len(units)) ^ ((units >> 10) << ((units & 0x200) >> 6))).tolist()
    labels = units & _LABEL
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for position in np.flatnonzero((units < _LEAF) & (labels > 0)).tolist():
        label = int(labels[position])
        children[position ^ label].append((label, position))
    rules: dict[str, str] = {}
    visited = 0
    stack = [(0, b"")]
    while stack:
        position, key = stack.pop()
        visited += 1
        if visited > 4 * _MAX_RULES or len(key) > _MAX_LENGTH:  # a hostile table may have endless paths
            raise ValueError("its normalization has too many rules, or endless ones")
        if units[position] & 0x100:
            start = int(units[nodes[position]]) & (_LEAF - 1)
            end = replacements.index(b"\0", start, start + _MAX_LENGTH)
            rules[key.decode()] = replacements[start:end].decode()
        stack += [(child, key + bytes([label])) for label, child in children[nodes[position]]]
    return rules


@lru_cache(maxsize=4)
def _patterns(charsmap: bytes) -> _Patterns:
    rules = read_rules(charsmap)
    long_rules = {key: value for key, value in rules.items() if len(key) > 1}
    by_character = ("".join(rules.get(character, character) for character in key) for key in long_rules)
    composed = normalizers.NFC().normalize_str(_DIVIDER.join(by_character)).split(_DIVIDER)
    by_value: dict[str, list[str]] = defaultdict(list)
    for (key, value), result in zip(long_rules.items(), composed, strict=False):
        if result != value:
            by_value[value].append(key)
    if len(by_value) > _MAX_EXCEPTIONS:
        raise ValueError(f"its normalization has {len(by_value)} rules that Unicode's composition does not explain")
    exceptions = [
        ("|".join(map(_escape, sorted(keys, key=lambda key: (-len(key), key)))), value)
        for value, keys in sorted(by_value.items(), key=lambda item: (-max(map(len, item[1])), item[0]))
    ]
    # A character that becomes a mark, such as a half-width voice mark, joins what is before it.
    marks = {key for key, value in rules.items() if len(key) == 1 and value and _is_joining(value[0])}
    followers = {character for key in long_rules for character in key[1:]}
    joining = _JOINING + _class(followers | marks)
    return _Patterns(_rules_pattern(long_rules), _class(followers), joining, tuple(exceptions))


def _is_joining(character: str) -> bool:
    return unicodedata.category(character).startswith("M") or "\u1100" <= character <= "\u11ff"


def _rules_pattern(keys: Iterable[str]) -> str:
    """Return an expression for the longest of the keys; it matches nothing if there are none."""
    root: dict[str, Any] = {}
    for key in keys:
        node = root
        for character in key:
            node = node.setdefault(character, {})
        node[""] = {}  # a key ends here
    return _node_pattern(root, {}) if root else "(?!)"


def _node_pattern(node: dict[str, Any], known: dict[Any, str]) -> str:
    """Return an expression for what follows a node; characters with the same continuations are in one class.

    `known` has the expressions of nodes that were equal: thousands of syllables have the same continuations.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for character, child in node.items():
        if character:
            groups["" if child.keys() == {""} else _node_pattern(child, known)].append(character)
    identity = ("" in node, frozenset((rest, "".join(characters)) for rest, characters in groups.items()))
    if identity not in known:
        alternatives = sorted(f"[{_class(characters)}]{rest}" for rest, characters in groups.items())
        known[identity] = f"(?:{'|'.join(alternatives)}){'?' if '' in node else ''}"
    return known[identity]


def _class(characters: Iterable[str]) -> str:
    """Return characters as ranges of a character class."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(
        _escape(chr(first)) if first == last else f"{_escape(chr(first))}-{_escape(chr(last))}"
        for first, last in ranges
    )


def _escape(text: str) -> str:
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)
