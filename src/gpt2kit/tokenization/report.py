"""How well a tokenizer fits a text: figures, examples, and a table of several with a suggestion."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gpt2kit.tokenization.sampling import batched

_BATCH = 1 << 18
_SMALL = 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 1024 * 768
"""Parameters of the `small` GPT-2 (12 layers, 768 wide) besides its token embedding."""

_PROBE = "  a  b\n\n\t\u0378 \U0001fae8 <|endoftext|> "
_NEAR = 1.1
_SHOWN = 90


@dataclass
class Report:
    """What `measure` found. Bytes are those of the UTF-8 text; ends of documents are not counted."""

    size: int
    """Tokens in the vocabulary."""
    documents: int = 0
    bytes: int = 0
    characters: int = 0
    tokens: int = 0
    used: int = 0
    """Tokens of the vocabulary that the text needs."""
    parts: int = 0
    """Tokens of the text that are but a part of a character: what the vocabulary lacks, written as bytes."""
    unknown: int = 0
    """Tokens of the text that stand for something lost."""
    failures: int = 0
    """Documents that do not come back as they were."""
    failure: str = ""
    """The first of them, around the place."""
    lossless: bool = True
    """Also texts that are not in the sample come back: runs of spaces, line ends, unassigned characters."""
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
        """The share of a `small` GPT-2's parameters that the token embedding takes, its rows a multiple of 64."""
        rows = -(-self.size // 64) * 64 * 768
        return rows / (rows + _SMALL)


def measure(tokenizer: Tokenizer, documents: Iterable[str]) -> Report:
    """Encode documents, decode them again, and count."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    report = Report(len(vocabulary))
    probe = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    report.lossless = tokenizer.decode(probe, skip_special_tokens=False) == _PROBE
    counts: NDArray[np.int64] = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for batch in batched(documents, _BATCH):
        encoded = [found.ids for found in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        decoded = tokenizer.decode_batch(encoded, skip_special_tokens=False)
        for text, ids, back in zip(batch, encoded, decoded, strict=True):
            report.documents += 1
            report.bytes += len(text.encode())
            report.characters += len(text)
            report.tokens += len(ids)
            if len(report.examples) < 3 and len(text) >= 8:
                report.examples.append(cut(tokenizer, text[:_SHOWN]))
            if back != text:
                report.failures += 1
                report.failure = report.failure or parted(text, back)
        counts += np.bincount(np.fromiter(itertools.chain.from_iterable(encoded), np.int64), minlength=len(counts))
    report.used = int((counts > 0).sum())
    ids = list(vocabulary.values())
    texts = dict(zip(ids, tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False), strict=True))
    own = {i for token, i in vocabulary.items() if "\N{REPLACEMENT CHARACTER}" in token}
    report.parts = sum(int(counts[i]) for i in ids if "\N{REPLACEMENT CHARACTER}" in texts[i] and i not in own)
    unknown = vocabulary.get(getattr(tokenizer.model, "unk_token", None) or "")
    report.unknown = 0 if unknown is None else int(counts[unknown])
    names = {*tokenizer.get_added_tokens_decoder(), unknown, vocabulary.get("<unk>")}
    report.longest = [texts[i] for i in sorted(set(ids) - names, key=lambda i: (-len(texts[i]), i))[:8]]
    return report


def cut(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text's tokens as pieces of it; bytes of a character that was cut stand together."""
    pieces, at = [], 0
    for _, end in tokenizer.encode(text, add_special_tokens=False).offsets:
        if end > at:
            pieces.append(text[at:end])
            at = end
    return pieces


def describe(report: Report, name: object) -> str:
    """The report for people."""
    lines = [
        f"report on {name}, by {report.documents:,} documents, {amount(report.bytes)}",
        f"  bytes per token         {report.bytes_per_token:.2f}",
        f"  characters per token    {report.characters_per_token:.2f}",
        f"  byte fallback           {_share(report.parts, report.tokens)} of the tokens are parts of a character",
        f"  round trip              {report.failures:,} of {report.documents:,} documents come back changed"
        + (f", such as {report.failure}" if report.failures else ""),
        f"  vocabulary              {report.used:,} of {report.size:,} used here ({_share(report.used, report.size)})",
        f"  embedding               {report.embedding:.1%} of a small GPT-2's parameters (12 layers, 768 wide)",
        f"  longest tokens          {' '.join(repr(token[:24]) for token in report.longest)}",
    ]
    if report.unknown:
        lines.insert(5, f"  unknown                 {_share(report.unknown, report.tokens)} of the text's tokens")
    lines += [f"  cut                     {'|'.join(_plain(piece) for piece in pieces)}" for pieces in report.examples]
    return "\n".join(lines)


def table(reports: dict[str, Report]) -> str:
    """One line a tokenizer, as a Markdown table."""
    rows = [
        ["tokenizer", "tokens", "bytes/token", "chars/token", "bytes, not chars", "changed texts", "used", "embedding"]
    ]
    for name, report in reports.items():
        rows.append(
            [
                name,
                f"{report.size:,}",
                f"{report.bytes_per_token:.2f}",
                f"{report.characters_per_token:.2f}",
                _share(report.parts, report.tokens),
                _share(report.failures, report.documents),
                _share(report.used, report.size),
                f"{report.embedding:.1%}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def suggest(reports: dict[str, Report]) -> str:
    """The smallest vocabulary among the lossless ones whose texts are at most a tenth longer than the shortest."""
    lossless = {name: report for name, report in reports.items() if report.lossless and not report.failures}
    if not lossless:
        return "suggestion: none; every one of these loses text. Try bytebpe"
    best = max(report.bytes_per_token for report in lossless.values())
    near = [name for name, report in lossless.items() if report.bytes_per_token * _NEAR >= best]
    chosen = min(near, key=lambda name: (lossless[name].size, name))
    return (
        f"suggestion: {chosen}, the smallest vocabulary of those that lose nothing and need at most 10 % more tokens "
        "than the best"
    )


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def parted(text: str, back: str) -> str:
    """Where two texts part, with a little around it."""
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    return f"{text[max(at - 8, 0) : at + 8]!r} as {back[max(at - 8, 0) : at + 8]!r}"


def _plain(piece: str) -> str:
    return piece.replace("\n", "\\n").replace("\t", "\\t")


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.2%}"
