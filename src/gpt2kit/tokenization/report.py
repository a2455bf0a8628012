"""Report how well a tokenizer fits a text: figures, examples, and a table of several with a suggestion."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.tokenization.sampling import batched

# Characters encoded at once.
_BATCH = 1 << 18
# Characters of a document that an example shows.
_EXAMPLE_LENGTH = 90
# Parameters of the `small` GPT-2 (12 layers, width 768) besides its token embedding: 12 d^2 + 13 d per layer, the last
# layer norm, the positions.
_SMALL = 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 1024 * 768
# What a lossless tokenizer must reproduce: spaces, line ends, an unassigned character, an emoji, a special token.
_PROBE = "  a  b\n\n\t\u0378 \U0001fae8 <|endoftext|> "
# Tokenizers with at most this many times the fewest tokens are as good as the best.
_NEAR = 1.1


@dataclass
class TokenizerReport:
    """How a tokenizer encodes a text.

    Args:
        size: tokens in the vocabulary.
        documents, bytes, characters, tokens: of the text, without ends of documents.
        used: tokens of the vocabulary that the text contains.
        partial: tokens of the text that are a part of a character, which the vocabulary lacks.
        unknown: tokens of the text that mean something lost.
        failures: documents that decode to another text.
        difference: where the first of them differs.
        is_lossless: also _PROBE decodes to itself.
        longest: the longest tokens of the vocabulary.
        examples: beginnings of documents, split into tokens.
    """

    size: int
    documents: int = 0
    bytes: int = 0
    characters: int = 0
    tokens: int = 0
    used: int = 0
    partial: int = 0
    unknown: int = 0
    failures: int = 0
    difference: str = ""
    is_lossless: bool = True
    longest: list[str] = field(default_factory=list)
    examples: list[list[str]] = field(default_factory=list)

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(self.tokens, 1)

    @property
    def characters_per_token(self) -> float:
        return self.characters / max(self.tokens, 1)

    @property
    def embedding(self) -> float:
        """The fraction of a `small` GPT-2's parameters in the token embedding, whose rows are a multiple of 64."""
        parameters = -(-self.size // 64) * 64 * 768
        return parameters / (parameters + _SMALL)


def measure(tokenizer: Tokenizer, documents: Iterable[str]) -> TokenizerReport:
    """Encode documents, decode them again, and count."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    report = TokenizerReport(len(vocabulary))
    probe = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    report.is_lossless = tokenizer.decode(probe, skip_special_tokens=False) == _PROBE
    counts: NDArray[np.int64] = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for batch in batched(documents, _BATCH):
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        decoded = tokenizer.decode_batch(encoded, skip_special_tokens=False)
        counts += np.bincount(np.fromiter(itertools.chain.from_iterable(encoded), np.int64), minlength=len(counts))
        for text, decoded_text in zip(batch, decoded, strict=True):
            report.documents += 1
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
    texts = dict(zip(ids, tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False), strict=True))
    # Part of a character decodes to U+FFFD; a token may also contain U+FFFD itself.
    partial = [i for token, i in vocabulary.items() if "�" in texts[i] and "�" not in token]
    report.partial = int(counts[partial].sum())
    unknown = vocabulary.get(getattr(tokenizer.model, "unk_token", None) or "")
    report.unknown = 0 if unknown is None else int(counts[unknown])
    names = {*tokenizer.get_added_tokens_decoder(), unknown, vocabulary.get("<unk>")}
    report.longest = [texts[i] for i in sorted(set(ids) - names, key=lambda i: (-len(texts[i]), i))[:8]]
    return report


def split_into_tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the text of each token; tokens of one character together."""
    pieces, start = [], 0
    for _, end in tokenizer.encode(text, add_special_tokens=False).offsets:
        if end > start:
            pieces.append(text[start:end])
            start = end
    return pieces


def describe(report: TokenizerReport, name: object) -> str:
    """Return the report as text."""
    changed = f"{report.failures:,} of {report.documents:,} documents change when encoded and decoded"
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
    title = f"report on {name}, by {report.documents:,} documents, {format_bytes(report.bytes)}"
    examples = [
        f"  {'tokens':<24}{'|'.join(pieces)}".replace("\n", "\\n").replace("\t", "\\t") for pieces in report.examples
    ]
    return "\n".join([title, *(f"  {label:<24}{line}" for label, line in lines.items()), *examples])


def table(reports: dict[str, TokenizerReport]) -> str:
    """Return a Markdown table with one line per tokenizer."""
    rows = []
    for name, report in reports.items():
        row = {
            "tokenizer": name,
            "tokens": f"{report.size:,}",
            "bytes/token": f"{report.bytes_per_token:.2f}",
            "chars/token": f"{report.characters_per_token:.2f}",
            "bytes, not chars": _percent(report.partial, report.tokens),
            "changed texts": _percent(report.failures, report.documents),
            "used": _percent(report.used, report.size),
            "embedding": f"{report.embedding:.1%}",
        }
        rows.append(row)
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in rows[0]}
    header = [column.ljust(width) for column, width in widths.items()]
    line = ["-" * width for width in widths.values()]
    body = [[row[column].ljust(width) for column, width in widths.items()] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, line, *body])


def suggest(reports: dict[str, TokenizerReport]) -> str:
    """Suggest the smallest vocabulary of the lossless tokenizers with at most 10 % more tokens than the fewest."""
    lossless = {name: report for name, report in reports.items() if report.is_lossless and not report.failures}
    if not lossless:
        return "suggestion: none; each of these loses text. Try bytebpe"
    best = max(report.bytes_per_token for report in lossless.values())
    near = [name for name, report in lossless.items() if report.bytes_per_token * _NEAR >= best]
    smallest = min(near, key=lambda name: (lossless[name].size, name))
    return (
        f"suggestion: {smallest}, the smallest vocabulary of those that lose nothing and need at most 10 % more tokens "
        "than the best"
    )


def format_bytes(size: int) -> str:
    """Return a size in MB or kB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def first_difference(text: str, other: str) -> str:
    """Describe where two texts differ first, with a little context."""
    pairs = enumerate(zip(text, other, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
    context = slice(max(start - 8, 0), start + 8)
    return f"{text[context]!r} as {other[context]!r}"


def _percent(part: int, total: int) -> str:
    return f"{part / max(total, 1):.2%}"
