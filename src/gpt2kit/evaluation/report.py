"""The report of test.py: figures as tables, as JSON, on a page, and as a file in the run's folder."""

from __future__ import annotations

import json
import math
import operator
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from gpt2kit import __version__
from gpt2kit.evaluation import memorization, statistics
from gpt2kit.evaluation.blocks import BLOCK_BYTES, UNITS, Sampling
from gpt2kit.evaluation.evaluate import Passage, Result
from gpt2kit.evaluation.options import EvaluationOptions
from gpt2kit.evaluation.scoring import Ranks
from gpt2kit.evaluation.statistics import TextStats
from gpt2kit.evaluation.test_set import TestSet
from gpt2kit.metrics import FIGURES
from gpt2kit.model.config import parameter_count
from gpt2kit.runs import pages

Row = dict[str, Any]


class Report:
    """The report of a test: one row of figures per candidate, the best one first, and a description of the text."""

    def __init__(
        self, results: Sequence[Result], test_set: TestSet, stats: TextStats, options: EvaluationOptions, ranks: Ranks
    ) -> None:
        # The fewest bits per byte first. Candidates whose tokenizer loses text are last: they predict another text.
        self.results = sorted(results, key=lambda r: (not r.round_trip.is_lossless, r.score.bits_per_byte))
        self.rows = [_compute_row(result, self.results, test_set.sampling, options.seed) for result in self.results]
        self.text = _describe_text(test_set, stats, options, ranks)
        self.notes = _collect_notes(self.rows, self.text, test_set.sampling)
        self._options = options

    def to_text(self) -> str:
        """Return the figures as tables."""
        table = describe_one(self.rows[0], self.text) if len(self.rows) == 1 else compare(self.rows, self.text)
        return "\n\n".join(filter(None, [table, self.memorization_text()]))

    def memorization_text(self) -> str:
        """Return how much each checkpoint copies; empty if that was not measured."""
        return "\n\n".join(
            f"{result.candidate.name}\n{memorization.describe(result.memorization)}"
            for result in self.results
            if result.memorization
        )

    def to_json(self) -> str:
        """Return all figures as JSON with full precision; values that are not finite become null."""
        return json.dumps(replace_infinite(self.content()), ensure_ascii=False, indent=1, default=str) + "\n"

    def content(self, rows: Sequence[Row] | None = None, **more: Any) -> Row:
        """Return all figures, or those of some rows, as plain data."""
        versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
        return {
            "versions": versions | {"gpt2kit": __version__, "python": platform.python_version()},
            "settings": asdict(self._options),
            "text": self.text,
            "notes": self.notes,
            "results": self.rows if rows is None else rows,
            **more,
        }

    def content_of(self, file: Path) -> Row:
        """Return the figures and the passages of one checkpoint."""
        number = next(number for number, result in enumerate(self.results) if result.candidate.info.path == file)
        passages = [asdict(passage) for passage in self.results[number].passages]
        return self.content([self.rows[number]], passages=passages)

    def sections(self, name: str = "") -> Iterator[tuple[str, str, list[Passage]]]:
        """Yield the name, the figures and the passages of each candidate; the name ends with that of the text."""
        for row, result in zip(self.rows, self.results, strict=True):
            title = f"{row['checkpoint']}: {name}" if name else row["checkpoint"]
            yield title, describe_one(row, self.text), result.passages


def _compute_row(result: Result, results: Sequence[Result], sampling: Sampling, seed: int) -> Row:
    """Return the figures of a candidate; `results` are those of all candidates, the best one first."""
    info, score, windows, check = result.candidate.info, result.score, result.windows, result.round_trip
    over = "over_blocks" if sampling.unit == "blocks" else "over_documents"
    row: Row = {
        "checkpoint": result.candidate.name,
        "file": str(info.path),
        **{name: getattr(score, name) for name in FIGURES},
        "tokens": score.tokens,
        "nll": score.nll,
        "interval_95": statistics.bootstrap(result.units, seed) if result.units else {},
        over: statistics.measure_spread(result.units or result.scores),
        "context": [windows.least_context, windows.context],
        "stride": windows.stride,
        "vocabulary": int(info.shape["vocab_size"]),
        "parameters": parameter_count(info.shape),
        "predicts_ends": result.candidate.append_eos,
        "predicts_first": result.candidate.has_end,
        "documents_apart": info.document_start is not None,
        "round_trip": asdict(check),
        "comparable": check.is_lossless,
    }
    if check.is_lossless and len(results) > 1:
        best, interval = results[0], None
        if result.units and best.units:
            figure = operator.attrgetter("bits_per_byte")
            interval = statistics.bootstrap_difference(result.units, best.units, figure, seed)
        row["difference"] = {
            "to": best.candidate.name,
            "bits_per_byte": score.bits_per_byte - best.score.bits_per_byte,
            "interval_95": interval,
        }
    if result.memorization:
        row["copies"] = asdict(result.memorization)
    return row


def _describe_text(test_set: TestSet, stats: TextStats, options: EvaluationOptions, ranks: Ranks) -> Row:
    """Return the files and sizes of the text, and how it was read."""
    counted = test_set.stores[0].counted()[: test_set.documents]
    return {
        "files": test_set.files,
        "share": test_set.split.high - test_set.split.low if test_set.split else 1.0,
        "reader": test_set.corpora[0].reader.identity(),
        "hash": test_set.hash,
        "documents": test_set.documents,
        "interval_unit": test_set.sampling.unit,
        "interval_units": test_set.sampling.count,
        "bytes": int(counted[:, 1].sum()),
        "characters": int(counted[:, 2].sum()),
        "words": sum(stats.words),
        "word_unit": stats.word_unit,
        "partial": test_set.partial,
        "precision": options.precision,
        "device": ranks.device(),
        "ranks": ranks.world_size,
    }


def _collect_notes(rows: Sequence[Row], text: Row, sampling: Sampling) -> list[str]:
    """Return the limits of the figures."""
    notes = [f"partial: {text['partial']}"] if text["partial"] else []
    if loss_on := text["reader"].get("loss_on"):
        notes.append(f"only the text of {', '.join(loss_on)} is counted; the rest of each document is context")
    if sampling.unit == "blocks":
        notes.append(
            f"{sampling.problem}: intervals and deviations are of {sampling.count} blocks of "
            f"{sampling.size // sampling.count:,} bytes of the text"
        )
    elif sampling.unit == "none":
        notes.append(
            f"{sampling.problem}: no intervals, which need {UNITS} documents of similar size, or {UNITS} blocks of "
            f"{BLOCK_BYTES:,} bytes; the text has {sampling.size:,} bytes"
        )
    for row in rows:
        name, check = row["checkpoint"], row["round_trip"]
        if not row["predicts_first"]:
            notes.append(
                f"{name}: its vocabulary has no end-of-text token, so each document is predicted from its second token "
                "on. The figures leave out the first tokens and their bytes"
            )
        if not row["comparable"]:
            notes.append(
                f"{name}: its tokenizer loses text: {check['changed']:,} of {check['documents']:,} documents change "
                f"when encoded and decoded, such as {check['example']}. Its bits per byte are not comparable"
            )
        if row.get("copies", {}).get("same_text") is False:
            notes.append(f"{name}: was not trained on exactly the text of --train_files")
    if any(row["predicts_ends"] for row in rows):
        notes += [
            f"{row['checkpoint']}: does not predict the ends of documents, unlike others, so its figures are lower"
            for row in rows
            if not row["predicts_ends"]
        ]
    return notes


def describe_one(row: Row, text: Row) -> str:
    """Return the figures of a checkpoint, one per line."""
    intervals = {
        name: f"95 % interval {format_figure(low)} to {format_figure(high)}"
        for name, (low, high) in row["interval_95"].items()
    }
    check, unit = row["round_trip"], "blocks" if "over_blocks" in row else "documents"
    spread, count = row[f"over_{unit}"], text["interval_units"]
    comparable = "comparable between tokenizers"
    if not row["comparable"]:
        lost = f"{check['changed']:,} of {check['documents']:,} documents"
        comparable = f"NOT comparable: the tokenizer loses text ({lost})"
    over_units = (
        f"{name.replace('_', ' ')} {format_figure(spread[name]['mean'])} ± {format_figure(spread[name]['sd'])}"
        for name in ("loss", "bits_per_byte", "perplexity")
    )
    lines: list[tuple[str, str, list[str | None]]] = [
        ("loss", format_figure(row["loss"]), ["nats per token", intervals.get("loss")]),
        ("perplexity", format_figure(row["perplexity"]), ["per token", intervals.get("perplexity")]),
        ("bits per byte", format_figure(row["bits_per_byte"]), [comparable, intervals.get("bits_per_byte")]),
        ("bits per character", format_figure(row["bits_per_character"]), [intervals.get("bits_per_character")]),
        ("perplexity per word", format_figure(row["perplexity_per_word"]), [f"word: {text['word_unit']}"]),
        ("tokens", f"{row['tokens']:,}", [f"{row['vocabulary']:,} in the vocabulary"]),
        ("bytes", f"{text['bytes']:,}", [f"{text['characters']:,} characters, {text['words']:,} words"]),
        ("documents", f"{text['documents']:,}", [f"intervals of {count} blocks" if unit == "blocks" else None]),
        (f"over {unit}", "", [", ".join(over_units)]),
        ("context", _format_context(row), ["tokens of the same document" if row["documents_apart"] else "tokens"]),
        ("precision", text["precision"], []),
    ]
    if text["documents"] == 1 and unit == "documents":  # one document has no spread
        lines = [line for line in lines if line[0] != "over documents"]
    return "\n".join(
        f"{name:<21}{value:<13} {'; '.join(note for note in notes if note)}".rstrip() for name, value, notes in lines
    )


def compare(rows: Sequence[Row], text: Row) -> str:
    """Return a table with one line per checkpoint, the best first, and the size of the text."""
    head = ["bits/byte", "95 % interval", "more than the best", "loss", "perplexity", "tokens", "context", "checkpoint"]
    table = [head, *map(_format_row, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
    counts = f"{text['documents']:,} documents, {text['bytes']:,} bytes, {text['characters']:,} characters"
    blocks = f"; intervals of {text['interval_units']} blocks" if text["interval_unit"] == "blocks" else ""
    return "\n".join([*lines, "", f"{counts}{blocks}; precision {text['precision']}"])


def _format_row(row: Row) -> list[str]:
    interval, difference = row["interval_95"].get("bits_per_byte"), row.get("difference", {})
    if not row["comparable"]:
        more = "not comparable: loses text"
    elif difference["to"] == row["checkpoint"]:
        more = "best"
    else:
        more = f"{difference['bits_per_byte']:+.4f}"
        if difference["interval_95"]:
            more += " ({:+.4f} to {:+.4f})".format(*difference["interval_95"])
    return [
        format_figure(row["bits_per_byte"]) + ("" if row["comparable"] else " *"),
        " to ".join(map(format_figure, interval)) if interval else "none",
        more,
        format_figure(row["loss"]),
        format_figure(row["perplexity"]),
        f"{row['tokens']:,}",
        _format_context(row),
        row["checkpoint"],
    ]


def render_page(checkpoints: Iterable[tuple[str, str, list[Passage]]]) -> str:
    """Return the page: for each checkpoint its name, its figures and its passages."""
    sections = [
        (name, figures, [pages.passage(**asdict(passage)) for passage in passages])
        for name, figures, passages in checkpoints
    ]
    return pages.render("heatmap.html", title="Nats per token", checkpoints=sections)


def _format_context(row: Row) -> str:
    low, high = row["context"]
    return f"{low:,}-{high:,}"


def format_figure(value: float) -> str:
    """Return a figure as text."""
    if math.isnan(value):
        return "none"
    return f"{value:,.4f}" if abs(value) < 1e9 else f"{value:.3e}"


def replace_infinite(value: Any) -> Any:
    """Return plain data with None for numbers that are not finite: JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: replace_infinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_infinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
