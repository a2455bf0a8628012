"""The report of a run, and how damaged files in its folder are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Outcome, PageText, write_metrics

from gpt2kit.cli import parser, plot
from gpt2kit.runs import report
from gpt2kit.runs.folder import read_run

pytest.importorskip("matplotlib", reason="optional: pip install matplotlib")


def test_a_run_with_only_a_log_has_a_report(tmp_path: Path) -> None:
    assert "Curves" in report.render_report([read_run(write_metrics(tmp_path / "old", 30))], "steps")


def test_runs_with_different_tokenizers_are_compared_in_bits_per_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_metrics(tmp_path / name, 50)
        (tmp_path / name / "start.json").write_text(json.dumps([{"text": {"tokenizer": name}}]))
    runs = [read_run(tmp_path / name) for name in ("a", "b")]
    page = report.render_report(runs, "tokens")
    assert page.count('aria-label="Validation, bits per byte"') == 1 and "nats per token" not in page
    assert "2 runs" in PageText(page).text
    assert report.render_report(runs[:1], "steps").count('aria-label="Loss, nats per token"') == 1


def test_prompts_are_marked_in_samples(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "run", 10)
    (folder / "samples.md").write_text(
        "# Samples\n\n## step 5\n\nNo prompt\n\n    once\n\n"
        "## step 10\n\nPrompt: `` a`b ``\n\n    a`b one\n\n—\n\n    a`b two\n\n—\n\nPrompt: `x↵y`\n\n    x\n    y z\n"
    )
    page = report.render_report([read_run(folder)], "steps")
    for sample in ("<b>a`b</b> one", "<b>a`b</b> two", "<b>x\ny</b> z", ">once<"):
        assert sample in page
    assert page.index("step 10") < page.index("step 5")


def test_each_test_text_has_a_heading(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path / "run", 10)
    figures = {"results": [{"bits_per_byte": 1.5, "perplexity_per_word": 3.0}]}
    for content, headings in ((figures, 1), ({"texts": {"poems": figures, "songs": figures}}, 0)):
        (folder / "test.json").write_text(json.dumps(content))
        page = report.render_report([read_run(folder)], "steps")
        assert page.count("<h2>Test</h2>") == headings and page.count("1.5000") == 2 - headings
        assert all((f"<h2>Test: {name}</h2>" in page) == (not headings) for name in ("poems", "songs"))


def test_hidden_characters_are_shown(tmp_path: Path) -> None:
    folder, mark = write_metrics(tmp_path / "run", 10), "a\u202eb\x07c"
    (folder / "config.yaml").write_text(f"data:\n  tokenizer: {mark} config\n")
    (folder / "samples.md").write_text(f"# Samples\n\n## step 10\n\nPrompt: `{mark} prompt`\n\n    {mark} sample\n")
    result = {"results": [{"bits_per_byte": 1.0}], "notes": [f"{mark} test"]}
    (folder / "test.json").write_text(json.dumps(result))
    (folder / "start.json").write_text(json.dumps([{"text": {"splits": {}, "notes": [f"{mark} text"]}}]))
    page = report.render_report([read_run(folder)], "steps")
    assert "\u202e" not in page and "\x07" not in page
    text = PageText(page).text
    for word in ("config", "sample", "test", "text"):
        assert f"a<U+202E>b<U+0007>c {word}" in text
    assert "data:\n  tokenizer:" in text, "line ends stay"


PASSAGE: dict[str, Any] = {"number": 0, "why": "first", "bits_per_byte": 1.0, "boxes": [["the", [1.0]]], "more": 0}
DAMAGE: list[tuple[str, object]] = [
    ("metrics.csv", b"\xff\xfe\x00"),
    ("metrics.csv", b"a,b\n1,2\n"),
    ("start.json", b'[{"text": '),
    ("start.json", b"[" * 100_000),
    ("start.json", {}),
    ("start.json", [3]),
    ("start.json", [{"text": "a"}]),
    ("start.json", [{"text": {"splits": {"train": 3}}}]),
    ("start.json", [{"model": {"shape": {"n_layer": 2}}}]),
    ("start.json", [{"start": {"chosen": 3}}]),
    ("status.json", []),
    ("test.json", {"results": 3}),
    ("test.json", {"results": [1.0]}),
    ("test.json", {"results": [{}], "notes": 5}),
    *(
        ("test.json", {"results": [{}], "passages": [{**PASSAGE, name: value}]})
        for name, value in [
            ("boxes", [["the", [None]]]),
            ("boxes", [[3, [1.0]]]),
            ("number", "0"),
            ("why", 1),
            ("x", 1),
        ]
    ),
]


@pytest.mark.parametrize(("name", "content"), DAMAGE)
def test_a_damaged_file_is_reported_in_one_line(
    name: str, content: object, tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    folder, target = write_metrics(tmp_path / "run", 10), tmp_path / "report.html"
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    code, _, err = call(lambda args: parser.run(plot.plot, args), folder, "--report", target)
    assert code == 3 and err.startswith(f"error: {folder / name}: ") and err.count("\n") == 1
    assert not target.exists()


def test_a_damaged_start_is_reported_where_only_curves_are_drawn(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    folder = write_metrics(tmp_path / "run", 10)
    (folder / "start.json").write_text('["x"]')
    code, _, err = call(lambda args: parser.run(plot.plot, args), folder)
    assert code == 3 and "start.json: damaged" in err and err.count("\n") == 1
