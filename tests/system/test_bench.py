"""The benchmarks run in a small form, and write the figures that their names promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


def test_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    environment = {**os.environ, "TINY": "1", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(ROOT / "bench/gpu.sh"), str(tmp_path)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "FAILED" not in process.stdout, process.stdout
    rows = {path.stem: json.loads(path.read_text())["rows"] for path in tmp_path.glob("*.json")}
    assert set(rows) == {"small", "attention", "muon", "generate", "overhead"}
    (step,) = rows["small"]
    assert step["way"] == "gpt2kit_eager" and float(step["ms per step"]) > 0
    assert [row["way"] for row in rows["generate"]] == ["gpt2kit", "no cache", "transformers"]
    assert [row["way"] for row in rows["overhead"]] == ["Lightning with its defaults", "trainer.py"]


def test_evaluation_benchmark_measures_the_speed_of_testing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import evaluate

    evaluate.measure("tiny", vocab_size=257, context=16, batch_size=2, batches=2, rounds=1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["test_tokens_per_s"] > 0
