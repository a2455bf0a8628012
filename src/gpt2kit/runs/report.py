"""The report of one or several runs as one HTML page: facts, curves, samples, test results, settings."""

from __future__ import annotations

import io
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt2kit.data.stages import Stage, parse_stages, stage_lines
from gpt2kit.runs import curves, folder, pages
from gpt2kit.runs.curves import INK, Panel, XAxis
from gpt2kit.runs.folder import Run

# The figures of test.json, with their names in the table.
_TEST_FIGURES = {
    "bits_per_byte": "bits per byte",
    "loss": "loss, nats per token",
    "perplexity": "perplexity per token",
    "bits_per_character": "bits per character",
    "perplexity_per_word": "perplexity per word",
}


def render_report(runs: Sequence[Run], x: XAxis) -> str:
    """Return the HTML page."""
    panels = list(curves.choose_panels(runs))
    if curves.BITS not in panels and any("val_bpb" in run.series for run in runs):
        panels.insert(1, curves.BITS)
    if any("memory_gb" in run.series for run in runs):
        panels.append(curves.MEMORY)
    return pages.render(
        "report.html",
        title=", ".join(run.name for run in runs),
        runs=[_describe(run) for run in runs],
        legend=list(zip(itertools.cycle(curves.COLOURS), curves.run_labels(runs), strict=False)),
        drawings=[_draw_svg(runs, panel, x) for panel in panels],
    )


def _describe(run: Run) -> dict[str, Any]:
    """Return what the template shows of a run: strings, so that a damaged file is noticed here."""
    with folder.refuse_damaged(run.folder / folder.TEST):
        tests = [_test_results(name, content) for name, content in folder.read_tests(run.folder).items()]
    with folder.refuse_damaged(run.folder / folder.START):
        return {
            "name": run.name,
            "state": _state(run),
            "cards": list(_cards(run)),
            "samples": _samples(folder.read_text(run.folder / folder.SAMPLES)),
            "tests": [test for test in tests if test],
            "text": _text_table(run.facts("text")),
            "settings": list(_settings(run)),
            "config": folder.read_text(run.folder / folder.CONFIG),
            "reproduction": _reproduction(run),
        }


def _state(run: Run) -> str:
    parts = []
    status = folder.read_status(run.folder)
    if "state" in status:
        parts.append(f"{status['state']} at step {status.get('step', '?')}")
    if time := run.facts("start", 0).get("time"):
        parts.append(f"started {str(time)[:16].replace('T', ' ')}")
    step = status.get("step")
    lines = stage_lines(_stages(run), step if isinstance(step, int) else None)
    parts += [f"stage {number}, {line}" for number, line in enumerate(lines, 1)]
    resumes = len(run.starts) - 1
    if resumes > 0:
        parts.append("resumed once" if resumes == 1 else f"resumed {resumes} times")
    return "; ".join(parts)


def _stages(run: Run) -> list[Stage]:
    """Return the stages of a run."""
    with folder.refuse_damaged(run.folder / folder.START):
        return parse_stages(run.facts("run"))


def _cards(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the run's main figures, each with its name."""

    def last(metric: str) -> float | None:
        return next(reversed(run.metric(metric).values()), None)

    def median(metric: str) -> float | None:
        values = sorted(run.metric(metric).values())
        return values[len(values) // 2] if values else None

    # At the first step of a stage the weights are those that it started with.
    first_step = _stages(run)[-1].first_step
    bits = [value for step, value in run.metric("val_bpb").items() if step > first_step]
    for name, value, form in (
        ("best validation, bits per byte", min(bits, default=None), "{:.4f}"),
        ("last validation loss", last("val_loss"), "{:.4f}"),
        ("parameters", run.facts("model").get("parameters"), "{:,}"),
        ("tokens seen", last("tokens_seen"), "{:,.0f}"),
        ("epochs", last("epoch"), "{:.2f}"),
        ("hours", last("hours"), "{:.2f}"),
        ("tokens per second, median", median("tokens_per_s"), "{:,.0f}"),
        ("MFU, median", median("mfu"), "{:.0%}"),
        ("memory, GB", last("memory_gb"), "{:.2f}"),
    ):
        if isinstance(value, int | float):
            yield form.format(value), name


def _draw_svg(runs: Sequence[Run], panel: Panel, x: XAxis) -> str:
    """Return a panel as SVG in the page's text colour."""
    curves.prepare_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.7), layout="constrained", facecolor="none")
    curves.draw_panel(figure.subplots(), runs, panel, x)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": panel.title}):  # the same page for the same run
        curves.save(figure, file, "svg")
    svg = re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)
    svg = svg.replace(INK.lower(), "currentColor").replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{panel.title}, {panel.unit}"', 1)


def _samples(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the sections of samples.md, newest first: a title, and texts as the prompt and its continuation."""
    starts = [match.start() for match in folder.SECTION.finditer(text)]
    sections = []
    for start, end in itertools.pairwise([*starts, len(text)]):
        title, _, blocks = text[start:end].partition("\n")
        prompt, texts = "", []
        for block in re.split(r"\n(?=[^ \n])", blocks):  # a line without indentation, and an indented text
            first, _, body = block.strip("\n").partition("\n")
            if first.startswith(("Prompt: ", "No prompt")):
                prompt = _read_prompt(first)
            lines = [line[4:] for line in body.strip("\n").split("\n") if line.startswith("    ") or not line.strip()]
            sample = "\n".join(lines)
            if any(lines):
                beginning = prompt if sample.startswith(prompt) else ""
                texts.append((beginning, sample.removeprefix(beginning)))
        sections.append((title.removeprefix("## "), texts))
    return sections[::-1]


def _read_prompt(line: str) -> str:
    """Return the prompt in a line of samples.md, which is Markdown code between backticks."""
    code = line.partition("Prompt: ")[2]  # empty for "No prompt"
    marks = len(code) - len(code.lstrip("`"))
    return code[marks : len(code) - marks].removeprefix(" ").removesuffix(" ").replace("↵", "\n")


def _test_results(name: str, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the figures and passages of a test text, which test.py has written to the run's folder."""
    if not results.get("results"):
        return None
    row, text = results["results"][0], results.get("text") or {}
    intervals = row.get("interval_95") or {}
    files = ", ".join(map(str, text.get("files") or []))
    size = f"{_format(text.get('documents'), '{:,}')} documents, {_format(text.get('bytes'), '{:,}')} bytes"
    cells = [["figure", "", "95 % interval"]]
    for figure, label in _TEST_FIGURES.items():
        interval = " to ".join(_format(end, "{:,.4f}") for end in intervals.get(figure) or [])
        cells.append([label, _format(row.get(figure), "{:,.4f}"), interval])
    return {
        "name": name,
        "about": f"{files}: {size}; checkpoint {row.get('file', '')}",
        "cells": cells,
        "notes": [str(note) for note in results.get("notes") or []],
        "passages": [pages.passage(**passage) for passage in results.get("passages") or []],
    }


def _text_table(text: Mapping[str, Any]) -> dict[str, Any] | None:
    if text.get("splits") is None:
        return None
    cells = [["", "documents", "bytes", "tokens", "bytes per token", "repeated", "files"]]
    for name, split in text["splits"].items():
        counts = [f"{split[count]:,}" for count in ("documents", "bytes", "tokens")]
        ratio = split["bytes"] / split["tokens"] if split.get("tokens") else math.nan
        files = split.get("files") or []
        names = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        cells.append([name, *counts, f"{ratio:.2f}", f"{split.get('duplicates', 0):,}", names])
    return {"cells": cells, "notes": [str(note) for note in text.get("notes") or []]}


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    start, model, plan = run.facts("start"), run.facts("model"), run.facts("run")
    if shape := model.get("shape"):
        yield (
            "model",
            f"{shape['n_layer']} layers, {shape['n_head']} heads, width {shape['n_embd']}, context "
            f"{shape['n_positions']}, vocabulary {shape['vocab_size']:,}; {model['parameters']:,} parameters",
        )
    if plan:
        rates = " and ".join(dict.fromkeys(f"{rate:g}" for rate in plan["learning_rates"]))
        steps = f"{plan['steps']:,}" if plan["steps"] else "limited by time,"
        yield "optimizer", f"{plan['optimizer']}, learning rate {rates}, {plan['schedule_name']}"
        yield "steps", f"{steps} of {plan['global_batch']} x {plan['block_size']} tokens"
    for name, (value, reason) in (start.get("chosen") or {}).items():
        yield name, f"{value} ({reason})"
    if start:
        device = start["device"]
        yield "machine", f"{device['count']} x {device['kind']}: {device['name']}; {start['system']}"


def _reproduction(run: Run) -> dict[str, Any] | None:
    """Return the commands of all starts, the versions and the fingerprints of text and tokenizer."""
    if not run.starts:
        return None
    text, versions = run.facts("text"), run.facts("start").get("versions") or {}
    commands = [start.get("start", {}).get("command") for start in run.starts]
    return {
        "commands": "\n".join(_shell(list(map(str, command))) for command in commands if command),
        "cells": [
            ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
            *((f"{name} text", str(split.get("fingerprint"))) for name, split in (text.get("splits") or {}).items()),
            ("tokenizer", str(text.get("tokenizer"))),
        ],
    }


def _shell(command: list[str]) -> str:
    """Return a command as it is typed; a script is run with Python."""
    return shlex.join(["python", *command] if command[0].endswith(".py") else command)


def _format(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""
