"""Implements `trainer.py --verify_resume`: a killed and resumed run must end like an uninterrupted one.

Two short runs of trainer.py are started as child processes: one is uninterrupted, one is killed with SIGKILL in the
middle and resumed with `--ckpt_path last`. Their last checkpoints are compared tensor by tensor.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpt2kit.checkpoint import checkpoint, paths
from gpt2kit.commands import is_script
from gpt2kit.errors import MachineError, UserError

STEPS = 8


def verify_resume(args: list[str]) -> None:
    """Print the largest difference of each group of tensors; raise MachineError if any is above 0."""
    program = [str(Path(sys.argv[0]).resolve())] if is_script() else ["-m", "gpt2kit", "train"]
    command = [sys.executable, *program, *args, f"--trainer.max_steps={STEPS}"]
    command += ["--save_every=1", "--trainer.log_every_n_steps=1"]
    raw = {}
    with tempfile.TemporaryDirectory(prefix="gpt2kit-verify-") as folder:
        for name in ("uninterrupted", "resumed"):
            root = Path(folder) / name
            run_command = [*command, f"--trainer.default_root_dir={root}", "--run_name=run"]
            run = root / paths.LOGS / "run"
            if name == "resumed":
                print("killed: a few steps, then SIGKILL", file=sys.stderr)
                _run_and_kill(run_command, run)
                run_command.append("--ckpt_path=last")
            print(f"{name}: {STEPS} steps", file=sys.stderr)
            _run(run_command)
            raw[name] = checkpoint.read(paths.checkpoints(run)[0])
        differences = compare(raw["uninterrupted"], raw["resumed"])
    for group, largest in differences.items():
        print(f"{group:<28} max |difference| {largest:g}")
    if any(differences.values()):
        worst = max(differences, key=lambda group: differences[group])
        raise MachineError(
            f"--verify_resume: the resumed run differs from the uninterrupted one, most in {worst}. On a GPU, set "
            "trainer.deterministic true"
        )
    print("exact: the resumed run ended like the uninterrupted one")


def compare(raw: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Return the largest absolute difference in each group of tensors of two checkpoints."""
    left, right = _group_tensors(raw), _group_tensors(other)
    differences: dict[str, float] = {}
    for key in sorted({*left, *right}):
        difference = 0.0
        if key not in left or key not in right or left[key].shape != right[key].shape:
            difference = math.inf
        elif left[key].numel():
            difference = (left[key].double() - right[key].double()).abs().max().item()
        if math.isnan(difference):
            difference = math.inf
        differences[key[0]] = max(differences.get(key[0], 0.0), difference)
    return differences


def _group_tensors(raw: dict[str, Any]) -> dict[tuple[str, str], torch.Tensor]:
    """Return the tensors that decide how a run continues: weights by layer, optimizer state, learning rates."""
    tensors: dict[tuple[str, str], torch.Tensor] = {}
    for name, tensor in raw["state_dict"].items():
        parts = name.removeprefix("model.transformer.").split(".")
        layer = ".".join(parts[:2]) if parts[0] == "h" else parts[0]
        tensors[f"weights {layer}", name] = tensor
    for number, state in enumerate(raw["optimizer_states"]):
        for parameter, values in state["state"].items():
            for key, value in values.items():
                tensors[f"optimizer {key}", f"{number}.{parameter}"] = torch.as_tensor(value)
        tensors["learning rates", str(number)] = torch.tensor([group["lr"] for group in state["param_groups"]])
    return tensors


def _run_and_kill(command: list[str], run: Path) -> None:
    """Start a run and kill it as soon as it has saved a checkpoint in the middle."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if any(paths.step_of(path) >= STEPS // 3 for path in paths.checkpoints(run)):
            process.kill()
        time.sleep(0.01)
    saved = paths.checkpoints(run)
    if not saved or paths.step_of(saved[0]) >= STEPS:
        raise UserError(
            "--verify_resume: the run ended before it could be killed, because its steps are too short. Use a larger "
            "model or batch; this does not mean that a resume is not exact"
        )


def _run(command: list[str]) -> None:
    process = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"--verify_resume: the run failed (exit code {process.returncode}): {reason}")
