"""A run of an earlier version (commit 547bc70) has the same scores, text and exports, and resumes bit-identically.

`tests/data/run_547bc70/expected.json` contains the output of that commit and the SHA-256 of its weights.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, Outcome, tensors
from safetensors.torch import load_file

from gpt2kit.checkpoint import checkpoint
from gpt2kit.cli import export, generate, parser, test, train

OLD = ROOT / "tests" / "data" / "run_547bc70"
EXPECTED: dict[str, Any] = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
# Other vector units or versions of torch add in a different order, so sums are rounded differently.
SAME_MACHINE = (
    EXPECTED["cpu"] == torch.backends.cpu.get_cpu_capability() and EXPECTED["torch"] == torch.__version__.split("+")[0]
)


@pytest.fixture
def old(inside: Path) -> Path:
    """Work in a copy of the run; return its checkpoint of step 16."""
    shutil.copytree(OLD, inside, dirs_exist_ok=True)
    return next((inside / "lightning_logs/version_0/checkpoints").glob("*step=16*.ckpt"))


def digest(raw: dict[str, Any]) -> str:
    """Return the SHA-256 of weights and optimizer state."""
    state = {name: raw[name] for name in ("state_dict", "optimizer_states")}
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors(state), key=lambda pair: pair[0]):
        sha256.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha256.hexdigest()


def test_an_old_run_resumes_bit_identically(old: Path, call: Callable[..., Outcome]) -> None:
    config = "lightning_logs/version_0/config.yaml"  # `last` compares its settings with those of the run
    code, _, err = call(train.main, "--ckpt_path", "last", "--config", config)
    assert code == 0, err
    assert err.count("uses old names") == 1
    assert f"note: {config} uses old names: " in err and "model.lora (now model.lora_r)" in err
    run, expected = old.parent.parent, EXPECTED["resumed"]
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("train_loss", "val_loss"):
        resumed = {row["step"]: float(row[name]) for row in rows if row[name] and int(row["step"]) > 16}
        assert resumed == pytest.approx(expected[name], rel=0 if SAME_MACHINE else 1e-4, abs=0)
    raw = checkpoint.read(next(old.parent.glob("*step=24*.ckpt")))
    if SAME_MACHINE:
        assert digest(raw) == expected["digest"]
    norms = {name: float(tensor.norm()) for name, tensor in raw["state_dict"].items()}
    assert norms == pytest.approx(expected["norm"], rel=1e-4)


def test_an_old_checkpoint_has_the_same_scores(old: Path, call: Callable[..., Outcome]) -> None:
    code, _, err = call(
        partial(parser.run, test.test), "--ckpt_path", old, "--files", "test.txt", "--json_output", "test.json"
    )
    assert code == 0, err
    scores = json.loads(Path("test.json").read_text(encoding="utf-8"))["results"][0]
    assert {name: scores[name] for name in EXPECTED["test"]} == pytest.approx(EXPECTED["test"], rel=1e-6)


def test_an_old_checkpoint_generates_the_same_text(old: Path, call: Callable[..., Outcome]) -> None:
    options = ["--prompt", "the quick", "--prompt", "number 7", "--seed", 5, "--num_samples", 2, "--max_new_tokens", 30]
    code, out, err = call(
        partial(parser.run, generate.generate), "--ckpt_path", old, *options, "--precision", "32", "--json"
    )
    assert code == 0, err
    assert [json.loads(line)["text"] for line in out.splitlines()] == EXPECTED["generate"]


def test_an_old_checkpoint_exports_the_same_weights(
    old: Path, call: Callable[..., Outcome], reload_in_process: None
) -> None:
    code, _, err = call(partial(parser.run, export.export), "--ckpt_path", old, "--output_dir", "hf")
    assert code == 0, err
    state = load_file("hf/model.safetensors")
    assert {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in state.items()} == EXPECTED["export"]
