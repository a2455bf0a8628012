"""The benchmarks run in a small form, and write the figures that their names promise."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, run_script


@pytest.mark.filterwarnings("default")  # as in a process of its own
def test_gpu_benchmark_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script starts a command that records its arguments, which this process then runs, without more imports."""
    recorded, python = tmp_path / "recorded", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(recorded))}\n')
    python.chmod(0o755)
    command = ["bash", str(ROOT / "bench/gpu.sh"), str(tmp_path)]
    subprocess.run(command, env={**os.environ, "TINY": "1", "PYTHON": str(python)}, capture_output=True, check=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    first, *benchmarks = (line.split() for line in recorded.read_text().splitlines())
    assert first == ["-"], "the versions of the libraries"
    try:
        for script, *arguments in benchmarks:
            run_script(ROOT / script, *arguments)
    finally:
        logging.disable(logging.NOTSET)
    rows = {path.stem: json.loads(path.read_text())["rows"] for path in tmp_path.glob("*.json")}
    assert set(rows) == {"small", "attention", "muon", "generate", "overhead", "checks"}
    (step,) = rows["small"]
    assert step["way"] == "gpt2kit_eager" and float(step["ms per step"]) > 0
    assert [(row["way"], row["equal ids"]) for row in rows["generate"]] == [
        ("gpt2kit", "all"),
        ("transformers", "all"),
        ("no_cache", "all"),
    ]
    assert [row["way"] for row in rows["overhead"]] == ["Lightning with its defaults", "trainer.py"]
    assert [(row["check"], row["result"]) for row in rows["checks"]] == [("waits", 0)]


def test_evaluation_benchmark_measures_the_speed_of_testing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import evaluate

    evaluate.measure("tiny", vocab_size=257, context=16, batch_size=2, batches=2, rounds=1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["test_tokens_per_s"] > 0


def test_near_duplicates_benchmark_finds_the_copies_that_it_plants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import near_duplicates

    source, text, output = tmp_path / "a.jsonl", tmp_path / "text.jsonl", tmp_path / "copies.npy"
    lines = [f"{number * 7919} is the number of line {number}, times 7919" for number in range(3000)]
    source.write_text("".join(json.dumps("\n".join(lines[n : n + 3])) + "\n" for n in range(0, 3000, 3)))
    planted = near_duplicates.make_text([str(source)], text, 500_000, 0.2, seed=1)
    near_duplicates.run_search("gpt2kit", text, 0.8, output)
    near_duplicates.report(text, planted, np.load(output), 0.8, 1000, seed=1)
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| 0% of the characters, one stretch |"))
    assert row.endswith("| 1.00 | 100.0% | 100.0% |")
