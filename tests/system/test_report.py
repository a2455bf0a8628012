"""The report of a trained run, with the results of test.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import PageText, Run

from gpt2kit.cli import test
from gpt2kit.evaluation.options import EvaluationOptions
from gpt2kit.runs import folder as run_folder
from gpt2kit.runs import report

pytest.importorskip("matplotlib", reason="optional: pip install matplotlib")


@pytest.mark.usefixtures("own_runs")
def test_a_report_shows_the_whole_run_and_loads_nothing_from_elsewhere(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("test.json"))
    test.test([str(folder)], options=EvaluationOptions(max_tokens=50))
    assert not (folder / "test.json").exists(), "a test of a part of the text is not the run's result"
    test.test([str(folder)])
    prompt = "<script>alert(1)</script>"
    (folder / "samples.md").write_text(
        f"# Samples\n\n## step 40, epoch 1\n\nPrompt: `{prompt}`\n\n    {prompt} and on\n"
    )
    html = report.render_report([run_folder.read_run(folder)], "steps")
    page = PageText(html)
    assert "script" not in page.tags and not page.links and "default-src 'none'" in html
    for word in (
        *("validation, bits per byte", "parameters", "Loss", "Samples", "and on", "Test", "95 % interval"),
        *("Token by token", "300", "Settings and machine", "Muon", "as requested", "n_layer: 2", "gpt2kit train"),
        *("torch", "--data.block_size=16"),
    ):
        assert word in page.text or word in html, word
    fingerprint = run_folder.read_starts(folder)[0]["text"]["splits"]["train"]["fingerprint"]
    assert fingerprint in page.text and page.tags.count("svg") == 6
    assert "<b>&lt;script&gt;alert(1)&lt;/script&gt;</b> and on" in html
