"""Report how well a tokenizer fits a text, with figures and examples; compare several tokenizers and suggest one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.text.reader import batched
from gpt2kit.tokenization.tokenizer import encode_batch

# Characters that are encoded at a time.
_BATCH = 1 << 18
# Characters of a document that an example shows.
_EXAMPLE_LENGTH = 90
# Parameters of the `small` GPT-2 (12 layers, width 768) besides its token embedding: 12 d^2 + 13 d per layer, the last
# layer norm, the positions.
SMALL_PARAMETERS = 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 1024 * 768
# A lossless tokenizer must reproduce spaces, newlines, an unassigned character, an emoji and a special token.
_PROBE = "  a  b\n\n\t\u0378 \U0001fae8 <|endoftext|> "
# A tokenizer is near the best one if it needs at most this many times as many tokens.
_NEAR = 1.1


@dataclass
class TokenizerReport:
    """How a tokenizer encodes a text. End-of-document tokens are not counted."""

    size: int  # tokens in the vocabulary
    texts: int = 0  # documents, and parts of documents that are encoded separately
    bytes: int = 0
    characters: int = 0
    tokens: int = 0
    used: int = 0  # tokens of the vocabulary that the text contains
    partial: int = 0  # tokens of the text that are part of a character, which the vocabulary lacks
    unknown: int = 0  # tokens of the text that stand for lost characters
    failures: int = 0  # texts that decode to another text
    difference: str = ""  # where the first of them differs
    is_lossless: bool = True  # whether _PROBE decodes to itself
    longest: list[str] = field(default_factory=list)  # tokens of the vocabulary
    examples: list[list[str]] = field(default_factory=list)  # beginnings of texts, split into tokens

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)

    @property
    def characters_per_token(self) -> float:
        return self.characters / max(self.tokens, 1)

    @property
    def embedding(self) -> float:
        """The token embedding's fraction of a `small` GPT-2's parameters, with its rows padded to a multiple of 64."""
        parameters = -(-self.size // 64) * 64 * 768
        return parameters / (parameters + SMALL_PARAMETERS)


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerReport:
    """Encode and decode texts, and count bytes, characters, tokens and differences."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    report = TokenizerReport(len(vocabulary))
    probe = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    report.is_lossless = tokenizer.decode(probe, skip_special_tokens=False) == _PROBE
    counts: NDArray[np.int64] = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for batch in batched(texts, _BATCH):
        encoded = encode_batch(tokenizer, batch)
        decoded = tokenizer.decode_batch(encoded, skip_special_tokens=False)
        counts += np.bincount(np.fromiter(itertools.chain.from_iterable(encoded), np.int64), minlength=len(counts))
        for text, decoded_text in zip(batch, decoded, strict=True):
            report.texts += 1
            report.bytes += len(text.encode())
            report.characters += len(text)
            if len(report.examples) < 3 and len(text) >= 8:
                report.examples.append(split_into_tokens(tokenizer, text[:_EXAMPLE_LENGTH]))
            if decoded_text != text:
                report.failures += 1
                report.difference = report.difference or first_difference(text, decoded_text)
    report.tokens = int(counts.sum())
    report.used = int((counts > 0).sum())
    ids = list(vocabulary.values())
    text_of = dict(zip(ids, tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False), strict=True))
    # Part of a character decodes to U+FFFD, which a token may also contain itself.
    partial = [i for token, i in vocabulary.items() if "�" in text_of[i] and "�" not in token]
    report.partial = int(counts[partial].sum())
    unknown = vocabulary.get(getattr(tokenizer.model, "unk_token", None) or "")
    report.unknown = 0 if unknown is None else int(counts[unknown])
    names = {*tokenizer.get_added_tokens_decoder(), unknown, vocabulary.get("<unk>")}
    report.longest = [text_of[i] for i in sorted(set(ids) - names, key=lambda i: (-len(text_of[i]), i))[:8]]
    return report


def split_into_tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the text of each token; tokens of one character are joined."""
    pieces, start = [], 0
    for _, end in tokenizer.encode(text, add_special_tokens=False).offsets:
        if end > start:
            pieces.append(text[start:end])
            start = end
    return pieces


def describe(report: TokenizerReport, name: object) -> str:
    """Return the report as text."""
    changed = f"{report.failures:,} of {report.texts:,} texts change when encoded and decoded"
    lines = {
        "bytes per token": f"{report.bytes_per_token:.2f}",
        "characters per token": f"{report.characters_per_token:.2f}",
        "byte fallback": f"{_percent(report.partial, report.tokens)} of the tokens are parts of a character",
        "round trip": changed + (f", such as {report.difference}" if report.failures else ""),
        "vocabulary": f"{report.used:,} of {report.size:,} used here ({_percent(report.used, report.size)})",
        "embedding": f"{report.embedding:.1%} of a small GPT-2's parameters (12 layers, width 768)",
        "longest tokens": " ".join(repr(token[:24]) for token in report.longest),
    }
    if report.unknown:
        lines["unknown"] = f"{_percent(report.unknown, report.tokens)} of the text's tokens"
    title = f"report on {name}, over {report.texts:,} texts, {format_bytes(report.bytes)}"
    examples = ["|".join(pieces).replace("\n", "\\n").replace("\t", "\\t") for pieces in report.examples]
    labelled = [*lines.items(), *(("tokens", example) for example in examples)]
    return "\n".join([title, *(f"  {label:<24}{line}" for label, line in labelled)])


def table(reports: dict[str, TokenizerReport]) -> str:
    """Return a Markdown table with one line per tokenizer."""
    columns: dict[str, list[str]] = {
        "tokenizer": list(reports),
        "tokens": [f"{report.size:,}" for report in reports.values()],
        "bytes/token": [f"{report.bytes_per_token:.2f}" for report in reports.values()],
        "chars/token": [f"{report.characters_per_token:.2f}" for report in reports.values()],
        "bytes, not chars": [_percent(report.partial, report.tokens) for report in reports.values()],
        "changed texts": [_percent(report.failures, report.texts) for report in reports.values()],
        "used": [_percent(report.used, report.size) for report in reports.values()],
        "embedding": [f"{report.embedding:.1%}" for report in reports.values()],
    }
    padded = []
    for name, cells in columns.items():
        width = max(map(len, [name, *cells]))
        padded.append([f" {name:<{width}} ", "-" * (width + 2), *(f" {cell:<{width}} " for cell in cells)])
    return "\n".join(f"|{'|'.join(row)}|" for row in zip(*padded, strict=True))


def suggest(reports: dict[str, TokenizerReport]) -> str:
    """Suggest the lossless tokenizer with the smallest vocabulary that needs at most 10 % more tokens than the best."""
    lossless = {name: report for name, report in reports.items() if report.is_lossless and not report.failures}
    if not lossless:
        return "suggestion: none, because each of these loses text. Try bpe"
    best = max(report.bytes_per_token for report in lossless.values())
    near = [name for name, report in lossless.items() if report.bytes_per_token * _NEAR >= best]
    smallest = min(near, key=lambda name: (lossless[name].size, name))
    return (
        f"suggestion: {smallest}, the smallest vocabulary of those that lose no text and need at most 10 % more tokens "
        "than the best"
    )


def format_bytes(size: int) -> str:
    """Return a size in MB or kB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def first_difference(text: str, other: str) -> str:
    """Describe the first difference of two texts, with some context."""
    pairs = enumerate(zip(text, other, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
    context = slice(max(start - 8, 0), start + 8)
    return f"{text[context]!r} as {other[context]!r}"


def _percent(part: int, total: int) -> str:
    return f"{part / max(total, 1):.2%}"
