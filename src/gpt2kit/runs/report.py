"""The report of runs as one page: no script, nothing fetched, light or dark as the reader's system is."""

from __future__ import annotations

import io
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from gpt2kit.runs import curves, folder, token_html
from gpt2kit.runs.curves import INK, Panel, XAxis
from gpt2kit.runs.folder import Run, Series

_PAGE = """<!doctype html>
<html lang="und"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --back: #fff; --ink: #22272e; --soft: #57606a; --card: #f4f6f8; --line: #d0d7de;
  --hue: 220, 60, 20; }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #15181c; --ink: #e3e7ec; --soft: #9aa4b0; --card: #1f242a;
  --line: #3a424c; --hue: 205, 75, 35; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--back); max-width: 66rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.7rem; margin: 0; }} h2 {{ font-size: 1.25rem; margin: 2.5rem 0 .6rem; }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 .3rem; }}
.soft, figcaption, dt {{ color: var(--soft); }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }}
.cards div {{ background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }}
.cards b {{ display: block; font-size: 1.25rem; }} .cards span {{ color: var(--soft); font-size: .85rem; }}
.curves {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); gap: 1rem; }}
.curves svg {{ width: 100%; height: auto; color: var(--ink); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }}
th {{ color: var(--soft); font-weight: 500; }}
td.number, th.number {{ text-align: right; }}
pre {{ background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem;
  margin: .5rem 0; }}
pre.text {{ white-space: pre-wrap; font: inherit; unicode-bidi: plaintext; }}
pre.wrap {{ white-space: pre-wrap; }}
pre.text b {{ border-bottom: 2px solid #0072b2; }}
summary {{ cursor: pointer; padding: .25rem 0; }}
section {{ border-top: 1px solid var(--line); padding-top: .5rem; margin-top: 1.2rem; }}
section > p {{ margin: .2rem 0; font-size: .85rem; color: var(--soft); }}
.legend span {{ margin-right: 1.2rem; }} .legend i {{ display: inline-block; width: 1.6rem; height: .35rem;
  border-radius: 1rem; margin-right: .4rem; vertical-align: middle; }}
{style}</style></head><body>
{body}
</body></html>
"""
_TESTED = (
    ("bits_per_byte", "bits per byte"),
    ("loss", "loss, nats per token"),
    ("perplexity", "perplexity per token"),
    ("bits_per_character", "bits per character"),
    ("perplexity_per_word", "perplexity per word"),
)


def page(runs: Sequence[Run], x: XAxis) -> str:
    """The whole page."""
    title = ", ".join(run.name for run in runs)
    body = "\n".join(_body(runs, x))
    return _PAGE.format(title=escape(title), style=token_html.STYLE, body=body)


def _body(runs: Sequence[Run], x: XAxis) -> Iterator[str]:
    if len(runs) == 1:
        yield from _head(runs[0], "h1")
        yield "<h2>Curves</h2>"
        yield from _curves(runs, x)
        yield from _rest(runs[0])
        return
    yield f"<h1>{len(runs)} runs</h1>"
    names = curves.labels(runs)
    marks = (
        f'<span><i style="background:{curves.COLOURS[n % len(curves.COLOURS)]}"></i>{escape(name)}</span>'
        for n, name in enumerate(names)
    )
    yield f'<p class="legend">{"".join(marks)}</p>'
    yield from _curves(runs, x)
    for run in runs:
        yield from _head(run, "h2")
        yield f"<details><summary>Text, settings, samples, tests of {escape(run.name)}</summary>"
        yield from _rest(run)
        yield "</details>"


def _head(run: Run, level: str) -> Iterator[str]:
    status = folder.status(run.folder)
    began = str((run.starts[0].get("start") or {}).get("time", "")) if run.starts else ""
    resumes = len(run.starts) - 1
    told = [
        f"{status['state']} at step {status.get('step', '?')}" if "state" in status else "",
        f"begun {began[:16].replace('T', ' ')}" if began else "",
        f"resumed {resumes} times" if resumes > 1 else "resumed once" if resumes == 1 else "",
    ]
    yield f"<{level}>{escape(run.name)}</{level}>"
    yield f'<p class="soft">{escape("; ".join(part for part in told if part))}</p>'
    yield f'<div class="cards">{"".join(_cards(run))}</div>'


def _cards(run: Run) -> Iterator[str]:
    """The run in a few figures."""

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
            yield f"<div><b>{form.format(value)}</b><span>{name}</span></div>"


def _curves(runs: Sequence[Run], x: XAxis) -> Iterator[str]:
    known = [*curves.panels(runs)]
    if curves.BITS not in known and any("val_bpb" in run.series for run in runs):
        known.insert(1, curves.BITS)
    if any("memory_gb" in run.series for run in runs):
        known.append(curves.MEMORY)
    yield f'<div class="curves">{"".join(_svg(runs, panel, x) for panel in known)}</div>'


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


def _rest(run: Run) -> Iterator[str]:
    yield from _samples(folder.read_text(run.folder / folder.SAMPLES))
    yield from _tests(folder.read_json(run.folder / folder.TEST))
    yield from _text(_of(run, "text"))
    yield from _settings(run)
    yield from _again(run)


def _samples(text: str) -> Iterator[str]:
    """The sections of samples.md, the newest open."""
    heads = [*folder.SECTION.finditer(text)]
    if not heads:
        return
    yield '<h2>Samples</h2><p class="soft">The same prompts and seed at each validation; the prompt is underlined.</p>'
    ends = [*(head.start() for head in heads[1:]), len(text)]
    for number, (head, end) in enumerate(reversed([*zip(heads, ends, strict=True)])):
        title, _, rest = text[head.start() : end].partition("\n")
        yield f"<details{' open' * (number == 0)}><summary>{escape(title.removeprefix('## '))}</summary>"
        prompt = ""
        for block in re.split(r"\n(?=[^ \n])", rest):
            first, _, body = block.strip("\n").partition("\n")
            if found := re.fullmatch(r"Prompt: (`+) ?(.*?) ?\1", first):
                prompt = found[2].replace("↵", "\n")
            elif first.startswith("No prompt"):
                prompt = ""
            lines = [line[4:] for line in body.strip("\n").split("\n") if line.startswith("    ") or not line.strip()]
            if lines and any(lines):
                whole = "\n".join(lines)
                told = (
                    f"<b>{escape(prompt)}</b>{escape(whole[len(prompt) :])}"
                    if prompt and whole.startswith(prompt)
                    else escape(whole)
                )
                yield f'<pre class="text" dir="auto">{told}</pre>'
        yield "</details>"


def _tests(found: Any) -> Iterator[str]:
    """What test.py has left in the folder."""
    if not isinstance(found, dict):
        return
    rows = found.get("results")
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return
    row, text = rows[0], found.get("text") or {}
    size = f"{_number(text.get('documents'), '{:,}')} documents, {_number(text.get('bytes'), '{:,}')} bytes"
    files = ", ".join(map(str, text.get("files") or []))
    yield f'<h2>Test</h2><p class="soft">{escape(files)}: {size}; checkpoint {escape(str(row.get("file", "")))}</p>'
    intervals = row.get("interval_95") or {}
    cells = [["figure", "", "95 % interval"]]
    for name, words in _TESTED:
        span = intervals.get(name)
        between = " to ".join(_number(end, "{:,.4f}") for end in span) if isinstance(span, list) else ""
        cells.append([words, _number(row.get(name), "{:,.4f}"), between])
    yield _table(cells, {1})
    for note in found.get("notes") or []:
        yield f'<p class="soft">{escape(str(note))}</p>'
    yield from _passages(found.get("passages"))


def _passages(found: Any) -> Iterator[str]:
    if not isinstance(found, list) or not found:
        return
    yield "<h2>Token by token</h2><p>The deeper the colour, the less the model expected it; hold the pointer over a"
    yield f' token for its nats (0.69 are one bit).</p><p class="key">{token_html.key()}</p>'
    for number, one in enumerate(found):
        if number == 3:
            yield f"<details><summary>{len(found) - 3} more passages</summary>"
        boxes = [(str(text), [float(nat) for nat in nats]) for text, nats in one["boxes"]]
        yield token_html.section(one["number"], one["why"], one["bits_per_byte"], boxes, one["more"])
    if len(found) > 3:
        yield "</details>"


def _text(text: Mapping[str, Any]) -> Iterator[str]:
    splits = text.get("splits")
    if not isinstance(splits, dict):
        return
    yield "<h2>Text</h2>"
    cells = [["", "documents", "bytes", "tokens", "bytes per token", "repeated", "files"]]
    for split, of in splits.items():
        ratio = of["bytes"] / of["tokens"] if of.get("tokens") else math.nan
        counts = [f"{of[name]:,}" for name in ("documents", "bytes", "tokens")]
        files = of.get("files") or []
        named = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        cells.append([split, *counts, f"{ratio:.2f}", f"{of.get('duplicates', 0):,}", named])
    yield _table(cells, {1, 2, 3, 4, 5})
    for note in text.get("notes") or []:
        yield f'<p class="soft">{escape(str(note))}</p>'


def _settings(run: Run) -> Iterator[str]:
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
    if cells:
        yield "<h2>Settings and machine</h2>" + _table(cells, set())
    if config := folder.read_text(run.folder / folder.CONFIG):
        yield f"<details><summary>{folder.CONFIG}, whole</summary><pre>{escape(config)}</pre></details>"


def _again(run: Run) -> Iterator[str]:
    """How to do it again: commands, versions, what identifies the text."""
    if not run.starts:
        return
    last = _of(run, "start")
    text = _of(run, "text")
    commands = [one.get("start", {}).get("command") for one in run.starts]
    lines = [f"python {shlex.join(map(str, words))}" for words in commands if words]
    versions = last.get("versions") or {}
    cells = [["versions", ", ".join(f"{name} {version}" for name, version in versions.items())]]
    for split, of in (text.get("splits") or {}).items():
        cells.append([f"{split} text", str(of.get("fingerprint"))])
    cells.append(["tokenizer", str(text.get("tokenizer"))])
    yield f'<h2>Do it again</h2><pre class="wrap">{escape(chr(10).join(lines))}</pre>'
    yield '<p class="soft">With the same text, tokenizer and versions. Long numbers are SHA-256 of what was read.</p>'
    yield _table(cells, set())


def _of(run: Run, part: str) -> dict[str, Any]:
    """A part of the newest start's facts."""
    found = run.starts[-1].get(part) if run.starts else None
    return found if isinstance(found, dict) else {}


def _table(cells: list[list[str]], numbers: set[int]) -> str:
    rows = []
    for number, row in enumerate(cells):
        kind = "th" if number == 0 and numbers else "td"
        marks = (' class="number"' if place in numbers else "" for place in range(len(row)))
        rows.append("".join(f"<{kind}{mark}>{escape(cell)}</{kind}>" for mark, cell in zip(marks, row, strict=True)))
    return f'<div class="wide"><table>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>'


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""
