"""What test.py tells: every figure of every checkpoint as plain data, and tables of them for people."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from gpt2kit import __version__
from gpt2kit.evaluation import statistics
from gpt2kit.evaluation.memorization import Copies
from gpt2kit.evaluation.statistics import Sums, over_documents
from gpt2kit.evaluation.text_stats import RoundTrip
from gpt2kit.metrics import FIGURES, Score

_ROUGH = 30
"""Documents below which a bootstrap's interval is too narrow more often than it says."""


@dataclass
class Result:
    """What one checkpoint made of the text.

    Args:
        name: of the checkpoint, as the user gave it.
        file: that was opened.
        sums: of each document.
        context: tokens that a prediction is made from: at least (once the text has so many) and at most.
        stride: tokens from one window to the next.
        vocabulary: tokens that the model tells apart.
        parameters: of the model.
        trip: whether its tokenizer gives the text back.
        ends: whether it was made to say where documents end.
        apart: whether no token sees another document.
        copies: what it copies from the training text, if that was asked for.
    """

    name: str
    file: str
    sums: Sums
    context: tuple[int, int]
    stride: int
    vocabulary: int
    parameters: int
    trip: RoundTrip
    ends: bool
    apart: bool
    copies: Copies | None = None
    score: Score = field(init=False)

    def __post_init__(self) -> None:
        self.score = self.sums.total()


def ranked(results: list[Result]) -> list[Result]:
    """The best bits per byte first; those that lose text last, for their figures are of another text."""
    return sorted(results, key=lambda result: (not result.trip.lossless, result.score.bits_per_byte))


def figures(results: list[Result], seed: int) -> list[dict[str, Any]]:
    """All figures with every digit, the best checkpoint first."""
    order = ranked(results)
    best = order[0] if order[0].trip.lossless else None
    found = []
    for result in order:
        score = result.score
        row: dict[str, Any] = {"checkpoint": result.name, "file": result.file}
        row |= {name: getattr(score, name) for name in FIGURES}
        row |= {"tokens": score.tokens, "nll": score.nll}
        row |= {"interval_95": statistics.intervals(result.sums, seed)}
        row |= {"over_documents": {name: asdict(spread) for name, spread in over_documents(result.sums).items()}}
        row |= {"context": list(result.context), "stride": result.stride}
        row |= {"vocabulary": result.vocabulary, "parameters": result.parameters, "predicts_ends": result.ends}
        row["documents_apart"] = result.apart
        row |= {"round_trip": asdict(result.trip), "comparable": result.trip.lossless}
        if best and result.trip.lossless and len(results) > 1:
            row["difference"] = {
                "to": best.name,
                "bits_per_byte": score.bits_per_byte - best.score.bits_per_byte,
                "interval_95": statistics.difference(result.sums, best.sums, lambda s: s.bits_per_byte, seed),
            }
        if result.copies:
            row["copies"] = asdict(result.copies)
        found.append(row)
    return found


def of_one(row: dict[str, Any], text: dict[str, Any]) -> str:
    """The figures of one checkpoint, one a line, each with what it is."""
    within = {
        name: f"95 % interval {_shown(low)} to {_shown(high)}" for name, (low, high) in row["interval_95"].items()
    }
    loss, bits, perplexity = (row["over_documents"][name] for name in ("loss", "bits_per_byte", "perplexity"))
    lines: list[tuple[str, str, list[str | None]]] = [
        ("loss", _shown(row["loss"]), ["nats per token", within.get("loss")]),
        ("perplexity", _shown(row["perplexity"]), ["per token", within.get("perplexity")]),
        ("bits per byte", _shown(row["bits_per_byte"]), [_comparable(row), within.get("bits_per_byte")]),
        ("bits per character", _shown(row["bits_per_character"]), [within.get("bits_per_character")]),
        ("perplexity per word", _shown(row["perplexity_per_word"]), [f"word: {text['word_unit']}"]),
        ("tokens", f"{row['tokens']:,}", [f"{row['vocabulary']:,} in the vocabulary"]),
        ("bytes", f"{text['bytes']:,}", [f"{text['characters']:,} characters, {text['words']:,} words"]),
        ("documents", f"{text['documents']:,}", []),
        (
            "over documents",
            "",
            [f"loss {_spread(loss)}, bits per byte {_spread(bits)}, perplexity {_spread(perplexity)}"],
        ),
        ("context", _context(row), ["tokens" + (" of the same document" if row["documents_apart"] else "")]),
        ("precision", text["precision"], []),
    ]
    return "\n".join(
        f"{name:<21}{value:<13} {'; '.join(one for one in more if one)}".rstrip() for name, value, more in lines
    )


def of_many(rows: list[dict[str, Any]], text: dict[str, Any]) -> str:
    """One line a checkpoint, the best first; then what the text is."""
    head = ["bits/byte", "95 % interval", "more than the best", "loss", "perplexity", "tokens", "context", "checkpoint"]
    table = [head, *map(_row, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    counts = f"{text['documents']:,} documents, {text['bytes']:,} bytes, {text['characters']:,} characters"
    return "\n".join([*lines, "", f"{counts}; precision {text['precision']}"])


def notes(rows: list[dict[str, Any]], text: dict[str, Any]) -> list[str]:
    """What a reader of the figures must know."""
    found = []
    if text["partial"]:
        found.append(f"partial: {text['partial']}")
    if text["documents"] == 1:
        found.append("one document: no interval, which needs several")
    elif text["documents"] < _ROUGH:
        found.append(f"{text['documents']} documents: intervals are rough")
    for row in rows:
        trip = row["round_trip"]
        if not row["comparable"]:
            found.append(
                f"{row['checkpoint']}: its tokenizer loses text: {trip['changed']:,} of {trip['documents']:,} texts "
                f"come back changed, such as {trip['example']}. Its bits per byte are not comparable"
            )
        if row.get("copies", {}).get("same_text") is False:
            found.append(f"{row['checkpoint']}: --train_files are not the text that it was trained on, token for token")
    if len(rows) > 1:
        found += [
            f"{row['checkpoint']}: does not predict where documents end, as the others do; it saves those bits"
            for row in rows
            if not row["predicts_ends"] and any(other["predicts_ends"] for other in rows)
        ]
    return found


def as_json(
    rows: list[dict[str, Any]], text: dict[str, Any], notes: list[str], settings: dict[str, Any], **more: Any
) -> str:
    """All of it as JSON; a number that is none (infinite) is null."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    versions |= {"gpt2kit": __version__, "python": platform.python_version()}
    whole = {"versions": versions, "settings": settings, "text": text, "notes": notes, "results": rows} | more
    return json.dumps(_finite(whole), ensure_ascii=False, indent=1, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(row: dict[str, Any]) -> list[str]:
    low_high = row["interval_95"].get("bits_per_byte")
    difference = row.get("difference")
    more = "not comparable: loses text" if not row["comparable"] else "alone" if not difference else "best"
    if difference and difference["to"] != row["checkpoint"]:
        within = difference["interval_95"]
        more = f"{difference['bits_per_byte']:+.4f}" + (f" ({within[0]:+.4f} to {within[1]:+.4f})" if within else "")
    return [
        _shown(row["bits_per_byte"]) + ("" if row["comparable"] else " *"),
        f"{_shown(low_high[0])} to {_shown(low_high[1])}" if low_high else "none",
        more,
        _shown(row["loss"]),
        _shown(row["perplexity"]),
        f"{row['tokens']:,}",
        _context(row),
        row["checkpoint"],
    ]


def _comparable(row: dict[str, Any]) -> str:
    trip = row["round_trip"]
    if row["comparable"]:
        return "comparable between tokenizers"
    return f"NOT comparable: the tokenizer loses text ({trip['changed']:,} of {trip['documents']:,} documents)"


def _context(row: dict[str, Any]) -> str:
    low, high = row["context"]
    return f"{low:,}-{high:,}"


def _spread(spread: dict[str, float]) -> str:
    return f"{_shown(spread['mean'])} ± {_shown(spread['sd'])}"


def _shown(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e9 else f"{value:.3e}"
