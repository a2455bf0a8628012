"""The benchmark for GPUs works the first time that it is run on one: here in its small form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


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
    for name in ("small", "attention", "head", "muon", "generate"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["ours_eager", "bare"]
