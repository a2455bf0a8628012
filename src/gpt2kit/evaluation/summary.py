"""The reports of a test on several texts, as one: a row for each text and one for all of them."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict

from gpt2kit import files
from gpt2kit.evaluation.report import Report, Row, format_figure, render_page, replace_infinite
from gpt2kit.metrics import FIGURES, Score
from gpt2kit.runs import folder, lifecycle

# The reports by the names of their texts. The name of the only one is empty.
Reports = Mapping[str, Report]


def to_text(reports: Reports) -> str:
    """Return the figures as tables; for one checkpoint, as a table of the texts."""
    if "" in reports:
        return reports[""].to_text()
    if len(total_rows(reports)) > 1:
        parts = [f"{name}\n{report.to_text()}" for name, report in reports.items()]
        return "\n\n".join([*parts, _all_texts(reports)])
    head = ["bits/byte", "95 % interval", "loss", "perplexity", "tokens", "bytes", "documents", "text"]
    table = [head, *(_row(report.rows[0], report.text, name) for name, report in reports.items())]
    table.append(_row(total_rows(reports)[0], total_size(reports), "all texts"))
    parts = [_align(table)]
    parts += [f"{name}\n{text}" for name, report in reports.items() if (text := report.memorization_text())]
    return "\n\n".join(parts)


def to_json(reports: Reports) -> str:
    """Return all figures as JSON with full precision."""
    if "" in reports:
        return reports[""].to_json()
    texts = {name: report.content() for name, report in reports.items()}
    content = {"texts": texts, "all_texts": {"text": total_size(reports), "results": total_rows(reports)}}
    return json.dumps(replace_infinite(content), ensure_ascii=False, indent=1, default=str) + "\n"


def to_page(reports: Reports) -> str:
    """Return a page with the passages of each text and checkpoint."""
    return render_page(section for name, report in reports.items() for section in report.sections(name))


def write_to_runs(reports: Reports) -> None:
    """Write the figures of each checkpoint to its run's folder, unless only a part of a text was tested."""
    if any(report.text["partial"] for report in reports.values()):
        return
    for file in {result.candidate.info.path for report in reports.values() for result in report.results}:
        contents = {name: report.content_of(file) for name, report in reports.items()}
        content = contents.get("", {"texts": contents})
        run = lifecycle.run_of(file)
        if run is not None and (run / folder.METRICS).is_file():
            text = json.dumps(replace_infinite(content), ensure_ascii=False, indent=1, default=str) + "\n"
            with contextlib.suppress(OSError):  # another user's run
                files.write_text(run / folder.TEST, text)


def total_rows(reports: Reports) -> list[Row]:
    """Return the figures of each checkpoint on all texts together, the fewest bits per byte first."""
    scores: dict[str, list[Score]] = {}
    for report in reports.values():
        for result in report.results:
            scores.setdefault(result.candidate.name, []).append(result.score)
    rows = []
    for name, parts in scores.items():
        score = functools.reduce(Score.__add__, parts)
        rows.append({"checkpoint": name, **{figure: getattr(score, figure) for figure in FIGURES}, **asdict(score)})
    return sorted(rows, key=lambda row: float(row["bits_per_byte"]))


def total_size(reports: Reports) -> Row:
    """Return the sizes of all texts together."""
    counts = ("documents", "bytes", "characters", "words")
    return {count: sum(report.text[count] for report in reports.values()) for count in counts}


def _all_texts(reports: Reports) -> str:
    size = total_size(reports)
    rows = [
        [format_figure(row["bits_per_byte"]), format_figure(row["loss"]), row["checkpoint"]]
        for row in total_rows(reports)
    ]
    table = _align([["bits/byte", "loss", "checkpoint"], *rows])
    return f"all texts: {size['documents']:,} documents, {size['bytes']:,} bytes\n{table}"


def _row(row: Row, text: Row, name: str) -> list[str]:
    interval = row.get("interval_95", {}).get("bits_per_byte")
    figures = [format_figure(row[figure]) for figure in ("bits_per_byte", "loss", "perplexity")]
    return [
        figures[0],
        " to ".join(map(format_figure, interval)) if interval else "none",
        *figures[1:],
        *(f"{count:,}" for count in (row["tokens"], text["bytes"], text["documents"])),
        name,
    ]


def _align(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table)
