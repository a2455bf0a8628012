"""Benchmarks run, and their figures are what their names say: here in a small form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import ROOT


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    environment = {**os.environ, "TINY": "1", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    told = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "FAILED" not in told.stdout, told.stdout
    for name in ("small", "attention", "head", "muon", "generate", "overhead"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["ours_eager", "bare"]


def test_ways_are_told_by_their_names_and_steps_and_not_run_again(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 200)
    words = f"--train_files {text} --valid_files {text} --shape 1 1 16 --block 16 --batch 2 --steps 3 --validations 1"
    ways = ["--way", "AdamW", "model.optimizer=gpt2kit.optim.AdamW", "--way", "longer", "trainer.max_steps=4"]
    command = [sys.executable, ROOT / "bench/sweep.py", *words.split(), "--seeds", "1", "--eager", *ways]
    for _ in range(2):
        subprocess.run([*command, "--output_dir", tmp_path / "sweep"], capture_output=True, check=True)
    rows = json.loads((tmp_path / "sweep/results.json").read_text())["rows"]
    assert [(row["way"], row["steps"], row["seeds"]) for row in rows] == [("AdamW", 3, 1), ("longer", 4, 1)]
    runs = list((tmp_path / "sweep").glob("*/lightning_logs/version_*"))
    assert len(runs) == 2 and len({(run / "metrics.csv").read_text() for run in runs}) == 2


def test_the_evaluation_benchmark_runs() -> None:
    sizes = ["--vocab_size", "257", "--context", "16", "--batch_size", "2", "--batches", "2", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "evaluate.py"), *sizes], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["test_tokens_per_s"] > 0
