"""The report of runs as one page: no script, nothing fetched, light or dark as the reader's system is."""

from __future__ import annotations

import io
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt2kit.runs import curves, folder, pages
from gpt2kit.runs.curves import INK, Panel, XAxis
from gpt2kit.runs.folder import Run, Series

_TESTED = (
    ("bits_per_byte", "bits per byte"),
    ("loss", "loss, nats per token"),
    ("perplexity", "perplexity per token"),
    ("bits_per_character", "bits per character"),
    ("perplexity_per_word", "perplexity per word"),
)


def page(runs: Sequence[Run], x: XAxis) -> str:
    """The whole page."""
    colours = itertools.cycle(curves.COLOURS)
    return pages.render(
        "report.html",
        title=", ".join(run.name for run in runs),
        runs=[_facts(run) for run in runs],
        legend=list(zip(colours, curves.labels(runs), strict=False)) if len(runs) > 1 else [],
        drawings=_drawings(runs, x),
    )


def _facts(run: Run) -> dict[str, Any]:
    """What the template shows of a run."""
    return {
        "name": run.name,
        "state": _state(run),
        "cards": list(_cards(run)),
        "samples": _samples(folder.read_text(run.folder / folder.SAMPLES)),
        "test": _test(folder.read_json(run.folder / folder.TEST)),
        "text": _text(_of(run, "text")),
        "settings": _settings(run),
        "config": folder.read_text(run.folder / folder.CONFIG),
        "again": _again(run),
    }


def _state(run: Run) -> str:
    status = folder.status(run.folder)
    began = str((run.starts[0].get("start") or {}).get("time", "")) if run.starts else ""
    resumes = len(run.starts) - 1
    told = [
        f"{status['state']} at step {status.get('step', '?')}" if "state" in status else "",
        f"begun {began[:16].replace('T', ' ')}" if began else "",
        f"resumed {resumes} times" if resumes > 1 else "resumed once" if resumes == 1 else "",
    ]
    return "; ".join(part for part in told if part)


def _cards(run: Run) -> Iterator[tuple[str, str]]:
    """The run in a few figures, each with its name."""

    def last(name: str) -> float | None:
        found = folder.finite(run.series.get(name, Series()))
        return found.values[-1] if found.values else None

    def middle(name: str) -> float | None:
        found = sorted(folder.finite(run.series.get(name, Series())).values)
        return found[len(found) // 2] if found else None

    validated = folder.finite(run.series.get("val_bpb", Series()))
    bits = [
        value
        for step, value in zip(validated.steps, validated.values, strict=True)
        if step  # before the first step the weights are those of another run
    ]
    model = _of(run, "model")
    figures = [
        ("best validation, bits per byte", min(bits, default=None), "{:.4f}"),
        ("last validation loss", last("val_loss"), "{:.4f}"),
        ("parameters", model.get("parameters"), "{:,}"),
        ("tokens seen", last("tokens_seen"), "{:,.0f}"),
        ("epochs", last("epoch"), "{:.2f}"),
        ("hours", last("hours"), "{:.2f}"),
        ("tokens per second, median", middle("tokens_per_s"), "{:,.0f}"),
        ("MFU, median", middle("mfu"), "{:.0%}"),
        ("memory, GB", last("memory_gb"), "{:.2f}"),
    ]
    for name, value, form in figures:
        if isinstance(value, int | float):
            yield form.format(value), name


def _drawings(runs: Sequence[Run], x: XAxis) -> list[str]:
    known = [*curves.panels(runs)]
    if curves.BITS not in known and any("val_bpb" in run.series for run in runs):
        known.insert(1, curves.BITS)
    if any("memory_gb" in run.series for run in runs):
        known.append(curves.MEMORY)
    return [_svg(runs, panel, x) for panel in known]


def _svg(runs: Sequence[Run], panel: Panel, x: XAxis) -> str:
    """A panel as a drawing that takes the page's colour of words."""
    curves.prepare()
    import matplotlib
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.6, 3.7), layout="constrained", facecolor="none")
    curves.draw_panel(drawn.subplots(), runs, panel, x)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": panel.title}):
        curves.save(drawn, text, "svg")
    found = text.getvalue()
    found = found[found.index("<svg") :].replace(INK.lower(), "currentColor").replace(INK, "currentColor")
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    return found.replace("<svg", f'<svg role="img" aria-label="{panel.title}, {panel.unit}"', 1)


def _samples(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The sections of samples.md, the newest first: a title, and texts as the prompt and what follows it."""
    heads = [*folder.SECTION.finditer(text)]
    ends = [*(head.start() for head in heads), len(text)][1:]
    sections = []
    for head, end in reversed([*zip(heads, ends, strict=True)]):
        title, _, rest = text[head.start() : end].partition("\n")
        prompt, texts = "", []
        for block in re.split(r"\n(?=[^ \n])", rest):
            first, _, body = block.strip("\n").partition("\n")
            if found := re.fullmatch(r"Prompt: (`+) ?(.*?) ?\1", first):
                prompt = found[2].replace("↵", "\n")
            elif first.startswith("No prompt"):
                prompt = ""
            lines = [line[4:] for line in body.strip("\n").split("\n") if line.startswith("    ") or not line.strip()]
            if any(lines):
                whole = "\n".join(lines)
                marked = prompt if whole.startswith(prompt) else ""
                texts.append((marked, whole[len(marked) :]))
        sections.append((title.removeprefix("## "), texts))
    return sections


def _test(found: Any) -> dict[str, Any] | None:
    """What test.py has left in the folder."""
    rows = found.get("results") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return None
    row, text = rows[0], found.get("text") or {}
    size = f"{_number(text.get('documents'), '{:,}')} documents, {_number(text.get('bytes'), '{:,}')} bytes"
    files = ", ".join(map(str, text.get("files") or []))
    intervals = row.get("interval_95") or {}
    cells = [["figure", "", "95 % interval"]]
    for name, words in _TESTED:
        span = intervals.get(name)
        between = " to ".join(_number(end, "{:,.4f}") for end in span) if isinstance(span, list) else ""
        cells.append([words, _number(row.get(name), "{:,.4f}"), between])
    passages = found.get("passages")
    return {
        "about": f"{files}: {size}; checkpoint {row.get('file', '')}",
        "cells": cells,
        "notes": found.get("notes") or [],
        "passages": [_passage(one) for one in passages] if isinstance(passages, list) else [],
    }


def _passage(one: Mapping[str, Any]) -> dict[str, Any]:
    boxes = [(str(text), [float(nat) for nat in nats]) for text, nats in one["boxes"]]
    return pages.passage(one["number"], one["why"], one["bits_per_byte"], boxes, one["more"])


def _text(text: Mapping[str, Any]) -> dict[str, Any] | None:
    splits = text.get("splits")
    if not isinstance(splits, dict):
        return None
    cells = [["", "documents", "bytes", "tokens", "bytes per token", "repeated", "files"]]
    for split, of in splits.items():
        ratio = of["bytes"] / of["tokens"] if of.get("tokens") else math.nan
        counts = [f"{of[name]:,}" for name in ("documents", "bytes", "tokens")]
        files = of.get("files") or []
        named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        cells.append([split, *counts, f"{ratio:.2f}", f"{of.get('duplicates', 0):,}", named])
    return {"cells": cells, "notes": text.get("notes") or []}


def _settings(run: Run) -> list[list[str]]:
    start = _of(run, "start")
    shape, model, planned = _of(run, "model").get("shape") or {}, _of(run, "model"), _of(run, "run")
    cells: list[list[str]] = []
    if shape:
        cells.append(
            [
                "model",
                f"{shape['n_layer']} layers, {shape['n_head']} heads, {shape['n_embd']} wide, context "
                f"{shape['n_positions']}, vocabulary {shape['vocab_size']:,}; {model['parameters']:,} parameters",
            ]
        )
    if planned:
        rates = " and ".join(dict.fromkeys(f"{rate:g}" for rate in planned["learning_rates"]))
        cells.append(["optimizer", f"{planned['optimizer']}, learning rate {rates}, {planned['schedule_name']}"])
        count = f"{planned['steps']:,}" if planned["steps"] else "as many as fit into the time,"
        cells.append(["steps", f"{count} of {planned['global_batch']} x {planned['block_size']} tokens"])
    for name, choice in (start.get("chosen") or {}).items():
        cells.append([name, f"{choice[0]} ({choice[1]})"])
    if start:
        device = start["device"]
        cells.append(["machine", f"{device['count']} x {device['kind']}: {device['name']}; {start['system']}"])
    return cells


def _again(run: Run) -> dict[str, Any] | None:
    """How to do it again: commands, versions, what identifies the text."""
    if not run.starts:
        return None
    last = _of(run, "start")
    text = _of(run, "text")
    commands = [one.get("start", {}).get("command") for one in run.starts]
    lines = [f"python {shlex.join(map(str, words))}" for words in commands if words]
    versions = last.get("versions") or {}
    cells = [["versions", ", ".join(f"{name} {version}" for name, version in versions.items())]]
    for split, of in (text.get("splits") or {}).items():
        cells.append([f"{split} text", str(of.get("fingerprint"))])
    cells.append(["tokenizer", str(text.get("tokenizer"))])
    return {"commands": "\n".join(lines), "cells": cells}


def _of(run: Run, part: str) -> dict[str, Any]:
    """A part of the newest start's facts."""
    found = run.starts[-1].get(part) if run.starts else None
    return found if isinstance(found, dict) else {}


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""
